"""A row of the design space is made of text and again, and of another row by naming what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Blockwise, Sign, TopK
from qsparse.errors import SettingError, UnknownPart
from qsparse.link import Link
from qsparse.local import SGD, AdamW, Gradient
from qsparse.meeting import Async
from qsparse.memory import ErrorFeedback, Innovation, Snapshot
from qsparse.presets import asylpg, dist_ef_sgd, laq, qsparse_local_sgd, sgd
from qsparse.registry import build, names, preset_and_settings
from qsparse.run import Settings
from qsparse.schedules import Cosine
from qsparse.server import Descend
from qsparse.triggers import Drift, Every, RandomGap


@pytest.mark.parametrize("name", names("algorithm"))
def test_of_is_the_inverse_of_axes(name: str) -> None:
    for algorithm in (build(name, "algorithm"), build(name, "algorithm").closed()):
        again = Algorithm.of(algorithm.axes())
        assert again.axes() == algorithm.axes()
        # A down link that says what would be said without one is none.
        assert replace(again, down=again.answer) == replace(algorithm, down=algorithm.answer)


def test_of_some_axes() -> None:
    assert Algorithm.of({}) == Algorithm()
    assert Algorithm.of({"down": "sign"}).down == Link(Sign(), Innovation())
    assert Algorithm.of({"down": "sign", "down_memory": "stateless"}).down == Link(Sign())
    with pytest.raises(SettingError, match="no setting 'trigerr': did you mean 'trigger'"):
        Algorithm.of({"trigerr": "every"})
    with pytest.raises(SettingError, match="whole number of at least 1 steps, not two"):
        Algorithm.of({"length": "two"})
    with pytest.raises(UnknownPart, match="no trigger is named 'evry'"):
        Algorithm.of({"trigger": "evry"})


@pytest.mark.parametrize(
    ("algorithm", "settings", "wanted"),
    [
        (sgd(), {"lr": 0.1}, Algorithm(SGD(0.1))),
        (sgd(), {"H": 8}, Algorithm(trigger=Every(8))),
        (sgd(), {"nesterov": True, "momentum": 0.9}, Algorithm(SGD(None, 0.9, True))),
        (sgd(), {"local": AdamW(), "lr": 0.5, "beta1": 0.5}, Algorithm(AdamW(0.5, 0.5))),
        (sgd(), {"trigger": RandomGap(3), "H": 5}, Algorithm(trigger=RandomGap(5))),
        (sgd(), {"trigger": Drift(1.0) & Every(2), "H": 5}, Algorithm(trigger=Drift(1.0) & Every(5))),
        (sgd(), {"compressor": TopK(k=3), "ratio": 0.5}, Algorithm(up=Link(TopK(ratio=0.5)))),
        (sgd(), {"memory": ErrorFeedback()}, Algorithm(up=Link(memory=ErrorFeedback()))),
        (sgd(), {"meeting": Async(), "ahead": 3}, Algorithm(meeting=Async(3))),
        (sgd(), {"down": Sign(), "norm": 2}, Algorithm(down=Link(Sign(2), Innovation()))),
        (
            sgd(),
            {"compressor": Blockwise(QSGD(), layers=True), "size": 9, "levels": 3},
            Algorithm(up=Link(Blockwise(QSGD(3), size=9))),
        ),
        (laq(), {"lr": 0.5}, replace(laq(), server=Descend(0.5))),
        (laq(), {"whole": False, "D": 3, "bits": 2}, build("laq(whole=false, D=3, bits=2)", "algorithm")),
        (laq(), {"local": Gradient(0.5)}, replace(laq(), local=Gradient(0.5))),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_the_part_that_has_a_setting_gets_it(
    algorithm: Algorithm, settings: dict[str, Any], wanted: Algorithm
) -> None:
    assert algorithm.with_(**settings) == wanted


def test_of_two_links_the_one_that_goes_up_gets_it() -> None:
    assert dist_ef_sgd().with_(norm=2).down == dist_ef_sgd().down
    row = asylpg().with_(bits=4, mu=0.25)
    assert (row.axes()["compressor"], row.axes()["down"]) == ("lowprecision(bits=4)", "lowprecision(bits=2)")
    assert row.down is not None
    assert row.down.memory == Snapshot(0.25)


def test_the_memory_of_the_down_link_stays_where_it_is_a_rule() -> None:
    assert asylpg().with_(down=TopK(k=3)).axes()["down_memory"] == "snapshot"
    assert sgd().with_(down=TopK(k=3)).axes()["down_memory"] == "innovation"


def test_a_setting_that_no_part_has_is_refused_with_those_they_have() -> None:
    with pytest.raises(SettingError, match=r"no setting 'momemtum': did you mean 'momentum'\? it has lr, "):
        sgd().with_(momemtum=0.9)
    with pytest.raises(SettingError, match=r"no setting 'k': .*it has lr, .*compressor, memory"):
        sgd().with_(k=3)
    with pytest.raises(SettingError, match="no setting 'H'"):
        laq().with_(H=4)  # a gradient that nobody reports is lost
    with pytest.raises(SettingError, match="compressor must be a compressor, made by build"):
        sgd().with_(compressor="topk(k=3)")
    with pytest.raises(SettingError, match="momentum must lie in"):
        sgd().with_(momentum=2.0)
    with pytest.raises(SettingError, match="sgd does not take momentum='much': one has the wrong type"):
        sgd().with_(momentum="much")
    with pytest.raises(SettingError, match="a phase takes a whole number"):
        asylpg().with_(length=0)


def test_a_preset_takes_the_settings_of_its_parts_in_text() -> None:
    text = "qsparse-local-sgd(lr=0.05, momentum=0.9, k=100)"
    wanted = qsparse_local_sgd().with_(lr=0.05, momentum=0.9, k=100)
    assert build(text, "algorithm") == wanted
    assert wanted.up.compressor == TopK(k=100) >> Sign()
    assert build("sgd(memory='errorfeedback', compressor='topk(k=3) >> sign')", "algorithm") == sgd().with_(
        compressor=TopK(k=3) >> Sign(), memory=ErrorFeedback()
    )
    assert build("sgd(weight_decay=0.1, decay_on='weights')", "algorithm").local.decay_on == "weights"
    with pytest.raises(SettingError, match=r"algorithm sgd has no setting 'k': .*it has lr, momentum, "):
        build("sgd(k=3)", "algorithm")


def test_by_place_a_preset_takes_its_learning_rate_alone() -> None:
    assert build("asylpg(0.2)", "algorithm") == asylpg().with_(lr=0.2)
    assert build("sgd(cosine(0.1))", "algorithm") == sgd().with_(lr=Cosine(0.1))
    assert preset_and_settings(" topk-sgd( 0.1, k=3 ) ") == ("topk-sgd", {"lr": 0.1, "k": 3})
    with pytest.raises(SettingError, match=r"all else by name: write local-sgd\(0.1, SETTING=4\)"):
        build("local-sgd(0.1, 4)", "algorithm")
    with pytest.raises(SettingError, match="given its learning rate twice"):
        build("local-sgd(0.1, lr=0.2)", "algorithm")


def test_an_open_learning_rate_is_closed_by_a_run() -> None:
    assert sgd().local == SGD()
    assert sgd().closed() == sgd().over(5) == sgd().with_(lr=0.1)
    assert Algorithm(AdamW()).closed().local == AdamW(0.001)
    assert Settings(sgd(), steps=3).algorithm == sgd().with_(lr=0.1)
    assert sgd().with_(lr=0.5).closed() == sgd().with_(lr=0.5)
    assert build("dist-ef-sgdm", "algorithm").closed().axes()["local"].startswith("sgd(lr=0.01, momentum=0.9")

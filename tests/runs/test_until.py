"""Runs that end at the first evaluation with a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mpirun import mpi_run

import qsparse
from qsparse.errors import SettingError
from qsparse.run.config import RunConfig
from qsparse.run.target import Target
from qsparse.train import Trained

RUN: dict[str, Any] = {"data": "digits", "ranks": 3, "wire": "threads", "epochs": 8, "seed": 1}
#: Workers that wait, that are told later, that are left out, and that do not wait, with phases and without.
ALGORITHMS = [
    "qsparse-local-sgd",
    "qsparse-local-sgd(delay=3)",
    "laq(whole=false, lr=0.05)",
    "lag-ps(whole=false, lr=0.05)",
]
ALONE = ["asylpg(inner=20, lr=0.05)", "qsparse-local-sgd(meeting=asynchronous)"]


def trained(**settings: Any) -> Trained:
    return qsparse.run(RunConfig(**(RUN | settings)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_is_that_of_all_steps_up_to_its_end(algorithm: str) -> None:
    """The same lines, and none after the first with the figure; schedules are those of the whole run."""
    whole = trained(algorithm=algorithm)
    losses = [line["train_loss"] for line in whole.history]
    aim = sorted(loss for loss in losses if loss is not None)[len(losses) // 2]
    end = next(place for place, loss in enumerate(losses) if loss is not None and loss <= aim)
    assert 0 < end < len(losses) - 1
    until = trained(algorithm=algorithm, until=f"train_loss={float(aim)!r}")
    # Who aims at something tells more in its reports of progress, and what it took to get there.
    names = whole.history[0].keys() - {"seconds", "wire_bytes"}
    one, other = ([{name: line[name] for name in names} for line in each.history] for each in (until, whole))
    assert one == other[: end + 1]
    summary = until.summary
    assert (summary["until"], summary["reached"]) == (f"train_loss={aim:g}", True)
    assert summary["steps"] == whole.history[end]["step"]
    assert summary["train_loss"] == losses[end]
    assert summary["paper_bits"] == whole.history[end]["paper_bits"]
    dense = 32 * summary["parameters"] * summary["steps"] * summary["workers"]
    assert summary["dense_bits"]["up"] == dense
    assert summary["outcome"] == "trained"


@pytest.mark.parametrize("algorithm", ALONE)
@pytest.mark.parametrize("figure", ["train_loss=0.9", "test_accuracy=0.8"])
def test_workers_that_do_not_wait_are_stopped(algorithm: str, figure: str) -> None:
    """At their next reports, also within a phase of several."""
    name, _, setting = algorithm.partition("(meeting=")
    settings = {"meeting": setting.rstrip(")")} if setting else {}
    found = trained(algorithm=name, until=figure, epochs=200, ranks=4, **settings)
    aim = Target.read(figure)
    lines = [aim.reached(line) for line in found.history]
    first = lines.index(True)
    assert len(lines) - first <= 2
    assert not any(lines[:first])
    assert found.summary["reached"]
    assert found.summary["steps"] == found.history[-1]["step"] < 100 * found.history[0]["step"]


def test_a_run_that_is_over_stays_over_whatever_later_reports_make_of_the_model() -> None:
    """With an evaluation after every step, a loss may be reached and lost again before all are stopped."""
    found = trained(
        algorithm="qsparse-local-sgd", meeting="asynchronous", until="test_loss=1.9", lr=0.5, ranks=5,
        evaluations=1000, epochs=200,
    )  # fmt: skip
    aim = Target.read("test_loss=1.9")
    first = [aim.reached(line) for line in found.history].index(True)
    # Each of four workers may have one report under way, and the run has an end.
    assert len(found.history) - first <= 1 + 4 + 1
    assert found.summary["reached"]


def test_what_is_not_reached_ends_after_all_steps() -> None:
    plain, aimed = trained(), trained(until="test_loss=0.0001")
    assert plain.summary["model_sha256"] == aimed.summary["model_sha256"]
    assert len(plain.history) == len(aimed.history)
    assert aimed.summary["reached"] is False
    assert "reached" not in plain.summary


def test_a_run_that_is_over_stays_so_when_it_is_resumed(tmp_path: Path) -> None:
    """And goes on to a further aim with the bits of a run that had that from the beginning."""
    place = {"out": str(tmp_path), "checkpoint_every": 10, "ranks": 2}
    one = trained(until="train_loss=0.9", **place)
    assert one.summary["reached"]
    again = trained(until="train_loss=0.9", resume="auto", **place)
    assert again.summary["model_sha256"] == one.summary["model_sha256"]
    assert again.summary["steps"] == one.summary["steps"]
    further = trained(until="train_loss=0.4", resume="auto", **place)
    straight = trained(until="train_loss=0.4", ranks=2)
    assert further.summary["steps"] > one.summary["steps"]
    assert further.summary["model_sha256"] == straight.summary["model_sha256"]


def test_processes_end_together(tmp_path: Path) -> None:
    """Those that wait for each other with the bits of threads, and those that do not."""
    program = """
        import json, sys
        import qsparse
        from qsparse.run.config import RunConfig

        for text in sys.argv[1:]:
            summary = qsparse.run(RunConfig(**json.loads(text))).summary
            if summary:
                print(summary["reached"], summary["model_sha256"], flush=True)
    """
    settings = RUN | {"wire": "mpi", "until": "train_loss=0.9"}
    alone = settings | {"algorithm": "asylpg(inner=20, lr=0.05)", "epochs": 200}
    done = mpi_run(3, program, *map(json.dumps, (settings, alone)), timeout=100)
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first == ["True", trained(until="train_loss=0.9").summary["model_sha256"]]
    assert second[0] == "True"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss=0.3", "no figure 'loss' to aim at: there are test_accuracy, top5, test_loss, train_loss"),
        ("train_loss=low", "--until is FIGURE=VALUE, such as train_loss=0.17 or test_accuracy=0.9, not"),
        ("train_loss=nan", "train_loss can aim at a number above 0, not at nan"),
        ("test_accuracy=90", "test_accuracy can aim at a number above 0 and at most 1, not at 90"),
        ("0", "test_accuracy can aim at a number above 0 and at most 1, not at 0"),
    ],
)
def test_what_is_no_aim_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        trained(until=text, steps=1, epochs=None)
    assert said in str(caught.value)

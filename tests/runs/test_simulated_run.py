"""Runs over a simulated network: the bits of any other wire, and seconds that repeat to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import qsparse
from qsparse.run import RunConfig

SMALL = RunConfig(model="softmax", data="digits", steps=12, batch=8, evaluations=40, ranks=3)
SLOW = "simulated(rate='10mbit', latency=0.002, compute=0.125, encode=0.1, decode=0.5)"


def trained(algorithm: str, wire: str = SLOW, **options: Any) -> Any:
    return qsparse.run(replace(SMALL, algorithm=algorithm, wire=wire, **options))


@pytest.mark.parametrize(
    ("algorithm", "exchange"),
    [
        ("qsparse-local-sgd(H=3)", "auto"),
        ("dist-ef-sgd", "auto"),
        ("qsparse-local-sgd-2way(H=3)", "sharded"),
        ("qsparse-local-sgd-2way(H=3)", "tree"),
    ],
)
def test_a_run_has_the_bits_of_a_run_over_threads(algorithm: str, exchange: str) -> None:
    simulated, threads = (trained(algorithm, w, exchange=exchange).summary for w in (SLOW, "threads"))
    assert simulated["model_sha256"] == threads["model_sha256"]
    assert simulated.pop("wire") == SLOW
    for name in ("seconds", "wire_bytes_control"):  # ranks tell rank 0 their seconds, in digits
        del simulated[name], threads[name]
    assert simulated == threads


@pytest.mark.parametrize(
    "algorithm", ["qsparse-local-sgd(H=3)", "qsparse-local-sgd-async(H=3)", "asylpg(inner=2)"]
)
def test_a_run_repeats_with_its_seconds(algorithm: str) -> None:
    """Where workers do not wait, virtual time decides who comes first."""
    first, again = trained(algorithm), trained(algorithm)
    assert first == again
    assert first.summary["seconds"]["total"] > 0


def test_seconds_are_those_of_the_network() -> None:
    slow = "simulated(rate=1000000.0, latency=0.25, compute=2.0)"
    summary = trained("sgd", slow, exchange="server").summary
    assert summary["seconds"]["compute"] == pytest.approx(12 * 2.0)
    # Rank 0 takes two reports, one behind the other. Of the answers the second leaves behind the first, so
    # the reports of the next step do not meet.
    frame = summary["wire_bytes"]["up"] / 12 / 2 / 1e6
    wanted = (2.0 + 0.25 + 2 * frame) + 11 * (2.0 + 2 * 0.25 + 3 * frame)
    assert summary["seconds"]["total"] == pytest.approx(wanted, rel=1e-3)


def test_who_is_slow_takes_fewer_steps_and_is_waited_for() -> None:
    def seconds(**options: Any) -> float:
        return float(trained("sgd", "simulated(compute=1.0)", **options).summary["seconds"]["total"])

    assert seconds(straggler="2:5") == pytest.approx(5 * seconds(), rel=0.01)
    alone = trained("qsparse-local-sgd-async(H=1)", "simulated(compute=1.0)", straggler="2:5").summary
    assert alone["worker_steps"]["1"] > 3 * alone["worker_steps"]["2"]


def test_whole_shares_cost_their_batches() -> None:
    """A prelude of full gradients takes as long as an epoch of batches, for each of them."""
    config = replace(SMALL, algorithm="gd", wire="simulated(compute=1.0)", steps=3, batch=None)
    assert qsparse.run(config).summary["seconds"]["compute"] == pytest.approx(3.0)


def test_an_error_of_a_rank_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from qsparse.torch.problem import Classification

    gradient = Classification.gradient

    def broken(self: Any, x: Any, batch: Any, out: Any) -> float:
        calls.append(1)
        if len(calls) == 8:
            raise ZeroDivisionError("in a gradient")
        return gradient(self, x, batch, out)

    calls: list[int] = []
    monkeypatch.setattr(Classification, "gradient", broken)
    with pytest.raises(ZeroDivisionError, match="in a gradient"):
        trained("sgd")

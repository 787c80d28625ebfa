"""Which workers take part: some of them are drawn, and those that are left out lose nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mpirun import mpi_run

from qsparse.algorithm import Algorithm
from qsparse.cli.commands import qsparse
from qsparse.compressors import TopK
from qsparse.errors import SettingError
from qsparse.link import Link
from qsparse.local import SGD, Gradient
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.participation import Everyone, Sample
from qsparse.registry import build
from qsparse.rounds.phases import Stepped, Walk
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.server import Descend
from qsparse.triggers import Every
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

N, WORKERS, STEPS = 40, 4, 12
START = np.linspace(-1, 1, N, dtype=np.float32)
EF = Algorithm(SGD(0.1), Every(2), Link(TopK(k=5), ErrorFeedback()), participation=Sample(0.5))
LAQ = Algorithm(Gradient(), up=Link(TopK(k=5), Innovation()), server=Descend(0.1), participation=Sample(0.5))


def slope(rank: int, x: np.ndarray) -> np.ndarray:
    target = np.random.default_rng(rank).standard_normal(N).astype(np.float32)
    return x - target


def walked(algorithm: Algorithm, steps: int = STEPS) -> list[dict[str, Any]]:
    """What each rank has seen after every step."""
    exchange = natural_exchange(algorithm)
    check(algorithm, exchange, WORKERS + 1)

    def body(wire: Wire) -> dict[str, Any]:
        walk = Walk(algorithm, exchange, wire, START.copy(), Seed(11))

        def oracle(x: np.ndarray, batch: int, out: np.ndarray) -> float:
            out[...] = slope(wire.rank, x)
            return 0.0

        seen: dict[str, Any] = {"x": [], "worked": [], "kept": [], "heard": [], "wire": wire}
        for happened in walk.steps(steps, oracle, lambda t: t):
            assert isinstance(happened, Stepped)
            worker, coordinator = walk.node.worker, walk.node.coordinator
            seen["x"].append(walk.x.copy())
            seen["worked"].append(happened.loss is not None)
            if worker.sender is not None:
                seen["kept"].append(next(iter(worker.sender.state.values())).copy())
            if coordinator is not None:
                seen["heard"].append({k: np.array(v) for k, v in coordinator.receiver.state.items()})
        return seen

    return run_threads(WORKERS + 1, body, timeout=60)


def test_so_many_are_drawn_and_everybody_is_at_some_time() -> None:
    part, model = Sample(0.4), np.zeros(3, np.float32)
    state = part.init(Seed(5))
    drawn = np.array([part.invited(state, [1.0] * 10, model, t) for t in range(200)])
    assert (drawn.sum(1) == 4).all()
    assert (np.abs(drawn.mean(0) - 0.4) < 0.15).all()
    again = np.array([part.invited(part.init(Seed(5)), [1.0] * 10, model, t) for t in range(200)])
    other = np.array([part.invited(part.init(Seed(6)), [1.0] * 10, model, t) for t in range(200)])
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
    assert sum(Sample(0.01).invited({"key": 1}, [1.0] * 3, model, 1)) == 1
    for fraction in (0, -1, 1.1, float("nan"), "a"):
        with pytest.raises(SettingError, match="fraction must be more than 0 and at most 1"):
            Sample(fraction)  # type: ignore[arg-type]


def test_error_memories_of_those_who_are_left_out_stay() -> None:
    """As written down by hand: the mean is over those who take part, and the others keep what they have."""
    found = walked(EF)
    x, residual = START.astype(np.float32), np.zeros((WORKERS, N), np.float32)
    asked = [True] * WORKERS
    draws = EF.participation.init(Seed(11))
    own = np.tile(x, (WORKERS, 1))
    for t in range(1, STEPS + 1):
        for m in range(WORKERS):
            if asked[m]:
                own[m] -= np.float32(0.1) * slope(m + 1, own[m])
            assert found[m + 1]["worked"][t - 1] == asked[m]
        if t % 2:
            continue
        reports = []
        for m in range(WORKERS):
            if asked[m]:
                v = x - own[m] + residual[m]
                sent = np.zeros_like(v)
                top = np.argsort(-np.abs(v), kind="stable")[:5]
                sent[top] = v[top]
                residual[m] = v - sent
                reports.append(sent)
            np.testing.assert_allclose(found[m + 1]["kept"][t - 1], residual[m], atol=1e-6)
        x = x - np.mean(reports, axis=0, dtype=np.float64).astype(np.float32)
        asked = EF.participation.invited(draws, [1.0] * WORKERS, x, t)
        if t == STEPS:
            asked = [True] * WORKERS
        for m in range(WORKERS):
            if asked[m]:
                own[m] = x
            np.testing.assert_allclose(found[m + 1]["x"][t - 1], own[m], atol=1e-5)
    assert {id_.tobytes() for id_ in (each["x"][-1] for each in found)} == {found[0]["x"][-1].tobytes()}
    skips = [each["wire"].ledger.skips for each in found[1:]]
    assert sum(skips) == 2 * (STEPS // 2 - 1)


def test_with_innovation_silence_stands_for_what_was_said_last() -> None:
    """The coordinator knows the mean of what all workers have said, those included that are left out."""
    found = walked(LAQ)
    for t in range(STEPS):
        known = found[0]["heard"][t]["known"]
        mean = np.mean([each["kept"][t] for each in found[1:]], axis=0)
        np.testing.assert_allclose(known, mean, atol=1e-6)
    worked = np.array([each["worked"] for each in found[1:]])
    assert worked[:, 0].all()
    assert (worked[:, 1:].sum(0) == 2).all()


def test_everybody_is_the_default_and_says_nothing() -> None:
    everyone = replace(EF, participation=Everyone())
    assert "participation" not in everyone.axes()
    assert Algorithm.of(everyone.axes()) == everyone
    assert Algorithm.of(EF.axes()) == EF
    assert EF.axes()["participation"] == "sample(fraction=0.5)"


def test_a_text_of_before_has_ask_as_a_trigger() -> None:
    preset = build("lag-ps(lr=0.1)", "algorithm")
    axes = preset.axes()
    old = {name: text for name, text in axes.items() if name != "participation"}
    assert axes["trigger"] == "every"
    assert Algorithm.of(old | {"trigger": axes["participation"]}) == preset


def test_a_setting_of_a_replaced_part_is_refused_beside_participation(tmp_path: Path) -> None:
    words = [
        "train", "--quiet", "--wire", "threads", "--ranks", "3", "--steps", "2", "--out", str(tmp_path),
        "--algorithm", "qsparse-local-sgd(ratio=0.02)", "--compressor", "sign",
        "--participation", "sample(fraction=0.5)",
    ]  # fmt: skip
    done = CliRunner().invoke(qsparse, words)
    assert done.exit_code == 1
    assert "ratio=0.02 of --algorithm has no effect: --compressor replaces the part" in done.stderr


def test_the_command_samples_workers_alike_on_threads_and_under_mpi(tmp_path: Path) -> None:
    words = [
        "train", "--quiet", "--model", "softmax", "--steps", "60", "--sync-every", "2",
        "--participation", "sample(fraction=0.5)",
    ]  # fmt: skip
    on_threads = [*words, "--wire", "threads", "--ranks", "5", "--out", str(tmp_path / "threads")]
    done = CliRunner().invoke(qsparse, on_threads)
    assert done.exit_code == 0, done.output
    mpi_run(5, ["-m", "qsparse", *words, "--out", str(tmp_path / "mpi")], timeout=120)
    import json

    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("threads", "mpi"))
    assert one["model_sha256"] == other["model_sha256"]
    assert one["test_accuracy"] > 0.7
    assert one["messages"]["up"] == 4 + 29 * 2
    assert one["algorithm"]["participation"] == "sample(fraction=0.5)"

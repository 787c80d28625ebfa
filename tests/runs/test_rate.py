"""What a learning rate is the rate of, as a run says it, against how far the model moves on a slope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bowl import Bowl, N
from click.testing import CliRunner

from qsparse.algorithm import Algorithm
from qsparse.cli.commands import qsparse
from qsparse.local import SGD, Gradient
from qsparse.meeting import Async, Meeting, Sync
from qsparse.presets.double import asyfpg
from qsparse.rules import natural_exchange
from qsparse.run import Settings, run
from qsparse.run.records import Progress
from qsparse.server import Descend
from qsparse.triggers import Every
from qsparse.types import Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

RATE = 0.25
STEPS = 24


class Slope(Bowl):
    """A loss whose gradient is 1 everywhere: how far the model goes is the sum of the step sizes."""

    def gradient(self, x: Vector, batch: int | None, out: Vector) -> float:
        out[:] = 1
        return float(x.sum())


class Notes(Progress):
    """Keeps what is said before the first step."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def noted(self, text: str) -> None:
        self.texts.append(text)


def gone(algorithm: Algorithm, workers: int) -> tuple[float, list[str]]:
    """How far the model went, in learning rates, and what was said."""
    notes = Notes()

    def body(wire: Wire) -> Any:
        problem = Slope(wire.rank)
        settings = Settings(algorithm, natural_exchange(algorithm), steps=STEPS)
        run(lambda: settings, lambda _: problem, wire, watcher=notes)
        return problem.vector

    serves = not natural_exchange(algorithm).works
    model = run_threads(workers + serves, body, timeout=60)[0]
    way = np.linspace(-1, 1, N) - model
    np.testing.assert_allclose(way, way[0], rtol=1e-5)
    return float(way[0]) / RATE, notes.texts


@pytest.mark.parametrize("workers", [1, 3])
def test_per_report(workers: int) -> None:
    """A step of the run is a step of each worker, and each of their reports is a step of the model."""
    way, (note,) = gone(asyfpg(inner=1000).with_(lr=RATE), workers)
    # The prelude, which moves nothing, takes one step; each worker may have one report under way at the end.
    least = workers * (STEPS - 1)
    assert least - 1e-3 <= way <= least + workers + 1e-3
    assert note == (
        "the learning rate is per report: proxsvrg(lr=0.25) takes a whole step at each report, so "
        f"{workers} workers move the model {workers} times in one step of the run"
    )


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("algorithm", "meaning"),
    [
        (Algorithm(SGD(RATE), Every(4), meeting=Async()), "per step of a worker: sgd(lr=0.25) takes whole"),
        (
            Algorithm(Gradient(), server=Descend(RATE), meeting=Async()),
            "per step of the run: descend(lr=0.25) takes 1/",
        ),
    ],
    ids=["local steps", "gradients"],
)
def test_per_step(workers: int, algorithm: Algorithm, meaning: str) -> None:
    """Together the workers move the model as far as those that meet do."""
    way, (note,) = gone(algorithm, workers)
    gap = 4 if "worker" in meaning else 1
    assert STEPS - 1e-3 <= way <= STEPS + gap + 1e-3
    assert note.startswith(f"the learning rate is {meaning}")
    assert f"1/{workers}" in note


@pytest.mark.parametrize("meeting", [Sync(), Sync(delay=2)])
def test_nothing_is_said_of_workers_that_meet(meeting: Meeting) -> None:
    way, notes = gone(Algorithm(SGD(RATE), Every(4), meeting=meeting), 3)
    assert way == pytest.approx(STEPS)
    assert notes == []


def test_the_command_says_it_once_and_not_when_quiet(tmp_path: Path) -> None:
    asked = ["train", "--wire", "threads", "--ranks", "3", "--model", "mlp(4)", "--steps", "3"]
    asked += ["--algorithm", "acc-asyfpg", "--out"]
    noted = "note: the learning rate is per report: accelerated(lr=0.05) takes a whole step at each report"
    loud = CliRunner().invoke(qsparse, [*asked, str(tmp_path / "loud")])
    assert loud.exit_code == 0, loud.output
    assert loud.stderr.count(noted) == 1
    quiet = CliRunner().invoke(qsparse, [*asked, str(tmp_path / "quiet"), "--quiet"])
    assert quiet.exit_code == 0, quiet.output
    assert quiet.stderr == ""

"""Short runs on threads that leave checkpoints: a problem, and all compositions that remember something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsparse.algorithm import Algorithm
from qsparse.exchange import AllGather, Exchange, ParameterServer
from qsparse.meeting import Sync
from qsparse.registry import build, names
from qsparse.rules import natural_exchange
from qsparse.run import Score, Settings, run
from qsparse.run.checkpoint import Checkpoints
from qsparse.run.records import Progress
from qsparse.types import Layer, Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

N = 48


#: Ranks that give up leave behind what the others had sent them.
LEFTOVERS = pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")


class Bowl:
    """Noisy gradients of ‖x − c_r‖²/2 and statistics beside the model."""

    def __init__(self, rank: int, steps_per_epoch: int = 10) -> None:
        self.rank = rank
        self.vector: Vector = np.linspace(-1, 1, N, dtype=np.float32)
        self.gradient_vector = np.zeros_like(self.vector)
        self.buffers = np.zeros(3, np.float32)
        self.layout = (Layer("weight", 0, 30), Layer("bias", 30, 40), Layer("head", 40, N))
        self.description = "a bowl"
        self.steps_per_epoch = steps_per_epoch
        self._goal = np.roll(self.vector, 5 * rank)

    def batch(self, t: int) -> int:
        return t

    def gradient(self, x: Vector, batch: int | None, out: Vector) -> float:
        np.subtract(x, self._goal, out=out)
        if batch is not None:
            noise = np.random.default_rng((self.rank, batch)).standard_normal(N, np.float32)
            out += np.float32(0.1) * noise
            self.buffers += noise[:3] - self.buffers / 10
        return float(out @ out)

    def evaluate(self, rank: int = 0, ranks: int = 1) -> Score:
        mine = np.array_split(self.vector, ranks)[rank]
        return Score(int((mine > 0).sum()), float(mine.sum() + self.buffers.sum()), mine.size)


def preset(text: str, **axes: str) -> Algorithm:
    """An algorithm by its text, with other parts on some axes."""
    algorithm: Algorithm = build(text, "algorithm")
    parts = {axis: build(text, axis) for axis, text in axes.items() if axis in ("local", "trigger", "server")}
    for way in ("up", "down"):
        link = {"up": algorithm.up, "down": algorithm.answer}[way]
        if f"{way}_compressor" in axes:
            link = replace(link, compressor=build(axes[f"{way}_compressor"], "compressor"))
        if f"{way}_memory" in axes:
            link = replace(link, memory=build(axes[f"{way}_memory"], "memory"))
        parts[way] = link
    return replace(algorithm, **parts)


def train(
    algorithm: Algorithm,
    out: Path,
    ranks: int = 3,
    steps: int | None = 60,
    *,
    exchange: Exchange | None = None,
    every: int | None = 7,
    resume: str = "auto",
    keep: int = 3,
    watcher: Progress | None = None,
    per_epoch: int = 10,
    **settings: Any,
) -> dict[str, Any]:
    """The summary of a run on threads."""
    if "epochs" not in settings:
        settings["steps"] = steps

    def body(wire: Wire) -> dict[str, Any]:
        return run(
            lambda: Settings(algorithm, exchange or natural_exchange(algorithm), evaluations=2, **settings),
            lambda _: Bowl(wire.rank, per_epoch),
            wire,
            out=out,
            checkpoints=Checkpoints(out / "checkpoints", every, keep, resume),
            watcher=watcher,
        )

    return run_threads(ranks, body, timeout=60)[0]


def named(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def history(out: Path) -> list[dict[str, Any]]:
    """The lines of a history, without what depends on the clock on the wall."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
        if "wire_bytes" in line:
            # Greetings are said again, and checkpoints agreed upon.
            line["wire_bytes"].pop("control", None)
    return lines


def counted(summary: dict[str, Any]) -> dict[str, Any]:
    """What must be as if the run had not been ended."""
    return {key: summary[key] for key in summary.keys() - {"seconds", "resumed", "wire_bytes_control"}}


#: Compositions of everything that remembers something.
RUNS: dict[str, tuple[Algorithm, Exchange | None]] = {
    **{
        name: (build(name, "algorithm"), None)
        for name in names("algorithm")
        if isinstance(build(name, "algorithm").meeting, Sync)
    },
    "adam": (preset("qsparse-local-sgd(H=4)", local="adamw(lr=0.01)"), AllGather()),
    "both ways": (
        preset(
            "topk-sgd(lr=cosine(0.1), momentum=0.5, k=8)",
            down_compressor="topk(k=12)",
            down_memory="innovation",
        ),
        ParameterServer(root=1),
    ),
    "drift": (preset("local-sgd(lr=0.1, momentum=0.5)", trigger="every(2) & drift(0.05)"), None),
    "lazy or not": (preset("laq(lr=0.1)", trigger="lazy(D=3) | every(1)"), AllGather()),
    "gaps": (preset("local-sgd(lr=0.1)", trigger="randomgap(5)"), ParameterServer(works=False)),
    "decay": (
        preset(
            "sgd(lr=0.1)",
            local="sgd(lr=0.1, momentum=0.9, weight_decay=0.01, decoupled=true)",
            down_memory="innovation",
        ),
        None,
    ),
    "warm-up": (replace(preset("topk-sgd(lr=0.1)"), prelude=replace(preset("sgd(lr=0.1)"), length=11)), None),
    "warm-up, then skips": (
        replace(preset("local-sgd(lr=0.1)", trigger="drift(0.8)"), prelude=replace(preset("sgd"), length=11)),
        None,
    ),
    "in a circle": (
        replace(preset("topk-sgd(lr=0.1)"), prelude=replace(preset("laq(lr=0.1)"), length=5), length=4),
        None,
    ),
}


class Fault(Progress):
    """Ends a run after one of its steps."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.first = 0
        self.seen: list[int] = []

    def started(self, steps: int, after: int = 0) -> None:
        self.first = after

    def stepped(self, t: int, loss: float | None) -> None:
        self.seen.append(t)
        if t == self.step:
            raise RuntimeError("the fault")

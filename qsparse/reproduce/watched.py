"""Variance-reduced runs whose ranks are threads, seen from the coordinator: losses, bits, pulls, seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import decompress
from qsparse.ledger import ACTIVITIES, combine
from qsparse.ledger import Snapshot as LedgerSnapshot
from qsparse.memory import Snapshot
from qsparse.payload import Payload
from qsparse.report.base import mean
from qsparse.reproduce.base import Measured
from qsparse.reproduce.objectives import Objective
from qsparse.rounds.asynchronous import Answered
from qsparse.rounds.phases import Stepped, Walk
from qsparse.rules import check, natural_exchange
from qsparse.schedules import momentum_weight
from qsparse.seeds import Seed
from qsparse.types import Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

#: About so many pulls of a run are kept in the file.
POINTS = 300


class Pull(NamedTuple):
    """One quantized model: x is the coordinator's, x̃ the snapshot, Q(x) what the worker decodes.

    Attributes:
        bits: of a coordinate, b_x.
        expected: E‖Q(x) − x‖², exactly.
        realised: ‖Q(x) − x‖².
        allowed: μ‖x − x̃‖², times θₛ where accelerated.
    """

    bits: int
    expected: float
    realised: float
    allowed: float


def train(
    algorithm: Algorithm,
    objective: Objective,
    batch: int,
    epochs: int,
    seed: Seed,
    grain: int = 1,
    watch: bool = True,
) -> Measured:
    """Run an algorithm of the AsyLPG family: rank 0 coordinates, every other rank is a worker.

    An epoch is a full gradient and the steps up to the next snapshot x̃.

    Args:
        algorithm: with a prelude, and a length.
        objective: its workers are the ranks from 1 on.
        batch: examples of one worker's step.
        epochs: how many.
        seed: of what is drawn.
        grain: how often the loss is looked at in an epoch.
        watch: measure at each pull too.

    Raises:
        NotFinite: the run has diverged.
    """
    assert algorithm.prelude is not None
    assert algorithm.length is not None
    workers = len(objective.sizes)
    steps = epochs * (algorithm.length + 1)
    exchange = natural_exchange(algorithm)
    check(algorithm, exchange, workers + 1)

    def live(wire: Wire) -> _Coordinator | LedgerSnapshot:
        x = objective.start.copy()
        walk = Walk(algorithm, exchange, wire, x, seed)
        if wire.rank == 0:
            seen = _Coordinator(algorithm, workers, grain, watch)
            # A coordinator that only serves is asked for no gradient.
            for happened in walk.steps(steps, objective.oracle(0), lambda t: None):
                seen.see(happened, walk)
            seen.keep(epochs, x)
            seen.ledger = wire.ledger.snapshot()
            return seen
        batches = objective.batches(wire.rank - 1, batch)
        for _ in walk.steps(steps, objective.oracle(wire.rank - 1), lambda t: batches.batch(t - 1)):
            pass
        return wire.ledger.snapshot()

    begin = time.perf_counter()
    results = run_threads(workers + 1, live)
    seconds = time.perf_counter() - begin
    coordinator: Any = results[0]
    others: list[Any] = results[1:]
    losses = [objective.value(x) + _penalty(algorithm, x) for x in coordinator.models]
    total = combine([coordinator.ledger, *others])
    working = [other["seconds"] for other in others]
    return {
        "algorithm": algorithm.spelling(),
        "epochs": epochs,
        "curve": [(*place, loss) for place, loss in zip(coordinator.places, losses, strict=True)],
        "loss": losses[-1],
        "paper_bits": total["paper_bits"],
        "wire_bytes": total["wire_bytes"],
        "messages": total["messages"],
        "staleness": _staleness(coordinator.ledger["staleness"]),
        "pulls": _summary(coordinator.pulls, epochs),
        "seconds": {
            "total": seconds,
            "worker": {activity: mean([each[activity] for each in working]) for activity in ACTIVITIES},
            "coordinator": coordinator.ledger["seconds"],
        },
    }


class _Coordinator:
    """What the coordinator brings back: models now and then, the bits that led to each, and the pulls.

    Attributes:
        models: at the snapshots and, ``grain`` − 1 times, between them.
        places: epoch, bits up and bits down of each.
        pulls: of each epoch.
        ledger: the counters in the end.
    """

    def __init__(self, algorithm: Algorithm, workers: int, grain: int, watch: bool) -> None:
        memory = algorithm.answer.memory
        self._memory = memory if watch and isinstance(memory, Snapshot) else None
        self._workers, self._grain = workers, grain
        self._asked = (algorithm.length or 0) * workers
        self._taken = 0  # reports in this epoch
        self._up, self._down = 0, 0
        self.models: list[Vector] = []
        self.places: list[tuple[float, int, int]] = []
        self.pulls: list[list[Pull]] = []
        self.ledger: LedgerSnapshot = {}

    def keep(self, epoch: float, x: Vector) -> None:
        """A model whose loss will be asked for."""
        self.models.append(x.copy())
        self.places.append((epoch, self._up, self._down))

    def see(self, happened: Stepped | Answered, walk: Walk) -> None:
        """A full gradient was made, or a report answered."""
        if isinstance(happened, Stepped):
            self.keep(len(self.pulls), walk.x)
            self._up += 32 * walk.x.size * self._workers
            self._taken = 0
            self.pulls.append([])
            return
        self._up += happened.report.nbits
        self._down += happened.reply.nbits
        self._taken += 1
        # A step is a report. With the last one asked for it is over: the rest are told the snapshot.
        if self._taken >= self._asked:
            return
        coordinator = walk.coordinators[0]
        if self._taken * self._grain % self._asked < self._grain:
            self.keep(len(self.pulls) - 1 + self._taken / self._asked, coordinator.model)
        if self._memory is not None:
            x, snapshot = coordinator.model, coordinator.sender.state["snapshot"]
            weight = momentum_weight(len(self.pulls) - 1) if self._memory.accelerated else 1.0
            self.pulls[-1].append(_pull(happened.reply, x, self._memory.mu * weight * _square(x, snapshot)))


def _pull(reply: Payload, x: Vector, allowed: float) -> Pull:
    realised = _square(decompress(reply, np.empty_like(x)), x)
    if reply.nbits == 32 * x.size:
        return Pull(32, 0.0, realised, allowed)
    bits = (reply.nbits - 32) // x.size
    wide = x.astype(np.float64)
    step = float(np.abs(wide).max()) / (2 ** (bits - 1) - 1)
    places = wide / step if step else wide
    part = places - np.floor(places)
    return Pull(bits, step * step * float((part * (1 - part)).sum()), realised, allowed)


def _square(a: Vector, b: Vector) -> float:
    way = np.subtract(a, b, dtype=np.float64)
    return float(way @ way)


def _penalty(algorithm: Algorithm, x: Vector) -> float:
    """h(x) of the server's prox."""
    server: Any = algorithm.server
    wide = x.astype(np.float64)
    return float(server.l1 * np.abs(wide).sum() + server.l2 / 2 * (wide @ wide))


def _staleness(counts: dict[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {
        "mean": sum(int(age) * count for age, count in counts.items()) / total,
        "max": max(int(age) for age in counts),
    }


def _summary(epochs: Sequence[Sequence[Pull]], length: int) -> Measured | None:
    """How the pulls kept the condition, and some of them: epoch, b_x, ‖Q(x) − x‖², allowed."""
    pulls = [pull for epoch in epochs for pull in epoch]
    if not pulls:
        return None
    expected = [_over(pull.expected, pull.allowed) for pull in pulls]
    realised = [_over(pull.realised, pull.allowed) for pull in pulls]
    places = range(0, len(pulls), max(1, len(pulls) // POINTS))
    return {
        "number": len(pulls),
        "expected_over_allowed": max(expected),
        "realised_over_allowed": max(realised),
        "realised_beyond": sum(ratio > 1 for ratio in realised),
        "bits": mean([pull.bits for pull in pulls]),
        "bits_by_epoch": [mean([pull.bits for pull in epoch]) for epoch in epochs],
        "error_by_epoch": [mean([pull.realised for pull in epoch]) for epoch in epochs],
        "series": [
            (place * length / len(pulls), pull.bits, pull.realised, pull.allowed)
            for place in places
            for pull in [pulls[place]]
        ],
    }


def _over(value: float, allowed: float) -> float:
    if value <= 0:
        return 0.0
    return value / allowed if allowed else math.inf


@contextmanager
def one_thread_each() -> Iterator[None]:
    """One thread of the linear algebra library for each rank that is a thread."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        yield
        return
    with threadpool_limits(1):
        yield

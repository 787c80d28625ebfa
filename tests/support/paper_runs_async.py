"""Presets whose workers do not wait, run beside their transcriptions."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import paper_runs as synchronous
import transcriptions as paper
import transcriptions_async as paper_async
from paper_runs import COSINE, LAYERS, LAYOUT, NESTEROV, RUN, START, WORKERS, A, B

from qsparse.algorithm import Algorithm
from qsparse.exchange import ParameterServer
from qsparse.exchange.base import receive_one
from qsparse.kernels import random
from qsparse.payload import Payload
from qsparse.registry import build
from qsparse.rounds.asynchronous import Answered, Order
from qsparse.rounds.phases import Walk
from qsparse.rules import check
from qsparse.schedules import rate_at
from qsparse.seeds import COORDINATOR, Seed
from qsparse.wire.base import Wire

#: Of a worker: four phases with inner = 39, each after its full gradient, and four steps of a fifth.
STEPS = 165


#: The coordinator only serves.
ASIDE = ParameterServer(works=False)


def gradient(r: int, x: np.ndarray, t: int | None) -> np.ndarray:
    """As in `test_presets`; None: of all examples."""
    if t is not None:
        return synchronous.gradient(r, x, t)
    slope: np.ndarray = A[r].T @ (A[r] @ x - B[r]) / 40
    return slope


def key(r: int, t: int, path: tuple[int, ...]) -> tuple[Any, Any]:
    """Of the stream of worker r (rank r + 1), or of the coordinator."""
    if r == paper_async.MASTER:
        return random.halves(Seed(RUN, rank=COORDINATOR, step=t, use="down", path=path).key)
    return random.halves(Seed(RUN, rank=r + 1, step=t, use="up", path=path).key)


def uniforms(r: int, t: int, path: tuple[int, ...], n: int) -> np.ndarray:
    out = np.empty(n)
    random.uniforms(*key(r, t, path), 0, out)
    return out


class Case(NamedTuple):
    """A preset as text, and the settings of its transcription."""

    text: str
    settings: dict[str, Any]
    eta: str | float = 0.02

    @property
    def name(self) -> str:
        return self.text.partition("(")[0]


def _sign_top(k: int) -> Callable[..., np.ndarray]:
    return lambda v, r, t: paper.sign_top_k(v, k)


def _qsgd_top(k: int, s: int) -> Callable[..., np.ndarray]:
    return lambda v, r, t: paper.q_s_top_k(v, k, s, uniforms(r, t, (1,), k), True)


def _rand_k(k: int) -> Callable[..., np.ndarray]:
    """Which entries are drawn is another test's business."""

    def C(v: np.ndarray, r: int, t: int) -> np.ndarray:
        kept = np.empty(k, np.intp)
        random.sample(*key(r, t, ()), len(v), kept)
        out = np.zeros_like(v)
        out[kept] = paper.f32(v[kept])
        return out

    return C


CASES = [
    Case("qsparse-local-sgd-async(lr=0.05)", {"C": _sign_top(1)}, 0.05),
    Case("qsparse-local-sgd-async(lr=0.04, H=4, compressor=topk(k=9) >> qsgd(levels=7, scaled=true), "
         "ahead=1)", {"C": _qsgd_top(9, 7), "ahead": 1}, 0.04),
    Case(f"qsparse-local-sgd-async(lr={COSINE}, H=3, compressor=topk(k=9) >> sign, momentum=0.6, "
         "nesterov=true, weight_decay=0.01)", {"C": _sign_top(9), **NESTEROV}, COSINE),
    Case("qsparse-local-sgd-async(lr=0.05, H=2, compressor=randk(k=30), momentum=0.5)",
         {"C": _rand_k(30), "momentum": 0.5}, 0.05),
    Case("asylpg(lr=0.02, inner=39)", {"inner": 39}),
    Case(f"asylpg(lr={COSINE}, bits=4, mu=0.1, inner=39, l1=0.05, l2=0.1, ahead=2)",
         {"bits": 4, "mu": 0.1, "inner": 39, "l1": 0.05, "l2": 0.1, "ahead": 2}, COSINE),
    # So strict that 16 bits are too few now and then.
    Case("asylpg(lr=0.02, bits=12, mu=1e-8)", {"bits": 12, "mu": 1e-8}),
    Case("sparse-asylpg(lr=0.01, inner=39)", {"inner": 39}, 0.01),
    Case("sparse-asylpg(lr=0.01, budget=4, mu=2, inner=39, l2=0.2, ahead=0)",
         {"budget": 4, "mu": 2, "inner": 39, "l2": 0.2, "ahead": 0}, 0.01),
    Case("acc-asylpg(lr=0.02, inner=39)", {"inner": 39}),
    Case(f"acc-asylpg(lr={COSINE}, bits=6, mu=0.05, inner=39, l1=0.02)",
         {"bits": 6, "mu": 0.05, "inner": 39, "l1": 0.02}, COSINE),
    Case("asyfpg(lr=0.02, inner=39)", {"inner": 39}),
    Case(f"asyfpg(lr={COSINE}, inner=39, l1=0.05, l2=0.1, ahead=3)",
         {"inner": 39, "l1": 0.05, "l2": 0.1, "ahead": 3}, COSINE),
    Case("acc-asyfpg(lr=0.02, inner=39, l2=0.1)", {"inner": 39, "l2": 0.1}),
    Case("qsvrg(lr=0.02, inner=39)", {"inner": 39}),
    Case("qsvrg(lr=0.02, bits=5, inner=39, l1=0.1, ahead=1)",
         {"bits": 5, "inner": 39, "l1": 0.1, "ahead": 1}),
]  # fmt: skip


def made(text: str) -> Algorithm:
    algorithm: Algorithm = build(text, "algorithm")
    return algorithm.over(STEPS)


class Trained(NamedTuple):
    """What a run was.

    Attributes:
        order: (rank, its step) of each report, in the order in which they were taken.
        models: the coordinator's, before each of them, and its last one.
        answers: what `serve` yielded, with the coordinator's model then.
        final: this rank's last model.
    """

    order: list[tuple[int, int]]
    models: list[np.ndarray]
    answers: list[tuple[Answered, np.ndarray]]
    final: np.ndarray


class Drawn(Order):
    """An order that a seed fixes, in which rank 1 is seldom heard.

    How far roundings add up, and whether two values tie but for them, is another matter in each order: a
    run that is compared with a transcription is the same each time.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)

    def receive(self, wire: Wire, owing: Collection[int]) -> tuple[int, Payload]:
        ranks = sorted(owing)
        weights = np.array([0.25 if rank == 1 else 1.0 for rank in ranks])
        return receive_one(wire, int(self._rng.choice(ranks, p=weights / weights.sum())))


def trained(wire: Wire, algorithm: Algorithm, order: Order | None = None, slow: int = 0) -> Trained:
    """This rank's part in a run, all of whose random numbers are named; a slow rank rests now and then.

    Reports are taken in ``order``, and in a drawn one unless it is given.
    """
    check(algorithm, ASIDE, wire.size)
    x = START.copy()
    walk = Walk(algorithm, ASIDE, wire, x, Seed(RUN), LAYOUT, order=order or Drawn(8))
    done = Trained([], [], [], x)

    def arrived(rank: int, step: int, about: int, staleness: int) -> None:
        done.order.append((rank, step))
        done.models.append(walk.coordinators[0].model.copy())

    def oracle(x: np.ndarray, t: int | None, out: np.ndarray) -> float:
        out[...] = gradient(wire.rank - 1, x, t)
        return 0.0

    def begin(t: int) -> None:
        if wire.rank == slow and t % 4 == 0:
            time.sleep(0.002)

    wire.ledger.on_arrival = arrived
    for event in walk.steps(STEPS, oracle, lambda t: t, begin=begin):
        if isinstance(event, Answered):
            done.answers.append((event, walk.coordinators[0].model.copy()))
    done.models.append(x)
    return done


def followed(case: Case, order: list[tuple[int, int]], workers: int) -> list[np.ndarray]:
    """The models of the transcription."""
    eta = build(case.eta, "schedule").over(STEPS) if isinstance(case.eta, str) else case.eta
    models: list[np.ndarray] = paper_async.TRANSCRIPTIONS[case.name](
        START,
        gradient,
        STEPS,
        workers,
        LAYERS,
        uniforms,
        lambda t: rate_at(eta, t),
        order=[(rank - 1, step) for rank, step in order],
        **case.settings,
    )
    return models


def compare(case: Case, run: Trained, workers: int = WORKERS) -> None:
    wanted = followed(case, run.order, workers)
    assert len(run.models) == len(wanted) == len(run.order) + 1
    # Of some 500 reports, each with a scale that is rounded to 24 bits.
    for number, (model, there) in enumerate(zip(run.models, wanted, strict=True)):
        assert np.max(np.abs(model - there)) < 1e-5, f"{case.text}: apart before report {number}"
    moved = np.max(np.abs(run.models[-1] - START))
    assert moved > 0.1, "a run that stands still proves nothing"

"""Algorithms with sparse reports, and what ranks make of them in a few rounds; for threads and processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import Sign
from qsparse.exchange import Exchange, ParameterServer, TreeBroadcast
from qsparse.link import Link
from qsparse.local import SGD, Gradient
from qsparse.meeting import Async
from qsparse.memory import ErrorFeedback, Stateless
from qsparse.registry import build
from qsparse.rounds.asynchronous import Order
from qsparse.rounds.phases import Walk
from qsparse.schedules import Steps
from qsparse.seeds import Seed
from qsparse.server import Descend, Majority
from qsparse.triggers import Every, RandomGap
from qsparse.types import Layer
from qsparse.wire.base import Wire

N = 600
LAYOUT = (Layer("w", 0, 400, 2), Layer("b", 400, N, 1))
STEPS = 9


def reports(text: str) -> Link:
    """Reports in these words, with error feedback."""
    return Link(build(text, "compressor"), ErrorFeedback())


SIGNS = Link(build("topk(k=6) >> sign", "compressor"))
ALGORITHMS = {
    "topk": Algorithm(SGD(0.1, 0.9), up=reports("topk(k=6)")),
    "randk": Algorithm(SGD(0.1), up=reports("randk(k=6)")),
    "randsparse": Algorithm(SGD(0.1), up=Link(build("randsparse(budget=9.0)", "compressor"))),
    "signtopk": Algorithm(SGD(0.1), Every(2), up=reports("topk(k=6) >> sign")),
    "qtopk": Algorithm(SGD(0.1), up=reports("topk(ratio=0.02) >> qsgd(levels=7, scaled=true)")),
    "layers": Algorithm(SGD(0.1), up=reports("blockwise(topk(k=3) >> sign, layers=true)")),
    "policy": Algorithm(SGD(0.1), up=reports("w: topk(k=4) >> bfloat16; *: topk(k=2)")),
    "majority": Algorithm(
        Gradient(), up=Link(build("topk(k=6) >> sign", "compressor")), server=Majority(0.01)
    ),
    "votes": Algorithm(Gradient(0.9), up=Link(Sign(norm=None)), server=Majority(0.01)),
    "scheduled": Algorithm(
        Gradient(), up=Link(build("topk(k=6) >> sign", "compressor")), server=Descend(Steps(0.1, (4, 8)))
    ),
    "decay": Algorithm(
        SGD(0.1, weight_decay=0.01, decoupled=True, decay_on="weights"), up=reports("topk(k=6) >> sign")
    ),
    # As many workers speak of as many places, so that all of the model moves.
    "much": Algorithm(SGD(0.1), up=reports("topk(ratio=0.6)")),
    "much, in signs": Algorithm(SGD(0.1), up=reports("topk(ratio=0.6) >> sign")),
    "dense": Algorithm(SGD(0.1), up=Link(Sign(), ErrorFeedback())),
}


def dense(algorithm: Algorithm) -> Algorithm:
    """The same, answered with whole models."""
    down = Link(memory=Stateless())
    if (
        algorithm.local.claims.decoupled_decay
    ):  # which whole models do not go with: what all know must be kept somewhere
        down = Link(memory=build("innovation", "memory"))
    return replace(algorithm, down=down)


def trained(
    wire: Wire, algorithm: Algorithm, exchange: Exchange, kind: type = np.float32, order: Order | None = None
) -> bytes:
    """This rank's model after a few steps on data of its own, as bytes."""
    x = np.linspace(-1, 1, N).astype(kind)
    x[::7] = -0.0
    walk = Walk(algorithm, exchange, wire, x, Seed(3), LAYOUT, order=order)

    def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
        out[...] = x - np.random.default_rng((wire.rank, t)).normal(size=N)
        return 0.0

    for _ in walk.steps(STEPS, oracle, lambda t: t):
        pass
    return x.tobytes()


def patterns(size: int) -> list[Exchange]:
    """Where one rank answers the others."""
    serving = [ParameterServer(works=False)] if size > 1 else []
    return [ParameterServer(), TreeBroadcast(size - 1), *serving]


def waiting_for_nobody(up: str) -> Algorithm:
    """Each worker meets at steps of its own."""
    return Algorithm(SGD(0.1), RandomGap(3), up=reports(up), meeting=Async())

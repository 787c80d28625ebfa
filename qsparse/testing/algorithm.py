"""Laws of algorithms: presets by name, and compositions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.errors import NotFinite, QsparseError, RankError, SettingError
from qsparse.exchange import AllGather, Exchange, ParameterServer, TreeBroadcast
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.registry import spell
from qsparse.rounds.asynchronous import Answered, Order, leave, serve
from qsparse.rounds.node import Node, Pace
from qsparse.rounds.phases import Walk
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.testing.base import HUGE, hold, law, layout
from qsparse.types import Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

_WORKERS: Final = 3
_STEPS: Final = 6
_TIMEOUT: Final = 60.0


class Row(NamedTuple):
    """An algorithm and, if it came of one, its preset."""

    algorithm: Algorithm
    preset: Callable[..., Algorithm] | None = None
    text: str = ""


def natural(algorithm: Algorithm) -> tuple[Exchange, int, list[int]]:
    """The exchange that an algorithm is run over here, the ranks, and which of them work."""
    exchange = natural_exchange(algorithm)
    size = _WORKERS if exchange.workers(1) else _WORKERS + 1
    return exchange, size, exchange.workers(size)


def _together(size: int, body: Callable[[Wire], Any]) -> list[Any]:
    def quiet(wire: Wire) -> Any:
        # What leaves the range of float32 is refused a moment later.
        with np.errstate(over="ignore", invalid="ignore"):
            return body(wire)

    with warnings.catch_warnings():
        # A rank that failed reads no more, not even that the others were told.
        warnings.simplefilter("ignore", RuntimeWarning)
        return run_threads(size, quiet, timeout=_TIMEOUT)


def _meet(algorithm: Algorithm, reports: list[Vector], start: Vector) -> list[Vector | QsparseError]:
    """One meeting at which the workers say these reports; each rank's model, or what it raised."""
    exchange, size, workers = natural(algorithm)
    check(algorithm, exchange, size)

    def body(wire: Wire) -> Vector | QsparseError:
        node = Node(algorithm, exchange, wire, start, Seed(1), layout(start.size), Ledger())
        try:
            if algorithm.meeting.claims.waits:
                model = node.meet(reports[workers.index(wire.rank)] if node.works else start, 1, last=True)
                return start if model is None else model.copy()
            if (coordinator := node.coordinator) is not None:
                for _ in serve(
                    [coordinator], algorithm.meeting.claims.ahead, wire, workers, 1, Pace(), Order()
                ):
                    pass
                return coordinator.leave().astype(np.float32)
            node.meet(reports[workers.index(wire.rank)], 1)
            while not node.stopped:
                node.meet(np.zeros_like(start), 1)
            (final,) = leave(wire, 0, [node])
            return final.copy()
        except QsparseError as error:
            exchange.notify(wire, error, 1)
            return error

    return _together(size, body)


def _fitted(algorithm: Algorithm, n: int) -> Algorithm | None:
    """For a run of so many steps and a model of n parameters, if its settings fit one."""
    algorithm = algorithm.over(_STEPS)
    up, down = (Link(link.compressor.limited(n), link.memory) for link in (algorithm.up, algorithm.answer))
    try:
        for link in (up, down):
            link.compressor.bind(layout(n)).check(n)
    except SettingError:
        return None
    return replace(algorithm, up=up, down=down)


def one_round(algorithm: Algorithm, x: Vector) -> bool:
    """Three workers report a vector: all get one finite model, or all stop for the one that cannot."""
    fitted = _fitted(algorithm, x.size)
    if fitted is None:
        return False
    start = np.linspace(-1, 1, x.size).astype(np.float32)
    reports = [x, (x * np.float32(-0.5)).astype(np.float32), np.roll(x, 1)]
    got = _meet(fitted, reports, start)
    raised = [one for one in got if isinstance(one, QsparseError)]
    if raised:
        largest = float(np.max(np.abs(x), initial=0))
        hold(largest > HUGE, f"refused reports of moderate values: {raised[0]}")
        said = all(isinstance(error, NotFinite | RankError) for error in raised)
        hold(said and len(raised) == len(got), f"some ranks went on, or failed otherwise: {got}")
        hold(any(isinstance(error, NotFinite) for error in raised), f"no rank says what is wrong: {got}")
        return True
    models = [one for one in got if isinstance(one, np.ndarray)]
    hold(bool(np.all(np.isfinite(models[0]))), "the new model is not finite")
    alike = all(model.tobytes() == models[0].tobytes() for model in models)
    hold(alike, "after one round the ranks have different models")
    return True


@law("round", "algorithm")
def _round(row: Row, name: str, x: Vector) -> bool:
    """A round of a hostile vector gives all ranks one finite model, or none of them goes on."""
    return one_round(row.algorithm, x)


@law("refusal", "algorithm")
def _refusal(row: Row, name: str, x: Vector) -> bool:
    """NaN or infinity at one worker: NotFinite there, RankError with its rank at all others."""
    if x.dtype != np.float32 or x.ndim != 1 or np.all(np.isfinite(x)):
        return False
    fitted = _fitted(row.algorithm, x.size)
    if fitted is None:
        return False
    good = np.linspace(-1, 1, x.size).astype(np.float32)
    _, size, workers = natural(fitted)
    for poisoned in workers:
        got = _meet(fitted, [x if rank == poisoned else good for rank in workers], good)
        for rank, error in enumerate(got):
            if rank == poisoned:
                hold(isinstance(error, NotFinite), f"rank {rank}, which was to send it, came to {error!r}")
                hold(f"rank {rank}, step 1" in str(error), f"the error names neither rank nor step: {error}")
            else:
                told = isinstance(error, RankError) and (error.rank, error.step) == (poisoned, 1)
                hold(told, f"rank {rank} of {size} came to {error!r}, not to a RankError of rank {poisoned}")
    return True


def _told(algorithm: Algorithm) -> Algorithm:
    """With the down links that it has unless others are given."""
    prelude = None if algorithm.prelude is None else _told(algorithm.prelude)
    return replace(algorithm, down=algorithm.answer, prelude=prelude)


@law("axes", "algorithm", once=True)
def _axes(row: Row, name: str, x: Vector) -> bool:
    """The choice on each axis, as text, makes the same algorithm again."""
    algorithm = row.algorithm
    again = Algorithm.of(algorithm.axes())
    hold(_told(again) == _told(algorithm), f"its axes make {again}, not {algorithm}")
    hold(again.spelling() == algorithm.spelling(), "made again of its axes it is spelled otherwise")
    return True


@law("composition", "algorithm", once=True)
def _composition(row: Row, name: str, x: Vector) -> bool:
    """What it is composed of may be composed, and a run gives it a length once."""
    exchange, size, _ = natural(row.algorithm)
    check(row.algorithm, exchange, size)
    lasting = row.algorithm.over(_STEPS)
    check(lasting, exchange, size)
    hold(lasting.over(_STEPS) == lasting == lasting.over(_STEPS + 1), "over gives another length each time")
    return True


@law("training", "algorithm", once=True)
def _training(row: Row, name: str, x: Vector) -> bool:
    """Some steps towards a point of each worker's own: one model everywhere, each time, over any exchange."""
    fitted = _fitted(row.algorithm, 24)
    if fitted is None:
        return False
    start = np.linspace(-1, 1, 24).astype(np.float32)
    natural_one, size, _ = natural(fitted)

    def body(wire: Wire, exchange: Exchange) -> bytes:
        own = np.roll(start, wire.rank)

        def oracle(x: Vector, batch: Any, out: Vector) -> float:
            np.subtract(x, own, out=out)
            return 0.5 * float(out @ out)

        mine = start.copy()
        walk = Walk(fitted, exchange, wire, mine, Seed(1), layout(24))
        for happened in walk.steps(_STEPS, oracle, lambda t: t):
            if isinstance(happened, Answered) or not walk.node.works:
                continue
            if happened.loss is None:
                hold(
                    fitted.participation.claims.chooses and happened.t > 1, "a worker that works has no loss"
                )
            else:
                hold(np.isfinite(happened.loss), f"the loss is {happened.loss}")
        return mine.tobytes()

    everywhere = [natural_one]
    if size == _WORKERS:
        everywhere += [ParameterServer(), TreeBroadcast(), AllGather()]
    models = set()
    for exchange in everywhere:
        ranks = set(_together(size, partial(body, exchange=exchange)))
        hold(len(ranks) == 1, f"after {_STEPS} steps over {spell(exchange)} the ranks have different models")
        models |= ranks
        hold(len(models) == 1, f"the same run over {spell(exchange)} gave another model")
    return True

"""What a run will cost, before anything runs: one line for each exchange and choice of compressors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from qsparse.algorithm import Algorithm
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import Exchange
from qsparse.memory import Stateless
from qsparse.planning.choice import candidates, exchange_for
from qsparse.planning.costs import Estimate, Links, Speeds, dense_seconds, estimate, in_parts, messages
from qsparse.planning.memory import Held, held
from qsparse.registry import build, spell
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.types import Layout

#: What is compared unless asked otherwise, beside the algorithm's own compressors and dense messages: the
#: compressor of both ways.
_USUAL: Final = ("topk(ratio=0.01) >> sign", "blockwise(sign, size=4096)")
#: Models that are told exactly.
EXACT: Final = "exact"
#: Steps over which the gaps between meetings are counted.
_STEPS: Final = 1000

#: Tells an algorithm's speeds.
Timed = Callable[[Algorithm], Speeds]


class Line(NamedTuple):
    """What a synchronization costs over an exchange with some compressors.

    Attributes:
        exchange, compressor, down: as spelled; ``down`` is ``exact`` where models are told as float32.
        estimate: bytes and seconds.
        speeds: by which the seconds were told.
        held: vectors of n float32 at either end.
        worker, coordinator: bytes in memory at either end on a rank, messages of a round included; where
            ranks coordinate a stretch each, of that stretch.
        gain: how many times as long a dense Allreduce takes.
        rate: steps per second of each worker; None where it is not said how long a step takes.
    """

    exchange: str
    compressor: str
    down: str
    estimate: Estimate
    speeds: Speeds
    held: Held
    worker: float
    coordinator: float
    gain: float
    rate: float | None


class Plan(NamedTuple):
    """What a run of some number of ranks costs.

    Attributes:
        ranks: how many.
        gap: local steps between two synchronizations, on average.
        dense: seconds of a dense Allreduce, which comes after every step.
        dense_rate: its steps per second; None as of `Line.rate`.
        auto: the exchange that a run with the first choice of compressors takes, unless it is told one.
        lines: the fastest first.
    """

    ranks: int
    gap: float
    dense: float
    dense_rate: float | None
    auto: str
    lines: list[Line]

    @property
    def compress(self) -> bool:
        """Whether some line is faster than a dense Allreduce."""
        return bool(self.lines) and self.lines[0].estimate.seconds < self.dense


def choices(
    algorithm: Algorithm, ranks: int, compressors: Sequence[str] = (), downs: Sequence[str] = ()
) -> list[Algorithm]:
    """The algorithm with each choice of compressors.

    Args:
        algorithm: the parts.
        ranks: how many there are.
        compressors: up; the algorithm's own unless given.
        downs: down, ``exact`` for models as float32; the algorithm's own unless given. Without both, a few
            usual ones are taken that the algorithm may be combined with.

    Raises:
        CompositionError, SettingError: a choice that was asked for may not be composed.
    """
    if compressors or downs:
        found = [_with(algorithm, up, down) for up in compressors or (None,) for down in downs or (None,)]
        for each in found:
            check(each, natural_exchange(each), ranks)
    else:
        check(algorithm, natural_exchange(algorithm), ranks)
        found = [algorithm]
        dense = algorithm.with_(compressor=build("float32", "compressor"))
        if dense.up.memory.claims.keeps_error:
            dense = dense.with_(memory=Stateless())
        others = [_with(algorithm, each, each) for each in _USUAL]
        for each in (*others, replace(dense, down=None)):
            try:
                check(each, natural_exchange(each), ranks)
            except (CompositionError, SettingError):
                continue
            found.append(each)
    return list({(spell(each.up.compressor), spell(each.answer)): each for each in found}.values())


def _with(algorithm: Algorithm, up: str | None, down: str | None) -> Algorithm:
    made = algorithm
    if up is not None:
        made = made.with_(compressor=build(up, "compressor"))
    if down == EXACT:
        return replace(made, down=None)
    return made if down is None else made.with_(down=build(down, "compressor"))


def gap(algorithm: Algorithm, workers: int) -> float:
    """Local steps between two synchronizations, on average, as far as that is known before a run.

    Args:
        algorithm: its trigger is asked; what is due may be skipped later, which nobody knows yet.
        workers: how many there are.
    """
    bound = algorithm.over(_STEPS).among(workers)
    trigger = bound.trigger.bind(bound.server.claims.rate)
    state = trigger.init(Seed(0, use="trigger"))
    due = sum(trigger.due(state, t) for t in range(1, _STEPS + 1))
    return _STEPS / max(due, 1)


def plan(
    chosen: Sequence[Algorithm],
    n: int,
    ranks: int,
    links: Links = Links(),
    timed: Timed = lambda algorithm: Speeds(),
    *,
    compute: float | None = None,
    layout: Layout = (),
    exchanges: Sequence[str] = (),
) -> Plan:
    """What a run costs with each choice of compressors over each exchange.

    Args:
        chosen: the choices, as `choices` makes them.
        n: the number of coordinates.
        ranks: how many there are.
        links: of the ranks.
        timed: tells the speeds of a choice.
        compute: seconds of a local step; None: not known.
        layout: the model's layers.
        exchanges: those to look at; all that a choice may run over unless given.

    Raises:
        CompositionError, SettingError: an exchange that was asked for does not go with a choice.
    """
    dense = dense_seconds(n, ranks, links)
    lines = []
    for algorithm in chosen:
        sent, speeds = messages(algorithm, n, ranks, layout), timed(algorithm)
        every = gap(algorithm, ranks)
        for exchange in _exchanges(algorithm, ranks, exchanges):
            parts = in_parts(sent, algorithm, exchange, n, ranks)
            told = estimate(exchange, parts, n, ranks, links, _spared(speeds, algorithm, exchange))
            holds = held(algorithm, exchange, ranks)
            share = 1 / ranks if exchange.claims.divides else 1.0
            rate = None if compute is None else _rate(algorithm, every, compute, told.seconds)
            exact = algorithm.answer.exact
            lines.append(
                Line(
                    spell(exchange),
                    spell(algorithm.up.compressor),
                    EXACT if exact else spell(algorithm.answer.compressor),
                    told,
                    speeds,
                    holds,
                    4 * n * holds.worker + parts.up + parts.down,
                    4 * n * holds.coordinator * share + told.cost.merges * parts.up + parts.down * share,
                    dense / told.seconds if told.seconds else 1.0,
                    rate,
                )
            )
    lines.sort(key=lambda line: line.estimate.seconds)
    dense_rate = None if compute is None else 1 / (compute + dense) if compute + dense else None
    auto = spell(exchange_for(chosen[0], n, ranks, layout, links))
    return Plan(ranks, gap(chosen[0], ranks), dense, dense_rate, auto, lines)


def _spared(speeds: Speeds, algorithm: Algorithm, exchange: Exchange) -> Speeds:
    """Where no answer travels and an exact one would be the model, none is made, and none taken in."""
    exact = algorithm.answer.exact
    return replace(speeds, answer=0.0, hear=0.0) if exact and not exchange.claims.answers else speeds


def _rate(algorithm: Algorithm, every: float, compute: float, seconds: float) -> float | None:
    """Local steps per second; those between a report and its answer go on while messages travel."""
    meanwhile = min(algorithm.meeting.claims.delay, every) * compute
    whole = every * compute + max(0.0, seconds - meanwhile)
    return every / whole if whole else None


def _exchanges(algorithm: Algorithm, ranks: int, wanted: Sequence[str]) -> Iterator[Exchange]:
    if not wanted:
        yield from candidates(algorithm, ranks)
    for text in wanted:
        exchange: Exchange = build(text, "exchange")
        check(algorithm, exchange, ranks)
        yield exchange

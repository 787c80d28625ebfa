"""What a synchronization costs before there is one: bytes, seconds, and the exchange that takes the fewest.

Everything here is a function of the settings, so all ranks come to the same; what a machine needs to encode
and decode can be given, and has figures of an ordinary core unless it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import Compressor, unpack
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import AllGather, Exchange, ParameterServer, Sharded
from qsparse.exchange.base import Cost
from qsparse.payload import HEADER_BYTES
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.types import Layout

#: Messages of longer vectors are told from one of this length.
_SAMPLE: Final = 1 << 16
#: Another exchange takes the place of the algorithm's own where it saves this part of a round.
_PART: Final = 0.2
#: And at least so many seconds.
_SECONDS: Final = 5e-3
#: Where its answers are rounded in another way, which makes another model.
_OTHER_MODEL: Final = 5e-2


@dataclass(frozen=True)
class Links:
    """The link of each rank, the same both ways.

    Args:
        rate: bytes per second.
        latency: seconds from sending the first byte to its arrival.
        message: seconds of a rank for each message, whatever its length.
    """

    rate: float = 125e6
    latency: float = 5e-5
    message: float = 2e-5


@dataclass(frozen=True)
class Speeds:
    """What a core does with vectors, in seconds for each of their entries.

    Args:
        encode: to compress a report.
        answer: to compress an answer.
        decode: to add up a payload, for each value that it spells.
    """

    encode: float = 4e-9
    answer: float = 4e-9
    decode: float = 2e-9


class Messages(NamedTuple):
    """The messages of a round.

    Attributes:
        up: bytes of a report, header included.
        down: bytes of an answer.
        up_values: how many values a report spells.
        down_values: how many an answer spells.
    """

    up: float
    down: float
    up_values: float
    down_values: float


class Estimate(NamedTuple):
    """What a round costs over an exchange.

    Attributes:
        exchange: the exchange.
        cost: its bytes and messages.
        seconds: from the reports to the models.
    """

    exchange: Exchange
    cost: Cost
    seconds: float


def messages(algorithm: Algorithm, n: int, workers: int, layout: Layout = ()) -> Messages:
    """About how long the messages of a round are, told from noise.

    Args:
        algorithm: the parts.
        n: the number of coordinates.
        workers: how many report.
        layout: the model's layers, for compressors that go by them.
    """
    up, up_values = _length(algorithm.up.compressor, n, layout)
    link = algorithm.answer
    if not link.memory.claims.exact:
        down, down_values = _length(link.compressor, n, layout)
        return Messages(up, down, up_values, down_values)
    # What has changed: the coordinates of which somebody has spoken, with 32 bits and a position each.
    moved = n * -math.expm1(workers * math.log1p(-min(up_values / max(n, 1), 1 - 1e-12)))
    down = HEADER_BYTES + min(4 * moved + _positions(moved, n), 4 * n)
    if algorithm.replays:
        down = min(down, HEADER_BYTES + workers * (up - HEADER_BYTES + 4))
    return Messages(up, down, up_values, moved)


def _length(part: Compressor, n: int, layout: Layout) -> tuple[float, float]:
    """The bytes of a message of n coordinates, and the values that it spells."""
    whole = part.bind(layout) if layout else part
    bound, size = whole, n
    # A compressor by layers has messages of the model's length only.
    if n > 2 * _SAMPLE and _fits(part, _SAMPLE):
        bound, size = part, _SAMPLE
    noise = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    payload = bound.compress(noise, Seed(0, use="up"))
    spelled = sum(piece.values.size for piece in unpack(payload, np.float32, size))
    body, values = len(payload.body), float(spelled)
    if size < n:
        # Two lengths tell what grows with the vector from a fixed number of values, of which positions grow.
        half = bound.compress(noise[: size // 2], Seed(0, use="up"))
        less = sum(piece.values.size for piece in unpack(half, np.float32, size // 2))
        steps = (n - size) / (size - size // 2)
        grown = (body - len(half.body)) * steps if spelled > less else spelled * math.log2(n / size) / 8
        body, values = round(body + grown), values + (spelled - less) * steps
    return HEADER_BYTES + body, values


def _fits(part: Compressor, n: int) -> bool:
    try:
        part.check(n)
        part.claims.bits(n)
    except (CompositionError, SettingError):
        return False
    return True


def _positions(k: float, n: int) -> float:
    """About the bytes of the positions of k among n: their entropy."""
    p = k / n if n else 0.0
    if not 0 < p < 1:
        return 0.0
    return -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8


def estimate(
    exchange: Exchange, sent: Messages, n: int, size: int, links: Links, speeds: Speeds = Speeds()
) -> Estimate:
    """What a round costs over an exchange.

    Args:
        exchange: the exchange.
        sent: its messages.
        n: the number of coordinates.
        size: the number of ranks.
        links: of the ranks.
        speeds: of their cores.
    """
    cost = exchange.cost(sent.up, sent.down, size)
    moving = cost.serial / links.rate + cost.hops * links.latency + cost.messages * links.message
    heard = sent.down_values if exchange.claims.answers else 0.0
    computing = (
        n * (speeds.encode + cost.answers * speeds.answer)
        + (cost.merges * sent.up_values + heard) * speeds.decode
    )
    return Estimate(exchange, cost, moving + computing)


def candidates(algorithm: Algorithm, size: int) -> Iterator[Exchange]:
    """The exchanges over which an algorithm may run, its own first."""
    own = natural_exchange(algorithm)
    yield own
    if own != ParameterServer():
        return  # it needs a coordinator that only serves
    for exchange in (AllGather(), Sharded()):
        try:
            for phase in filter(None, (algorithm, algorithm.prelude)):
                check(replace(phase, prelude=None, length=None), exchange, size)
        except (CompositionError, SettingError):
            continue
        yield exchange


def best(estimates: Iterable[Estimate], lossless: bool) -> Estimate:
    """The first, unless another one is faster by more than what is hardly seen.

    Args:
        estimates: of the candidates, the algorithm's own exchange first.
        lossless: answers are exact, so that the model is the same over all of them.
    """
    own, *others = estimates

    def saves(each: Estimate) -> bool:
        least = _OTHER_MODEL if each.exchange.claims.divides and not lossless else _SECONDS
        return own.seconds - each.seconds >= max(least, _PART * own.seconds)

    return min(filter(saves, others), key=lambda each: each.seconds, default=own)


def exchange_for(
    algorithm: Algorithm, n: int, size: int, layout: Layout = (), links: Links = Links()
) -> Exchange:
    """The exchange over which a round of this algorithm is fastest.

    That of the algorithm, a parameter server, stays unless another one saves a fifth and some milliseconds.

    Args:
        algorithm: the parts.
        n: the number of coordinates.
        size: the number of ranks.
        layout: the model's layers.
        links: of the ranks.

    >>> from qsparse.registry import build
    >>> row = build("qsparse-local-sgd", "algorithm")
    >>> [exchange_for(row, n, 4) for n in (8_000, 4_000_000)]
    [ParameterServer(root=0, works=True), AllGather()]
    """
    if size < 2:
        return natural_exchange(algorithm)
    choice = list(candidates(algorithm, size))
    if len(choice) == 1:
        return choice[0]
    sent = messages(algorithm, n, size, layout)
    found = (estimate(each, sent, n, size, links) for each in choice)
    return best(found, algorithm.answer.compressor.claims.lossless).exchange

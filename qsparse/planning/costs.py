"""What a synchronization costs before there is one: its bytes and its seconds.

Everything here is a function of the settings, so all ranks come to the same; what a machine needs to encode
and decode can be given, and has figures of an ordinary core unless it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import Compressor, unpack
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import Exchange
from qsparse.exchange.base import Cost
from qsparse.payload import HEADER_BYTES
from qsparse.seeds import Seed
from qsparse.types import Layer, Layout, Vector

#: Messages of longer vectors are told from one of this length.
_SAMPLE: Final = 1 << 16
#: Bytes before a report that is handed on: its codec and its length.
_REPORT: Final = 3
#: About the bytes before each part of a report that is handed on in parts; they stand once in a whole one.
_PIECE: Final = 8


@dataclass(frozen=True)
class Links:
    """The link of each rank, the same both ways.

    Args:
        rate: bytes per second.
        latency: seconds from sending the first byte to its arrival.
        message: seconds of a rank for each message, whatever its length. The link carries one message while
            the rank is busy with the next, so a round takes the longer of the two, and not their sum.
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
        absorb: to take the server rule's step.
        hear: to take in an answer; None: what adding up its values takes. Given, it counts also where every
            rank makes the answer for itself.
    """

    encode: float = 4e-9
    answer: float = 4e-9
    decode: float = 2e-9
    absorb: float = 0.0
    hear: float | None = None


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
        moving: seconds in which messages travel.
        computing: seconds in which ranks encode and decode, one after another.
    """

    exchange: Exchange
    cost: Cost
    moving: float
    computing: float

    @property
    def seconds(self) -> float:
        """From the reports to the models."""
        return self.moving + self.computing


def messages(
    algorithm: Algorithm, n: int, workers: int, layout: Layout = (), sample: Vector | None = None
) -> Messages:
    """About how long the messages of a round are, told from noise.

    Args:
        algorithm: the parts.
        n: the number of coordinates.
        workers: how many report.
        layout: the model's layers, for compressors that go by them.
        sample: what a worker reports, (n,), float32, in place of noise.
    """
    up, up_values = _length(algorithm.up.compressor, n, layout, sample)
    link = algorithm.answer
    if not link.memory.claims.exact:
        down, down_values = _length(link.compressor, n, layout)
        return Messages(up, down, up_values, down_values)
    # What has changed: the coordinates of which somebody has spoken, with 32 bits and a position each.
    moved = n * -math.expm1(workers * math.log1p(-min(up_values / max(n, 1), 1 - 1e-12)))
    sent = Messages(up, 0, up_values, moved)
    return sent._replace(down=_exact(sent, algorithm, n, workers, 1))


def in_parts(sent: Messages, algorithm: Algorithm, exchange: Exchange, n: int, size: int) -> Messages:
    """The messages of a round over this exchange: its coordinators answer about a stretch of the vector each.

    Answers that hand on the reports of all hand on a part of each, with a beginning of its own.

    Args:
        sent: the messages of a round with one coordinator, as `messages` tells them.
        algorithm: the parts.
        exchange: it says how the vector is divided.
        n: the number of coordinates.
        size: the number of ranks.
    """
    if not (exchange.claims.divides and algorithm.replays):
        return sent
    parts = len(exchange.stretches(n, size))
    return sent._replace(down=_exact(sent, algorithm, n, len(exchange.workers(size)), parts))


def _exact(sent: Messages, algorithm: Algorithm, n: int, workers: int, parts: int) -> float:
    """The bytes of exact answers about so many stretches, together, with one header."""
    moved, body = sent.down_values, sent.up - HEADER_BYTES
    changes = min(4 * moved + _positions(moved, n), 4 * n)
    if algorithm.hands_on:
        changes = min(changes, workers * (body + (parts - 1) * _PIECE + parts * _REPORT))
    if algorithm.votes:
        # An odd number of raw signs has no ties; else five values share a byte.
        tied = workers % 2 == 0 or algorithm.up.compressor.claims.bits(n) != n
        changes = min(changes, n / (5 if tied else 8) + parts * (_PIECE + _REPORT))
    return HEADER_BYTES + changes


def shrunk(layout: Layout, size: int) -> Layout:
    """The layout of a model of so many coordinates with layers in the same proportions; the smallest may go.

    >>> from qsparse.types import Layer
    >>> shrunk((Layer("weight", 0, 600, 2), Layer("bias", 600, 603, 1)), 100)
    (Layer(name='weight', start=0, stop=100, dims=2),)
    """
    whole = layout[-1].stop if layout else 0
    edges = (
        layer._replace(start=round(layer.start * size / whole), stop=round(layer.stop * size / whole))
        for layer in layout
    )
    return tuple(layer for layer in edges if layer.stop > layer.start)


def goes_by_layers(part: Compressor) -> bool:
    """Whether messages depend on where the layers are."""
    try:
        return part.bind((Layer("", 0, 1),)) != part
    except CompositionError:  # there is no rule for a layer of this name
        return True


def _length(part: Compressor, n: int, layout: Layout, sample: Vector | None = None) -> tuple[float, float]:
    """The bytes of a message of n coordinates, and the values that it spells."""

    def at(size: int) -> Compressor:
        return part.bind(layout if size == n else shrunk(layout, size)) if layout else part

    size = n
    short = sample is None and n > 2 * _SAMPLE
    if short and _fits(at(_SAMPLE), _SAMPLE) and _fits(at(_SAMPLE // 2), _SAMPLE // 2):
        size = _SAMPLE
    noise = np.random.default_rng(0).standard_normal(size).astype(np.float32) if sample is None else sample
    payload = at(size).compress(noise, Seed(0, use="up"))
    spelled = sum(piece.values.size for piece in unpack(payload, np.float32, size))
    body, values = len(payload.body), float(spelled)
    if size < n:
        # Two lengths tell what grows with the vector from a fixed number of values, of which positions grow.
        half = at(size // 2).compress(noise[: size // 2], Seed(0, use="up"))
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
    moving = max(cost.serial / links.rate, cost.messages * links.message) + cost.hops * links.latency
    answers = cost.answers
    if speeds.hear is not None:
        heard = n * speeds.hear
        answers = answers if exchange.claims.answers else 1
    else:
        heard = (sent.down_values if exchange.claims.answers else 0.0) * speeds.decode
    step = 1 / size if exchange.claims.divides else 1
    encoded = 2 if exchange.claims.recompresses else 1
    computing = (
        n * (encoded * speeds.encode + answers * speeds.answer + step * speeds.absorb)
        + cost.merges * sent.up_values * speeds.decode
        + heard
    )
    return Estimate(exchange, cost, moving, computing)


def dense_seconds(n: int, size: int, links: Links) -> float:
    """The seconds of a dense Allreduce round a ring: 2(R − 1) hops, each with an R-th of float32's 4n bytes.

    What adding up takes is left out, and so is the rank's own time for a message, in its favour.

    Args:
        n: the number of coordinates.
        size: R, the number of ranks.
        links: of the ranks.
    """
    hops = 2 * (size - 1)
    return hops / size * 4 * n / links.rate + hops * links.latency

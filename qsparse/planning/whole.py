"""What a round carries both ways, as a compressor is chosen by it."""

from __future__ import annotations

import math
from typing import NamedTuple

from qsparse.algorithm import Algorithm
from qsparse.planning.costs import messages
from qsparse.rules import natural_exchange
from qsparse.types import Vector


class Whole(NamedTuple):
    """The messages of a round, and what the busiest link carries of them.

    Attributes:
        bits_up, bits_down: paper bits of a report, and of an answer; None where they depend on the vector.
        up, down: their bytes, headers included.
        link: the bytes that cross the busiest link: all reports and all answers, at the coordinator.
    """

    bits_up: float | None
    bits_down: float | None
    up: float
    down: float
    link: float

    @property
    def bits(self) -> float | None:
        """Paper bits of a report and its answer together."""
        return None if self.bits_up is None or self.bits_down is None else self.bits_up + self.bits_down


def whole(algorithm: Algorithm, n: int, ranks: int, sample: Vector | None = None) -> Whole:
    """What a round of an algorithm carries over a parameter server, its own exchange.

    Args:
        algorithm: the parts.
        n: the number of coordinates.
        ranks: how many there are.
        sample: what a worker reports, (n,), float32; noise unless given.

    >>> from qsparse.registry import build
    >>> sparse = whole(build("qsparse-local-sgd(compressor=topk(k=40) >> sign)", "algorithm"), 7850, 4)
    >>> sparse.bits_up, sparse.bits_down, round(sparse.link / (sparse.up + sparse.down))
    (592, 2368, 3)
    """
    workers = len(natural_exchange(algorithm).workers(ranks))
    sent = messages(algorithm, n, workers, sample=sample)
    up = algorithm.up.compressor.claims.bits(n)
    down = _answer_bits(algorithm, n, workers, up, sent.down_values)
    # What a coordinator that works says to itself crosses no link.
    return Whole(up, down, sent.up, sent.down, (ranks - 1) * (sent.up + sent.down))


def _answer_bits(
    algorithm: Algorithm, n: int, workers: int, report: float | None, moved: float
) -> float | None:
    """Paper bits of an answer, as docs/bits.md counts them."""
    link = algorithm.answer
    if not link.memory.claims.exact:
        return link.compressor.claims.bits(n)
    moved = math.ceil(moved)
    bits = 32 * moved + min(moved * max(n - 1, 0).bit_length(), n) if moved < n else 32 * n
    if algorithm.hands_on and report is not None:
        return min(bits, workers * report)
    return bits

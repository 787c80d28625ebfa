"""Every rank coordinates a stretch of the vector, so no link carries more than another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qsparse.exchange.base import (
    Cost,
    ExchangeClaims,
    Peers,
    Stretch,
    raise_error,
    receive_any_kind,
)
from qsparse.exchange.notes import same_step
from qsparse.payload import HEADER_BYTES, Payload
from qsparse.registry import register
from qsparse.wire.base import Wire

#: Stretches of at least so many coordinates begin at multiples of `_UNIT`, where packed bits begin a byte.
_LONG: Final = 1024
_UNIT: Final = 8
#: About the bytes at the beginning of a part's body, which stand once in that of a whole message.
_TABLE: Final = 12


@register("sharded")
@dataclass(frozen=True)
class Sharded(Peers):
    """Each rank coordinates a stretch: all send it their part of that stretch, and it answers all about it.

    With messages of c bytes up and d bytes down each of R ranks sends (R − 1)/R·(c + d) bytes, and receives
    as many, whatever R is; at a parameter server the root sends (R − 1)·d. Messages that are not about a
    vector go from every rank to every other, as with exchange allgather.
    """

    @property
    def claims(self) -> ExchangeClaims:
        """Answers travel, each from the rank whose stretch it is about."""
        return ExchangeClaims(divides=True)

    def relays(self, rank: int) -> bool:
        """True: a rank that coordinates nothing waits for answers alone, and is told in their place."""
        return True

    def cost(self, up: float, down: float, size: int) -> Cost:
        """The share of every rank, and a header for each part."""
        others = size - 1
        heads = 0 if size == 1 else others * (HEADER_BYTES + _TABLE)
        sent = others / size * (up + down) + 2 * heads
        return Cost(
            sent=sent, received=sent, serial=sent, hops=2, messages=4 * others, merges=1, answers=1 / size
        )

    def stretches(self, n: int, size: int) -> list[Stretch]:
        """⌈n/R⌉ or ⌊n/R⌋ coordinates for each rank; long ones begin at multiples of eight.

        >>> [tuple(stretch) for stretch in Sharded().stretches(10, 3)]
        [(0, 3, 0), (3, 6, 1), (6, 10, 2)]
        """
        unit = _UNIT if n >= _LONG * size else 1
        edges = [unit * (n // unit * rank // size) for rank in range(size)] + [n]
        pairs = enumerate(itertools.pairwise(edges))
        found = [Stretch(start, stop, rank) for rank, (start, stop) in pairs if stop > start]
        return found or [Stretch(0, n, 0)]

    def gather_parts(
        self, wire: Wire, parts: Sequence[Payload] | None, stretches: Sequence[Stretch]
    ) -> list[Payload] | None:
        """Send each part to whoever coordinates its stretch; the ranks after this one come first.

        An error is raised only when all payloads have come, as of `gather`.
        """
        assert parts is not None
        mine = None
        for part, stretch in _in_turn(parts, stretches, wire.rank):
            if stretch.owner == wire.rank:
                mine = part
            else:
                wire.send([part], _owner(stretch))
        if mine is None:
            return None
        payloads = [
            mine if rank == wire.rank else receive_any_kind(wire, rank)[1] for rank in range(wire.size)
        ]
        for payload in payloads:
            raise_error(payload)
        return same_step(payloads)

    def broadcast_parts(
        self, wire: Wire, reply: Payload | None, stretches: Sequence[Stretch]
    ) -> list[Payload]:
        """Send this rank's answer to all others, and receive theirs."""
        if reply is not None:
            for step in range(1, wire.size):
                wire.send([reply], (wire.rank + step) % wire.size)
        answers = []
        for stretch in stretches:
            if stretch.owner == wire.rank:
                assert reply is not None
                answers.append(reply)
            else:
                answers.append(receive_any_kind(wire, _owner(stretch))[1])
        wire.flush()
        for answer in answers:
            raise_error(answer)
        return answers


def _owner(stretch: Stretch) -> int:
    assert stretch.owner is not None
    return stretch.owner


def _in_turn(
    parts: Sequence[Payload], stretches: Sequence[Stretch], rank: int
) -> list[tuple[Payload, Stretch]]:
    """Parts and stretches from this rank's on, so that not all ranks send to the same rank first."""
    pairs = list(zip(parts, stretches, strict=True))
    first = next((place for place, (_, stretch) in enumerate(pairs) if _owner(stretch) >= rank), 0)
    return pairs[first:] + pairs[:first]

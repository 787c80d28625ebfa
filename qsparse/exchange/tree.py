"""Workers send to the root, and the answer goes down a binomial tree."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.exchange.base import Cost, Rooted, receive_one
from qsparse.payload import Payload
from qsparse.registry import register
from qsparse.wire.base import Wire


def children(position: int, size: int) -> list[int]:
    """The children of a position in a binomial tree over 0 … size − 1, the largest subtree first.

    >>> children(0, 6), children(2, 6), children(4, 6)
    ([4, 2, 1], [3], [5])
    """
    # The parent of p is p without its lowest set bit, so p's children set any bit below that one.
    below = position & -position if position else 1 << (size - 1).bit_length()
    steps = []
    while below > 1:
        below >>= 1
        if position + below < size:
            steps.append(position + below)
    return steps


@register("tree")
@dataclass(frozen=True)
class TreeBroadcast(Rooted):
    """Workers send to the root; the answer reaches rank P − 1 after ⌈log2 P⌉ hops.

    No rank sends the answer more than ⌈log2 P⌉ times.
    """

    root: int = 0

    def cost(self, up: float, down: float, size: int) -> Cost:
        """Answers take a hop for each level of the tree."""
        levels, others = (size - 1).bit_length(), size - 1
        return Cost(
            sent=max(levels * down, up),
            received=max(others * up, down),
            serial=others * up + levels * down,
            hops=1 + levels,
            messages=others + levels,
            merges=size,
            answers=1,
        )

    def broadcast(self, wire: Wire, reply: Payload | None) -> Payload:
        """Receive from the parent only, and pass the answer on to the children."""
        if reply is None:
            position = (wire.rank - self.root) % wire.size
            parent = position & (position - 1)
            reply = receive_one(wire, (parent + self.root) % wire.size)[1]
        for child in self._children(wire):
            wire.send([reply], child)
        wire.flush()
        return reply

    def relays(self, rank: int) -> bool:
        """True for every rank, because its children wait for it alone."""
        return True

    def fail(self, wire: Wire, error: Payload) -> None:
        """Tell the children in place of the answer, and the root in place of the payload."""
        told = self._children(wire)
        if wire.rank != self.root:
            told.append(self.root)
        for rank in told:
            wire.send([error], rank)

    def _children(self, wire: Wire) -> list[int]:
        position = (wire.rank - self.root) % wire.size
        return [(child + self.root) % wire.size for child in children(position, wire.size)]

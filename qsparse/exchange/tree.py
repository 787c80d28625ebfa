"""Reports go up a binomial tree to the root, and the answer goes down it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qsparse.exchange.base import Cost, Rooted, raise_error, receive_one
from qsparse.exchange.notes import one_each
from qsparse.payload import Payload
from qsparse.registry import register
from qsparse.wire.base import Wire

#: From so many bytes on, a copy of the answer has left before the next one is sent.
_LARGE: Final = 1 << 19


def children(position: int, size: int) -> list[int]:
    """The children of a position in a binomial tree over 0 … size − 1, the largest subtree first.

    A child's subtree has the positions up to the next greater child; that of the greatest may be cut short.

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
    """Each rank hands the reports of its subtree on in one message, and passes the answer on to its children.

    Among R ranks the root takes ⌈log2 R⌉ messages, and no rank sends the answer more often. The reports reach
    it as they were sent, so the model is that of exchange server, bit for bit.

    Args:
        root: the rank that coordinates.
    """

    root: int = 0

    def cost(self, up: float, down: float, size: int) -> Cost:
        """As many bytes to the root as with a server, and a hop for each level of the tree, up and down."""
        levels, others = (size - 1).bit_length(), size - 1
        # Of the other ranks, those below the root hand on most: a report for each rank of the subtree.
        heads = [(min(head & -head, size - head), len(children(head, size))) for head in children(0, size)]
        return Cost(
            sent=max([levels * down, *(ranks * up + copies * down for ranks, copies in heads)]),
            received=max([others * up, *((ranks - 1) * up + down for ranks, _ in heads)]),
            serial=others * up + levels * down,
            hops=2 * (size.bit_length() - 1),
            messages=2 * levels,
            merges=size,
            answers=1,
        )

    def gather(self, wire: Wire, message: Payload | None) -> list[Payload] | None:
        """Receive the reports of the ranks below this one, and hand them on behind its own."""
        assert message is not None
        payloads = [message]
        # The smallest subtree is ready first, and so all reports are in the order of their positions.
        for child in reversed(self._children(wire)):
            _, those = wire.receive(child)
            for payload in those:
                raise_error(payload)
            payloads += those
        if wire.rank != self.root:
            wire.send(payloads, self._parent(wire))
            return None
        one_each(wire, payloads)
        # Positions are counted from the root on.
        first = wire.size - self.root
        return payloads[first:] + payloads[:first]

    def broadcast(self, wire: Wire, reply: Payload | None) -> Payload:
        """Receive from the parent only, and pass the answer on to the children."""
        if reply is None:
            reply = receive_one(wire, self._parent(wire))[1]
        for child in self._children(wire):
            wire.send([reply], child)
            if len(reply) >= _LARGE:
                # Copies that leave side by side arrive late together, and so does all that follows on each.
                wire.flush()
        wire.flush()
        return reply

    def relays(self, rank: int) -> bool:
        """True for every rank, because its parent and its children wait for it alone."""
        return True

    def fail(self, wire: Wire, error: Payload) -> None:
        """Tell the children in place of the answer, and the parent in place of the reports.

        The root is told of this rank's own error too: beside rounds it may wait for this rank alone.
        """
        told = self._children(wire)
        if wire.rank != self.root:
            told.append(self._parent(wire))
            if error.origin == wire.origin and self.root not in told:
                told.append(self.root)
        for rank in told:
            wire.send([error], rank)

    def _children(self, wire: Wire) -> list[int]:
        position = (wire.rank - self.root) % wire.size
        return [(child + self.root) % wire.size for child in children(position, wire.size)]

    def _parent(self, wire: Wire) -> int:
        position = (wire.rank - self.root) % wire.size
        return ((position & (position - 1)) + self.root) % wire.size

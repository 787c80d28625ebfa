"""All workers send to one rank, which answers each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qsparse.exchange.base import ExchangeClaims, Rooted, receive_one
from qsparse.payload import Payload
from qsparse.registry import register
from qsparse.wire.base import Wire


@register("server")
@dataclass(frozen=True)
class ParameterServer(Rooted):
    """Workers send to the root, which answers each of them.

    Args:
        root: the rank that coordinates.
        works: whether the root is a worker too, or only the coordinator.
    """

    root: int = 0
    works: bool = True

    @property
    def claims(self) -> ExchangeClaims:
        """Each worker has an answer of its own."""
        return ExchangeClaims(broadcasts_to_some=True, serves=not self.works and self.root == 0)

    def workers(self, size: int) -> list[int]:
        """All ranks, or all except the root."""
        return [rank for rank in range(size) if self.works or rank != self.root]

    def broadcast(self, wire: Wire, reply: Payload | None) -> Payload:
        """Send the answer from the root to each rank in turn."""
        return self.broadcast_to(wire, reply, None)

    def broadcast_to(self, wire: Wire, reply: Payload | None, asked: Sequence[bool] | None) -> Payload:
        """Send the answer to the workers that are asked (None: to all), and a SKIP to the others."""
        if wire.rank != self.root:
            return receive_one(wire, self.root)[1]
        assert reply is not None
        told = {} if asked is None else dict(zip(self.workers(wire.size), asked, strict=True))
        silence = reply.skip()
        for rank in range(wire.size):
            if rank != self.root:
                wire.send([reply if told.get(rank, True) else silence], rank)
        wire.flush()
        return reply if told.get(self.root, True) else silence

"""Every rank receives every payload, so each rank is its own coordinator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from qsparse.errors import RankError
from qsparse.exchange.base import (
    Exchange,
    ExchangeClaims,
    error_payload,
    raise_error,
    receive_any_kind,
    same_step,
)
from qsparse.payload import Payload
from qsparse.registry import register
from qsparse.wire.base import Wire


@register("allgather")
@dataclass(frozen=True)
class AllGather(Exchange):
    """Each worker sends its payload to all others; every rank computes the same answer."""

    @property
    def claims(self) -> ExchangeClaims:
        """Every rank makes the answer."""
        return ExchangeClaims(answers=False)

    def gather(self, wire: Wire, message: Payload | None) -> list[Payload]:
        """Send to the ranks after this one in turn, so that not all ranks send to the same rank first.

        An error is raised only when all payloads have come, so that nothing is left over for the next round.
        """
        assert message is not None
        for step in range(1, wire.size):
            wire.send([message], (wire.rank + step) % wire.size)
        payloads = [
            message if rank == wire.rank else receive_any_kind(wire, rank)[1] for rank in range(wire.size)
        ]
        wire.flush()
        for payload in payloads:
            raise_error(payload)
        return same_step(payloads)

    def say(self, wire: Wire, make: Callable[[], Payload], step: int = 0) -> list[Payload]:
        """Gather what ``make`` returns on each rank; where it raises, an ERROR is sent in its place.

        That rank raises the error of ``make``, the others raise RankError, and nothing is left over for the
        next round.
        """
        try:
            message = make()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            with suppress(RankError):
                self.gather(wire, error_payload(wire.rank, step, reason))
            raise
        return self.gather(wire, message)

    def broadcast(self, wire: Wire, reply: Payload | None) -> Payload:
        """Return the answer without a message: every rank has made the same one."""
        assert reply is not None
        return reply

    def fail(self, wire: Wire, error: Payload) -> None:
        """Send the ERROR to every other rank."""
        for rank in range(wire.size):
            if rank != wire.rank:
                wire.send([error], rank)

"""Everybody hears everybody, so every rank coordinates for itself."""

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
    """Each worker sends its payload to all others; the answer is worked out everywhere alike."""

    @property
    def claims(self) -> ExchangeClaims:
        """Every rank makes the answer."""
        return ExchangeClaims(answers=False)

    def gather(self, wire: Wire, message: Payload | None) -> list[Payload]:
        """Send to the ranks behind this one in turn, so that no rank is everybody's first.

        An error is raised only when all have spoken, so that the next round finds nothing left over.
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
        """Gather what ``make`` returns on each rank; where it raises, an ERROR is said in its place.

        That rank raises what it raised, the others RankError, and the next round finds nothing left
        over.
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
        """Nothing travels: every rank has made the same answer."""
        assert reply is not None
        return reply

    def fail(self, wire: Wire, error: Payload) -> None:
        """Tell everyone."""
        for rank in range(wire.size):
            if rank != wire.rank:
                wire.send([error], rank)

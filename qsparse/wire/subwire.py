"""Some ranks of a wire, with numbers of their own: what two ranks say there goes over that wire."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn

from qsparse.errors import WireError
from qsparse.payload import Payload
from qsparse.wire.base import ANY, Wire


class SubWire(Wire):
    """A wire between some ranks of another wire, numbered from 0 on in the order given.

    Errors of the wire below name ranks by their numbers there, and so do frames (`Wire.origin`). Clock and
    ledger are those of the wire below. Neither `close` nor `abort` is this wire's own.

    Args:
        wire: between more ranks.
        ranks: those of them that this one is between; this rank is one.
        indoors: they are on one machine, so what they say crosses no link, and is counted apart.
    """

    def __init__(self, wire: Wire, ranks: Sequence[int], indoors: bool = False) -> None:
        self.below = wire
        self.ranks = list(ranks)
        self.rank = self.ranks.index(wire.rank)
        self.size = len(self.ranks)
        self.ledger = wire.ledger
        self.simulates = wire.simulates
        self.links = wire.links
        self._indoors = indoors

    @property
    def origin(self) -> int:
        """The number of this rank on the wire below."""
        return self.below.origin

    def now(self) -> float:
        """The time of the wire below."""
        return self.below.now()

    def sleep(self, seconds: float) -> None:
        """Sleep as the wire below does."""
        self.below.sleep(seconds)

    def worked(self, activity: str, amount: float) -> None:
        """Tell the wire below."""
        self.below.worked(activity, amount)

    @contextmanager
    def at(self, doing: str) -> Iterator[None]:
        """Name the work to the wire below, whose waits these are."""
        with self.below.at(doing):
            yield

    def lend(self, thread: threading.Thread) -> None:
        """Lend the wire below."""
        self.below.lend(thread)

    def settle(self) -> None:
        """Wait for the wire below."""
        self.below.settle()

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        """Send over the wire below."""
        with self._counting():
            self.below.send(payloads, self._known(dest))

    def receive(self, source: int = ANY) -> tuple[int, list[Payload]]:
        """Receive from one of these ranks.

        Raises:
            WireError: from any rank, where the wire below has others too: it would take their messages.
        """
        if source == ANY and self.size < self.below.size:
            raise WireError(
                f"rank {self.origin} would take the message of any rank on a wire between ranks "
                f"{', '.join(map(str, self.ranks))}: name one of them"
            )
        with self._counting():
            rank, payloads = self.below.receive(ANY if source == ANY else self._known(source))
        return self.ranks.index(rank), payloads

    def flush(self) -> None:
        """Flush the wire below."""
        self.below.flush()

    def close(self) -> None:
        """Flush: the wire below stays open."""
        self.flush()

    def abort(self, status: int = 1) -> NoReturn:
        """End the whole job, as the wire below does."""
        self.below.abort(status)
        raise WireError(f"rank {self.origin} has aborted the job with status {status}")

    def _known(self, rank: int) -> int:
        if not 0 <= rank < self.size:
            raise WireError(f"there is no rank {rank} on a wire of {self.size} ranks")
        return self.ranks[rank]

    def _counting(self) -> AbstractContextManager[None]:
        return self.ledger.indoors() if self._indoors else nullcontext()

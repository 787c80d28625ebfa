"""The base of every wire, which carries bytes between ranks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final, TypeVar

from qsparse.ledger import Clock, Ledger
from qsparse.payload import Payload

T = TypeVar("T")

#: Receive the message that comes first, from any rank.
ANY: Final = -1


class Wire(Clock, ABC):
    """Carries frames between ``size`` ranks; knows nothing of vectors.

    A wire belongs to one rank and one thread. Messages between two ranks arrive in the order in
    which they were sent. Frames are checked when they arrive; only frames of qsparse are accepted.

    Time belongs to the wire, too: whatever a rank measures or waits goes by `now`, `sleep` and `worked`,
    which are those of this machine unless a wire has others.

    Attributes:
        rank: this rank, 0 to size − 1.
        size: number of ranks.
        ledger: counts the bytes of every frame that is sent or received.
        doing: what the rank is doing, which the lines about a long wait name; see `at`.
        threaded: another thread of the rank may use it in turn (`lend`), so that frames move while the rank
            does something else.
        simulates: the spelling of a wire whose seconds are not those of this machine; empty elsewhere.
        machines: of each rank, the lowest rank on its machine; None where the wire does not know.
        links: bytes per second and seconds of a message on the slowest link, where the wire knows them before
            anything is sent; an exchange is chosen by them.
    """

    rank: int
    size: int
    ledger: Ledger
    doing: str = ""
    threaded: bool = True
    simulates: str = ""
    machines: tuple[int, ...] | None = None
    links: tuple[float, float] | None = None
    _borrower: threading.Thread | None = None
    _hurry: threading.Event | None = None

    @property
    def origin(self) -> int:
        """The number by which frames and errors name this rank; see `qsparse.wire.subwire`."""
        return self.rank

    @contextmanager
    def at(self, doing: str) -> Iterator[None]:
        """Name the work of the block, e.g. ``"the meeting of step 120"``: a long wait names it.

        It begins when no other thread of the rank uses the wire any more.
        """
        self.settle()
        before, self.doing = self.doing, doing
        try:
            yield
        finally:
            self.doing = before

    def lend(self, thread: threading.Thread) -> None:
        """Leave the wire to another thread of this rank, which is started next, until that ends."""
        self.settle()
        self._borrower, self._hurry = thread, threading.Event()

    def settle(self) -> None:
        """Wait until no other thread of this rank uses the wire, so that nobody speaks in between."""
        borrower = self._borrower
        if borrower is not None and self._hurry is not None and borrower is not threading.current_thread():
            self._hurry.set()
            borrower.join()
            self._borrower = self._hurry = None

    @property
    def hurry(self) -> threading.Event | None:
        """Set once the rank waits for the thread that the wire is lent to; None for any other thread."""
        return self._hurry if threading.current_thread() is self._borrower else None

    @abstractmethod
    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        """Hand frames to the wire as one message; returns at once.

        The frames must not be changed until `flush` has returned. Messages make progress in every call of
        `send`, `receive` and `flush`.
        """

    @abstractmethod
    def receive(self, source: int = ANY) -> tuple[int, list[Payload]]:
        """Wait for the next message of one rank, or of any rank; return its rank and its frames.

        Raises:
            WireError: the message is not a sequence of valid frames (see `qsparse.payload`).
        """

    @abstractmethod
    def flush(self) -> None:
        """Wait until everything handed to `send` has left, so that its memory may be reused."""

    @abstractmethod
    def close(self) -> None:
        """Release what the wire holds; collective, after the last message of a job without errors."""

    @abstractmethod
    def abort(self, status: int = 1) -> None:
        """End the whole job at once, when everything that was written to standard error has left."""

    def _count(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            self.ledger.count_bytes(payload)

    def _took(self, payloads: list[Payload]) -> list[Payload]:
        for payload in payloads:
            self.ledger.received(payload)
        return payloads


class Ranks(ABC):
    """Where ranks come from, and the wire between them: a part of the kind ``wire``."""

    kind: ClassVar[str] = "wire"
    registered_name: ClassVar[str]
    #: Is every rank a process, which a launcher such as mpiexec starts?
    launched: ClassVar[bool]

    @abstractmethod
    def run(self, ranks: int, body: Callable[[Wire], T]) -> T:
        """Run a body on every rank of this process; returns what the lowest of them returns.

        Args:
            ranks: how many to make; where a launcher has started them, there are as many as it was told.
            body: called with the wire of a rank.
        """

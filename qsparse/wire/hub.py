"""What wires between the threads of one process share: who is gone, who waits for whom, how a run ends."""

from __future__ import annotations

import sys
import threading
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn

from qsparse.errors import PeerGone, RankError, WaitTimeout, WireError
from qsparse.ledger import Ledger
from qsparse.payload import Payload
from qsparse.wire.base import ANY, T, Wire

#: Seconds in which the other ranks may end when one has waited too long for another.
_GRACE: Final = 2.0


class Departure(NamedTuple):
    """How a rank has left."""

    how: str
    failed: bool


class Hub(ABC):
    """What the ranks share. How messages lie here, and how ranks sleep, is each wire's own.

    Attributes:
        size: number of ranks.
        departed: how each rank left that is gone.
        waiting: for which rank, or `ANY`, each rank waits that does.
        verdict: why every wait ends; empty while the run goes on.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise WireError(f"a wire has at least one rank, not {size}")
        self.size = size
        self.departed: dict[int, Departure] = {}
        self._failed: set[int] = set()
        self.waiting: dict[int, int] = {}
        self.verdict = ""

    @abstractmethod
    def depart(self, rank: int, how: str, *, failed: bool) -> None:
        """Let a rank leave; who waits for it is told, once all that it has sent is taken."""

    @abstractmethod
    def end(self, verdict: str) -> None:
        """Let every wait end with this verdict, unless there is one."""

    @abstractmethod
    def pending(self, rank: int, source: int) -> bool:
        """Whether there is a message that a rank's wait for a source would take."""

    @abstractmethod
    def unread(self) -> int:
        """How many messages nobody has received."""

    def enter(self, rank: int) -> None:
        """Called by the thread of a rank before its body."""

    def leave(self, rank: int) -> None:
        """Called by the thread of a rank that has departed, as the last thing it does."""

    def start(self) -> None:
        """Called when the threads of all ranks have been started."""

    def note(self, rank: int, departure: Departure) -> None:
        """Keep how a rank left; a failure is kept in place of anything else."""
        if departure.failed or rank not in self.departed:
            self.departed[rank] = departure
        if departure.failed:
            self._failed.add(rank)

    def hopeless(self, rank: int, source: int) -> str:
        """Why a rank with nothing to receive would wait for ever; empty if it would not."""
        if self.verdict:
            return self.verdict
        if source == ANY:
            if failed := self._failed - {rank}:
                how = self.departed[min(failed)].how
                return f"rank {rank} waits for a message of any rank, and rank {min(failed)} {how}"
            if len(self.departed) - (rank in self.departed) == self.size - 1:
                return f"rank {rank} waits for a message of any rank, and no other rank is left"
        elif source == rank:
            return f"rank {rank} waits for a message of its own that it has not sent"
        elif source in self.departed:
            return f"rank {rank} waits for a message of rank {source}, which {self.departed[source].how}"
        return ""

    def deadlocked(self) -> str:
        """The sentence that every remaining rank waits for another; empty where that is not so."""
        if len(self.waiting) < self.size - len(self.departed):
            return ""
        if any(self.pending(rank, source) for rank, source in self.waiting.items()):
            return ""
        waits = ", ".join(
            f"rank {rank} for {'any rank' if source == ANY else f'rank {source}'}"
            for rank, source in sorted(self.waiting.items())
        )
        return f"all ranks wait and no message is under way: {waits}"


class HubWire(Wire):
    """The wire of one rank at a hub.

    Args:
        hub: of all ranks.
        rank: this one.
    """

    def __init__(self, hub: Hub, rank: int) -> None:
        self.rank = rank
        self.size = hub.size
        self.ledger = Ledger()
        self._hub = hub
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._hub.depart(self.rank, "has closed its wire", failed=False)

    def abort(self, status: int = 1) -> NoReturn:
        """End the run: raise `WireError` here, and in every rank that waits or will wait."""
        sys.stdout.flush()
        sys.stderr.flush()
        message = f"rank {self.rank} has aborted the run with status {status}"
        self._hub.end(message)
        raise WireError(message)

    def _check(self, rank: int) -> None:
        if self._closed:
            raise WireError(f"rank {self.rank} has closed its wire")
        if not 0 <= rank < self.size:
            raise WireError(f"there is no rank {rank} on a wire of {self.size} ranks")

    def _check_message(self, payloads: Sequence[Payload], dest: int) -> None:
        self._check(dest)
        if not payloads:
            raise WireError(f"rank {self.rank} sends rank {dest} a message without frames")

    def _parsed(self, message: bytes | bytearray, source: int) -> list[Payload]:
        """The frames of a message."""
        try:
            return Payload.split(message)
        except WireError as error:
            raise type(error)(f"rank {self.rank} refuses a message of rank {source}: {error}") from None


def run_at(
    hub: Hub, wires: Sequence[HubWire], body: Callable[[Wire], T], timeout: float | None = None
) -> list[T]:
    """Run a body on the ranks of a hub, each a thread; return the results in the order of the ranks.

    If a rank fails, ranks that wait for it are woken, and the exception of the lowest rank that failed by
    itself is raised after all threads have ended.

    Args:
        hub: of all ranks.
        wires: of each rank.
        body: called with the wire of a rank.
        timeout: seconds for the whole run; None waits for ever.

    Raises:
        WireError: the time is over (with the stack of every thread that still runs), or every remaining
            rank waits for a message that no rank sends.
        WaitTimeout: a rank has waited too long, with the stack of every thread that still runs.
    """
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}

    def live(wire: HubWire) -> None:
        hub.enter(wire.rank)
        try:
            results[wire.rank] = body(wire)
        except BaseException as error:
            error.add_note(f"raised by rank {wire.rank} of {hub.size}")
            failures[wire.rank] = error
            hub.depart(wire.rank, f"failed with {type(error).__name__}: {error}", failed=True)
        else:
            hub.depart(wire.rank, "has ended", failed=False)
        hub.leave(wire.rank)

    # Daemons, because a rank that never returns must not keep the interpreter from ending.
    threads = [
        threading.Thread(target=live, args=(wire,), name=f"rank {wire.rank}", daemon=True) for wire in wires
    ]
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        for thread in threads:
            thread.start()
        hub.start()
        while _running(threads):
            for thread in threads:
                thread.join(0.1 if deadline is None else min(0.1, max(0.0, deadline - time.monotonic())))
            if deadline is not None and time.monotonic() >= deadline and _running(threads):
                _give_up(hub, threads, timeout)
            if any(isinstance(error, WaitTimeout) for error in failures.values()):
                _leave_behind(threads, failures)
    except BaseException as error:
        hub.end(f"the run was ended by {type(error).__name__}")
        raise
    if failures:
        raise _first_cause(failures)
    if unread := hub.unread():
        warnings.warn(f"{unread} messages were sent and never received", RuntimeWarning, stacklevel=3)
    return [results[rank] for rank in range(hub.size)]


def _running(threads: Sequence[threading.Thread]) -> bool:
    return any(thread.is_alive() for thread in threads)


def _stacks(threads: Sequence[threading.Thread]) -> str:
    """The stack of each thread that has not ended."""
    frames = sys._current_frames()
    return "".join(
        f"\n{thread.name} is at\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threads
        if thread.ident in frames and thread.is_alive()
    )


def _give_up(hub: Hub, threads: Sequence[threading.Thread], timeout: float | None) -> NoReturn:
    stacks = _stacks(threads)
    hub.end(f"the run has not ended within {timeout} s")
    for thread in threads:
        thread.join(0.2)
    raise WireError(f"the ranks have not ended within {timeout} s:{stacks}")


def _leave_behind(threads: Sequence[threading.Thread], failures: dict[int, BaseException]) -> None:
    """Stop waiting for the threads after a rank has waited too long for one of them."""
    deadline = time.monotonic() + _GRACE
    while _running(threads) and time.monotonic() < deadline:
        time.sleep(0.05)
    if _running(threads):
        error = _first_cause(failures)
        error.add_note(_stacks(threads))
        raise error


def _first_cause(failures: dict[int, BaseException]) -> BaseException:
    """The exception of the lowest rank that did not fail because another one had."""

    def distance(error: BaseException) -> int:
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, PeerGone):
                return 2
            link = link.__cause__ or link.__context__
        return 1 if isinstance(error, RankError) else 0

    return failures[min(failures, key=lambda rank: (distance(failures[rank]), rank))]

"""Ranks as threads of one process: for tests, notebooks and more workers than cores.

Frames are copied, and the receiver parses them again, so every check of `qsparse.payload` is made here as
between processes.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NoReturn

from qsparse.errors import PeerGone, RankError, WaitTimeout, WireError
from qsparse.ledger import Ledger
from qsparse.payload import Payload
from qsparse.registry import register
from qsparse.wire.base import ANY, Ranks, T, Wire
from qsparse.wire.waiting import Alarm, Heard, Limits, last_heard, named

#: Seconds in which the other ranks may end when one has waited too long for another.
_GRACE: Final = 2.0


@dataclass(frozen=True)
class _Departure:
    how: str
    failed: bool


class _Hub:
    """What the ranks share; everything is guarded by one lock.

    Each rank has one queue per sender. So `receive` can take the senders in turn, and a sender of
    many messages does not delay the others.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.limits = Limits.of(os.environ)
        self.lock = threading.Lock()
        self.arrived = [threading.Condition(self.lock) for _ in range(size)]
        self.queues: list[list[deque[bytearray]]] = [[deque() for _ in range(size)] for _ in range(size)]
        self.departed: dict[int, _Departure] = {}
        self.waiting: dict[int, int] = {}
        self.verdict = ""

    def pending(self, rank: int, source: int) -> bool:
        queues = self.queues[rank]
        return any(queues) if source == ANY else bool(queues[source])

    def depart(self, rank: int, how: str, *, failed: bool) -> None:
        with self.lock:
            if failed or rank not in self.departed:
                self.departed[rank] = _Departure(how, failed)
            self.wake()

    def end(self, verdict: str) -> None:
        """Let every wait end with this verdict."""
        with self.lock:
            self.verdict = self.verdict or verdict
            self.wake()

    def wake(self) -> None:
        for condition in self.arrived:
            condition.notify_all()

    def hopeless(self, rank: int, source: int) -> str:
        """Why a rank with nothing to receive would wait for ever; empty if it would not."""
        if self.verdict:
            return self.verdict
        if source == ANY:
            gone = {r: d for r, d in self.departed.items() if r != rank}
            for other, departure in sorted(gone.items()):
                if departure.failed:
                    return f"rank {rank} waits for a message of any rank, and rank {other} {departure.how}"
            if len(gone) == self.size - 1:
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


class ThreadWire(Wire):
    """The wire of one rank that is a thread; `run_threads` and `group` make them.

    Frames are copied when they are sent, so their memory may be reused at once.
    """

    def __init__(self, hub: _Hub, rank: int, ledger: Ledger | None = None) -> None:
        self.rank = rank
        self.size = hub.size
        self.ledger = Ledger() if ledger is None else ledger
        self.heard: dict[int, Heard] = {}
        self._hub = hub
        self._next = 0
        self._closed = False

    @classmethod
    def group(cls, size: int) -> list[ThreadWire]:
        """The wires of ``size`` ranks, for code that starts the threads itself or needs only one rank.

        >>> (alone,) = ThreadWire.group(1)
        >>> alone.send([Payload.build([b"hello"])], 0)
        >>> source, (payload,) = alone.receive()
        >>> source, payload.text
        (0, 'hello')
        """
        if size < 1:
            raise WireError(f"a wire has at least one rank, not {size}")
        hub = _Hub(size)
        return [cls(hub, rank) for rank in range(size)]

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        self._check(dest)
        if not payloads:
            raise WireError(f"rank {self.rank} sends rank {dest} a message without frames")
        message = bytearray().join(payload.frame for payload in payloads)
        with self._hub.lock:
            self._hub.queues[dest][self.rank].append(message)
            self._hub.arrived[dest].notify_all()
        self._count(payloads)

    def receive(self, source: int = ANY) -> tuple[int, list[Payload]]:
        if source != ANY:
            self._check(source)
        self._check(self.rank)
        hub = self._hub
        alarm: Alarm | None = None
        with hub.lock:
            while not hub.pending(self.rank, source):
                reason = hub.hopeless(self.rank, source)
                if not reason:
                    hub.waiting[self.rank] = source
                    reason = hub.verdict = hub.deadlocked()
                if reason:
                    hub.waiting.pop(self.rank, None)
                    hub.wake()
                    raise PeerGone(reason)
                if alarm is None:
                    describe = functools.partial(self._waits, source)
                    alarm = Alarm(self.rank, hub.limits.warn, hub.limits.end, describe)
                left = alarm.left()
                hub.arrived[self.rank].wait(None if math.isinf(left) else left)
                hub.waiting.pop(self.rank, None)
                alarm.look()
            queues = hub.queues[self.rank]
            if source == ANY:
                # Start after the sender that was served last: one that sends much must not delay the others.
                order = (rank % self.size for rank in range(self._next, self._next + self.size))
                source = next(rank for rank in order if queues[rank])
                self._next = source + 1
            message = queues[source].popleft()
        try:
            payloads = self._took(Payload.split(message))
        except WireError as error:
            raise type(error)(f"rank {self.rank} refuses a message of rank {source}: {error}") from None
        self.heard[source] = Heard.now(payloads[-1])
        return source, payloads

    def flush(self) -> None:
        """Return at once: frames are copied when they are sent."""

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

    def _waits(self, source: int) -> str:
        left = [rank for rank in range(self.size) if rank != self.rank and rank not in self._hub.departed]
        ranks = left if source == ANY else [source]
        doing = f" in {self.doing}" if self.doing else ""
        return f"for a message of {named(ranks)}{doing}: {last_heard(ranks, self.heard)}"

    def _check(self, rank: int) -> None:
        if self._closed:
            raise WireError(f"rank {self.rank} has closed its wire")
        if not 0 <= rank < self.size:
            raise WireError(f"there is no rank {rank} on a wire of {self.size} ranks")


def run_threads(size: int, body: Callable[[Wire], T], *, timeout: float | None = None) -> list[T]:
    """Run ``body(wire)`` on ``size`` ranks, each a thread; return the results in the order of the ranks.

    If a rank fails, ranks that wait for it are woken, and the exception of the lowest rank that
    failed by itself is raised after all threads have ended. Ranks that wait for each other in a
    circle, or for a rank that has ended, are detected at once. A rank that waits for one that computes
    says so after a first limit of time, and ends the run after a second one (see `qsparse.wire.waiting`).

    Args:
        size: number of ranks.
        body: what each rank does.
        timeout: seconds for the whole run; None waits for ever.

    Raises:
        WireError: the time is over (with the stack of every thread that still runs), or every
            remaining rank waits for a message that no rank sends.
        WaitTimeout: a rank has waited too long, with the stack of every thread that still runs.

    >>> def hello(wire: Wire) -> str:
    ...     wire.send([Payload.build([b"from rank %d" % wire.rank])], (wire.rank + 1) % wire.size)
    ...     return wire.receive()[1][0].text
    >>> run_threads(3, hello)
    ['from rank 2', 'from rank 0', 'from rank 1']
    """
    wires = ThreadWire.group(size)
    hub = wires[0]._hub
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}

    def live(wire: ThreadWire) -> None:
        try:
            results[wire.rank] = body(wire)
        except BaseException as error:
            error.add_note(f"raised by rank {wire.rank} of {size}")
            failures[wire.rank] = error
            hub.depart(wire.rank, f"failed with {type(error).__name__}: {error}", failed=True)
        else:
            hub.depart(wire.rank, "has ended", failed=False)

    # Daemons, because a rank that never returns must not keep the interpreter from ending.
    threads = [
        threading.Thread(target=live, args=(wire,), name=f"rank {wire.rank}", daemon=True) for wire in wires
    ]
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        for thread in threads:
            thread.start()
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
    unread = sum(len(queue) for queues in hub.queues for queue in queues)
    if unread:
        warnings.warn(f"{unread} messages were sent and never received", RuntimeWarning, stacklevel=2)
    return [results[rank] for rank in range(size)]


@register("threads")
@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks are threads of one process."""

    launched: ClassVar[bool] = False

    def run(self, ranks: int, body: Callable[[Wire], T]) -> T:
        """With `run_threads`."""
        return run_threads(ranks, body)[0]


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


def _give_up(hub: _Hub, threads: Sequence[threading.Thread], timeout: float | None) -> NoReturn:
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

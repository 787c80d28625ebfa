"""Ranks as threads of one process: for tests, notebooks and more workers than cores.

Frames are copied, and the receiver parses them again, so every check of `qsparse.payload` is made here as
between processes.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qsparse.errors import PeerGone
from qsparse.payload import Payload
from qsparse.registry import register
from qsparse.wire.base import ANY, Ranks, T, Wire
from qsparse.wire.hub import Departure, Hub, HubWire, run_at
from qsparse.wire.waiting import Alarm, Heard, Limits, last_heard, named


class _Hub(Hub):
    """The hub of threads; everything is guarded by one lock.

    Each rank has one queue per sender. So `receive` can take the senders in turn, and a sender of
    many messages does not delay the others.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.limits = Limits.of(os.environ)
        self.lock = threading.Lock()
        self.arrived = [threading.Condition(self.lock) for _ in range(size)]
        self.queues: list[list[deque[bytearray]]] = [[deque() for _ in range(size)] for _ in range(size)]

    def pending(self, rank: int, source: int) -> bool:
        queues = self.queues[rank]
        return any(queues) if source == ANY else bool(queues[source])

    def unread(self) -> int:
        return sum(len(queue) for queues in self.queues for queue in queues)

    def depart(self, rank: int, how: str, *, failed: bool) -> None:
        with self.lock:
            self.note(rank, Departure(how, failed))
            self.wake()

    def end(self, verdict: str) -> None:
        with self.lock:
            self.verdict = self.verdict or verdict
            self.wake()

    def wake(self) -> None:
        for condition in self.arrived:
            condition.notify_all()


class ThreadWire(HubWire):
    """The wire of one rank that is a thread; `run_threads` and `group` make them.

    Frames are copied when they are sent, so their memory may be reused at once.

    Args:
        hub: of all ranks.
        rank: this one.
    """

    _hub: _Hub

    def __init__(self, hub: _Hub, rank: int) -> None:
        super().__init__(hub, rank)
        self.heard: dict[int, Heard] = {}
        self._next = 0

    @classmethod
    def group(cls, size: int) -> list[ThreadWire]:
        """The wires of ``size`` ranks, for code that starts the threads itself or needs only one rank.

        >>> (alone,) = ThreadWire.group(1)
        >>> alone.send([Payload.build([b"hello"])], 0)
        >>> source, (payload,) = alone.receive()
        >>> source, payload.text
        (0, 'hello')
        """
        hub = _Hub(size)
        return [cls(hub, rank) for rank in range(size)]

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        self._check_message(payloads, dest)
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
        payloads = self._took(self._parsed(message, source))
        self.heard[source] = Heard.now(payloads[-1])
        return source, payloads

    def flush(self) -> None:
        """Return at once: frames are copied when they are sent."""

    def _waits(self, source: int) -> str:
        left = [rank for rank in range(self.size) if rank != self.rank and rank not in self._hub.departed]
        ranks = left if source == ANY else [source]
        doing = f" in {self.doing}" if self.doing else ""
        return f"for a message of {named(ranks)}{doing}: {last_heard(ranks, self.heard)}"


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
    return run_at(wires[0]._hub, wires, body, timeout)


@register("threads")
@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks are threads of one process."""

    launched: ClassVar[bool] = False

    def run(self, ranks: int, body: Callable[[Wire], T]) -> T:
        """With `run_threads`."""
        return run_threads(ranks, body)[0]

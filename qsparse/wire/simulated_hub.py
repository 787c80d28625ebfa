"""The events of a simulated network, in the order of their virtual time.

Each rank has a clock of its own, and exactly one rank runs at any moment. It runs, ahead of the others, until
it has to wait for a message that is not there. Then the earliest event comes next: a rank goes on, or the
head of a message reaches its receiver's link. A rank's messages leave by its own clock alone, and a head
passes only when no rank can do anything before that. So nothing is ever corrected, and a run repeats bit for
bit.

Each rank has a link to a switch, which carries both ways at once. Each way is a queue: a message of b bytes
occupies its sender's way out for b/rate seconds, and its receiver's way in for b/rate seconds, from when its
head has come and those before it have gone. The switch passes a head on at once, so on idle links of one rate
a message takes latency + b/rate.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from operator import attrgetter

from qsparse.errors import PeerGone
from qsparse.payload import Payload
from qsparse.wire.base import ANY
from qsparse.wire.hub import Departure, Hub
from qsparse.wire.simulated_links import Link


class Content:
    """What a message says; all messages that say the same share it.

    Attributes:
        data: the frames, laid end to end.
        payloads: the frames as objects, once somebody has received and so checked them.
    """

    __slots__ = ("data", "payloads")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.payloads: list[Payload] | None = None


class _Message:
    """A message on its way, or a farewell, which has no receiver."""

    __slots__ = ("arrival", "content", "dest", "farewell", "head", "number", "source", "tail")

    def __init__(self, source: int, dest: int, number: int, head: float, tail: float) -> None:
        self.source, self.dest, self.number = source, dest, number
        #: When its first and its last byte come to the receiver's link.
        self.head, self.tail = head, tail
        self.arrival = 0.0
        #: None once it is received.
        self.content: Content | None = None
        self.farewell: Departure | None = None


_when = attrgetter("arrival")


class SimulatedHub(Hub):
    """The hub of a simulated network.

    Args:
        links: of each rank.
        measured: charge each rank the processor time of its thread.
    """

    def __init__(self, links: Sequence[Link], measured: bool = False) -> None:
        super().__init__(len(links))
        self.measured = measured
        self.clocks = [0.0] * self.size
        self.slowness = [link.compute for link in links]
        #: When each rank's way out is free.
        self.free = [0.0] * self.size
        self._free_in = [0.0] * self.size
        self._per_byte = [1 / link.rate for link in links]
        self._half = [link.latency / 2 for link in links]
        #: The lowest rate, and the longest way between two ranks: a round waits for both.
        self.slowest = min(link.rate for link in links), sum(sorted(self._half)[-2:])
        self._out: list[deque[_Message]] = [deque() for _ in links]
        self._sent = [0] * self.size
        #: The first message of each way out that is not empty: when its head comes, its number, its sender.
        #: Of messages that come at one instant, senders that have sent less go first.
        self._heads: list[tuple[float, int, int]] = []
        #: Ranks that can go on, and when.
        self._runs: list[tuple[float, int]] = []
        #: By receiver and sender: a message, or several. One deque for each pair would fill the memory.
        self._inbox: list[dict[int, _Message | deque[_Message]]] = [{} for _ in links]
        #: By receiver, in order of arrival; those that were received by their sender are passed over later.
        self._order: list[deque[_Message]] = [deque() for _ in links]
        #: The ranks that wait for each rank, or for `ANY`.
        self._awaiting: dict[int, set[int]] = {}
        self._gates = [threading.Lock() for _ in links]
        for gate in self._gates:
            gate.acquire()
        self._marks = [0.0] * self.size

    # --- the life of a rank ----------------------------------------------------------------------

    def start(self) -> None:
        """Let rank 0 go first."""
        self._runs = [(0.0, rank) for rank in range(self.size)]
        self._go_on(-1)

    def enter(self, rank: int) -> None:
        """Wait for the first turn."""
        self._gates[rank].acquire()
        self._marks[rank] = time.thread_time()

    def leave(self, rank: int) -> None:
        """Let others go on."""
        self._go_on(-1)

    def depart(self, rank: int, how: str, *, failed: bool) -> None:
        """Send the farewell behind all messages of the rank."""
        at = max(self.now(rank), self.free[rank]) + self._half[rank]
        message = _Message(rank, -1, self._sent[rank], at, at)
        message.farewell = Departure(how, failed)
        self._under_way(message)

    def end(self, verdict: str) -> None:
        """Have the waits end, when it is their turn."""
        self.verdict = self.verdict or verdict

    def pending(self, rank: int, source: int) -> bool:
        return self._first(rank, source) is not None

    def unread(self) -> int:
        return sum(
            len(held) if isinstance(held, deque) else 1 for box in self._inbox for held in box.values()
        )

    # --- what a rank does ------------------------------------------------------------------------

    def now(self, rank: int) -> float:
        """The clock of a rank."""
        if self.measured:
            spent = time.thread_time()
            self.clocks[rank] += (spent - self._marks[rank]) * self.slowness[rank]
            self._marks[rank] = spent
        return self.clocks[rank]

    def post(self, rank: int, dest: int, content: Content) -> None:
        """Put a message behind those that a rank has sent."""
        now = self.now(rank)
        self._sent[rank] = number = self._sent[rank] + 1
        if dest == rank:  # it takes no link
            message = _Message(rank, dest, number, now, now)
            message.content, message.arrival = content, now
            self._keep(message)
            return
        begin = max(now, self.free[rank])
        self.free[rank] = end = begin + len(content.data) * self._per_byte[rank]
        message = _Message(rank, dest, number, begin + self._half[rank], end + self._half[rank])
        message.content = content
        self._under_way(message)

    def take(self, rank: int, source: int) -> tuple[int, Content]:
        """Wait for the next message of a source, or for the one that arrives first."""
        self.now(rank)
        while True:
            message = self._first(rank, source)
            if message is None:
                reason = self.hopeless(rank, source)
                if reason:
                    raise PeerGone(reason)
                self.waiting[rank] = source
                self._awaiting.setdefault(source, set()).add(rank)
                self._go_on(rank)
            elif source == ANY and message.source == rank and self._earliest() < message.arrival:
                # What a rank sends itself is there before messages of others whose heads have not passed yet.
                heappush(self._runs, (max(self.clocks[rank], message.arrival), rank))
                self._go_on(rank)
            else:
                break
        box = self._inbox[rank]
        held = box[message.source]
        if isinstance(held, deque) and len(held) > 1:
            held.popleft()
        else:
            del box[message.source]
        content, message.content = message.content, None
        assert content is not None
        order = self._order[rank]
        while order and order[0].content is None:
            order.popleft()
        if message.arrival > self.clocks[rank]:
            self.clocks[rank] = message.arrival
        return message.source, content

    # --- events ----------------------------------------------------------------------------------

    def _go_on(self, rank: int) -> None:
        """Let what comes next happen, until it is this rank's turn again; −1: no rank waits here."""
        runs, heads = self._runs, self._heads
        while True:
            if self.verdict and self.waiting:
                for other in list(self.waiting):
                    self._wake(other, 0.0)
            if runs and (not heads or runs[0][0] <= heads[0][0]):
                at, other = heappop(runs)
                self.clocks[other] = at
                if other != rank:
                    self._gates[other].release()
                    if rank < 0:
                        return
                    self._gates[rank].acquire()
                break
            if heads:
                self._pass_head()
            elif self.waiting:
                self.verdict = self.deadlocked() or "no rank can go on"
            else:
                return
        if self.measured:
            self._marks[rank] = time.thread_time()

    def _earliest(self) -> float:
        """When the next event is."""
        return min((heap[0][0] for heap in (self._runs, self._heads) if heap), default=float("inf"))

    def _wake(self, rank: int, at: float) -> None:
        self._awaiting[self.waiting.pop(rank)].discard(rank)
        heappush(self._runs, (max(self.clocks[rank], at), rank))

    def _under_way(self, message: _Message) -> None:
        out = self._out[message.source]
        out.append(message)
        if len(out) == 1:
            heappush(self._heads, (message.head, message.number, message.source))

    def _pass_head(self) -> None:
        """The earliest head passes the switch, so the time at which its message arrives is known."""
        source = self._heads[0][2]
        out = self._out[source]
        message = out.popleft()
        if out:
            heapreplace(self._heads, (out[0].head, out[0].number, source))
        else:
            heappop(self._heads)
        if message.farewell is not None:
            self.note(source, message.farewell)
            # While others are left, a rank that goes well is nothing to those that wait for any.
            last = message.farewell.failed or len(self.departed) >= self.size - 1
            for awaited in (source, ANY) if last else (source,):
                for rank in sorted(self._awaiting.get(awaited, ())):
                    if self.hopeless(rank, awaited):
                        self._wake(rank, message.head)
            return
        dest = message.dest
        assert message.content is not None
        begin = max(message.head, self._free_in[dest])
        end = max(begin + len(message.content.data) * self._per_byte[dest], message.tail)
        self._free_in[dest] = end
        message.arrival = end + self._half[dest]
        self._keep(message)
        if self.waiting.get(dest) in (source, ANY):
            self._wake(dest, message.arrival)

    def _keep(self, message: _Message) -> None:
        order = self._order[message.dest]
        if order and order[-1].arrival > message.arrival:
            insort(order, message, key=_when)  # one of the two is of this very rank, which takes no link
        else:
            order.append(message)
        box = self._inbox[message.dest]
        held = box.get(message.source)
        if held is None:
            box[message.source] = message
        elif isinstance(held, deque):
            held.append(message)
        else:
            box[message.source] = deque((held, message))

    def _first(self, rank: int, source: int) -> _Message | None:
        if source == ANY:
            order = self._order[rank]
            return order[0] if order else None
        held = self._inbox[rank].get(source)
        return held[0] if isinstance(held, deque) else held

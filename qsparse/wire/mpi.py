"""Ranks as processes of an MPI job.

The files ``mpi*.py`` are the only ones that call MPI. mpi4py is imported when a wire is made, not when these
files are imported. Five rules:

* *Own communicator.* Wires work on a copy of the communicator they are given, so messages of other code
  cannot collide with theirs. Wires of one communicator share the copy (`mpi_channel`), and each has a tag.
* *No long blocking call.* MPI libraries wait by spinning, which takes the core from ranks that
  compute. A wire polls a few times and then sleeps, 20 µs at first, then a tenth of its wait so far, at
  most 1 ms.
* *Chunks.* A message longer than ``chunk_bytes`` travels as an announcement and pieces in order, because a
  count above 2³¹ − 1 fails in some libraries.
* *Farewells.* A rank that closes its wire, fails or ends without closing says so to all others. A rank that
  waits for it then gets a `WireError` instead of waiting for ever. A rank that ends goes on receiving what
  others send until they have said farewell, too. After that MPI moves nothing, and the memory of messages
  that are still on their way is freed with the interpreter, before MPI ends.
* *No endless wait.* A wait says for which ranks it waits, and ends (`waiting`); ranks that wait for each
  other find this out (`mpi_cycles`).

The first four bytes of a message say what it is: a frame's magic; ``QSPL`` and two numbers of 8 bytes, the
length of a message and of its pieces, which follow; or ``QSPX`` and the reason of a farewell, which is
empty where a wire was closed. So all messages of a wire have one tag, and MPI keeps their order.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NoReturn

import numpy as np
import numpy.typing as npt

from qsparse.errors import (
    Corrupted,
    LaunchError,
    PeerGone,
    SettingError,
    Truncated,
    WireError,
)
from qsparse.ledger import Ledger
from qsparse.payload import MAGIC, Payload
from qsparse.process.guard import failure, guard
from qsparse.process.launchers import close_doors
from qsparse.process.supervisor import ended
from qsparse.registry import register
from qsparse.wire.base import ANY, Ranks, T, Wire
from qsparse.wire.mpi_channel import channel_of, make_channel, meet
from qsparse.wire.mpi_cycles import TELLING, Inquiry
from qsparse.wire.mpi_end import DUTIES, end_job, hear_of_finalize, wires_open
from qsparse.wire.mpi_world import launch_check, library, local_ranks, running_mpi
from qsparse.wire.waiting import Alarm, Heard, Limits, Wait, last_heard, named

__all__ = ["CHUNK_BYTES", "MpiWire", "Processes", "launch_check", "library", "local_ranks"]

#: Longer messages travel in pieces of this many bytes.
CHUNK_BYTES: Final = 256 << 20

_LONG, _FAREWELL = b"QSPL", b"QSPX"
_KINDS: Final = (MAGIC, _LONG, _FAREWELL)
_ANNOUNCEMENT: Final = 20

_Buffer = npt.NDArray[np.uint8]


@dataclass
class _Arrival:
    """An arriving message: its memory, how much of it is matched, and which requests still write to it.

    If it comes in pieces, ``piece`` is the length of each but the last; otherwise it is 0.
    """

    buffer: _Buffer
    piece: int = 0
    matched: int = 0
    requests: list[Any] = field(default_factory=list)


class MpiWire(Wire):
    """The wire of one process of an MPI job.

    Making and closing it are collective over the communicator, in one order on all ranks. Received frames
    are memory of the receiver. `receive` from any rank takes the ranks in turn, beginning after the one it
    served last, and receives at most one message of each rank in advance. So a rank that sends much does not
    delay the others; its messages wait at the sender.

    Args:
        comm: an intra-communicator of mpi4py; None is ``COMM_WORLD``.
        ledger: counts what is sent; a new one if not given.
        chunk_bytes: longer messages travel in pieces of this size; need not agree among the ranks.
        limits: how long to wait; taken from the environment unless given (see `qsparse.wire.waiting`).

    Raises:
        LaunchError: MPI cannot be loaded or does not run, or the launcher announces more ranks than MPI sees.
        DisagreementError: ranks that make their wires in different orders.
        PeerGone: a rank has ended without making this wire.
        WaitTimeout: a rank has not come to make it. Every wait of a wire may raise this: a rank has waited
            too long.
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        ledger: Ledger | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        limits: Limits | None = None,
    ) -> None:
        MPI = self._mpi = running_mpi()
        if not 1 <= chunk_bytes <= 1 << 30:
            raise SettingError(f"chunk_bytes is {chunk_bytes}: it must be from 1 to 2^30")
        if comm is None:
            comm = MPI.COMM_WORLD
        if not isinstance(comm, MPI.Comm):
            raise SettingError(f"a wire needs a communicator of mpi4py, not {comm!r}")
        if comm == MPI.COMM_NULL:
            raise SettingError(
                "this rank has the null communicator: it belongs to no group and makes no wire"
            )
        if comm.Is_inter():
            raise SettingError("a wire cannot use an inter-communicator: merge it first (Intercomm.Merge)")
        if MPI.Query_thread() == MPI.THREAD_SINGLE:
            raise LaunchError(
                "MPI was started for programs without threads, and qsparse computes with threads: "
                "remove mpi4py.rc.thread_level = 'single'"
            )
        if comm == MPI.COMM_WORLD:
            launch_check()
        # Several at once, because the rank's own program may call MPI as well.
        self.threaded = MPI.Query_thread() >= MPI.THREAD_MULTIPLE
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.ledger = Ledger() if ledger is None else ledger
        self.limits = Limits.of(os.environ) if limits is None else limits
        close_doors()
        if self.size > 1:
            guard(DUTIES)
        hear_of_finalize()
        channel = channel_of(comm)
        #: The number of this wire among those on this communicator, from 1 on; it is also the tag.
        self.number = 1 if channel is None else channel.next_number()
        #: By rank: its last message, how many messages were sent to it, how many were received from it.
        self.heard: dict[int, Heard] = {}
        self.sent, self.had = [0] * self.size, [0] * self.size
        # Ranks may arrive far apart: they wait by polling first, so that Dup, which spins, is short.
        before = {} if channel is None else channel.heard
        meet(comm if channel is None else channel.comm, self.number, self.limits, before)
        for wire in list(wires_open):
            if wire.closed:
                wire.let_go()
        self.channel = make_channel(comm) if channel is None else channel
        self.channel.enter(self)
        self._comm = self.channel.comm
        self.machines = self.channel.machines
        self._chunk = chunk_bytes
        self._flying: list[tuple[Any, Any, int]] = []  # requests, the memory they use, the other rank
        self._arrivals: dict[int, _Arrival] = {}
        self._ready: list[deque[_Buffer]] = [deque() for _ in range(self.size)]
        self._gone: dict[int, str] = {}
        self._own = 0  # messages to this very rank that it has not received
        self._next = 0
        self._closed = False
        self._status = MPI.Status()
        wires_open.append(self)

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        self._check(dest)
        if not payloads:
            raise WireError(f"rank {self.rank} sends rank {dest} a message without frames")
        frames = [payload.frame for payload in payloads]
        # A single frame is sent without a copy; several have to be put end to end.
        message = frames[0] if len(frames) == 1 else memoryview(bytearray().join(frames))
        if len(message) <= self._chunk:
            self._post(message, dest)
        else:
            lengths = (len(message), self._chunk)
            self._post(_LONG + b"".join(length.to_bytes(8, "little") for length in lengths), dest)
            for start in range(0, len(message), self._chunk):
                self._post(message[start : start + self._chunk], dest)
        self.sent[dest] += 1
        self._own += dest == self.rank
        self._count(payloads)
        self._progress()

    def receive(self, source: int = ANY) -> tuple[int, list[Payload]]:
        self._check(self.rank if source == ANY else source)
        order = [source]
        if source == ANY:
            order = [rank % self.size for rank in range(self._next, self._next + self.size)]
        wait = self._wait("for a message of {ranks}", lambda: self.awaited(source), inquires=True)
        while True:
            moved = self._progress()
            moved |= self._pump([rank for rank in order if not self._ready[rank]])
            for rank in order:
                if self._ready[rank]:
                    self._next = rank + 1
                    return rank, self._parse(rank)
            if reason := self._hopeless(source):
                raise PeerGone(reason)
            wait.rest(moved)

    def flush(self) -> None:
        self._check(self.rank)
        if not self._flying:
            return
        wait = self._wait("for {ranks} to take what was sent", self.takers)
        while self._flying:
            wait.rest(self.move())

    def close(self) -> None:
        """Release what the wire holds; collective, after the last message of a job without errors.

        Ranks that still wait for a message of this one get a `WireError`. Messages that were sent
        and never received are dropped with a warning.

        Raises:
            WireError: another rank has failed, or has ended without closing its wire.
        """
        if self._closed:
            return
        self.depart("")
        wait = self._wait("for {ranks} to close", lambda: self.awaited() or self.takers())
        while (self.busy() or self._own > len(self._ready[self.rank])) and not any(self._gone.values()):
            wait.rest(self.move())
        for rank, reason in sorted(self._gone.items()):
            if reason:
                raise PeerGone(f"rank {self.rank} closes its wire, and rank {rank} {reason}")
        unread = sum(map(len, self._ready))
        self.forget()
        if not wires_open:
            ended()
        self.channel.leave(self)
        if unread:
            warnings.warn(
                f"rank {self.rank} has closed its wire without receiving {unread} messages",
                RuntimeWarning,
                stacklevel=2,
            )

    def leave(self) -> None:
        """Close the wire without waiting for the others, after an error; not collective.

        Ranks that still wait for a message of this one get a `WireError`. Messages that the others have sent
        or still send are dropped. The wire is freed when the others have closed or left it, too, and this
        rank makes another wire. Until then a rank that fails lets the others print their messages (`abort`).
        """
        if self._closed:
            return
        self.depart("")
        self._closed = True
        if self.size == 1:
            self.let_go()

    @property
    def closed(self) -> bool:
        """Whether the wire was closed or left."""
        return self._closed

    def let_go(self) -> None:
        """Free a wire that was left, if no more messages can come."""
        try:
            while self.move():
                pass
        except WireError:  # a message that no rank would read
            return
        if not self.busy():
            self.forget()
            self.channel.leave(self)

    def sum_dense(self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """MPI's own Allreduce of float32 arrays, not counted; compressed exchanges are compared with it."""
        self._comm.Allreduce(x, out, self._mpi.SUM)

    def abort(self, status: int = 1) -> NoReturn:
        """End the whole job at once, when everything that was written to standard error has left.

        The other ranks are told, and get up to two seconds to print their own messages.
        """
        error = sys.exc_info()[1]
        end_job(status, f"has aborted the job with status {status}" if error is None else failure(error))

    # --- What the other files of this wire use -----------------------------------------------

    def depart(self, reason: str) -> None:
        """Tell every other rank that this one will send nothing more, and why; no reason where it closes."""
        for rank in range(self.size):
            if rank != self.rank:
                self._post(_FAREWELL + reason.encode()[:500], rank)

    def busy(self) -> bool:
        """Whether a message is on its way, or a rank has not said farewell (its last message)."""
        return bool(self._flying) or len(self._gone) < self.size - 1

    def move(self) -> bool:
        """Free what has left and receive what has arrived; return whether there was any.

        Two ranks can flush messages to each other because each receives what the other sends.
        """
        moved = self._progress()
        return self._pump(range(self.size)) or moved

    def awaited(self, source: int = ANY) -> list[int]:
        """The ranks from which a message can still come."""
        ranks = range(self.size) if source == ANY else [source]
        return [rank for rank in ranks if rank != self.rank and rank not in self._gone]

    def takers(self) -> list[int]:
        """The ranks that have not received everything that was sent to them."""
        return sorted({rank for _, _, rank in self._flying})

    def forget(self) -> None:
        """Mark the wire as closed, and drop it from the list of open wires."""
        self._closed = True
        wires_open.remove(self)

    # --- How it is done ------------------------------------------------------------------------

    def _check(self, rank: int) -> None:
        if self._closed:
            raise WireError(f"rank {self.rank} has closed its wire")
        if not 0 <= rank < self.size:
            raise WireError(f"there is no rank {rank} on a wire of {self.size} ranks")

    def _wait(self, text: str, ranks: Callable[[], list[int]], *, inquires: bool = False) -> Wait:
        """A wait that names the ranks it waits for; one for a message also asks what they wait for."""
        inquiry: Inquiry | None = None

        def waits() -> str:
            doing = f" in {self.doing}" if self.doing else ""
            return f"{text.format(ranks=named(ranks()))}{doing} (object {self.number} of {self.size} ranks)"

        def alarm() -> Alarm:
            return Alarm(self.rank, self.limits.warn, self.limits.end, describe)

        def describe() -> str:
            told = "" if inquiry is None else inquiry.told(ranks())
            return f"{waits()}: {last_heard(ranks(), self.heard)}{told}"

        def consult(waited: float) -> None:
            nonlocal inquiry
            if inquiry is None:
                if waited < min(TELLING, self.limits.warn):
                    return
                awaited = ranks()
                inquiry = Inquiry(self, awaited[0] if len(awaited) == 1 else None, waits)
            inquiry.look()

        return Wait(alarm, consult if inquires else None, self.hurry)

    def _post(self, buffer: Any, dest: int) -> None:
        request = self._comm.Isend([buffer, len(buffer), self._mpi.BYTE], dest, self.number)
        if not request.Test():
            self._flying.append((request, buffer, dest))

    def _progress(self) -> bool:
        """Free the memory of messages that have left; return whether any has."""
        if not self._flying:
            return False
        done = self._mpi.Request.Testsome([request for request, _, _ in self._flying])
        if not done:
            return False
        finished = set(done)
        self._flying = [each for i, each in enumerate(self._flying) if i not in finished]
        return True

    def _pump(self, sources: Iterable[int]) -> bool:
        """Receive what has arrived, at most one message of each source; return whether any has."""
        if not self._arrivals and not self._comm.Iprobe(self._mpi.ANY_SOURCE, self.number):
            return False  # one question for all ranks: the cost of waiting does not grow with them
        moved = False
        for source in sources:
            moved |= self._advance(source)
        return moved

    def _advance(self, source: int) -> bool:
        moved = False
        while True:
            arrival = self._arrivals.get(source)
            if arrival is None or arrival.matched < len(arrival.buffer):
                # A matched probe receives exactly the message that it has found, also with other threads.
                message = self._comm.Improbe(source, self.number, self._status)
                if message is None:
                    return moved
                moved = True
                count = self._status.Get_count(self._mpi.BYTE)
                if arrival is None:
                    arrival = self._arrivals[source] = _Arrival(np.empty(count, np.uint8))
                elif count != min(arrival.piece, len(arrival.buffer) - arrival.matched):
                    self._refuse(source, message, count)
                place = arrival.buffer[arrival.matched : arrival.matched + count]
                arrival.requests.append(message.Irecv([place, count, self._mpi.BYTE]))
                arrival.matched += count
                if arrival.matched < len(arrival.buffer):
                    continue
            if not self._mpi.Request.Testall(arrival.requests):
                return moved
            del self._arrivals[source]
            if self._complete(source, arrival):
                return True
            moved = True  # an announcement: its pieces are next

    def _complete(self, source: int, arrival: _Arrival) -> bool:
        """Take a complete message by its kind; return False if it only announces another."""
        if not arrival.piece:
            kind = arrival.buffer[:4].tobytes()
            if kind == _LONG:
                self._announced(source, arrival.buffer.tobytes())
                return False
            if kind == _FAREWELL:
                self._gone[source] = arrival.buffer[4:].tobytes().decode("utf-8", "replace")
                return True
        self._ready[source].append(arrival.buffer)
        return True

    def _announced(self, source: int, text: bytes) -> None:
        where = f"rank {self.rank} refuses a message of rank {source}"
        if len(text) != _ANNOUNCEMENT:
            raise Truncated(f"{where}: it is announced in {len(text)} bytes, not in {_ANNOUNCEMENT}")
        length, piece = int.from_bytes(text[4:12], "little"), int.from_bytes(text[12:], "little")
        try:
            self._arrivals[source] = _Arrival(np.empty(length, np.uint8), piece)
        except (MemoryError, ValueError):
            raise Corrupted(f"{where}: it announces {length} bytes, more than there is memory") from None

    def _refuse(self, source: int, message: Any, count: int) -> NoReturn:
        """Give up a message whose pieces do not fit; what came instead of a piece is kept."""
        arrival = self._arrivals.pop(source)
        self._flying += [(request, arrival.buffer, source) for request in arrival.requests]
        where = f"rank {self.rank} refuses a message of rank {source}"
        announced = len(arrival.buffer)
        instead = np.empty(count, np.uint8)
        message.Recv([instead, count, self._mpi.BYTE])
        if instead[:4].tobytes() in _KINDS:
            self._arrivals[source] = _Arrival(instead, matched=count)
            raise Truncated(f"{where}: it announced {announced} bytes and ended after {arrival.matched}")
        if count > announced - arrival.matched:
            raise Corrupted(f"{where}: its pieces exceed the {announced} bytes it announced")
        raise Corrupted(f"{where}: it announced pieces of {arrival.piece} bytes, and one has {count}")

    def _parse(self, source: int) -> list[Payload]:
        self._own -= source == self.rank
        self.had[source] += 1
        where = f"rank {self.rank} refuses a message of rank {source}"
        message = self._ready[source].popleft()
        if not len(message):
            raise Truncated(f"{where}: it is empty")
        try:
            payloads = self._took(Payload.split(message.data))
        except WireError as error:
            raise type(error)(f"{where}: {error}") from None
        self.heard[source] = heard = Heard.now(payloads[-1])
        self.channel.clear(heard.at)
        return payloads

    def _hopeless(self, source: int) -> str:
        """Why a rank with nothing to receive would wait for ever; empty if it would not."""
        wait = f"rank {self.rank} waits for a message of"
        if source == ANY and not self._own:
            for rank, reason in sorted(self._gone.items()):
                if reason:
                    return f"{wait} any rank, and rank {rank} {reason}"
            if len(self._gone) == self.size - 1:
                return f"{wait} any rank, and no other rank is left"
        elif source == self.rank and not self._own:
            return f"{wait} its own that it has not sent"
        elif source in self._gone:
            return f"{wait} rank {source}, which {self._gone[source] or 'has closed its wire'}"
        return ""


@register("mpi")
@dataclass(frozen=True)
class Processes(Ranks):
    """Ranks are processes that a launcher starts, which talk over MPI."""

    launched: ClassVar[bool] = True

    def run(self, ranks: int, body: Callable[[Wire], T]) -> T:
        """With the rank that this process is."""
        return body(MpiWire())

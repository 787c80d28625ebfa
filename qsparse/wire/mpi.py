"""Ranks as processes of an MPI job.

This is the only file that talks MPI, and mpi4py is imported by who makes a wire, not by who imports
this file. Four habits:

* *Own communicator.* A wire works on its own copy of the communicator it is given, so messages of
  other code cannot collide with its messages.
* *No long blocking call.* MPI libraries wait by spinning, which takes the core from ranks that
  compute. A wire polls a few times and then sleeps, 20 µs at first, then a tenth of its wait so far, at
  most 1 ms.
* *Chunks.* A message longer than ``chunk_bytes`` travels as an announcement of its length and pieces
  in order, because a count above 2³¹ − 1 fails in some libraries.
* *Farewells.* A rank that closes its wire, fails or ends without closing says so to all others; who
  waits for it then gets a `WireError` instead of waiting for ever. A rank that ends goes on taking in
  what others send until they have said farewell, too: afterwards MPI moves nothing, and the memory of
  what is still on its way is gone with the interpreter, before MPI is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from qsparse.errors import (
    Corrupted,
    ForeignFrame,
    LaunchError,
    SettingError,
    Stranded,
    Truncated,
    WireError,
    installing,
)
from qsparse.guard import Duties, failure, guard
from qsparse.launchers import REMEDIES, announced_size
from qsparse.ledger import Ledger
from qsparse.payload import Payload
from qsparse.supervisor import ended
from qsparse.wire.base import ANY, Wire

#: Longer messages travel in pieces of this many bytes.
CHUNK_BYTES: Final = 256 << 20

# Tags: a message in one piece; the length of a message in several; one of its pieces; a farewell,
# whose text is the reason, or nothing from a rank that has closed its wire.
_WHOLE, _LONG, _PART, _FAREWELL = 1, 2, 3, 4

#: How long a failing rank waits for the others to print their own messages.
_GRACE: Final = 2.0

_Buffer = npt.NDArray[np.uint8]


class _Patience:
    """Waiting that leaves the core to others: polls at once, then with growing sleeps."""

    def __init__(self) -> None:
        self._polls = 0
        self._pause = 20e-6

    def rest(self, moved: bool) -> None:
        """Called after each poll; ``moved`` says whether the poll found something to do."""
        if moved:
            self._polls, self._pause = 0, 20e-6
        elif self._polls < 20:
            self._polls += 1
        else:
            time.sleep(self._pause)
            # A tenth more each time is a tenth of the wait so far: what is overslept is little beside it.
            self._pause = min(1.1 * self._pause, 1e-3)


@dataclass
class _Arrival:
    """A message on its way in: its memory, how much of it is matched, and what still writes to it."""

    buffer: _Buffer
    matched: int = 0
    requests: list[Any] = field(default_factory=list)

    def take(self, message: Any, count: int) -> None:
        piece = self.buffer[self.matched : self.matched + count]
        self.requests.append(message.Irecv([piece, count, _mpi().BYTE]))
        self.matched += count

    def complete(self) -> bool:
        return self.matched == len(self.buffer) and _mpi().Request.Testall(self.requests)


class MpiWire(Wire):
    """The wire of one process of an MPI job.

    Making and closing it are collective over the communicator. Received frames are memory of the
    receiver. `receive` from any rank goes round the ranks, beginning after the one it served last,
    and takes at most one message of each ahead of time: a rank that sends much does not delay the
    others, and its messages wait at its side.

    Args:
        comm: an intra-communicator of mpi4py; None is ``COMM_WORLD``.
        ledger: counts what is sent; a new one if not given.
        chunk_bytes: longer messages travel in pieces of this size; need not agree among the ranks.

    Raises:
        LaunchError: MPI cannot be loaded, or the launcher announces more ranks than MPI sees.
    """

    def __init__(
        self, comm: Any = None, *, ledger: Ledger | None = None, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        MPI = self._mpi = _mpi()
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
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.ledger = Ledger() if ledger is None else ledger
        if self.size > 1:
            guard(Duties(_world_rank, _end, _say_farewell))
            _hear_of_finalize()
        # Ranks may arrive far apart: they meet by polling, so that Dup, which spins, is short.
        _poll(comm.Ibarrier().Test)
        self._comm = comm.Dup()
        self._comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._chunk = chunk_bytes
        self._flying: list[tuple[Any, Any]] = []  # requests with the memory they use
        self._arrivals: dict[int, _Arrival] = {}
        self._ready: list[deque[_Buffer]] = [deque() for _ in range(self.size)]
        self._gone: dict[int, str] = {}
        self._own = 0  # messages to this very rank that it has not received
        self._next = 0
        self._closed = False
        self._status = MPI.Status()
        _open.append(self)

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        self._check(dest)
        if not payloads:
            raise WireError(f"rank {self.rank} sends rank {dest} a message without frames")
        frames = [payload.frame for payload in payloads]
        # One frame leaves from where it lies; only several have to be laid end to end.
        message = frames[0] if len(frames) == 1 else memoryview(bytearray().join(frames))
        if len(message) <= self._chunk:
            self._post(message, dest, _WHOLE)
        else:
            self._post(len(message).to_bytes(8, "little"), dest, _LONG)
            for start in range(0, len(message), self._chunk):
                self._post(message[start : start + self._chunk], dest, _PART)
        self._own += dest == self.rank
        self._count(payloads)
        self._progress()

    def receive(self, source: int = ANY) -> tuple[int, list[Payload]]:
        self._check(self.rank if source == ANY else source)
        order = [source]
        if source == ANY:
            order = [rank % self.size for rank in range(self._next, self._next + self.size)]
        patience = _Patience()
        while True:
            moved = self._progress()
            moved |= self._pump([rank for rank in order if not self._ready[rank]])
            for rank in order:
                if self._ready[rank]:
                    self._next = rank + 1
                    return rank, self._parse(rank)
            if reason := self._hopeless(source):
                raise Stranded(reason)
            patience.rest(moved)

    def flush(self) -> None:
        self._check(self.rank)
        patience = _Patience()
        while self._flying:
            patience.rest(self._move())

    def close(self) -> None:
        """Release what the wire holds; collective, after the last message of a sound job.

        Ranks that still wait for a message of this one get a `WireError`. Messages that were sent
        and never received are dropped with a warning.

        Raises:
            WireError: another rank has failed, or has ended without closing its wire.
        """
        if self._closed:
            return
        self._depart("")
        patience = _Patience()
        while (self._busy() or self._own > len(self._ready[self.rank])) and not any(self._gone.values()):
            patience.rest(self._move())
        for rank, reason in sorted(self._gone.items()):
            if reason:
                raise Stranded(f"rank {self.rank} closes its wire, and rank {rank} {reason}")
        unread = sum(map(len, self._ready))
        self._closed = True
        _open.remove(self)
        if not _open:
            ended()
        self._comm.Free()
        if unread:
            warnings.warn(
                f"rank {self.rank} has closed its wire without receiving {unread} messages",
                RuntimeWarning,
                stacklevel=2,
            )

    def sum_dense(self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """MPI's own Allreduce of float32 arrays, not counted: what compressed exchanges are held against."""
        self._comm.Allreduce(x, out, self._mpi.SUM)

    def abort(self, status: int = 1) -> NoReturn:
        """End the whole job at once, after what was written to standard error has left.

        The other ranks are told, and get up to two seconds to print their own messages.
        """
        error = sys.exc_info()[1]
        _end(status, f"has aborted the job with status {status}" if error is None else failure(error))

    def _check(self, rank: int) -> None:
        if self._closed:
            raise WireError(f"rank {self.rank} has closed its wire")
        if not 0 <= rank < self.size:
            raise WireError(f"there is no rank {rank} on a wire of {self.size} ranks")

    def _post(self, buffer: Any, dest: int, tag: int) -> None:
        request = self._comm.Isend([buffer, len(buffer), self._mpi.BYTE], dest, tag)
        if not request.Test():
            self._flying.append((request, buffer))

    def _progress(self) -> bool:
        """Let go of the memory of what has left; whether anything has."""
        if not self._flying:
            return False
        done = self._mpi.Request.Testsome([request for request, _ in self._flying])
        if not done:
            return False
        finished = set(done)
        self._flying = [pair for i, pair in enumerate(self._flying) if i not in finished]
        return True

    def _move(self) -> bool:
        """Let go of what has left and take in what has arrived; whether there was any.

        Taking in what others send is what lets two ranks flush towards each other.
        """
        moved = self._progress()
        return self._pump(range(self.size)) or moved

    def _pump(self, sources: Iterable[int]) -> bool:
        """Take in what has arrived, at most one message of each source; whether anything has."""
        if not self._arrivals and not self._comm.Iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG):
            return False  # one question for all ranks: the cost of waiting does not grow with them
        moved = False
        for source in sources:
            moved |= self._advance(source)
        return moved

    def _advance(self, source: int) -> bool:
        arrival = self._arrivals.get(source)
        moved = False
        while arrival is None or arrival.matched < len(arrival.buffer):
            # A matched probe: what is found here is what is received, also beside other threads.
            message = self._comm.Improbe(source, self._mpi.ANY_TAG, self._status)
            if message is None:
                break
            moved = True
            tag, count = self._status.Get_tag(), self._status.Get_count(self._mpi.BYTE)
            if arrival is None:
                arrival = self._begin(source, message, tag, count)
                if arrival is None:
                    return True
            elif tag == _PART and count <= len(arrival.buffer) - arrival.matched:
                arrival.take(message, count)
            else:
                self._refuse(source, message, tag, count)
        if arrival is not None and arrival.complete():
            del self._arrivals[source]
            self._ready[source].append(arrival.buffer)
            moved = True
        return moved

    def _begin(self, source: int, message: Any, tag: int, count: int) -> _Arrival | None:
        """Start to receive a message; None if it was a farewell."""
        if tag == _WHOLE:
            arrival = _Arrival(np.empty(count, np.uint8))
            arrival.take(message, count)
        else:
            text = bytearray(count)
            message.Recv([text, count, self._mpi.BYTE])
            if tag == _FAREWELL:
                self._gone[source] = text.decode("utf-8", "replace")
                return None
            where = f"rank {self.rank} refuses a message of rank {source}"
            if tag != _LONG:
                raise ForeignFrame(f"{where}: qsparse does not begin one with tag {tag}")
            if count != 8:
                raise Truncated(f"{where}: its length is announced in {count} bytes, not in 8")
            length = int.from_bytes(text, "little")
            try:
                arrival = _Arrival(np.empty(length, np.uint8))
            except (MemoryError, ValueError):
                raise Corrupted(f"{where}: it announces {length} bytes, more than there is memory") from None
        self._arrivals[source] = arrival
        return arrival

    def _refuse(self, source: int, message: Any, tag: int, count: int) -> NoReturn:
        """Give up a message whose pieces do not add up; what came instead of a piece is kept."""
        arrival = self._arrivals.pop(source)
        self._flying += [(request, arrival.buffer) for request in arrival.requests]
        where = f"rank {self.rank} refuses a message of rank {source}"
        if tag == _PART:
            message.Recv([bytearray(count), count, self._mpi.BYTE])
            raise Corrupted(f"{where}: its pieces exceed the {len(arrival.buffer)} bytes it announced")
        self._begin(source, message, tag, count)
        raise Truncated(
            f"{where}: it announced {len(arrival.buffer)} bytes and ended after {arrival.matched}"
        )

    def _parse(self, source: int) -> list[Payload]:
        self._own -= source == self.rank
        where = f"rank {self.rank} refuses a message of rank {source}"
        message = self._ready[source].popleft()
        if not len(message):
            raise Truncated(f"{where}: it is empty")
        try:
            return Payload.split(message.data)
        except WireError as error:
            raise type(error)(f"{where}: {error}") from None

    def _hopeless(self, source: int) -> str:
        """Why a rank with nothing to receive would wait for ever, or nothing."""
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

    def _depart(self, reason: str) -> None:
        """Tell every other rank that this one will send nothing more."""
        for rank in range(self.size):
            if rank != self.rank:
                self._post(reason.encode()[:500], rank, _FAREWELL)

    def _busy(self) -> bool:
        """Whether something is on its way, or a rank has not said farewell, which comes last."""
        return bool(self._flying) or len(self._gone) < self.size - 1


def launch_check(environ: Mapping[str, str] | None = None) -> None:
    """Refuse a launcher that announces several ranks beside a world of one.

    Launcher and MPI library of different makers do not fail: they start N jobs of one rank, each of
    which trains alone and overwrites the results of the others.

    Raises:
        LaunchError: with the launcher's variable, the library and the remedy.
    """
    found = announced_size(os.environ if environ is None else environ)
    if found is None or _mpi().COMM_WORLD.Get_size() > 1:
        return
    variable, ranks = found
    vendor, version = library()
    raise LaunchError(
        f"{variable} announces {ranks} ranks, but {vendor} {version}, the MPI library that mpi4py has "
        f"loaded, sees a world of one. {REMEDIES[variable]}"
    )


def library() -> tuple[str, str]:
    """Vendor and version of the MPI library that mpi4py has loaded, e.g. ``("MPICH", "5.0.2")``."""
    vendor, version = _mpi().get_vendor()
    return vendor, ".".join(map(str, version))


def local_ranks(comm: Any = None) -> tuple[int, int]:
    """This rank among the ranks on the same machine, and how many these are; collective."""
    MPI = _mpi()
    node = (MPI.COMM_WORLD if comm is None else comm).Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return node.Get_rank(), node.Get_size()
    finally:
        node.Free()


# --- What ends a job ---------------------------------------------------------------------------

_open: list[MpiWire] = []


def _world_rank() -> int:
    MPI = _mpi()
    return MPI.COMM_WORLD.Get_rank() if MPI.Is_initialized() and not MPI.Is_finalized() else -1


def _end(status: int, reason: str) -> NoReturn:
    """Tell the others, let them print, end the job."""
    MPI = _mpi()
    _flush_output()
    ended()
    if not MPI.Is_initialized() or MPI.Is_finalized():
        os._exit(status)
    try:
        wires = [wire for wire in _open if wire.size > 1]
        for wire in wires:
            wire._depart(reason)
        if wires:
            widest = max(wires, key=lambda wire: wire.size)
            _poll(widest._comm.Ibarrier().Test, _GRACE)
        _flush_output()
        time.sleep(0.1)  # launchers drop output that they have not read when a job is aborted
    finally:
        MPI.COMM_WORLD.Abort(status)
        os._exit(status)


def _say_farewell() -> None:
    """Tell the others that this rank ends, and stay until they do: MPI would wait for them as well."""
    if _mpi().Is_finalized():
        return
    wires = [wire for wire in _open if wire.size > 1]
    if wires:
        _flush_output()
    for wire in wires:
        wire._depart("has ended without closing its wire")
    patience = _Patience()
    while any(wire._busy() for wire in wires):
        moved = False
        for wire in wires:
            with contextlib.suppress(WireError):  # a refused message, which nobody would read
                moved |= wire._move()
        patience.rest(moved)
    for wire in wires:
        wire._closed = True
        _open.remove(wire)


@functools.cache
def _hear_of_finalize() -> None:
    """Say farewell also where a program ends MPI by itself while its wires are open.

    MPI_Finalize begins with deleting the attributes of ``COMM_SELF``, while messages still travel
    (MPI 4.1, section 11.2.4).
    """
    MPI = _mpi()
    MPI.COMM_SELF.Set_attr(MPI.Comm.Create_keyval(delete_fn=lambda *_: _say_farewell()), True)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _poll(done: Callable[[], bool], seconds: float | None = None) -> bool:
    """Wait until ``done()``, sleeping; whether it was in time."""
    deadline = None if seconds is None else time.monotonic() + seconds
    patience = _Patience()
    while not done():
        if deadline is not None and time.monotonic() > deadline:
            return False
        patience.rest(False)
    return True


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"MPI cannot be loaded ({error}): install mpi4py and one MPI library, e.g. {installing('mpich')}"
        ) from error
    return MPI

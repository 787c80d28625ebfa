"""What the wires of one communicator share: a copy of it, and notes between its ranks.

MPI libraries have about two thousand communicators in all, so the copy is made once and kept with the
communicator. Each wire has its own tag on it. Tag 0 is for notes: a rank that has waited for some seconds
describes its wait in one (see `mpi_cycles`), and a rank that has ended says so, also to ranks that wait for
it to make their next wire.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from qsparse.errors import DisagreementError, PeerGone, WireError
from qsparse.wire.mpi_world import ended_here, machines_of, running_mpi
from qsparse.wire.waiting import Alarm, Heard, Limits, Wait, last_heard, named

if TYPE_CHECKING:
    from qsparse.wire.mpi import MpiWire

#: Tag of notes; a wire has the tag that is its number, from 1 on.
_NOTES: Final = 0


class Note(NamedTuple):
    """What a waiting rank says of its wait to another.

    Attributes:
        serial: the number of the wait, among those of its process.
        wire: the number of the wire on which it waits.
        had: how many messages it has received there from the rank that gets the note.
        alone: whether it waits for that rank only, and no other thread of its process could send.
        seen: the serial of the other's own wait, if only a message of this rank can end that.
        waits: in words, for what it waits.
    """

    serial: int
    wire: int
    had: int
    alone: bool
    seen: int
    waits: str


class Received(NamedTuple):
    """A rank's newest note, and when, on which channel and from which rank it came."""

    at: float
    channel: Channel
    source: int
    note: Note


#: All channels of this process.
channels: list[Channel] = []
#: The newest note of each process, and the processes that have ended and why; by `Channel.world`.
notes: dict[Hashable, Received] = {}
gone: dict[Hashable, str] = {}

_keyval: int | None = None
#: Requests of calls of `meet` that were given up, with the memory that MPI may still write to.
_abandoned: list[Any] = []


class Channel:
    """The copy of a communicator, with a number for each wire on it; making it is collective."""

    def __init__(self, comm: Any) -> None:
        MPI = self._mpi = running_mpi()
        try:
            self.comm = comm.Dup()
        except MPI.Exception as error:
            raise WireError(
                f"MPI has no room for one more communicator ({str(error).splitlines()[0]}); {len(channels)} "
                "are copies that qsparse has made, one for each communicator that it was given. Free those "
                "that are done with, or make the objects on one communicator: they share a copy"
            ) from None
        self.comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.world = world_ranks(comm)
        self.machines = machines_of(self.comm)
        self.wires: dict[int, MpiWire] = {}
        self._newest = 0
        self._highest = self.comm.Get_attr(MPI.TAG_UB) or 32767
        self._flying: list[tuple[Any, bytes]] = []
        self._lock = threading.Lock()  # wires of several threads may have notes to send
        self._orphan = False
        self._due = 0.0

    def next_number(self) -> int:
        """The number of the next wire, the same on all ranks since they make their wires in one order."""
        number = self._newest % self._highest + 1
        while number in self.wires:
            number = number % self._highest + 1
        return number

    def enter(self, wire: MpiWire) -> None:
        """Note that a wire was made, on all ranks."""
        self._newest = wire.number
        self.wires[wire.number] = wire

    def leave(self, wire: MpiWire) -> None:
        """Note that a wire is closed, on all ranks."""
        del self.wires[wire.number]
        self._free_if_done()

    @property
    def heard(self) -> dict[int, Heard]:
        """The last message of each rank on any wire that is open."""
        newest: dict[int, Heard] = {}
        for wire in self.wires.values():
            for rank, heard in wire.heard.items():
                newest[rank] = max(heard, newest.get(rank, heard))
        return newest

    def clear(self, now: float) -> None:
        """Receive notes from time to time, also where a rank never waits for long."""
        if now >= self._due:
            self._due = now + 5.0
            self.take_notes()

    def orphan(self) -> None:
        """Note that the communicator is freed; wires that are still open go on."""
        self._orphan = True
        self._free_if_done()

    def _free_if_done(self) -> None:
        if self._orphan and not self.wires and self in channels:
            channels.remove(self)
            self.comm.Free()

    def post(self, dest: int, content: dict[str, Any]) -> None:
        """Send a note, which is so short that it leaves whatever the other rank does."""
        text = json.dumps(content).encode()
        with self._lock:
            self._forget_sent()
            self._flying.append((self.comm.Isend([text, self._mpi.BYTE], dest, _NOTES), text))

    def say_farewell(self, reason: str) -> None:
        """Tell the others that this rank has ended."""
        for rank in range(self.size):
            if rank != self.rank:
                self.post(rank, {"gone": reason[:500]})

    def silent(self) -> bool:
        """Whether all notes have left."""
        with self._lock:
            self._forget_sent()
            return not self._flying

    def _forget_sent(self) -> None:
        self._flying = [(request, text) for request, text in self._flying if not request.Test()]

    def take_notes(self) -> None:
        """Receive the notes that have come."""
        status = self._mpi.Status()
        while (message := self.comm.Improbe(self._mpi.ANY_SOURCE, _NOTES, status)) is not None:
            text = bytearray(status.Get_count(self._mpi.BYTE))
            message.Recv([text, self._mpi.BYTE])
            content, source = json.loads(text), status.Get_source()
            if "gone" in content:
                gone[self.world[source]] = content["gone"]
            else:
                notes[self.world[source]] = Received(time.monotonic(), self, source, Note(**content))


def take_notes() -> None:
    """Receive the notes that have come on any channel."""
    for channel in list(channels):
        channel.take_notes()


def channel_of(comm: Any) -> Channel | None:
    """The channel of a communicator, or None where it has none."""
    found: Channel | None = None if _keyval is None else comm.Get_attr(_keyval)
    return found


def make_channel(comm: Any) -> Channel:
    """Give a communicator its channel, which is kept as long as the communicator; collective."""
    global _keyval
    if _keyval is None:
        _keyval = running_mpi().Comm.Create_keyval(delete_fn=lambda comm, key, channel: channel.orphan())
    channel = Channel(comm)
    comm.Set_attr(_keyval, channel)
    channels.append(channel)
    return channel


def meet(comm: Any, number: int, limits: Limits, heard: dict[int, Heard]) -> None:
    """Wait, asleep, until all ranks make the same wire; collective.

    Raises:
        PeerGone: a rank has ended.
        WaitTimeout: a rank has not come.
        DisagreementError: the ranks make their wires in different orders.
    """
    MPI = running_mpi()
    rank, size = comm.Get_rank(), comm.Get_size()
    # Each rank sends its number to each other, so that the arrivals show which ranks are there.
    said, told = np.full(size, number, np.int32), np.zeros(size, np.int32)
    each, places = [1] * size, list(range(size))
    request = comm.Ialltoallv([said, each, places, MPI.INT32_T], [told, each, places, MPI.INT32_T])
    wire = f"its object {number} on a communicator of {size} ranks"

    def absent() -> list[int]:
        return [other for other in places if other != rank and not told[other]]

    def describe() -> str:
        ranks = absent()
        return f"for {named(ranks) if ranks else 'others'} to make {wire}: {last_heard(ranks, heard)}"

    def consult(waited: float) -> None:
        take_notes()
        ended = ended_here() if waited >= 1.0 else set()
        if gone or ended:
            world = world_ranks(comm)
            for other in absent():
                if world[other] in gone or world[other] in ended:
                    reason = gone.get(world[other], "has ended")
                    raise PeerGone(f"rank {rank} waits for rank {other} to make {wire}, and it {reason}")

    wait = Wait(lambda: Alarm(rank, limits.warn, limits.end, describe), consult)
    try:
        while not request.Test():
            wait.rest(False)
    except BaseException:
        _abandoned.append((request, said, told))
        raise
    others = {other: int(theirs) for other, theirs in enumerate(told) if theirs != number}
    if others:
        raise DisagreementError(
            f"rank {rank} makes {wire}, where others make another one (rank: object) {others}: make them in "
            "the same order on all ranks"
        )


def world_ranks(comm: Any) -> list[Hashable]:
    """Names of a communicator's processes that are the same on every communicator: ranks of COMM_WORLD."""
    MPI = running_mpi()
    ours, all_of_them = comm.Get_group(), MPI.COMM_WORLD.Get_group()
    try:
        found = MPI.Group.Translate_ranks(ours, list(range(ours.Get_size())), all_of_them)
    finally:
        ours.Free()
        all_of_them.Free()
    # A process of another world is named by its rank here.
    return [(id(comm), i) if rank == MPI.UNDEFINED else rank for i, rank in enumerate(found)]

"""What MPI wires do when a rank ends: they tell the others, and wait until messages have arrived."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from qsparse.errors import WaitTimeout, WireError
from qsparse.process.guard import Duties, failure
from qsparse.process.supervisor import ended
from qsparse.wire.mpi_channel import channels
from qsparse.wire.mpi_world import load_mpi
from qsparse.wire.waiting import Alarm, Patience, Wait, last_heard, named

if TYPE_CHECKING:
    from qsparse.wire.mpi import MpiWire

#: The wires of this process that are open.
wires_open: list[MpiWire] = []

#: How long a failing rank waits for the others to print their own messages.
_GRACE: Final = 2.0

_rank = -1


def world_rank() -> int:
    """This process's rank in the job, also after MPI has ended; −1 before it has begun."""
    global _rank
    MPI = load_mpi()
    if MPI.Is_initialized() and not MPI.Is_finalized():
        _rank = MPI.COMM_WORLD.Get_rank()
    return _rank


def end_job(status: int, reason: str) -> NoReturn:
    """Tell the others, let them print their messages, and end the job."""
    MPI = load_mpi()
    _flush_output()
    ended()
    if not MPI.Is_initialized() or MPI.Is_finalized():
        os._exit(status)
    try:
        wires = _tell(reason)
        _stay(wires, Patience(), _GRACE)
        _flush_output()
        time.sleep(0.1)  # launchers drop output that they have not read when a job is aborted
    finally:
        MPI.COMM_WORLD.Abort(status)
        os._exit(status)


def say_farewell() -> None:
    """Tell the others that this rank ends, and stay until they end: MPI would wait for them as well."""
    if load_mpi().Is_finalized():
        return
    if channels or wires_open:
        _flush_output()
    wires = _tell("has ended without closing its wire" if wires_open else "has ended")
    if wires:
        widest = max(wires, key=lambda wire: wire.size)

        def describe() -> str:
            ranks = widest.awaited() or widest.takers()
            return f"for {named(ranks)} to end, as it has itself: {last_heard(ranks, widest.heard)}"

        limits = widest.limits
        wait = Wait(lambda: Alarm(widest.rank, limits.warn, limits.leave, describe))
        try:
            _stay(wires, wait, math.inf)
        except WaitTimeout as error:
            if sys.stderr is not None:
                sys.stderr.write(f"[rank {world_rank()}] WaitTimeout: {error}\n")
            end_job(1, failure(error))
    for wire in list(wires_open):
        wire.forget()


def _tell(reason: str) -> Sequence[MpiWire]:
    """Say farewell on every channel and every open wire of several ranks, which are returned."""
    wires = [wire for wire in wires_open if wire.size > 1]
    for channel in channels:
        channel.say_farewell(reason)
    for wire in wires:
        if not wire.closed:  # a wire that was left has said so, and the others may have freed it since
            wire.depart(reason)
    return wires


def _stay(wires: Sequence[MpiWire], patience: Patience, seconds: float) -> None:
    """Receive what others send until all have said farewell, too."""
    deadline = time.monotonic() + seconds
    while any(wire.busy() for wire in wires) or not all(channel.silent() for channel in channels):
        moved = False
        for wire in wires:
            with contextlib.suppress(WireError):  # a refused message, which no rank would read
                moved |= wire.move()
        if time.monotonic() > deadline:
            return
        patience.rest(moved)


@functools.cache
def hear_of_finalize() -> None:
    """Say farewell also where a program ends MPI while its wires are open; the first wire calls this.

    MPI_Finalize begins with deleting the attributes of ``COMM_SELF``, while messages still travel
    (MPI 4.1, section 11.2.4).
    """
    MPI = load_mpi()
    world_rank()

    def ends(*_: object) -> None:
        say_farewell()
        # Their communicators end with MPI, and may not be freed after that.
        channels.clear()

    MPI.COMM_SELF.Set_attr(MPI.Comm.Create_keyval(delete_fn=ends), True)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


DUTIES = Duties(world_rank, end_job, say_farewell)

"""The MPI of this process: whether it is installed and runs, and which other ranks are in the job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from qsparse.errors import LaunchError, installing
from qsparse.process import launchers
from qsparse.process.launchers import REMEDIES, announced_size, processes_of_torch, rank_above, refusal_within


def load_mpi() -> Any:
    """The module ``mpi4py.MPI``; importing it starts MPI, unless mpi4py is set not to start it.

    Raises:
        LaunchError: it cannot be loaded.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"MPI cannot be loaded ({error}): install mpi4py and one MPI library, e.g. {installing('mpich')}"
        ) from error
    return MPI


def running_mpi() -> Any:
    """The module ``mpi4py.MPI``, if MPI runs; calls to an MPI that does not run kill the process.

    Raises:
        LaunchError: MPI does not run yet or any more, or cannot be loaded (see `load_mpi`).
    """
    MPI = load_mpi()
    if not MPI.Is_initialized():
        raise LaunchError(
            "MPI is not started in this process (mpi4py.rc.initialize, or MPI4PY_RC_INITIALIZE, is false): "
            "call MPI.Init_thread() before anything of qsparse that uses MPI"
        )
    if MPI.Is_finalized():
        raise LaunchError(
            "MPI has been ended in this process (MPI.Finalize was called), and cannot be started again: let "
            "that be the last thing that a program does"
        )
    return MPI


def launch_check(environ: Mapping[str, str] | None = None) -> None:
    """Refuse a launcher that announces several ranks where MPI sees one, and a larger group of torch.

    A launcher and an MPI library of different makers do not fail: they start N jobs of one rank, each of
    which trains alone and overwrites the results of the others. Processes that torch knows of and MPI does
    not would do the same.

    Raises:
        LaunchError: with the launcher's variable, the library and the remedy; or MPI does not run.
    """
    environ = os.environ if environ is None else environ
    found, processes = announced_size(environ), processes_of_torch()
    if found is None and processes == 1:
        return
    world = running_mpi().COMM_WORLD.Get_size()
    if processes > world:
        vendor, version = library()
        raise LaunchError(
            f"torch.distributed has {processes} processes, but {vendor} {version}, the MPI library that "
            f"mpi4py has loaded, sees a world of {world}. {REMEDIES['WORLD_SIZE']}"
        )
    if found is None or world > 1:
        return
    if (parent := rank_above(environ)) is not None:
        raise LaunchError(refusal_within(parent))
    variable, ranks = found
    vendor, version = library()
    raise LaunchError(
        f"{variable} announces {ranks} ranks, but {vendor} {version}, the MPI library that mpi4py has "
        f"loaded, sees a world of one. {REMEDIES[variable]}"
    )


def library() -> tuple[str, str]:
    """Vendor and version of the MPI library that mpi4py has loaded, e.g. ``("MPICH", "5.0.2")``."""
    vendor, version = load_mpi().get_vendor()
    return vendor, ".".join(map(str, version))


def note_own_end() -> None:
    """Show the others that this rank has ended, even if it has never made a wire; see `ended_here`."""
    MPI = running_mpi()
    if MPI.Comm.Get_parent() == MPI.COMM_NULL:
        launchers.note_end(MPI.COMM_WORLD.Get_rank())


def ended_here() -> set[int]:
    """The ranks of COMM_WORLD on this machine that have ended."""
    MPI = running_mpi()
    # Spawned ranks have a world of their own, with the same numbers.
    return launchers.ended_here() if MPI.Comm.Get_parent() == MPI.COMM_NULL else set()


def local_ranks(comm: Any = None) -> tuple[int, int]:
    """The number of this rank among the ranks on its machine, and how many there are; collective."""
    MPI = running_mpi()
    node = (MPI.COMM_WORLD if comm is None else comm).Split_type(MPI.COMM_TYPE_SHARED)
    try:
        return node.Get_rank(), node.Get_size()
    finally:
        node.Free()


def machines_of(comm: Any) -> tuple[int, ...]:
    """Of each rank of a communicator, the lowest rank on its machine; collective.

    Ranks are on one machine where they can share memory.
    """
    MPI = running_mpi()
    here = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.Get_rank())
    try:
        lowest = here.bcast(comm.Get_rank(), 0)
    finally:
        here.Free()
    return tuple(comm.allgather(lowest))

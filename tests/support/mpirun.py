"""Jobs of several real ranks for tests: `mpi_run` starts ``mpiexec`` and gives back what was printed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qsparse.cli.launch import environment, mpiexec_command

ROOT = Path(__file__).resolve().parents[2]

#: What launchers and schedulers leave behind; a job inside a job must not see it.
_LEFTOVERS = ("PMI", "OMPI_", "OPAL_", "PRTE_", "HYDRA_", "HYDI_", "MPI_", "MPIR_", "MPIEXEC_", "I_MPI_")
_LEFTOVERS_OF_SCHEDULERS = ("SLURM_", "FLUX_", "PALS_", "PBS_", "LSB_", "TORCHELASTIC_", "WORLD_SIZE")

# Each rank starts here: after the time limit it prints where every thread stands, and ends. By an alarm,
# which a process that is forked can have as well: faulthandler's own clock is a thread, for which it would
# wait for ever.
# Lines are written as a whole: those of several ranks meet in one pipe.
_BOOT = """\
import faulthandler, os, runpy, signal, sys
sys.stdout.reconfigure(line_buffering=True)
seconds = float(sys.argv[1])
faulthandler.register(signal.SIGALRM, chain=True)
signal.setitimer(signal.ITIMER_REAL, seconds)
os.register_at_fork(after_in_child=lambda: signal.setitimer(signal.ITIMER_REAL, seconds))
del sys.argv[:2]
if sys.argv[0] == "-m":
    del sys.argv[0]
    sys.path.insert(0, "")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Finished:
    """A job that has ended."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"exit status {self.returncode} after {self.seconds:.1f} s\n"
            f"--- stdout ---\n{self.stdout}\n--- stderr ---\n{self.stderr}"
        )


def mpi_run(
    n: int,
    program: str | Sequence[str],
    *args: object,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> Finished:
    """Run a program on ``n`` ranks of the MPI library of this environment.

    Args:
        n: number of ranks.
        program: its text, or what follows ``python`` on a command line: a file or ``-m module``,
            then arguments.
        args: further arguments of the program.
        timeout: seconds; a little before, every rank prints its stack and ends.
        env: additions to the environment.
        check: an exit status other than 0 is an `AssertionError` that shows all output.
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(program, str):
            path = Path(folder, "program.py")
            path.write_text(textwrap.dedent(program))
            program = [str(path)]
        boot = Path(folder, "boot.py")
        boot.write_text(_BOOT)
        command = [*mpiexec_command(n), sys.executable, str(boot), str(max(1.0, timeout - 1)), *program]
        command += map(str, args)
        finished = finish(start(command, env=env), timeout + 5)
    timed_out = finished.seconds >= timeout - 1
    if check and (finished.returncode or timed_out):
        raise AssertionError(f"{n} ranks{' timed out' * timed_out}: {finished}")
    return finished


#: Calls ``qsparse train`` once for each list of words.
_SERIES = """
    import json, sys
    from qsparse.cli.commands import qsparse

    for words in json.loads(sys.argv[1]):
        qsparse.main(["train", *words], standalone_mode=False)
"""


def mpi_train(n: int, lines: Sequence[Sequence[object]], timeout: float = 60) -> Finished:
    """Train on ``n`` real ranks, once for each line of options, in one job that loads torch once."""
    return mpi_run(n, _SERIES, json.dumps([[*map(str, line)] for line in lines]), timeout=timeout)


def clean_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment with the settings of qsparse, without what launchers have left in it.

    Nor is there what would part the lines of ranks, or have each process compile all modules.
    """
    leftovers = (*_LEFTOVERS, *_LEFTOVERS_OF_SCHEDULERS, "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(leftovers)}
    paths = [str(ROOT), str(ROOT / "tests" / "support"), *filter(None, [kept.get("PYTHONPATH")])]
    kept["PYTHONPATH"] = os.pathsep.join(paths)
    return environment({**kept, **(env or {})})


def start(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command,
        env=clean_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str], timeout: float) -> Finished:
    """Wait for a command; after the time limit end it and all it has started."""
    begin = time.monotonic()
    try:
        try:
            stdout, stderr = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # SIGTERM first: a launcher that is killed outright cannot take its ranks with it.
            _signal_group(job, signal.SIGTERM)
            try:
                stdout, stderr = job.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                _signal_group(job, signal.SIGKILL)
                stdout, stderr = job.communicate(timeout=5)
    finally:
        _signal_group(job, signal.SIGKILL)
    return Finished(job.returncode, stdout, stderr, time.monotonic() - begin)


def _signal_group(job: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, number)

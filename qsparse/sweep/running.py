"""Running what is missing: each run is ``qsparse train`` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qsparse.errors import DataError
from qsparse.files import read_toml
from qsparse.report.runs import read
from qsparse.run.folder import LOCK, Hold
from qsparse.run.outcome import STATUS
from qsparse.run.records import explained

#: What a run writes to its standard output and error.
LOG: Final = "log.txt"
# The kernel ends a run whose sweep was killed: begun again, both would write to one folder.
_PROGRAM: Final = """
from qsparse.process.launchers import die_with_launcher
die_with_launcher()
from qsparse.cli import main
main()
"""
#: Seconds that an interrupted run has to end by itself.
_PATIENCE: Final = 10.0


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        method: its name.
        lr: the step size of the grid, None without one.
        seed: of everything random.
        folder: where it leaves its files.
        argv: options of ``qsparse train``, without the folder.
        config: the text that ``qsparse train`` writes to ``config.toml`` with these options.
        unsaid: what it would write without options.
        more: options that change nothing about the run, and are not in its configuration.
    """

    method: str
    lr: str | None
    seed: int
    folder: Path
    argv: tuple[str, ...]
    config: str
    unsaid: Mapping[str, Any] = field(default_factory=dict, hash=False)
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.method, self.lr and f"lr {self.lr}", f"seed {self.seed}"]))

    @property
    def words(self) -> list[str]:
        """What follows ``qsparse`` on the command line of the run."""
        return ["train", *self.argv, f"--out={self.folder}", *self.more]

    @property
    def command(self) -> str:
        """The command line of the run."""
        return shlex.join(["qsparse", *self.words])

    def conflict(self) -> str:
        """How the settings of a run that is in the folder differ; nothing where there is none."""
        path = self.folder / "config.toml"
        if not path.exists():
            return ""
        try:
            # An option that came later has its default in an older run.
            found = {**self.unsaid, **read_toml(path, path.name)}
        except DataError as error:
            return str(error)
        wanted = {**self.unsaid, **tomllib.loads(self.config)}
        return ", ".join(
            f"{name} was {found.get(name, 'not set')} and is {wanted.get(name, 'not set')}"
            for name in sorted(found.keys() | wanted.keys())
            # A run that is told no exchange chooses one, and writes it down.
            if found.get(name) != wanted.get(name) and not (name == "exchange" and name not in wanted)
        )

    def done(self) -> bool:
        """Whether a run with these settings has ended well."""
        if not (self.folder / "config.toml").exists() or self.conflict():
            return False
        with contextlib.suppress(DataError):
            found = read(self.folder)
            return found is not None and found.summary is not None
        return False


def execute(runs: Sequence[Run], jobs: int, say: Callable[[str], None]) -> dict[Run, str]:
    """Run them, so many at a time; one that fails does not keep the others from running.

    A run of other settings in the folder of one of them is removed.

    Returns:
        What is wrong with each run that failed.

    Raises:
        KeyboardInterrupt: after the runs under way were ended.
    """
    waiting, failed = list(runs), dict[Run, str]()
    under_way: dict[Run, tuple[subprocess.Popen[bytes], float]] = {}
    ended = 0
    try:
        while waiting or under_way:
            while waiting and len(under_way) < jobs:
                run = waiting.pop(0)
                say(f"{run}: begins")
                under_way[run] = (_start(run), time.monotonic())
            time.sleep(0.05)
            for run, (process, begin) in list(under_way.items()):
                status = process.poll()
                if status is None:
                    continue
                del under_way[run]
                ended += 1
                seconds = time.monotonic() - begin
                if status in (0, STATUS) and run.done():
                    outcome = f"accuracy {accuracy(run):.4f}" + (", but it did not train" if status else "")
                else:
                    failed[run] = _reason(run, status)
                    outcome = f"FAILED: {failed[run]}"
                say(f"{run}: {outcome} ({seconds:,.0f} s, {ended} of {len(runs)})")
    finally:
        _stop([process for process, _ in under_way.values()])
    return failed


def accuracy(run: Run) -> float:
    """The final test accuracy of a run that is done."""
    found = read(run.folder)
    assert found is not None
    return float(found.last["test_accuracy"])


def _start(run: Run) -> subprocess.Popen[bytes]:
    with explained(run.folder, "make room there; the same command goes on with what is missing"):
        if run.conflict():  # of a run that is to be replaced, nothing may be gone on with
            with Hold(run.folder):
                for path in run.folder.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path.name != LOCK:
                        path.unlink()
        run.folder.mkdir(parents=True, exist_ok=True)
        log = (run.folder / LOG).open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *run.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt is for us; we end the runs, once
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End runs with all their ranks: by an interrupt, and if that takes too long, at once."""
    for process in processes:
        _signal(process, signal.SIGINT)
    end = time.monotonic() + _PATIENCE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _reason(run: Run, status: int) -> str:
    """The error in the log of a run, else how its process ended."""
    lines = (run.folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    for line in lines:
        before, found, text = line.partition("error: ")
        if found and (not before or before.startswith("[rank ")):
            return text
    if status < 0:
        return f"ended by signal {-status}"
    said = [line for line in lines if line.strip()]
    return said[-1] if said else f"exit status {status}"

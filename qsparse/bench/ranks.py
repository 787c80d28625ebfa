"""Ranks of a bench: how they are started, and what each of them gets."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from qsparse import _version
from qsparse.bench.network import ENVIRONMENT, INTERFACE, Network, received_bytes, sent_bytes
from qsparse.errors import LaunchError, SettingError, installing
from qsparse.exchange.base import receive_one
from qsparse.payload import Payload, Way
from qsparse.wire.mpi import MpiWire
from qsparse.wire.mpi_world import library

#: What a bench measured, by name; it is written as JSON.
Measured = dict[str, Any]

_TASK, _RESULT = "task.json", "result.json"
#: Seconds in which ranks may end when the bench is interrupted.
_GRACE: Final = 5.0


def measure(
    body: str,
    settings: Mapping[str, Any],
    ranks: int,
    rate: str | None,
    mpiexec: Sequence[str],
    environ: Mapping[str, str],
) -> Measured:
    """Start the ranks, wait for them, and return what rank 0 measured.

    Args:
        body: ``module:function``, called on each rank with a `Place` and the settings by name.
        settings: values that can be written as JSON.
        ranks: the number of ranks, at least 2.
        rate: the rate of each rank's link; None means shared memory.
        mpiexec: the command and its options, without a number of ranks.
        environ: the environment of the ranks.

    Raises:
        LaunchError: links cannot be limited here, or the ranks failed; they have said why.
    """
    if ranks < 2:
        raise SettingError(f"--ranks must be at least 2, not {ranks}: one rank has nobody to talk to")
    with (
        _terminable(),
        tempfile.TemporaryDirectory(prefix="qsparse-bench-") as name,
        Network(ranks, rate) if rate is not None else nullcontext() as network,
    ):
        folder = Path(name)
        task = {"body": body, "settings": settings, "interface": INTERFACE if network else None}
        (folder / _TASK).write_text(json.dumps(task), "utf-8")
        program = [sys.executable, "-m", "qsparse", "bench", "rank", name]
        if network is None:
            command = [*mpiexec, "-n", str(ranks), *program]
        else:
            environ = {**environ, **ENVIRONMENT}
            command = [*mpiexec]
            for rank in range(ranks):
                command += [*([":"] if rank else []), "-n", "1", *network.entering(rank), *program]
        _finish(command, environ)
        measured: Measured = json.loads((folder / _RESULT).read_text("utf-8"))
    return {
        "settings": {"ranks": ranks, "rate": rate, **settings},
        "versions": _versions(),
        **measured,
    }


def _finish(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run the job to its end; if this process ends, the job ends too."""
    job = subprocess.Popen(command, env=dict(environ), stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    try:
        status = job.wait()
    finally:
        # The launcher ends its ranks, unless it is killed by SIGKILL.
        job.terminate()
        with suppress(subprocess.TimeoutExpired):
            job.wait(_GRACE)
        job.kill()
        job.wait()
    if status:
        raise LaunchError(f"the ranks ended with status {status}; what they have said stands above")


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise in this process like an interrupt, so that it cleans up."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent ends, even if it is killed."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def run_rank(wire: MpiWire, folder: Path) -> None:
    """Do one rank's part: read the task, do it, and on rank 0 write what was measured."""
    task = json.loads((folder / _TASK).read_text("utf-8"))
    module, function = task["body"].split(":")
    place = Place(wire, task["interface"], folder)
    if place.interface is not None and library()[0] != "MPICH":
        raise LaunchError(
            f"--rate knows how to send {library()[0]} nowhere but through shared memory: it needs MPICH "
            f"({installing('mpich')})"
        )
    measured = getattr(importlib.import_module(module), function)(place, **task["settings"])
    if wire.rank == 0:
        (folder / _RESULT).write_text(json.dumps(measured), "utf-8")


@dataclass(frozen=True)
class Place:
    """The place of one rank in a bench.

    Attributes:
        wire: the wire to the other ranks.
        interface: the limited link; None where there is none.
        folder: a folder that all ranks see.
    """

    wire: MpiWire
    interface: str | None
    folder: Path

    def barrier(self) -> None:
        """Wait for all ranks."""
        one = np.ones(1, np.float32)
        self.wire.sum_dense(one, np.empty_like(one))

    def sent(self) -> int:
        """The bytes that the link has sent; 0 where there is none."""
        return sent_bytes(self.interface) if self.interface else 0

    def received(self) -> int:
        """The bytes that have come over the link; 0 where there is none."""
        return received_bytes(self.interface) if self.interface else 0

    def check_limited(self, nbytes: int, counted: float) -> None:
        """Refuse a link that has sent fewer bytes than came across.

        Args:
            nbytes: what a dense vector takes.
            counted: what the link has sent for an Allreduce of it.
        """
        if self.interface is not None and counted < nbytes:
            raise LaunchError(
                f"dense vectors of {nbytes:,} bytes came across and the link has sent {counted:,.0f}: "
                "MPI has found another way, and nothing was limited"
            )

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on rank 0; an empty list elsewhere."""
        if self.wire.rank:
            body = json.dumps(value).encode()
            self.wire.send([Payload.build([body], way=Way.CONTROL, origin=self.wire.rank)], 0)
            self.wire.flush()
            return []
        others = [json.loads(receive_one(self.wire, rank)[1].text) for rank in range(1, self.wire.size)]
        return [value, *others]

    def say(self, line: str) -> None:
        """Print a line of progress on rank 0."""
        if self.wire.rank == 0:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def _versions() -> dict[str, Any]:
    """The versions that figures may depend on."""
    found: dict[str, Any] = {"qsparse": _version.__version__, "python": platform.python_version()}
    for name in ("numpy", "numba", "mpi4py", "mpich", "torch"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {**found, "machine": platform.machine(), "cores": os.cpu_count()}

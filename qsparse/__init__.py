"""Training that sends little: compressed exchanges over MPI.

An algorithm is one choice per axis::

    local step   what does a worker do, and what does it report?      sgd, adamw, gradient, svrg, lasg
    trigger      when does it speak?                                  every, randomgap, lazy, drift, ask
    compressor   in which words?                                      topk >> sign, qsgd, …
    memory       what is kept of what was not said?                   errorfeedback, innovation, snapshot
    exchange     over which pattern?                                  server, tree, allgather, sharded, nodes
    server rule  what does the coordinator do with what it heard?     descend, majority, hold, proxsvrg, …
    meeting      who waits for whom?                                  synchronous, asynchronous

Importing the package loads neither torch nor mpi4py, and compiles nothing. In a rank of an MPI job it sees
to it that an exception that nobody catches ends the job, and that processes that the rank starts are none of
the job's (`guard.watch`, `launchers.close_doors`).
"""

from __future__ import annotations

import atexit
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qsparse._moved import install as _find_moved_modules
from qsparse._version import __version__
from qsparse.process.guard import Duties, watch
from qsparse.process.launchers import close_doors, rank_above

if TYPE_CHECKING:
    from qsparse.algorithm import Algorithm
    from qsparse.allreduce import CompressedAllreduce
    from qsparse.link import Link
    from qsparse.payload import Payload
    from qsparse.registry import build, register, spell
    from qsparse.run import RunConfig
    from qsparse.seeds import Seed
    from qsparse.train import Trained
    from qsparse.train import train as run
    from qsparse.wire.base import Wire
else:
    from qsparse import run

__all__ = [
    "Algorithm",
    "CompressedAllreduce",
    "Link",
    "Payload",
    "RunConfig",
    "Seed",
    "__version__",
    "build",
    "register",
    "run",
    "spell",
]

_HOMES = {
    "Algorithm": "algorithm",
    "CompressedAllreduce": "allreduce",
    "Link": "link",
    "Payload": "payload",
    "RunConfig": "run",
    "Seed": "seeds",
    "build": "registry",
    "register": "registry",
    "spell": "registry",
}


class _Callable(ModuleType):
    """The room `qsparse.run`, called as a function: one run of a configuration."""

    def __call__(self, config: RunConfig, wire: Wire | None = None) -> Trained:
        """Do what ``qsparse train`` does; see `qsparse.train.train`.

        >>> import qsparse
        >>> config = qsparse.RunConfig(algorithm="sgd", model="softmax", steps=3, ranks=2)
        >>> summary, history = qsparse.run(config)
        >>> summary["ranks"], summary["steps"], [line["step"] for line in history]
        (2, 3, [3])
        """
        from qsparse.train import train

        return train(config, wire)


if not TYPE_CHECKING:
    # A module is an object like any other, so `qsparse.run` is a room and what one does with a configuration.
    run.__class__ = _Callable


def __getattr__(name: str) -> Any:
    # Loaded on first use: compressors pull in numba, and not everybody who imports wants to wait.
    if name not in _HOMES:
        raise AttributeError(f"module 'qsparse' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"qsparse.{_HOMES[name]}"), name)


def _running_mpi() -> Any:
    """The module ``mpi4py.MPI`` where this program has loaded it and MPI runs, else None."""
    MPI = sys.modules.get("mpi4py.MPI")
    runs = MPI is not None and MPI.Is_initialized() and not MPI.Is_finalized()
    return MPI if runs else None


def _duties() -> Duties | None:
    MPI = _running_mpi()
    if MPI is None or MPI.COMM_WORLD.Get_size() == 1:
        return None
    from qsparse.wire.mpi_end import DUTIES

    return DUTIES


def _at_exit(process: int) -> None:
    MPI = _running_mpi()
    if MPI is not None and MPI.COMM_WORLD.Get_size() > 1 and os.getpid() == process:
        from qsparse.wire.mpi_world import note_own_end

        note_own_end()


_find_moved_modules()
watch(_duties)
atexit.register(_at_exit, os.getpid())
if _running_mpi() is not None or rank_above(os.environ) is not None:
    close_doors()


def __dir__() -> list[str]:
    return [*globals(), *__all__]

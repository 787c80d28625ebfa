"""Where a command's ranks come from: a launcher, the wire itself, or ourselves."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from qsparse.cli.launch import relaunch
from qsparse.errors import LaunchError, QsparseError, RankError, SettingError, Stopped
from qsparse.process import notice
from qsparse.process.launchers import launched, rank_above, refusal_within
from qsparse.registry import build
from qsparse.train import check_ranks
from qsparse.wire.base import Ranks, Wire


def on_ranks(
    kind: str, ranks: int | None, body: Callable[[Wire], Any], *, leaves: Callable[[], Path] | None = None
) -> Any:
    """Run a body on every rank and return what rank 0 (or this process's rank) returns.

    Under a launcher this process is one rank. Otherwise a wire whose ranks are launched starts this same
    command again under mpiexec, unless one rank is all, and any other makes its ranks itself.

    Args:
        kind: the wire: ``mpi``, ``threads`` or one of the user's.
        ranks: how many; None is as many as there are.
        body: called with the wire.
        leaves: returns a file that is there when, and only when, a job has ended well; where this process
            starts the ranks it looks for it.
    """
    if ranks is not None and ranks < 1:
        raise SettingError(f"--ranks must be at least 1, not {ranks}")
    under_launcher = launched(os.environ)
    part: Ranks = build(kind, "wire")
    if not part.launched:
        if under_launcher:
            raise SettingError(f"--wire {kind} makes its own ranks: start it without a launcher")
        return _made(part, ranks or 1, body)
    if not under_launcher:
        if ranks is not None and ranks > 1:
            relaunch(ranks, sys.argv[1:], leaves)
        return _made(build("threads", "wire"), 1, body)
    if (rank := rank_above(os.environ)) is not None:
        raise LaunchError(refusal_within(rank))
    return part.run(ranks or 1, functools.partial(_launched, ranks, body))


def _launched(ranks: int | None, body: Callable[[Wire], Any], wire: Wire) -> Any:
    """Run a body on a rank that is a process; an error ends the job."""
    try:
        check_ranks(ranks, wire.size)
        result = body(wire)
        wire.close()
        return result
    except Stopped as error:
        _say_stopped(error, wire.rank)
        wire.close()
        raise SystemExit(error.status) from None
    except BaseException as error:
        fail(wire, error)


def _made(part: Ranks, ranks: int, body: Callable[[Wire], Any]) -> Any:
    """Run a body on ranks that live in this process."""
    try:
        return part.run(ranks, body)
    except Stopped as error:
        _say_stopped(error, 0)
        raise SystemExit(error.status) from None


def _say_stopped(error: Stopped, rank: int) -> None:
    """By the ranks that got the signal, and by rank 0."""
    if rank == 0 or notice.asked():
        sys.stdout.flush()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"[rank {rank}] {error}\n")
            sys.stderr.flush()


def fail(wire: Wire, error: BaseException) -> NoReturn:
    """Say what is wrong in one write, and end the job with status 1."""
    if isinstance(error, SystemExit) and error.code in (None, 0):
        raise error
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.write(message(error, wire.rank))
        sys.stderr.flush()
    if wire.size > 1:
        wire.abort(1)
    raise SystemExit(1)


def message(error: BaseException, rank: int | None = None) -> str:
    """What a user reads: a sentence for what was foreseen, a traceback for what was not."""
    prefix = "" if rank is None else f"[rank {rank}] "
    if isinstance(error, QsparseError):
        # A RankError names the rank that failed; the others only report it.
        kind = "" if isinstance(error, RankError) else f"{type(error).__name__}: "
        return f"{prefix}error: {kind}{error}\n"
    if isinstance(error, MemoryError):
        return f"{prefix}error: not enough memory: {str(error) or 'Python got no more'}\n"
    if isinstance(error, KeyboardInterrupt):
        return f"{prefix}interrupted\n"
    import traceback

    text = "".join(traceback.format_exception(error))
    return "".join(f"{prefix}{line}\n" for line in text.rstrip().splitlines())

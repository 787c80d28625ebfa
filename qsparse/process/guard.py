"""What ends a rank: its launcher, a signal, an exception that is not caught, the end of its program."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn

from qsparse.errors import PeerGone
from qsparse.process.launchers import die_with_launcher

_guarded: int | None = None
#: The installed hook for exceptions, the process in which it acts, and the function that gives its duties.
_hook: Callable[..., None] | None = None
_watched: int | None = None
_asked: Callable[[], Duties | None]


class Duties(NamedTuple):
    """The functions through which the guard uses the wires of this process."""

    rank: Callable[[], int]
    end: Callable[[int, str], NoReturn]
    goodbye: Callable[[], None]


def guard(duties: Duties) -> None:
    """Make sure that a rank ends with its job, and that the job ends when a rank fails.

    The first wire of more than one rank calls this; a second call does nothing.

    * An exception that is not caught, in any thread, is printed with the rank before each line, and
      ends the whole job. Without this the other ranks would wait for ever. (In the main thread, where
      it ends the rank for certain, this holds from `watch` on.)
    * A rank that ends without closing its wires tells the others, and stays until they end, too.
    * On Linux a rank is killed when the launcher that started it dies.
    * SIGUSR1 no longer kills: MPICH's launcher sends it when another rank has failed, and Slurm before
      it takes back a machine. A handler that is already installed stays (`notice` has one).
    * The rank's supervisor, if it has one (`supervisor`), is told of an end that is expected.
    """
    global _guarded
    # Imported here, because the command ``python -m qsparse.process.supervisor`` first imports the package.
    from qsparse.process.supervisor import begun

    begun()
    if _guarded == os.getpid():
        return
    _guarded = os.getpid()
    die_with_launcher()
    main = threading.current_thread() is threading.main_thread()  # only it may install handlers
    if main and hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        # Not SIG_IGN, which programs started by this one would inherit.
        signal.signal(signal.SIGUSR1, functools.partial(_note_signal, duties))
    watch(lambda: duties)
    _hook_threads(duties)
    atexit.register(_at_exit, duties)


def failure(error: BaseException) -> str:
    """The line that tells the other ranks of an error."""
    first_line = str(error).partition("\n")[0]
    return f"has failed with {type(error).__name__}: {first_line}"


def _at_exit(duties: Duties) -> None:
    if os.getpid() == _guarded:
        from qsparse.process.supervisor import ended

        duties.goodbye()
        ended()


def _note_signal(duties: Duties, number: int, frame: FrameType | None) -> None:
    os.write(2, f"[rank {duties.rank()}] received {signal.Signals(number).name} and goes on\n".encode())


def watch(duties: Callable[[], Duties | None]) -> None:
    """Let an exception that is not caught end the job; called when the package is imported.

    A rank may fail before it has made a wire, while others already wait for it to make theirs.

    Args:
        duties: called when an exception has ended the program; returns None in a process that is not one of
            several ranks.
    """
    global _hook, _watched, _asked
    _asked = duties
    if _watched == os.getpid() and sys.excepthook is _hook:
        return
    _watched = os.getpid()
    before: Callable[..., Any] = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # A forked child is not a rank, and an interactive session goes on after an error.
        found = _asked() if os.getpid() == _watched and not hasattr(sys, "ps1") else None
        if found is None:
            before(kind, error, trace)
            return
        if before is not sys.__excepthook__:
            before(kind, error, trace)
        else:
            _print_failure(error, found.rank())
        found.end(130 if isinstance(error, KeyboardInterrupt) else 1, failure(error))

    _hook = sys.excepthook = hook


def _hook_threads(duties: Duties) -> None:
    before: Callable[..., Any] = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if os.getpid() != _guarded or args.exc_value is None or isinstance(args.exc_value, SystemExit):
            before(args)
        else:
            assert _hook is not None
            _hook(args.exc_type, args.exc_value, args.exc_traceback)

    threading.excepthook = hook


def _print_failure(error: BaseException, rank: int) -> None:
    """Print a traceback, or only one line where another rank has failed first; in one write."""
    import textwrap
    import traceback

    if isinstance(error, PeerGone) and error.__cause__ is None and error.__context__ is None:
        text = f"WireError: {error}\n"
    else:
        text = "".join(traceback.format_exception(error))
    if sys.stderr is not None:
        sys.stderr.write(textwrap.indent(text, f"[rank {rank}] ", lambda line: True))

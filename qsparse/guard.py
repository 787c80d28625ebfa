"""What ends a rank: its launcher, a signal, an exception that nobody catches, the end of its program."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn

from qsparse.errors import Stranded
from qsparse.launchers import die_with_launcher
from qsparse.supervisor import begun, ended

_guarded: int | None = None


class Duties(NamedTuple):
    """What the wires of this process do for the guard."""

    rank: Callable[[], int]
    end: Callable[[int, str], NoReturn]
    farewell: Callable[[], None]


def guard(duties: Duties) -> None:
    """See to it that a rank does not outlive its job, and the job not the failure of a rank.

    Called by the first wire of more than one rank; does nothing the second time.

    * An exception that nobody catches, in any thread, is printed with the rank before each line, and
      ends the whole job. Without this the other ranks would wait for ever.
    * A rank that ends without closing its wires says so to the others, and stays until they end, too.
    * On Linux a rank is killed when the launcher that started it dies.
    * SIGUSR1 no longer kills: MPICH's launcher sends it when another rank has failed, Slurm before
      it takes back a machine. A handler that is installed already stays (`qsparse.notice` has one).
    * The rank's supervisor, if it has one (`qsparse.supervisor`), is told of an end that is no surprise.
    """
    global _guarded
    begun()
    if _guarded == os.getpid():
        return
    _guarded = os.getpid()
    die_with_launcher()
    main = threading.current_thread() is threading.main_thread()  # only it may install handlers
    if main and hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        # Not SIG_IGN, which programs started by this one would inherit.
        signal.signal(signal.SIGUSR1, functools.partial(_note_signal, duties))
    _hook_exceptions(duties)
    atexit.register(_at_exit, duties)


def failure(error: BaseException) -> str:
    """What the others are told of an error: one line."""
    first_line = str(error).partition("\n")[0]
    return f"has failed with {type(error).__name__}: {first_line}"


def _at_exit(duties: Duties) -> None:
    if os.getpid() == _guarded:
        duties.farewell()
        ended()


def _note_signal(duties: Duties, number: int, frame: FrameType | None) -> None:
    os.write(2, f"[rank {duties.rank()}] received {signal.Signals(number).name} and goes on\n".encode())


def _hook_exceptions(duties: Duties) -> None:
    before: Callable[..., Any] = sys.excepthook
    before_in_thread: Callable[..., Any] = threading.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.getpid() != _guarded:  # a forked child is no rank
            before(kind, error, trace)
            return
        if before is not sys.__excepthook__:
            before(kind, error, trace)
        else:
            _print_failure(error, duties.rank())
        duties.end(130 if isinstance(error, KeyboardInterrupt) else 1, failure(error))

    def hook_in_thread(args: threading.ExceptHookArgs) -> None:
        if os.getpid() != _guarded or args.exc_value is None or isinstance(args.exc_value, SystemExit):
            before_in_thread(args)
        else:
            hook(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = hook
    threading.excepthook = hook_in_thread


def _print_failure(error: BaseException, rank: int) -> None:
    """Print a traceback, or only one line where another rank is to blame; in one write."""
    if isinstance(error, Stranded) and error.__cause__ is None and error.__context__ is None:
        text = f"WireError: {error}\n"
    else:
        text = "".join(traceback.format_exception(error))
    if sys.stderr is not None:
        sys.stderr.write(textwrap.indent(text, f"[rank {rank}] ", lambda line: True))

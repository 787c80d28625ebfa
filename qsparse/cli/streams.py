"""Standard input, output and error, whatever a command was started with."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def prepare_streams() -> None:
    """Let every command find three streams that take whatever text it writes.

    A stream that was closed (``2>&-``, daemons) becomes ``/dev/null``, and so does its descriptor: the next
    file that is opened would get its number, and what a library prints would land in that file. What the
    encoding of standard output lacks is printed as ``?``; for standard error, Python escapes it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _nothing_at(number)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    # Handlers that somebody chose by PYTHONIOENCODING stay.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def output_error() -> OSError | None:
    """Why standard output takes nothing more, or None; from then on it is ``/dev/null``.

    Python would otherwise complain again when it ends.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            _nothing_at(sys.stdout.fileno())
        return error
    return None


def _nothing_at(number: int) -> None:
    """Make a descriptor one of ``/dev/null``, which programs that we start inherit."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)

"""Standard input, output and error, whatever a command was started with."""

from __future__ import annotations

import io
import os
import sys
import traceback

import click


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


def complained_of(error: OSError) -> bool:
    """Could `click.echo` not print? Then that is said, and what takes no more text becomes ``/dev/null``.

    A pipe that nobody reads any more is another matter: click ends the command without a word.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_code is not click.echo.__code__:
        return False
    sentence = f"error: what is to be printed cannot be written: {error.strerror}\n"
    for stream, text in ((sys.stdout, ""), (sys.stderr, sentence)):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            _nothing_at(stream.fileno())  # Python would complain again when it ends
    return True


def _nothing_at(number: int) -> None:
    """Make a descriptor one of ``/dev/null``, which programs that we start inherit."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)

"""A terminal for tests: `on_terminal` runs a command whose standard error is one, and says what it shows."""

from __future__ import annotations

import os
import pty
import subprocess
import termios
import threading
from collections.abc import Sequence

from mpirun import clean_environment


def on_terminal(command: Sequence[str], columns: int) -> tuple[str, str]:
    """What a command, which must end well within a minute, prints, and what its terminal shows."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    seen = bytearray()

    def watch() -> None:
        while True:
            try:
                seen.extend(os.read(ours, 4096))
            except OSError:  # the other end is closed
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        done = subprocess.run(
            command, env=clean_environment({"TERM": "xterm"}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True, text=True,
        )  # fmt: skip
    finally:
        os.close(theirs)
        watcher.join(5)
        os.close(ours)
    return done.stdout, seen.decode()

"""A notice that a job's time is over: SIGTERM before a machine is taken back, SIGUSR1 if Slurm is set so.

A signal may come to some ranks only, and at any moment. So it is noted, and the headers of the next
synchronization tell the others (`qsparse.rounds.node.Node.meet`). After it all ranks stand at one step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from qsparse.process.launchers import rank_of
from qsparse.process.supervisor import ended

#: The signals that count as a notice.
SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)
#: A launcher and its user may both send a signal: within so many seconds the two count as one.
_ONE: Final = 1.0

_asked = 0
_since = 0.0


def asked() -> int:
    """The number of the signal by which this process was asked to stop; 0 without one."""
    return _asked


@contextlib.contextmanager
def listening(checkpoints: bool) -> Iterator[None]:
    """Take signals as a notice while a run is under way; outside of the main thread this does nothing.

    * Where the run leaves checkpoints, SIGTERM and SIGUSR1 are noted: `asked` returns the signal, and the run
      leaves a checkpoint at its next synchronization and ends. A second signal ends the process at once.
    * Where it leaves none, SIGTERM ends the process at once, with a sentence that names the rank.

    A handler that other code has installed stays.

    Args:
        checkpoints: whether the run leaves checkpoints.
    """
    global _asked, _since
    before: dict[signal.Signals, Any] = {}
    own = os.getpid()

    def heard(number: int, frame: FrameType | None) -> None:
        global _asked, _since
        name = signal.Signals(number).name
        if os.getpid() != own:  # a forked child is not a rank
            _die(number)
        elif not checkpoints:
            _say(f"{name}: the run ends without a checkpoint, because it leaves none (--checkpoint-every)")
            _die(number)
        elif not _asked:
            _asked, _since = number, time.monotonic()
            _say(f"{name}: the run leaves a checkpoint at its next meeting and ends (a second one: at once)")
        elif time.monotonic() - _since > _ONE:
            _say(f"{name} again: the run ends at once, without a checkpoint")
            _die(number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS if checkpoints else SIGNALS[:1]:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, heard)
    _asked = 0
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = 0


def _die(number: int) -> None:
    ended()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say(text: str) -> None:
    """Print a line; safe within the code that the signal has interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"[rank {rank_of(os.environ)}] {text}\n".encode())

"""Faults on purpose: ``qsparse train --import faults`` fails where the environment says.

=============  ====================================================================================
FAULT_KIND     ``raise``, ``nan``, ``exit`` (without farewell), ``exit 0``, ``kill`` and ``hang`` happen in
               a local step, and so does a signal by its name (``SIGTERM``); ``setup`` while the problem is
               made; ``evaluate`` in an evaluation
FAULT_RANK     the rank that has the fault
FAULT_STEP     the local step at which it has it
FAULT_INDEX    which coordinate becomes NaN
FAULT_NOTES    a folder: each process leaves its id there (``pidN``), a hanging rank ``hangs``
=============  ====================================================================================
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from qsparse.local import SGD
from qsparse.run.problem import Score
from qsparse.torch.problem import Classification

KIND = os.environ.get("FAULT_KIND", "none")
RANK = int(os.environ.get("FAULT_RANK", "0"))
STEP = int(os.environ.get("FAULT_STEP", "0"))
INDEX = int(os.environ.get("FAULT_INDEX", "0"))
NOTES = os.environ.get("FAULT_NOTES")


def rank() -> int:
    """This rank, whether it is a process of a launcher or a thread."""
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return int(threading.current_thread().name.removeprefix("rank "))


def note(name: str, text: str = "") -> None:
    """Leave a file that is there whole or not at all."""
    if NOTES is not None:
        part = Path(NOTES, f".{name}")
        part.write_text(text)
        part.rename(Path(NOTES, name))


_advance, _make, _evaluate = SGD.advance, Classification.__init__, Classification.evaluate


def advance(self: SGD, state: Any, oracle: Any, batch: Any, t: int) -> float:
    loss = _advance(self, state, oracle, batch, t)
    if t == STEP and rank() == RANK:
        if KIND == "raise":
            raise RuntimeError(f"the fault of rank {RANK}")
        if KIND == "nan":
            state["x"][INDEX] = float("nan")
        elif KIND == "exit":
            os._exit(3)
        elif KIND == "exit 0":
            os._exit(0)
        elif KIND == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif KIND.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[KIND])
        elif KIND == "hang":
            note("hangs")
            time.sleep(60)
    return loss


def make(self: Classification, *args: Any) -> None:
    if KIND == "setup" and rank() == RANK:
        raise RuntimeError(f"the fault of rank {RANK}")
    _make(self, *args)


def evaluate(self: Classification, *args: int) -> Score:
    if KIND == "evaluate" and rank() == RANK:
        raise RuntimeError(f"the fault of rank {rank()}")
    return _evaluate(self, *args)


SGD.advance = advance  # type: ignore[method-assign]
Classification.__init__ = make  # type: ignore[method-assign,assignment]
Classification.evaluate = evaluate  # type: ignore[method-assign]
note(f"pid{os.getpid()}")

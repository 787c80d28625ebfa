"""The exceptions of qsparse.

::

    QsparseError
    ├── SettingError            a value that a part, a run or a command cannot take
    ├── CompositionError        parts that must not be combined, with the reason and the remedy
    ├── UnknownPart             a name nobody registered, with the nearest names
    ├── NotFinite               NaN or infinity in a vector that was to be sent
    ├── Imprecise               no setting of a compressor sends a vector as precisely as was asked
    ├── DataError               data that is missing or malformed, or cannot be written: where, what to do
    ├── WireError               ranks and bytes
    │   ├── LaunchError         launcher and MPI library do not belong together
    │   ├── PeerGone            a wait that cannot end because another rank has left
    │   ├── WaitTimeout         a wait that has lasted too long: for whom, for what
    │   ├── Truncated           a frame that ends before its header says so
    │   ├── ForeignFrame        bytes that are no frame of this version
    │   └── Corrupted           a frame whose checksum does not match
    ├── DisagreementError       ranks with different settings, sizes or data shapes
    ├── RankError               another rank failed; carries its rank, its step and its message
    ├── Stopped                 the run was asked to stop by a signal, and has left a checkpoint
    └── CheckpointError         a checkpoint that is missing, torn, of another run, or cannot be written

Every message is a sentence: what happened, where (rank, step, part), what to do.
"""

from __future__ import annotations

import re
from pathlib import Path


class QsparseError(Exception):
    """Whatever qsparse raises on purpose."""


class SettingError(QsparseError, ValueError):
    """A value that a part, a run or a command cannot take."""


class CompositionError(QsparseError, ValueError):
    """Parts that must not be combined."""


class UnknownPart(QsparseError, LookupError):
    """A name nobody registered."""


class NotFinite(QsparseError, ArithmeticError):
    """NaN or infinity in a vector that was to be sent.

    Attributes:
        index: position of the first such value in the flat vector; −1 where the vector as a whole is
            too large.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class Imprecise(QsparseError, ArithmeticError):
    """No setting of a compressor sends a vector as precisely as was asked."""


class DataError(QsparseError):
    """Data that is missing or malformed, or that cannot be written."""


class WireError(QsparseError):
    """Ranks and bytes."""


class LaunchError(WireError):
    """Launcher and MPI library do not belong together."""


class PeerGone(WireError):
    """A wait that cannot end because of what another rank did: a consequence, never a cause."""


#: The name of earlier releases.
Stranded = PeerGone


class WaitTimeout(WireError, TimeoutError):
    """A wait for other ranks that has lasted longer than is allowed (``QSPARSE_WAIT_END``)."""


class Truncated(WireError):
    """A frame that ends before its header says so."""


class ForeignFrame(WireError):
    """Bytes that are no frame of this version."""


class Corrupted(WireError):
    """A frame whose checksum does not match, or whose body contradicts its header."""


class DisagreementError(QsparseError):
    """Ranks with different settings, sizes or data shapes."""


class RankError(QsparseError):
    """Another rank failed.

    Attributes:
        rank: the rank that failed.
        step: its step, 0 before the first.
    """

    def __init__(self, rank: int, step: int, reason: str) -> None:
        super().__init__(f"rank {rank}, step {step}: {reason}")
        self.rank = rank
        self.step = step
        self.reason = reason


class Stopped(QsparseError):
    """The run was asked to stop by a signal; raised on all ranks after they have left a checkpoint.

    Attributes:
        status: with which a program should end, as a shell counts it: 128 + the number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.status = 128 + signal


class CheckpointError(QsparseError):
    """A checkpoint that is missing, torn, of another run, or cannot be written."""


def installing(extra: str) -> str:
    """What to do where an extra of qsparse is missing: a command that works where this qsparse lies.

    Not ``pip install "qsparse[...]"``: under its name alone, pip finds another project. In a clone it is the
    clone's extra, with the versions that were tested; elsewhere, the packages themselves, as the installed
    metadata of qsparse lists them.
    """
    import importlib.metadata  # slow to load, and seldom needed

    clone = Path(__file__).parent.parent
    if (clone / "setup.py").is_file() and (clone / "constraints.txt").is_file():
        return f'pip install -c constraints.txt ".[{extra}]" in a clone of qsparse, such as {clone}'
    marker = re.compile(rf"""\s*;\s*extra\s*==\s*["']{re.escape(extra)}["']\s*""")
    try:
        required = importlib.metadata.requires("qsparse") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    packages = [marker.sub("", each) for each in required if marker.search(each)]
    if not packages:  # a copy without metadata: nothing tells what it needs
        return f"install the extra [{extra}] of qsparse from where this qsparse came from"
    return "pip install " + " ".join(f'"{each}"' for each in packages)

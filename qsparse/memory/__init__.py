"""Memories: importing the room registers them all."""

from qsparse.memory.base import Draft, Memory, MemoryClaims
from qsparse.memory.changes import Changes
from qsparse.memory.error_feedback import ErrorFeedback
from qsparse.memory.innovation import Innovation
from qsparse.memory.snapshot import Snapshot
from qsparse.memory.stateless import Stateless

__all__ = [
    "Changes",
    "Draft",
    "ErrorFeedback",
    "Innovation",
    "Memory",
    "MemoryClaims",
    "Snapshot",
    "Stateless",
]

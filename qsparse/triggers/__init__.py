"""Triggers: importing the room registers them all."""

from qsparse.triggers.asking import Ask
from qsparse.triggers.base import Trigger
from qsparse.triggers.drift import Drift
from qsparse.triggers.gaps import Every, RandomGap
from qsparse.triggers.joined import Both, Either
from qsparse.triggers.lazy import Lazy

__all__ = ["Ask", "Both", "Drift", "Either", "Every", "Lazy", "RandomGap", "Trigger"]

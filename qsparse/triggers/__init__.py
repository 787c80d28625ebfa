"""Triggers: importing the room registers them all."""

from qsparse.triggers.base import Both, Either, Trigger, TriggerClaims
from qsparse.triggers.drift import Drift
from qsparse.triggers.lazy import Lazy
from qsparse.triggers.periodic import Every, RandomGap

__all__ = [
    "Both",
    "Drift",
    "Either",
    "Every",
    "Lazy",
    "RandomGap",
    "Trigger",
    "TriggerClaims",
]

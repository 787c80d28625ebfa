"""What the laws of local steps and server rules share: where they start, how precisely, how long."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, Final

import numpy as np

from qsparse.schedules import Schedule, over
from qsparse.types import Vector

#: Steps down a bowl.
STEPS: Final = 8


def start_of(x: Vector) -> Vector:
    """Where a part begins that is tried on x: (n,), from 1 down to −1."""
    return np.linspace(1, -1, x.size).astype(x.dtype)


def precisions(x: Vector) -> tuple[Vector, Vector]:
    """x in float32 and in float64."""
    return x.astype(np.float32), x.astype(np.float64)


def lasting(part: Any) -> Any:
    """The part for a run of so many steps, as a run makes it."""
    return over(part, 20) if is_dataclass(part) else part


def scheduled(part: Any) -> bool:
    """Whether a schedule is among the settings."""
    settings = fields(part) if is_dataclass(part) else ()
    return any(isinstance(getattr(part, setting.name), Schedule) for setting in settings)


def bowl(n: int, depth: float) -> Vector:
    """The lowest point of ½‖x − lowest‖², (n,): in each coordinate ``depth`` to twice that away from zero."""
    signs = np.where(np.arange(n) % 3, 1.0, -1.0)
    lowest: Vector = signs * np.linspace(depth, 2 * depth, n)
    return lowest

"""What the laws of local steps and server rules share: where they start, how precisely, how long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsparse.types import Vector


def start_of(x: Vector) -> Vector:
    """Where a part begins that is tried on x: (n,), from 1 down to −1."""
    return np.linspace(1, -1, x.size).astype(x.dtype)


def precisions(x: Vector) -> tuple[Vector, Vector]:
    """x in float32 and in float64."""
    return x.astype(np.float32), x.astype(np.float64)


def lasting(part: Any) -> Any:
    """The part for a run of so many steps, as a run makes it."""
    lr = getattr(part, "lr", None)
    if lr is None or isinstance(lr, float | int):
        return part
    return replace(part, lr=lr.over(20))

"""The gradient itself is reported, and the server rule takes the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsparse.local.base import LocalClaims, Oracle
from qsparse.local.shared import Momentum
from qsparse.registry import register
from qsparse.types import State, Vector


@register("gradient")
@dataclass(frozen=True)
class Gradient(Momentum):
    """Reports the gradient, or its momentum m = μm + g, and leaves the step to the server rule.

    With Nesterov it reports g + μm.

    Args:
        momentum, nesterov: μ.
        whole: the gradient is that of the worker's whole share, not of a batch.
    """

    momentum: float = 0.0
    nesterov: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        self._check_momentum()

    @property
    def claims(self) -> LocalClaims:
        """A gradient, of a batch or of the whole share."""
        return LocalClaims(
            reports_gradient=True, momentum=self.momentum, nesterov=self.nesterov, takes_all=self.whole
        )

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """The gradient at x, which stays where it is."""
        loss = oracle(state["x"], None if self.whole else batch, state["gradient"])
        self._turn(state)
        return loss

    def report(self, state: State, out: Vector) -> Vector:
        """The gradient or its momentum."""
        np.copyto(out, state["gradient"])
        return out

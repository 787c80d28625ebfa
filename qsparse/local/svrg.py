"""Differences of stochastic gradients, of which the variance is reduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsparse.local.base import Local, LocalClaims, Oracle
from qsparse.local.shared import two_gradients
from qsparse.registry import register
from qsparse.types import State, Vector


@register("svrg")
@dataclass(frozen=True)
class SVRG(Local):
    """α = ∇f_B(x) − ∇f_B(x̃): the same batch B at the model and at the snapshot x̃, where the phase began.

    Johnson & Zhang, 2013; as the workers of AsyLPG report it (Yu et al., 2019). The server rule adds
    the full gradient at x̃.
    """

    @property
    def claims(self) -> LocalClaims:
        """A difference of two gradients."""
        return LocalClaims(reports_gradient=True, asks_once=False, needs_mean=True)

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """The snapshot is where one is."""
        more = {"snapshot": x.copy(), "here": x.copy(), "difference": np.zeros_like(x)}
        return super().init(x, gradient) | more

    def enter(self, state: State, model: Vector) -> None:
        """A new snapshot."""
        self.adopt(state, model)
        np.copyto(state["snapshot"], model)

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """Two gradients; x stays where it is."""
        difference = state["difference"]
        loss, _ = two_gradients(state, oracle, batch, state["snapshot"], difference, difference)
        return loss

    def report(self, state: State, out: Vector) -> Vector:
        """α."""
        np.copyto(out, state["difference"])
        return out

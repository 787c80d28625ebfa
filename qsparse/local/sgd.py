"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qsparse.kernels import vector
from qsparse.local.base import LocalClaims, Oracle
from qsparse.local.shared import LearningRate, Momentum, Stretches, WeightDecay
from qsparse.registry import register
from qsparse.schedules import Rate, Schedule
from qsparse.types import State, Vector


@register("sgd")
@dataclass(frozen=True)
class SGD(LearningRate, Momentum, WeightDecay):
    """d = g + λx;  m = μm + d;  x −= lr·m, or lr·(d + μm) with Nesterov. As torch.optim.SGD.

    The momentum stays with the worker and is not exchanged.

    Args:
        lr: the step size; open unless given, and 0.1 where it stays so.
        momentum, nesterov: μ.
        weight_decay: λ.
        decoupled: leave λx out of d; instead every rank applies it by itself at each meeting, with a
            momentum of its own: w = μw + λx;  x −= lr·w, or lr·(λx + μw) with Nesterov. So it is neither
            compressed nor kept as an error (the authors' code of dist-EF-SGDM: Zheng et al., 2019).
        decay_on: what decays: ``all`` or ``weights`` (see `WeightDecay`); λ is 0 for the others.
    """

    usual: ClassVar[float] = 0.1
    lr: Rate | None = None
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    decay_on: str | Stretches = "all"

    def __post_init__(self) -> None:
        self._check_lr()
        self._check_momentum()
        self._check_decay()

    @property
    def claims(self) -> LocalClaims:
        """Net updates."""
        decays = self.weight_decay > 0
        return LocalClaims(
            decays=decays and not self.decoupled,
            scheduled=isinstance(self.lr, Schedule),
            decoupled_decay=decays and self.decoupled,
        )

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """One step."""
        x, g = state["x"], state["gradient"]
        loss = oracle(x, batch, g)
        if self.weight_decay and not self.decoupled:
            for first, behind in self._decayed(x.size):
                part = g[first:behind]
                vector.add_scaled(part, self.weight_decay, x[first:behind], part)
        self._turn(state)
        vector.add_scaled(x, -self._lr(t), g, x)
        return loss

    def decoupled_decay(self, state: State, model: Vector, t: int) -> Vector:
        """lr·w, or lr·(λx + μw)."""
        decay = np.zeros_like(model)
        for first, behind in self._decayed(model.size):
            np.multiply(model[first:behind], self.weight_decay, out=decay[first:behind])
        if self.momentum:
            momentum = state.setdefault("decay", np.zeros_like(model))
            vector.momentum(decay, momentum, self.momentum, self.nesterov, decay)
        decay *= self._lr(t)
        return decay

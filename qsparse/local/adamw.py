"""Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.local.base import LocalClaims, Oracle
from qsparse.local.shared import LearningRate, Stretches, WeightDecay
from qsparse.registry import register, spell
from qsparse.schedules import Rate, Schedule
from qsparse.types import State, Vector


@register("adamw")
@dataclass(frozen=True)
class AdamW(LearningRate, WeightDecay):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019). As torch.optim.AdamW.

    Args:
        lr, beta1, beta2, eps, weight_decay: the paper's α, β₁, β₂, ε, λ; lr is open unless given, and
            0.001 where it stays so.
        decay_on: what decays: ``all`` or ``weights`` (see `WeightDecay`); λ is 0 for the others.
    """

    usual: ClassVar[float] = 0.001
    lr: Rate | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_on: str | Stretches = "all"

    def __post_init__(self) -> None:
        self._check_lr()
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise SettingError(f"{spell(self)}: beta1, beta2 must lie in [0, 1), eps be positive")
        self._check_decay()

    @property
    def claims(self) -> LocalClaims:
        """Net updates."""
        return LocalClaims(decays=self.weight_decay > 0, scheduled=isinstance(self.lr, Schedule))

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """Both moments start at zero."""
        more = {"first": np.zeros_like(x), "second": np.zeros_like(x), "steps": 0}
        return super().init(x, gradient) | more

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """One step."""
        loss = oracle(state["x"], batch, state["gradient"])
        state["steps"] += 1
        vectors = [state[name] for name in ("x", "gradient", "first", "second")]
        at, n = 0, state["x"].size
        for first, behind in (*(self._decayed(n) if self.weight_decay else ()), (n, n)):
            # What lies before a stretch that decays does not.
            for start, stop, decay in ((at, first, 0.0), (first, behind, self.weight_decay)):
                if start < stop:
                    x, g, m, v = (each[start:stop] for each in vectors)
                    vector.adamw_step(
                        x, g, m, v, state["steps"], self._lr(t), self.beta1, self.beta2, self.eps,
                        decay,
                    )  # fmt: skip
            at = behind
        return loss

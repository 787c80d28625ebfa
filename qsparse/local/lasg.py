"""Stochastic gradients whose change is measured apart from their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.local.base import Local, LocalClaims, Oracle
from qsparse.local.shared import two_gradients
from qsparse.registry import register, spell
from qsparse.types import State, Vector


@register("lasg")
@dataclass(frozen=True)
class LASG(Local):
    """Reports a stochastic gradient, and measures how much of it is news rather than noise.

    Chen et al., 2020. Rule 2 (WK2): ‖∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̂; ξ^k)‖², the same batch at the model θ̂ of the last
    upload. Rule 1 (WK1): ‖δ^k − δ̂‖², δ^k = ∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̃; ξ^k) and δ̂ its value at the last upload,
    where the snapshot θ̃ is renewed after every ``refresh`` steps. Both cost two gradients a step. The other
    side of the papers' rule is that of trigger lazy, (c/D)·Σ_d‖θ^{k+1−d} − θ^{k−d}‖² with c = Dξ/ᾱ².

    Args:
        rule: 1 or 2.
        refresh: of rule 1.
    """

    rule: int = 2
    refresh: int = 10

    def __post_init__(self) -> None:
        if self.rule not in (1, 2) or not isinstance(self.refresh, int) or self.refresh < 1:
            raise SettingError(f"{spell(self)}: rule must be 1 or 2, refresh a whole number of at least 1")

    @property
    def claims(self) -> LocalClaims:
        """A gradient, and another one to measure it by."""
        return LocalClaims(reports_gradient=True, asks_once=False, measures=True)

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """Everything is news at first."""
        more = {name: np.zeros_like(x) for name in ("here", "report", "change", "said")}
        return super().init(x, gradient) | more | {"then": x.copy(), "news": np.inf, "upto": 0}

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """Two gradients; x stays where it is."""
        if self.rule == 1 and t > state["upto"]:
            np.copyto(state["then"], state["x"])
            state["upto"] = t - 1 + self.refresh
        first = not np.isfinite(state["news"])
        loss, change = two_gradients(state, oracle, batch, state["then"], state["report"], state["change"])
        if self.rule == 1:
            news = float(vector.squared_norm(change - state["said"]))
        else:
            news = float(vector.squared_norm(change))
        # At the first step nothing was said yet, and whatever there is must be.
        state["news"] = np.finfo(np.float64).max if first else news
        return loss

    def report(self, state: State, out: Vector) -> Vector:
        """The gradient at the model."""
        np.copyto(out, state["report"])
        return out

    def change(self, state: State) -> float | None:
        """By the rule."""
        return float(state["news"])

    def afresh(self, state: State) -> State:
        """Everything is news again."""
        return {**state, "news": np.inf}

    def heard(self, state: State, model: Vector | None, sent: bool) -> None:
        """After an upload: where, or what, it was."""
        if sent:
            np.copyto(*((state["said"], state["change"]) if self.rule == 1 else (state["then"], state["x"])))
        super().heard(state, model, sent)

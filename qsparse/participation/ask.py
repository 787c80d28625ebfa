"""Workers whose gradient may have changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.errors import SettingError
from qsparse.participation.base import Participation, ParticipationClaims
from qsparse.registry import register, spell
from qsparse.schedules import Rate
from qsparse.seeds import Seed
from qsparse.triggers.lazy import LazyRule
from qsparse.types import State, Vector


@register("ask")
@dataclass(frozen=True)
class Ask(LazyRule, Participation):
    """The coordinator asks worker m only if its gradient may have changed (LAG-PS: Chen et al., 2018).

    It does where L_m²‖θ̂_m − θ^k‖² > (1/ᾱ²)·Σ_{d=1…D} ξ_d‖θ^{k+1−d} − θ^{k−d}‖², θ̂_m being the model at
    which it was last asked. Who is not asked is sent no model, computes nothing and says nothing. Who was
    left alone ``patience`` times in a row is asked; after the last step everybody is told the model. The
    coordinator must have the newest model at every step, so it only serves.

    Args:
        D, xi, patience, rate: as for `Lazy`, but ξ is 10/D unless given, as in the paper's experiments.
        smoothness: L_m, one for all or one for each worker; None: the largest ‖∇f_m(θ) − ∇f_m(θ')‖/‖θ − θ'‖
            that was seen, for which everybody is asked twice at the beginning.
    """

    total: ClassVar[float] = 10.0
    D: int = 10
    xi: float | None = None
    patience: int = 100
    rate: Rate | None = None
    smoothness: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check()
        given = self.smoothness if isinstance(self.smoothness, tuple) else (self.smoothness,)
        if not all(value is None or value > 0 for value in given):
            raise SettingError(f"{spell(self)}: smoothness must be positive")

    @property
    def claims(self) -> ParticipationClaims:
        """Workers with little to report are left out."""
        return ParticipationClaims(by_change=True)

    def check(self, workers: int) -> None:
        """A list must have one for each worker."""
        if isinstance(self.smoothness, tuple) and len(self.smoothness) != workers:
            raise SettingError(
                f"{spell(self)}: smoothness is a list of {len(self.smoothness)} for {workers} workers"
            )

    def init(self, seed: Seed) -> State:
        """Nobody was asked."""
        return self.moves() | {"at": np.empty((0, 0)), "L": np.empty(0), "alone": np.empty(0, int)}

    def invited(self, state: State, changes: Sequence[float | None], model: Vector, t: int) -> list[bool]:
        """The criterion, for the model after step t."""
        before, workers = state["model"], len(changes)
        if not state["L"].size:
            state["at"] = np.full((workers, model.size), np.nan)
            state["alone"] = np.zeros(workers, int)
            state["L"] = np.zeros(workers)
            if self.smoothness is not None:
                state["L"][:] = self.smoothness
        for m, change in enumerate(changes):
            if change is None:
                state["alone"][m] += 1
                continue
            way = float(np.linalg.norm(before - state["at"][m]))
            if self.smoothness is None and way > 0:
                state["L"][m] = max(state["L"][m], np.sqrt(change) / way)
            state["at"][m] = before
            state["alone"][m] = 0
        self.heard(state, model)
        moved = self._moved(state, t + 1)
        news = state["L"] ** 2 * np.sum((state["at"] - model) ** 2, axis=1)
        unknown = state["L"] == 0
        return [bool(x) for x in (news > moved) | unknown | (state["alone"] >= self.patience)]

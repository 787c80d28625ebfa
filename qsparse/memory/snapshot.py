"""Models are sent with an error that is small next to the way they have gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.memory.base import Draft, Memory, MemoryClaims
from qsparse.registry import register, spell
from qsparse.schedules import momentum_weight
from qsparse.types import State, Vector


@register("snapshot")
@dataclass(frozen=True)
class Snapshot(Memory):
    """Keeps the model x̃ with which the phase began, and sends x with an error that is small beside its way.

    E‖Q(x) − x‖² ≤ μ‖x − x̃‖², times θₛ = 2/(s + 2) in phase s where ``accelerated`` (Yu et al., 2019,
    eqs. 2 and 4): the compressor takes as many bits as that needs.

    Args:
        mu: μ.
        accelerated: the condition of Acc-AsyLPG.
    """

    mu: float = 0.5
    accelerated: bool = False

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise SettingError(f"{spell(self)}: mu must be positive")

    @property
    def claims(self) -> MemoryClaims:
        """One snapshot for all receivers, by which a precision goes."""
        return MemoryClaims(per_receiver=False, needs_precision=True)

    def init(self, start: Vector) -> State:
        """The start is the first snapshot."""
        return {"snapshot": start.copy(), "phase": -1}

    def enter(self, state: State, start: Vector) -> None:
        """A new snapshot."""
        np.copyto(state["snapshot"], start)
        state["phase"] += 1

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """Nothing."""
        return None

    def tolerance(self, state: State, target: Vector) -> float:
        """μ‖x − x̃‖²."""
        weight = momentum_weight(state["phase"]) if self.accelerated else 1.0
        way = np.subtract(target, state["snapshot"])
        return self.mu * weight * float(vector.squared_norm(way))

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """Nothing to do."""
        return None

    def restore(self, state: State, total: Vector) -> Vector:
        """The total itself."""
        return total

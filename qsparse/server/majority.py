"""A step along the signs of the mean report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qsparse.kernels import vector
from qsparse.registry import register
from qsparse.schedules import Rate, check_rate, rate_at
from qsparse.server.base import ServerRule
from qsparse.types import State, Vector


@register("majority")
@dataclass(frozen=True)
class Majority(ServerRule):
    """x −= lr·sign(u), sign(0) = 0: the majority of raw signs (Bernstein et al., 2018)."""

    replayable: ClassVar[bool] = True
    lr: Rate

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One vote."""
        vector.sign_step(state["x"], rate_at(self.lr, t), u)

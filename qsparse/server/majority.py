"""A step along the signs of the mean report."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.kernels import vector
from qsparse.registry import register
from qsparse.schedules import Rate, check_rate, rate_at
from qsparse.server.base import ServerClaims, ServerRule
from qsparse.types import State, Vector


@register("majority")
@dataclass(frozen=True)
class Majority(ServerRule):
    """x −= lr·sign(u), sign(0) = 0: the majority of raw signs (Bernstein et al., 2018)."""

    lr: Rate

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)

    @property
    def claims(self) -> ServerClaims:
        """A step of x alone."""
        return ServerClaims(rate=self.lr, moves="signs", replayable=True, by_coordinate=True)

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One vote."""
        vector.sign_step(state["x"], rate_at(self.lr, t), u)

"""A step along the mean report."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.kernels import vector
from qsparse.registry import register
from qsparse.schedules import Rate, check_rate, rate_at
from qsparse.server.base import ServerClaims, ServerRule
from qsparse.types import State, Vector


@register("descend")
@dataclass(frozen=True)
class Descend(ServerRule):
    """x −= lr·u. With reports in parameter units and lr = 1 it averages the workers' models."""

    lr: Rate = 1.0

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)

    @property
    def claims(self) -> ServerClaims:
        """A step of x alone."""
        return ServerClaims(rate=self.lr, moves="report", replayable=True, by_coordinate=True)

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One step."""
        vector.add_scaled(state["x"], -rate_at(self.lr, t), u, state["x"])

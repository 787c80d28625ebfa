"""What the coordinator does with what it heard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from qsparse.kernels import vector
from qsparse.registry import register
from qsparse.schedules import Rate, check_rate, rate_at
from qsparse.types import State, Vector


class ServerRule(ABC):
    """Makes models out of merged reports."""

    kind: ClassVar[str] = "server"
    registered_name: ClassVar[str]

    def init(self, start: Vector) -> State:
        """The state at the common starting point."""
        return {"x": start.copy()}

    @abstractmethod
    def absorb(self, state: State, u: Vector, t: int) -> None:
        """Take the merged report of one round (or of one arrival), the mean over the workers.

        Args:
            u: (n,), overwritten by the next round.
            t: the local step at which the workers reported; schedules go by it.
        """

    def model(self, state: State) -> Vector:
        """The model to answer with."""
        model: Vector = state["x"]
        return model


@register("descend")
@dataclass(frozen=True)
class Descend(ServerRule):
    """x −= lr·u. With reports in parameter units and lr = 1 it averages the workers' models."""

    lr: Rate = 1.0

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One step."""
        vector.add_scaled(state["x"], -rate_at(self.lr, t), u, state["x"])


@register("majority")
@dataclass(frozen=True)
class Majority(ServerRule):
    """x −= lr·sign(u), sign(0) = 0: the majority of raw signs (Bernstein et al., 2018)."""

    lr: Rate

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One vote."""
        vector.sign_step(state["x"], rate_at(self.lr, t), u)

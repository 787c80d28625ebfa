"""What the coordinator does with what it heard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from qsparse.schedules import Rate
from qsparse.types import State, Vector


@dataclass(frozen=True)
class ServerClaims:
    """What a server rule promises; the rules of composition go by it, and laws hold it.

    Attributes:
        rate: the step along the mean report, a number or a schedule; None: none is told. Triggers that
            compare with the model's moves go by it.
        moves: how a report u moves x, where the rate and u say all of it: by ``report``, rate·u, or by
            ``signs``, rate·sign(u) with sign(0) = 0; None: otherwise.
        holds: the model never moves, so that there is nothing to answer.
        per_arrival: a report that comes alone is taken whole, and not as the R-th part of a round.
        replayable: x is all that is remembered and gone by, so that a rank that has x can take the step too.
        moves_all: a report also moves coordinates that it says nothing of.
        keeps_mean: the mean report is kept under ``mean``, for the rule of the phase behind it.
        needs_mean: the mean report that the rule of the phase before has kept is added to every report.
        ends_elsewhere: a phase ends with another model than that of its last step.
        by_coordinate: what becomes of a coordinate goes by this coordinate of the reports and of the state
            alone, so that several ranks may coordinate a stretch of the model each.
    """

    rate: Rate | None = None
    moves: Literal["report", "signs"] | None = None
    holds: bool = False
    per_arrival: bool = False
    replayable: bool = False
    moves_all: bool = False
    keeps_mean: bool = False
    needs_mean: bool = False
    ends_elsewhere: bool = False
    by_coordinate: bool = False


class ServerRule(ABC):
    """Makes models out of merged reports."""

    kind: ClassVar[str] = "server"
    registered_name: ClassVar[str]

    @property
    def claims(self) -> ServerClaims:
        """What this rule promises."""
        return ServerClaims()

    def init(self, start: Vector) -> State:
        """The state at the common starting point."""
        return {"x": start.copy()}

    @abstractmethod
    def absorb(self, state: State, u: Vector, t: int) -> None:
        """Take the merged report of one round (or of one arrival), the mean over the workers.

        Args:
            state: of the rule.
            u: (n,), overwritten by the next round.
            t: the local step at which the workers reported; schedules go by it.
        """

    def model(self, state: State) -> Vector:
        """The model to answer with."""
        model: Vector = state["x"]
        return model

    def subtract(self, state: State, by: Vector) -> None:
        """Every rank subtracts a vector, (n,), from the model by itself."""
        np.subtract(state["x"], by, out=state["x"])

    def leave(self, state: State) -> Vector:
        """The model with which a phase ends."""
        return self.model(state)

    def enter(self, state: State, model: Vector, before: State) -> None:
        """A phase begins at a model that all ranks have.

        Args:
            state: of the rule.
            model: (n,).
            before: the state of the rule of the phase before.
        """
        np.copyto(state["x"], model)

"""What the coordinator does with what it heard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from qsparse.types import State, Vector


class ServerRule(ABC):
    """Makes models out of merged reports."""

    kind: ClassVar[str] = "server"
    registered_name: ClassVar[str]
    #: Is a report that comes alone taken whole, and not as the R-th part of a round?
    per_arrival: ClassVar[bool] = False
    #: Does the model never move, so that there is nothing to answer?
    holds: ClassVar[bool] = False
    #: Is x all that it remembers and goes by, so that any rank that has x can take the step as well?
    replayable: ClassVar[bool] = False
    #: Does a report move coordinates, too, that it says nothing of?
    moves_all: ClassVar[bool] = False

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

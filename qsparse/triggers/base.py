"""When does a worker speak?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from qsparse.memory import Draft
from qsparse.payload import Payload
from qsparse.schedules import Rate
from qsparse.schedules import over as lasting
from qsparse.seeds import Seed
from qsparse.types import State, Vector


class Trigger(ABC):
    """Decides before the work whether a message is due, and after it whether it is worth sending.

    ``one & other`` speaks where both would, ``one | other`` where one of them would.
    """

    kind: ClassVar[str] = "trigger"
    registered_name: ClassVar[str]
    #: Does the coordinator say who works, and not the workers who speaks? Then `asked` is asked.
    asks: ClassVar[bool] = False

    @property
    def always_due(self) -> bool:
        """Whether a message is due after every step, whatever the state."""
        return False

    @property
    def may_skip(self) -> bool:
        """Whether `worth` ever says no."""
        return type(self).worth is not Trigger.worth

    @property
    def differs(self) -> bool:
        """Whether its settings give each worker steps of its own."""
        return False

    def bind(self, rate: Rate | None) -> Trigger:
        """The trigger for a server rule with this step size (None: it has none)."""
        return self

    def over(self, steps: int) -> Trigger:
        """The trigger for a run of so many steps."""
        return lasting(self, steps)

    def check(self, workers: int) -> None:
        """Refuse a number of workers that the settings do not fit."""

    def init(self, seed: Seed) -> State:
        """The state before step 1; workers that meet synchronously are given the same seed."""
        return {}

    @abstractmethod
    def due(self, state: State, t: int) -> bool:
        """Whether step t = 1, 2, … is the last before a meeting; asked once a step, in order."""

    def worth(self, state: State, draft: Draft) -> bool:
        """Whether the draft is worth sending; asked after compressing, and False sends a SKIP instead."""
        return True

    def settled(self, state: State, spoke: bool) -> None:
        """The draft last asked about was sent, or a SKIP was."""

    def starved(self, state: State) -> bool:
        """Whether the draft last asked about was kept back for its errors, however much there is to say."""
        return False

    def heard(self, state: State, model: Vector) -> None:
        """A model was received, the first before step 1."""

    def asked(self, state: State, payloads: Sequence[Payload], model: Vector, t: int) -> list[bool]:
        """Which workers are told the model, and work in the next round? Asked of the coordinator.

        Args:
            state: the coordinator's own.
            payloads: what the workers, in rank order, have just said.
            model: what came of it, (n,).
            t: the step at which they did.
        """
        return [True] * len(payloads)

    def __and__(self, other: Trigger) -> Trigger:
        from qsparse.triggers.joined import Both

        return Both(self, other) if isinstance(other, Trigger) else NotImplemented

    def __or__(self, other: Trigger) -> Trigger:
        from qsparse.triggers.joined import Either

        return Either(self, other) if isinstance(other, Trigger) else NotImplemented

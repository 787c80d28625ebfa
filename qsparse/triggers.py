"""When does a worker speak?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from qsparse.errors import SettingError
from qsparse.memory import Draft
from qsparse.registry import register, spell
from qsparse.seeds import Seed
from qsparse.types import State, Vector


class Trigger(ABC):
    """Decides before the work whether a message is due, and after it whether it is worth sending."""

    kind: ClassVar[str] = "trigger"
    registered_name: ClassVar[str]

    def init(self, seed: Seed) -> State:
        """The state before step 1; workers that meet synchronously are given the same seed."""
        return {}

    @abstractmethod
    def due(self, state: State, t: int) -> bool:
        """Is step t = 1, 2, … the last before a meeting? Asked once a step, in order."""

    def worth(self, state: State, draft: Draft) -> bool:
        """Is the draft news? Asked after compressing; no means a SKIP is sent instead."""
        return True

    def heard(self, state: State, model: Vector) -> None:
        """A model was received."""


def _check_gap(part: object, steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise SettingError(f"{spell(part)}: H must be a whole number of at least 1")


@register("every")
@dataclass(frozen=True)
class Every(Trigger):
    """Speak after every H-th step: the synchronisation set H, 2H, 3H, …"""

    H: int = 1

    def __post_init__(self) -> None:
        _check_gap(self, self.H)

    def due(self, state: State, t: int) -> bool:
        """t is a multiple of H."""
        return t % self.H == 0


@register("randomgap")
@dataclass(frozen=True)
class RandomGap(Trigger):
    """Speak after gaps drawn from 1 … H: a synchronisation set with gap(I_T) ≤ H.

    Basu et al., 2019, section 3; a worker that does not wait for others draws a set of its own.
    """

    H: int

    def __post_init__(self) -> None:
        _check_gap(self, self.H)

    def init(self, seed: Seed) -> State:
        """The first gap."""
        # A number, not a Seed, so that the state can be saved.
        state: State = {"key": seed.key, "next": 0}
        self._draw(state, 0)
        return state

    def due(self, state: State, t: int) -> bool:
        """The gap is over; the next one is drawn."""
        if t < state["next"]:
            return False
        self._draw(state, t)
        return True

    def _draw(self, state: State, t: int) -> None:
        generator = Seed(state["key"], step=t, use="gap").generator()
        state["next"] = t + int(generator.integers(1, self.H + 1))

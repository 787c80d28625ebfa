"""When a worker speaks, and how two answers to that are joined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qsparse.memory import Draft
from qsparse.registry import spell
from qsparse.schedules import Rate
from qsparse.schedules import over as lasting
from qsparse.seeds import Seed
from qsparse.types import State, Vector


@dataclass(frozen=True)
class TriggerClaims:
    """What a trigger promises; the rules of composition go by it, and laws hold it.

    Attributes:
        always_due: a message is due after every step, whatever the state.
        may_skip: `worth` may say no.
        differs: the settings give each worker steps of its own.
        gap: (rank of a worker, step t) → the gap between two meetings, if it begins with step t; None: gaps
            follow from more than that.
        drawn: gaps are drawn from 1 … ``gap``, anew for every seed.
    """

    always_due: bool = False
    may_skip: bool = False
    differs: bool = False
    gap: Callable[[int, int], int] | None = None
    drawn: bool = False


class Trigger(ABC):
    """Decides before the work whether a message is due, and after it whether it is worth sending.

    ``one & other`` speaks where both would, ``one | other`` where one of them would.
    """

    kind: ClassVar[str] = "trigger"
    registered_name: ClassVar[str]

    @property
    def claims(self) -> TriggerClaims:
        """What this trigger promises."""
        return TriggerClaims()

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
        """Whether the draft is worth sending; asked after compressing, and False sends a SKIP instead.

        Always, unless `may_skip` is claimed.
        """
        return True

    def settled(self, state: State, sent: bool) -> None:
        """The draft last asked about was sent, or a SKIP was."""

    def starved(self, state: State) -> bool:
        """Whether the draft last asked about was kept back for its errors, however much there is to say."""
        return False

    def heard(self, state: State, model: Vector) -> None:
        """A model was received, the first before step 1."""

    def __and__(self, other: Trigger) -> Trigger:
        return Both(self, other) if isinstance(other, Trigger) else NotImplemented

    def __or__(self, other: Trigger) -> Trigger:
        return Either(self, other) if isinstance(other, Trigger) else NotImplemented


@dataclass(frozen=True)
class Combined(Trigger):
    """Two triggers, each with a state of its own."""

    left: Trigger
    right: Trigger
    sign: ClassVar[str]

    def spelling(self) -> str:
        """``left & right``, with brackets where the grammar needs them."""
        parts = (f"({spell(part)})" if isinstance(part, Combined) else spell(part) for part in self._both())
        return f" {self.sign} ".join(parts)

    def _both(self) -> tuple[Trigger, Trigger]:
        return self.left, self.right

    @property
    def claims(self) -> TriggerClaims:
        """What one of them may do; due at every step is what `_join` makes of both."""
        left, right = self.left.claims, self.right.claims
        return TriggerClaims(
            always_due=self._join(left.always_due, right.always_due),
            may_skip=left.may_skip or right.may_skip,
            differs=left.differs or right.differs,
        )

    def bind(self, rate: Rate | None) -> Trigger:
        """Both."""
        return type(self)(self.left.bind(rate), self.right.bind(rate))

    def check(self, workers: int) -> None:
        """Both."""
        self.left.check(workers)
        self.right.check(workers)

    def init(self, seed: Seed) -> State:
        """Two states, and whether a message was last due by the one and by the other."""
        return {
            "left": self.left.init(seed),
            "right": self.right.init(seed),
            "by_left": False,
            "by_right": False,
        }

    def due(self, state: State, t: int) -> bool:
        """Both are asked at every step, as each keeps a count."""
        state["by_left"] = self.left.due(state["left"], t)
        state["by_right"] = self.right.due(state["right"], t)
        return self._join(state["by_left"], state["by_right"])

    def worth(self, state: State, draft: Draft) -> bool:
        """By those by which it is due; both are asked, as each may remember what it was asked about."""
        by_left, by_right = state["by_left"], state["by_right"]
        # A meeting for which nobody asked, at the end, is due by both.
        if not self._join(by_left, by_right):
            by_left = by_right = True
        left, right = self.left.worth(state["left"], draft), self.right.worth(state["right"], draft)
        return self._join(by_left and left, by_right and right)

    def settled(self, state: State, sent: bool) -> None:
        """Both."""
        self.left.settled(state["left"], sent)
        self.right.settled(state["right"], sent)

    def starved(self, state: State) -> bool:
        """By one of them."""
        return self.left.starved(state["left"]) or self.right.starved(state["right"])

    def heard(self, state: State, model: Vector) -> None:
        """Both."""
        self.left.heard(state["left"], model)
        self.right.heard(state["right"], model)

    @abstractmethod
    def _join(self, left: bool, right: bool) -> bool:
        """Of two answers one."""


@dataclass(frozen=True)
class Both(Combined):
    """``left & right``: due, and worth it, by both."""

    sign: ClassVar[str] = "&"

    def _join(self, left: bool, right: bool) -> bool:
        return left and right


@dataclass(frozen=True)
class Either(Combined):
    """``left | right``: due by one of them, and worth it by one by which it is due."""

    sign: ClassVar[str] = "|"

    def _join(self, left: bool, right: bool) -> bool:
        return left or right

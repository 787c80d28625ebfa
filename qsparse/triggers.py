"""When does a worker speak?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qsparse.errors import CompositionError, SettingError
from qsparse.memory import Draft
from qsparse.registry import register, spell
from qsparse.schedules import Rate, rate_at
from qsparse.seeds import Seed
from qsparse.types import State, Vector


class Trigger(ABC):
    """Decides before the work whether a message is due, and after it whether it is worth sending."""

    kind: ClassVar[str] = "trigger"
    registered_name: ClassVar[str]

    @property
    def always_due(self) -> bool:
        """Is a message due after every step, whatever the state?"""
        return False

    @property
    def may_skip(self) -> bool:
        """Does `worth` ever say no?"""
        return type(self).worth is not Trigger.worth

    def bind(self, rate: Rate | None) -> Trigger:
        """The trigger for a server rule with this step size (None: it has none)."""
        return self

    def init(self, seed: Seed) -> State:
        """The state before step 1; workers that meet synchronously are given the same seed."""
        return {}

    @abstractmethod
    def due(self, state: State, t: int) -> bool:
        """Is step t = 1, 2, … the last before a meeting? Asked once a step, in order."""

    def worth(self, state: State, draft: Draft) -> bool:
        """Is the draft news? Asked after compressing; no means a SKIP is sent instead."""
        return True

    def settled(self, state: State, spoke: bool) -> None:
        """The draft last asked about was sent, or a SKIP was."""

    def heard(self, state: State, model: Vector) -> None:
        """A model was received, the first before step 1."""


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

    @property
    def always_due(self) -> bool:
        """With H = 1."""
        return self.H == 1

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


@register("lazy")
@dataclass(frozen=True)
class Lazy(Trigger):
    """Speak only if the news is worth it (LAQ: Sun et al., 2019, eqs. 7a and 7b).

    A worker skips while ‖δQ‖² < (1/ᾱ²)·Σ_{d=1…D} ξ_d‖θ^{k+1−d} − θ^{k−d}‖² + 3(‖ε‖² + ‖ε̂‖²): δQ is the
    innovation as it would be sent, ε its error, ε̂ the error of the last one that was sent, and ᾱ the
    server's step on the mean of the workers (the paper's α times their number, so its M² is gone). As
    in the authors' code, ξ_d = D·ξ/k while only k < D differences are known, and a worker that has
    skipped ``patience`` times in a row speaks.

    With exact values (ε = 0) it is the rule of LAG-WK (Chen et al., 2018).

    Args:
        D: how many differences of models are remembered.
        xi: ξ, the weight of each; 0.8/D unless given.
        patience: t̄.
        rate: ᾱ; taken from the server rule.
    """

    D: int = 10
    xi: float | None = None
    patience: int = 100
    rate: Rate | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.D, int) or self.D < 1:
            raise SettingError(f"{spell(self)}: D must be a whole number of at least 1")
        if self.xi is not None and not self.xi >= 0:
            raise SettingError(f"{spell(self)}: xi must not be negative")
        if not isinstance(self.patience, int) or self.patience < 0:
            raise SettingError(f"{spell(self)}: patience must be a whole number of at least 0")

    @property
    def always_due(self) -> bool:
        """A skip is a message too."""
        return True

    def bind(self, rate: Rate | None) -> Trigger:
        """Take ᾱ from the server rule; CompositionError where it has none, or another one."""
        if self.rate not in (None, rate):
            raise CompositionError(f"{spell(self)}: the step size is the server rule's, so leave rate out")
        if rate is None:
            raise CompositionError(
                f"{spell(self)} compares news with the server's last steps: it needs a server rule with a "
                "step size (lr), such as descend"
            )
        return replace(self, rate=rate)

    def init(self, seed: Seed) -> State:
        """No difference is known."""
        return {
            "model": np.empty(0),
            "moves": np.zeros(self.D),
            "heard": -1,
            "error": 0.0,
            "pending": 0.0,
            "skipped": 0,
        }

    def due(self, state: State, t: int) -> bool:
        """At every step."""
        return True

    def worth(self, state: State, draft: Draft) -> bool:
        """The criterion, for the model before step t."""
        assert self.rate is not None, "bind comes first"
        said, wrong = draft.norms()
        state["pending"] = wrong
        known = state["heard"]
        total = self.D * (0.8 / self.D if self.xi is None else self.xi)
        weight = total / min(max(known, 1), self.D)
        rate = rate_at(self.rate, draft.payload.step)
        # A server that stands still does not care for news; only patience brings it some.
        moved = weight * float(state["moves"].sum()) / rate**2 if rate > 0 else np.inf
        news = said >= moved + 3 * (wrong + state["error"])
        return bool(news or state["skipped"] >= self.patience)

    def settled(self, state: State, spoke: bool) -> None:
        """Remember the error of what was sent, or count a skip."""
        if spoke:
            state["error"], state["skipped"] = state["pending"], 0
        else:
            state["skipped"] += 1

    def heard(self, state: State, model: Vector) -> None:
        """How far did the model move?"""
        if state["heard"] >= 0:
            move = model.astype(np.float64) - state["model"]
            state["moves"][state["heard"] % self.D] = move @ move
        state["model"] = model.copy()
        state["heard"] += 1

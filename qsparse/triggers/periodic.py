"""Triggers that go by the number of steps: synchronisation sets with gaps of at most H."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TypeAlias

from qsparse.errors import SettingError
from qsparse.registry import register, spell
from qsparse.schedules import Schedule
from qsparse.seeds import Seed
from qsparse.triggers.base import Trigger, TriggerClaims
from qsparse.types import State

#: A number of steps, the same for all or (in a tuple) one for each worker, fixed or by a schedule.
Gap: TypeAlias = int | Schedule | tuple[int | Schedule, ...]


class Periodic(Trigger):
    """What such triggers share: when a gap is over, the next one begins.

    A gap also begins where the run does, and where a phase of it does.
    """

    H: Gap

    def __post_init__(self) -> None:
        gaps = self.H if isinstance(self.H, tuple) else (self.H,)
        if not gaps or not all(_whole(each) or isinstance(each, Schedule) for each in gaps):
            raise SettingError(
                f"{spell(self)}: H must be a whole number of at least 1, a schedule, or a list of them, one "
                "for each worker"
            )

    def check(self, workers: int) -> None:
        """A list must have one for each worker."""
        if isinstance(self.H, tuple) and len(self.H) != workers:
            raise SettingError(f"{spell(self)}: H is a list of {len(self.H)} for {workers} workers")

    @property
    def claims(self) -> TriggerClaims:
        """Gaps are H, or less; with a list, workers have steps of their own."""
        return TriggerClaims(differs=isinstance(self.H, tuple), gap=self.longest)

    def init(self, seed: Seed) -> State:
        """No step was asked about; a number, not a Seed, so that the state can be saved."""
        return {"key": seed.key, "rank": seed.rank, "asked": -1, "next": 0}

    def due(self, state: State, t: int) -> bool:
        """The gap is over."""
        if t != state["asked"] + 1:
            state["next"] = t - 1 + self._gap(state, t)
        state["asked"] = t
        if t < state["next"]:
            return False
        state["next"] = t + self._gap(state, t + 1)
        return True

    def longest(self, rank: int, t: int) -> int:
        """H for a gap that begins with step t, of the worker with this rank, the first being 1."""
        H = self.H[rank - 1] if isinstance(self.H, tuple) else self.H
        return max(1, round(H.at(t))) if isinstance(H, Schedule) else H

    @abstractmethod
    def _gap(self, state: State, t: int) -> int:
        """The gap that begins with step t."""


def _whole(H: object) -> bool:
    return isinstance(H, int) and not isinstance(H, bool) and H >= 1


@register("every")
@dataclass(frozen=True)
class Every(Periodic):
    """Speak after every H-th step: the synchronisation set H, 2H, 3H, …

    Args:
        H: a number; a schedule, whose value for the first step of a gap (of the worker's own steps) is
            rounded; or, where workers do not wait for each other, a list with one for each of them.
    """

    H: Gap = 1

    @property
    def claims(self) -> TriggerClaims:
        """With H = 1 at every step."""
        return replace(super().claims, always_due=self.H == 1)

    def _gap(self, state: State, t: int) -> int:
        return self.longest(state["rank"], t)


@register("randomgap")
@dataclass(frozen=True)
class RandomGap(Periodic):
    """Speak after gaps drawn from 1 … H: a synchronisation set with gap(I_T) ≤ H.

    Basu et al., 2019, section 3; a worker that does not wait for others draws a set of its own.

    Args:
        H: as for `Every`.
    """

    H: Gap

    @property
    def claims(self) -> TriggerClaims:
        """Gaps are drawn."""
        return replace(super().claims, drawn=True)

    def _gap(self, state: State, t: int) -> int:
        generator = Seed(state["key"], step=t - 1, use="gap").generator()
        return int(generator.integers(1, self.longest(state["rank"], t) + 1))

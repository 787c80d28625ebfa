"""Numbers that change with the step: learning rates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeAlias, TypeVar

from qsparse.errors import SettingError
from qsparse.registry import register, spell


class Schedule(ABC):
    """A positive number for each step t = 1, 2, …"""

    kind: ClassVar[str] = "schedule"
    registered_name: ClassVar[str]

    @abstractmethod
    def at(self, t: int) -> float:
        """The number of step t."""

    def over(self, steps: int) -> Schedule:
        """The schedule for a run of so many steps, for those that were given no length."""
        return self


T = TypeVar("T")

#: A fixed number or a schedule.
Rate: TypeAlias = float | Schedule


def rate_at(rate: Rate, t: int) -> float:
    """The value of a rate at step t."""
    return rate.at(t) if isinstance(rate, Schedule) else float(rate)


def over(part: T, steps: int) -> T:
    """The part for a run of so many steps: schedules among its settings get this length."""
    found = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]
    lasting = {name: _over(value, steps) for name, value in found.items()}
    return part if lasting == found else replace(part, **lasting)  # type: ignore[type-var]


def among(part: T, workers: int) -> T:
    """The part for so many workers: rates among its settings that go by their number are told it."""
    found = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]
    known = {name: value.among(workers) for name, value in found.items() if isinstance(value, PerWorker)}
    return replace(part, **known) if known else part  # type: ignore[type-var]


def _over(setting: Any, steps: int) -> Any:
    if isinstance(setting, tuple):
        return tuple(_over(each, steps) for each in setting)
    return setting.over(steps) if hasattr(setting, "over") else setting


def momentum_weight(phase: int) -> float:
    """θₛ = 2/(s + 2) in phase s = 0, 1, … (Acc-AsyLPG: Yu et al., 2019)."""
    return 2 / (max(phase, 0) + 2)


def check_rate(part: object, name: str, rate: Rate) -> None:
    """Refuse a rate that is no schedule and not positive."""
    if not isinstance(rate, Schedule) and not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise SettingError(f"{spell(part)}: {name} must be a positive number or a schedule")


@register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up to ``peak``, then half a cosine down to ``floor``.

    Args:
        peak: the largest value.
        steps: how many steps the schedule lasts, the whole run unless given; it stays at ``floor``
            afterwards.
        warmup: how many of them are warm-up.
        floor: where it ends, one step after the last, so that no step is taken with a rate of 0.
    """

    peak: float
    steps: int | None = None
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        lasts = self.steps is None or self.steps > self.warmup
        if not (self.peak > 0 and lasts and self.warmup >= 0 and self.floor >= 0):
            raise SettingError(
                f"{spell(self)}: peak must be positive, steps more than warmup, floor and warmup not negative"
            )

    def over(self, steps: int) -> Schedule:
        """As long as the run."""
        if self.steps is not None:
            return self
        return Cosine(self.peak, max(steps, self.warmup + 1), self.warmup, self.floor)

    def at(self, t: int) -> float:
        """Warm-up, then cosine."""
        if self.steps is None:
            raise SettingError(f"{spell(self)} does not know how long the run is: give steps")
        if t <= self.warmup:
            return self.peak * t / self.warmup
        done = min(1.0, (t - self.warmup - 1) / max(1, self.steps - self.warmup))
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * done)) / 2


@register("steps")
@dataclass(frozen=True)
class Steps(Schedule):
    """``start``, multiplied by ``factor`` after each of the given steps; before that a linear warm-up.

    Args:
        start: the first value, and the largest where ``factor`` is less than 1.
        after: the steps.
        factor: by which the value changes.
        warmup: for so many steps the value is multiplied by t/warmup (Goyal et al., 2017).

    >>> [Steps(0.1, after=(2, 3)).at(t) for t in (1, 2, 3, 4)]
    [0.1, 0.1, 0.010000000000000002, 0.0010000000000000002]
    >>> [Steps(0.1, after=(), warmup=4).at(t) for t in (1, 2, 4, 5)]
    [0.025, 0.05, 0.1, 0.1]
    """

    start: float
    after: tuple[int, ...]
    factor: float = 0.1
    warmup: int = 0

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.factor > 0 and self.warmup >= 0):
            raise SettingError(f"{spell(self)}: start and factor must be positive, warmup not negative")

    def at(self, t: int) -> float:
        """One factor for each boundary behind us, and the warm-up's."""
        value = self.start
        for boundary in self.after:
            if t > boundary:
                value *= self.factor
        return value * t / self.warmup if t < self.warmup else value


@register("inverse")
@dataclass(frozen=True)
class Inverse(Schedule):
    """start·a/(a + t − 1): c/(a + t) of the theory, with c = start·a and steps from 0 (Basu et al., 2019).

    >>> [Inverse(0.5, a=2).at(t) for t in (1, 3, 7)]
    [0.5, 0.25, 0.125]
    """

    start: float
    a: float

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.a > 0):
            raise SettingError(f"{spell(self)}: start and a must be positive")

    def at(self, t: int) -> float:
        """Half of it after a steps, a third after 2a, …"""
        return self.start * self.a / (self.a + t - 1)


@register("perworker")
@dataclass(frozen=True)
class PerWorker(Schedule):
    """As many times ``rate`` as there are workers: a step on their sum where the server takes their mean.

    Args:
        rate: a positive number or a schedule.
        workers: how many; known when a run begins.
    """

    rate: Rate
    workers: int | None = None

    def __post_init__(self) -> None:
        check_rate(self, "rate", self.rate)
        if self.workers is not None and not (isinstance(self.workers, int) and self.workers >= 1):
            raise SettingError(f"{spell(self)}: workers must be a whole number of at least 1")

    def among(self, workers: int) -> Rate:
        """The rate for so many workers: a number where it is one."""
        if isinstance(self.rate, Schedule):
            return replace(self, workers=self.workers or workers)
        return self.rate * (self.workers or workers)

    def over(self, steps: int) -> Schedule:
        """The rate's."""
        rate = self.rate.over(steps) if isinstance(self.rate, Schedule) else self.rate
        return replace(self, rate=rate)

    def at(self, t: int) -> float:
        """The product."""
        if self.workers is None:
            raise SettingError(f"{spell(self)} does not know how many workers there are: give workers")
        return self.workers * rate_at(self.rate, t)

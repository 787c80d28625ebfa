"""The figure at which a run is over, or which it is compared by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qsparse.errors import SettingError

#: The figures of an evaluation that may be aimed at; True: the more, the better.
FIGURES: Final = {"test_accuracy": True, "top5": True, "test_loss": False, "train_loss": False}


@dataclass(frozen=True)
class Target:
    """A figure, and how good it is to become.

    Args:
        figure: one of `FIGURES`, as lines of a history have it.
        value: losses are to fall to it, accuracies to rise to it.
    """

    figure: str
    value: float

    def __post_init__(self) -> None:
        if self.figure not in FIGURES:
            raise SettingError(
                f"there is no figure {self.figure!r} to aim at: there are {', '.join(FIGURES)}"
            )
        if not 0 < self.value < math.inf or (FIGURES[self.figure] and self.value > 1):
            most = " and at most 1" if FIGURES[self.figure] else ""
            raise SettingError(f"{self.figure} can aim at a number above 0{most}, not at {self.value:g}")

    @classmethod
    def read(cls, text: str | float, flag: str = "--until") -> Target:
        """The target of a text: ``FIGURE=VALUE``, or a test accuracy alone.

        >>> Target.read("train_loss=0.17"), Target.read(0.9).figure
        (Target(figure='train_loss', value=0.17), 'test_accuracy')

        Args:
            text: what is aimed at.
            flag: the option that it was given by, for errors.

        Raises:
            SettingError: it is none.
        """
        figure, given, value = str(text).rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise SettingError(
                f"{flag} is FIGURE=VALUE, such as train_loss=0.17 or test_accuracy=0.9, not {text}"
            ) from None
        try:
            return cls(figure.strip() if given else "test_accuracy", number)
        except SettingError as error:
            raise SettingError(f"{flag} {text}: {error}") from None

    def __str__(self) -> str:
        return f"{self.figure}={self.value:g}"

    def reached(self, line: Mapping[str, Any]) -> bool:
        """Whether a line of a history has come to it; not where it was not measured."""
        found = line.get(self.figure)
        if found is None:
            return False
        return bool(found >= self.value if FIGURES[self.figure] else found <= self.value)

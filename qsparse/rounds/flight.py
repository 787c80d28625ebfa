"""A round that goes on while local steps are taken, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from qsparse.types import Vector
from qsparse.wire.base import Wire


@dataclass(frozen=True)
class Answer:
    """An answer that has come, and is adopted later: what a checkpoint has of a round under way.

    Attributes:
        due: the step at which it is adopted.
        model: what was answered, (n,); None: it stays.
    """

    due: int
    model: Vector | None

    def landed(self) -> Vector | None:
        """The model."""
        return self.model


class Flight:
    """One round under way: frames travel, are merged and decoded while the rank computes.

    Nothing of a rank that takes local steps is touched by a round but the wire and the ends of its links,
    which nobody else looks at until it has landed; so results do not depend on which is faster.

    Args:
        due: the step at which the answer is adopted.
        wire: lent to the round until it ends.
        round: goes on until the answer is there; returns the model, (n,), None where that stays.
    """

    def __init__(self, due: int, wire: Wire, round: Callable[[], Vector | None]) -> None:
        self.due = due
        self._wire, self._round = wire, round
        self._model: Vector | None = None
        self._error: BaseException | None = None
        # A daemon, because a rank that gives up must not wait for others that do not.
        self._thread = threading.Thread(target=self._fly, name=f"round due at step {due}", daemon=True)
        wire.lend(self._thread)
        self._thread.start()

    def _fly(self) -> None:
        try:
            self._model = self._round()
        except BaseException as error:  # raised where the answer is adopted
            self._error = error

    def landed(self) -> Vector | None:
        """The model, once it is there; (n,), overwritten by the next round; None: it stays.

        Raises:
            QsparseError: what has happened to the round.
        """
        if self._thread.is_alive():
            self._wire.settle()
        if self._error is not None:
            raise self._error
        return self._model

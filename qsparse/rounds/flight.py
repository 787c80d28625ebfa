"""A round that goes on while local steps are taken, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from qsparse.types import Vector


class Flight:
    """One round under way: frames travel, are merged and decoded while the rank computes.

    Nothing of a rank that takes local steps is touched by a round but the ends of its links, which nobody
    else looks at until it has landed; so results do not depend on which is faster.

    Args:
        due: the step at which the answer is adopted.
        round: goes on until the answer is there; returns the model, (n,), None where that stays.
    """

    def __init__(self, due: int, round: Callable[[], Vector | None]) -> None:
        self.due = due
        self._round = round
        self._model: Vector | None = None
        self._error: BaseException | None = None
        # A daemon, because a rank that gives up must not wait for others that do not.
        self._thread = threading.Thread(target=self._fly, name=f"round due at step {due}", daemon=True)
        self._thread.start()

    def _fly(self) -> None:
        try:
            self._model = self._round()
        except BaseException as error:  # raised where the answer is adopted
            self._error = error

    def wait(self) -> None:
        """Wait for its end, however it ends."""
        self._thread.join()

    def landed(self) -> Vector | None:
        """The model, once it is there; (n,), overwritten by the next round; None: it stays.

        Raises:
            QsparseError: what has happened to the round.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return self._model

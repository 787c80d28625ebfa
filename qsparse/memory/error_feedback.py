"""Error feedback: what was not sent is sent later."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.errors import SettingError
from qsparse.memory.base import Draft, Memory, MemoryClaims
from qsparse.registry import register, spell
from qsparse.types import State, Vector, aligned


@register("errorfeedback")
@dataclass(frozen=True)
class ErrorFeedback(Memory):
    """m ← (v + decay·m) − C(v + decay·m): what was not said is said later.

    Seide et al., 2014; Stich et al., 2018; with net local updates Basu et al., 2019, Algorithm 1.

    Args:
        decay: 1 keeps everything, less forgets.
        reset: the speaker's own steps after which what was kept until then is dropped, such as those
            where a learning rate falls (the authors' code of Basu et al., 2019).
    """

    decay: float = 1.0
    reset: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise SettingError(f"{spell(self)}: decay must lie in (0, 1]")
        if not isinstance(self.reset, tuple) or not all(isinstance(t, int) for t in self.reset):
            raise SettingError(f"{spell(self)}: reset must be a list of steps")

    @property
    def claims(self) -> MemoryClaims:
        """The error is kept, as far as ``decay`` and ``reset`` say."""
        return MemoryClaims(
            keeps_error=True, decay=self.decay, resets=self.reset, adds_nothing=True, hands_on=True
        )

    def init(self, start: Vector) -> State:
        """No error yet."""
        return {"residual": aligned(start), "since": 0}

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """decay·m, or 0·m where a reset lies between m and now."""
        gone = any(state["since"] <= boundary < t for boundary in self.reset)
        return 0.0 if gone else self.decay, state["residual"]

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """m = target − sent, where that lies; what lay m in is free."""
        free: Vector = state["residual"]
        state["residual"] = draft.rest
        state["since"] = draft.clock
        return free

    def restore(self, state: State, total: Vector) -> Vector:
        """The total itself."""
        return total

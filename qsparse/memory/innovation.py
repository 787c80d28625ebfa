"""Both ends keep a vector, and only its change is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsparse.compressors.decoding import accumulate_into
from qsparse.memory.base import Draft, Memory, MemoryClaims
from qsparse.registry import register
from qsparse.types import State, Vector


@register("innovation")
@dataclass(frozen=True)
class Innovation(Memory):
    """Both ends keep what is known; only the news v − known is said, and added by both.

    Going up it is LAQ's quantized gradient (Sun et al., 2019); going down, from the model on, it is
    the server's error memory of dist-EF-SGD (Zheng et al., 2019).
    """

    @property
    def claims(self) -> MemoryClaims:
        """What is known is the sum of what was sent."""
        return MemoryClaims(skip_repeats=True)

    def init(self, start: Vector) -> State:
        """Both ends know ``start``."""
        return {"known": start.copy()}

    def enter(self, state: State, start: Vector) -> None:
        """Both ends know the model."""
        np.copyto(state["known"], start)

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """−known."""
        return -1.0, state["known"]

    def subtract(self, state: State, by: Vector) -> None:
        """known −= by."""
        np.subtract(state["known"], by, out=state["known"])

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """known += sent."""
        accumulate_into(draft.payload, state["known"])
        return None

    def restore(self, state: State, total: Vector) -> Vector:
        """known += total."""
        np.add(state["known"], total, out=state["known"])
        known: Vector = state["known"]
        return known

"""A memory that remembers nothing."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.memory.base import Draft, Memory, MemoryClaims
from qsparse.registry import register
from qsparse.types import State, Vector


@register("stateless")
@dataclass(frozen=True)
class Stateless(Memory):
    """Remembers nothing."""

    @property
    def claims(self) -> MemoryClaims:
        """Every message stands for itself."""
        return MemoryClaims(remembers=False, per_receiver=False, adds_nothing=True, hands_on=True)

    def init(self, start: Vector) -> State:
        """No state."""
        return {}

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """Nothing."""
        return None

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """Nothing to do."""
        return None

    def restore(self, state: State, total: Vector) -> Vector:
        """The total itself."""
        return total

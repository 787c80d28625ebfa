"""A trigger that goes by how far a worker has come."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.kernels import vector
from qsparse.memory import Draft
from qsparse.registry import register
from qsparse.schedules import Rate, check_rate, rate_at
from qsparse.triggers.base import Trigger, TriggerClaims
from qsparse.types import State


@register("drift")
@dataclass(frozen=True)
class Drift(Trigger):
    """Speak only if what is to be said has moved far: ‖x − x̂_r‖² > δ.

    Dynamic averaging (Kamp et al., 2018), for net updates; of a report with an error memory it is the
    length with the error. A worker that skips keeps what it has not said and follows the others' model;
    the last meeting speaks in any case, except where workers do not wait: none of them knows which it is.
    Due at every step: ``every(H) & drift(δ)`` asks at every H-th.

    Args:
        delta: δ, a positive number or a schedule.
    """

    delta: Rate

    def __post_init__(self) -> None:
        check_rate(self, "delta", self.delta)

    @property
    def claims(self) -> TriggerClaims:
        """A skip is a message too."""
        return TriggerClaims(always_due=True, may_skip=True)

    def due(self, state: State, t: int) -> bool:
        """At every step."""
        return True

    def worth(self, state: State, draft: Draft) -> bool:
        """The distance."""
        return float(vector.squared_norm(draft.target)) > rate_at(self.delta, draft.clock)

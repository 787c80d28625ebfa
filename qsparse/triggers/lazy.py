"""Triggers that compare news with how far the model has moved lately."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from qsparse.errors import CompositionError, SettingError
from qsparse.kernels import vector
from qsparse.memory import Draft
from qsparse.registry import register, spell
from qsparse.schedules import Rate, rate_at
from qsparse.seeds import Seed
from qsparse.triggers.base import Trigger, TriggerClaims
from qsparse.types import State, Vector

#: The part of a report, in squared length, that is too much to stay unsaid.
_LARGE: Final = 0.25


class LazyRule:
    """What trigger `Lazy` and participation `Ask` share: the sum over the last D moves of the model.

    That is (1/ᾱ²)·Σ_{d} ξ_d‖θ^{k+1−d} − θ^{k−d}‖².
    """

    #: Σ_d ξ_d unless ξ is given.
    total: ClassVar[float] = 0.8
    D: int
    xi: float | None
    patience: int
    rate: Rate | None

    def _check(self) -> None:
        if not isinstance(self.D, int) or self.D < 1:
            raise SettingError(f"{spell(self)}: D must be a whole number of at least 1")
        if self.xi is not None and not self.xi >= 0:
            raise SettingError(f"{spell(self)}: xi must not be negative")
        if not isinstance(self.patience, int) or self.patience < 0:
            raise SettingError(f"{spell(self)}: patience must be a whole number of at least 0")

    def bind(self, rate: Rate | None) -> Any:
        """Take ᾱ from the server rule; CompositionError where it has none, or another one."""
        if self.rate not in (None, rate):
            raise CompositionError(f"{spell(self)}: the step size is the server rule's, so leave rate out")
        if rate is None:
            raise CompositionError(
                f"{spell(self)} compares news with the server's last steps: it needs a server rule with a "
                "step size (lr), such as descend"
            )
        return replace(self, rate=rate)  # type: ignore[type-var]

    def moves(self) -> State:
        """The state in which no move is known."""
        return {"model": np.empty(0), "moves": np.zeros(self.D), "heard": -1}

    def heard(self, state: State, model: Vector) -> None:
        """Take down how far the model has moved."""
        if state["heard"] >= 0:
            move = model.astype(np.float64) - state["model"]
            state["moves"][state["heard"] % self.D] = move @ move
        state["model"] = model.copy()
        state["heard"] += 1

    def _moved(self, state: State, t: int, spread: bool = True, rolling: bool = False) -> float:
        """The sum before step t; ``spread`` and ``rolling`` as for `Lazy`."""
        assert self.rate is not None, "bind comes first"
        known = state["heard"]
        total = self.total if self.xi is None else self.D * self.xi
        weight = total / (min(max(known, 1), self.D) if spread else self.D)
        moves = float(state["moves"].sum())
        if rolling:
            # By age: the newest move has age 0, and the oldest of D has age D − 1.
            ages = range(self.D - known, known) if known < self.D else range(self.D - 1)
            moves = float(sum(state["moves"][(known - 1 - age) % self.D] for age in ages))
        rate = rate_at(self.rate, t)
        # A server that stands still does not care for news; only patience brings it some.
        return weight * moves / rate**2 if rate > 0 else np.inf


@register("lazy")
@dataclass(frozen=True)
class Lazy(LazyRule, Trigger):
    """Speak only if the news is worth it (LAQ: Sun et al., 2019, eqs. 7a and 7b).

    A worker skips while ‖δQ‖² < (1/ᾱ²)·Σ_{d=1…D} ξ_d‖θ^{k+1−d} − θ^{k−d}‖² + 3(‖ε‖² + ‖ε̂‖²): δQ is the
    innovation as it would be sent, ε its error, ε̂ the error of the last one that was sent, and ᾱ the
    server's step on the mean of the workers (the paper's α times their number, so its M² is gone). A
    worker that has skipped ``patience`` times in a row speaks.

    A coarse grid may be off by more than it says: then the errors alone outweigh any news, and the rule
    forbids speaking whatever the gradient is: the worker is *starved*, which is counted and told. ``most``
    bounds what the errors may weigh, so that news is heard once the model moves little.

    Where workers do not wait for each other, a slow one is told the model once in c > 1 steps of the run.
    What it sees as one move is the way of c steps, and counts 1/c² here; its skips count c each. Else it
    would stay silent for as long as the others move (docs/sharp-bits.md). Who waits for others has c = 1.

    With exact values (ε = 0) it is the rule of LAG-WK (Chen et al., 2018). Where the local step measures
    its news itself (`LASG`), that stands for ‖δQ‖². Around a sparsifier, whose error is large by
    intention, set ``errors`` to 0.

    Args:
        D: how many moves of the model are remembered.
        xi: ξ, the weight of each; 0.8/D unless given.
        patience: t̄, in steps of the run.
        rate: ᾱ; taken from the server rule.
        errors: the factor of the errors.
        floor: added to the right side.
        rolling: sum the moves that the authors' stochastic code (SLAQ) finds in its rolling buffer: all of
            the last D but the oldest; while only k < D are known, all but the D − k newest. It goes there
            with errors=1.5 and floor=0.2.
        most: the errors count for at most this part of ‖δQ‖², less than 1; null: in full, as published.
        spread: ξ_d = D·ξ/k while only k < D moves are known, so that they weigh what D do, as in the authors'
            code; false: ξ_d = ξ from the first move on, as in the paper.
    """

    D: int = 10
    xi: float | None = None
    patience: int = 100
    rate: Rate | None = None
    errors: float = 3.0
    floor: float = 0.0
    rolling: bool = False
    most: float | None = None
    spread: bool = True

    def __post_init__(self) -> None:
        self._check()
        if self.most is not None and not 0 <= self.most < 1:
            raise SettingError(f"{spell(self)}: most must lie in [0, 1)")
        if not (self.errors >= 0 and self.floor >= 0):
            raise SettingError(f"{spell(self)}: errors and floor must not be negative")

    @property
    def claims(self) -> TriggerClaims:
        """A skip is a message too."""
        return TriggerClaims(always_due=True, may_skip=True)

    def init(self, seed: Seed) -> State:
        """Nothing is known, and nothing was skipped."""
        return self.moves() | {
            "error": 0.0, "pending": 0.0, "skipped": 0, "step": 0, "clock": 0, "lag": 1,
        }  # fmt: skip

    def due(self, state: State, t: int) -> bool:
        """At every step."""
        return True

    def worth(self, state: State, draft: Draft) -> bool:
        """The criterion, for the model before step t."""
        self._follow(state, draft)
        said, wrong = draft.norms()
        state["pending"] = wrong
        news = said if draft.change is None else draft.change
        moved = self._moved(state, draft.clock, self.spread, self.rolling)
        errors = self.errors * (wrong + state["error"])
        if self.most is not None:
            errors = min(errors, self.most * news)
        # Where little is unsaid it may wait: it is what the last message left over.
        state["starved"] = bool(errors > news and _unsaid(draft) > _LARGE)
        return bool(news >= moved + errors + self.floor or state["skipped"] >= self.patience)

    def starved(self, state: State) -> bool:
        """The errors outweighed the news, though much of the report is not known to the coordinator.

        Both in squared lengths: (errors)·(‖ε‖² + ‖ε̂‖²) > ‖δQ‖², and ‖v − known‖² > ‖v‖²/4.
        """
        return bool(state.get("starved", False))

    def settled(self, state: State, sent: bool) -> None:
        """Remember the error of what was sent, or count a skip."""
        if sent:
            state["error"], state["skipped"] = state["pending"], 0
        else:
            state["skipped"] += state["lag"]

    def _follow(self, state: State, draft: Draft) -> None:
        """How many steps of the run the last of this worker's took, and the model's move in one of them."""
        own, run = draft.payload.step - state["step"], draft.clock - state["clock"]
        state["step"], state["clock"] = draft.payload.step, draft.clock
        state["lag"] = 1
        if run > own > 0:
            state["lag"] = run / own
            state["moves"][(state["heard"] - 1) % self.D] /= state["lag"] ** 2


def _unsaid(draft: Draft) -> float:
    """‖target‖²/‖v‖² of a report v: the part of it that is not known without this message."""
    report = float(vector.squared_norm(draft.total.x))
    return float(vector.squared_norm(draft.target)) / report if report else 0.0

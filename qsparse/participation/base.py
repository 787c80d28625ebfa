"""Which workers the coordinator invites into the next round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qsparse.registry import register
from qsparse.schedules import Rate
from qsparse.schedules import over as lasting
from qsparse.seeds import Seed
from qsparse.types import State, Vector


@dataclass(frozen=True)
class ParticipationClaims:
    """What a participation promises; the rules of composition go by it, and laws hold it.

    Attributes:
        chooses: some workers may be left out. They are sent no model, compute nothing and report nothing.
        by_change: workers are left out because they have little to report, so that their silence must stand
            for what they reported last.
    """

    chooses: bool = True
    by_change: bool = False


class Participation(ABC):
    """Chooses the workers of the next round; asked of the coordinator alone.

    In the first round everybody works, and after the last one everybody is sent the model.
    """

    kind: ClassVar[str] = "participation"
    registered_name: ClassVar[str]

    @property
    def claims(self) -> ParticipationClaims:
        """What this participation promises."""
        return ParticipationClaims()

    def bind(self, rate: Rate | None) -> Participation:
        """The participation for a server rule with this step size; None: the rule has none."""
        return self

    def over(self, steps: int) -> Participation:
        """The participation for a run of so many steps."""
        return lasting(self, steps)

    def check(self, workers: int) -> None:
        """Refuse a number of workers that the settings do not fit, with SettingError."""

    def init(self, seed: Seed) -> State:
        """The state before the first round."""
        return {}

    def heard(self, state: State, model: Vector) -> None:
        """Take down a model, (n,): the one that a phase begins with."""

    @abstractmethod
    def invited(self, state: State, changes: Sequence[float | None], model: Vector, t: int) -> list[bool]:
        """Choose the workers of the next round, after the round of step t.

        Args:
            state: the coordinator's own.
            changes: ‖·‖² of what each worker, in rank order, has just sent; None: it has sent nothing, or
                ``by_change`` is not claimed, so that nobody has looked.
            model: what came of it, (n,).
            t: the step of the round.
        """


@register("everyone")
@dataclass(frozen=True)
class Everyone(Participation):
    """Every worker takes part in every round."""

    @property
    def claims(self) -> ParticipationClaims:
        """Nobody is left out."""
        return ParticipationClaims(chooses=False)

    def invited(self, state: State, changes: Sequence[float | None], model: Vector, t: int) -> list[bool]:
        """All of them."""
        return [True] * len(changes)

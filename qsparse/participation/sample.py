"""A part of the workers, drawn anew for every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsparse.errors import SettingError
from qsparse.participation.base import Participation
from qsparse.registry import register, spell
from qsparse.seeds import Seed
from qsparse.types import State, Vector


@register("sample")
@dataclass(frozen=True)
class Sample(Participation):
    """Draw max(1, round(fraction·R)) of R workers for each round, without replacement.

    Client sampling, as in federated averaging (McMahan et al., 2017, Algorithm 1, with C = fraction). The
    reports of those who take part are averaged over them; with a memory that repeats what was sent last
    (innovation) the mean goes over all workers. A worker that is left out keeps its error memory as it is.

    Args:
        fraction: more than 0, at most 1.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, float | int) or not 0 < self.fraction <= 1:
            raise SettingError(f"{spell(self)}: fraction must be more than 0 and at most 1")

    def init(self, seed: Seed) -> State:
        """The key of the draws: the run's seed alone, so that resuming needs no more."""
        return {"key": seed.run}

    def invited(self, state: State, changes: Sequence[float | None], model: Vector, t: int) -> list[bool]:
        """Draw the workers; equal seeds and steps draw the same."""
        workers = len(changes)
        count = max(1, round(self.fraction * workers))
        chosen = Seed(state["key"], step=t, use="sample").generator().permutation(workers)[:count]
        return [bool(each) for each in np.isin(np.arange(workers), chosen)]

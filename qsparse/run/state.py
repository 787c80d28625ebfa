"""What a rank goes on from: random streams and the order of the data are functions of seed and step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qsparse.ledger import Snapshot
from qsparse.rounds.state import WalkState


@dataclass
class RankState:
    """What every loop leaves in a checkpoint.

    Attributes:
        walk: where the rank stands.
        ledger: its counters.
        losses: sum and number of the losses since the last report.
        first: the loss of its first step; None: it has taken none.
    """

    walk: WalkState
    ledger: Snapshot
    losses: npt.NDArray[np.float64]
    first: float | None = field(default=None, kw_only=True)


@dataclass
class JobState(RankState):
    """What a run leaves; see `qsparse.run.job.Job`.

    Attributes:
        whole: the losses of the last whole epoch, of a worker that reports at the end only.
        evaluated, watched, reported: up to where it has evaluated, looked on, reported.
        record: the last report.
        epoch: where the run stood.
        stretches: parts of the run with the same ranks: step and epoch where each began, its workers.
        resumed: what was noted each time it went on.
        seconds: how long it has taken.
        lines: lengths of the files that it writes.
        seen: what was seen in the messages; None: nobody looks.
        taken: steps of this rank.
        end: what the last report has said of the outcome.
    """

    whole: npt.NDArray[np.float64] | None
    evaluated: int
    watched: int
    reported: int
    record: dict[str, Any]
    epoch: float
    stretches: list[Any]
    resumed: list[dict[str, Any]]
    seconds: float
    lines: dict[str, int]
    seen: Any
    taken: int = 0
    end: dict[str, Any] = field(default_factory=dict)

"""The state that a rank goes on from; random streams and data order are functions of seed and step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qsparse.ledger import Snapshot
from qsparse.rounds.state import WalkState


@dataclass
class RankState:
    """The state that every loop writes into a checkpoint.

    Attributes:
        walk: the state of the rank in the algorithm.
        ledger: the counters of the rank.
        losses: sum and number of the losses since the last report.
        first: the loss of its first step; None if it has taken no step.
    """

    walk: WalkState
    ledger: Snapshot
    losses: npt.NDArray[np.float64]
    first: float | None = field(default=None, kw_only=True)


@dataclass
class JobState(RankState):
    """The state that a run writes into a checkpoint; see `qsparse.run.job.Job`.

    Attributes:
        whole: the losses of the last whole epoch, for a worker that reports at the end only.
        evaluated, watched, reported: how far the run has evaluated, told its watcher, and reported.
        record: the last report.
        epoch: the epoch that the run has reached.
        stretches: parts of the run with the same ranks: step and epoch where each began, its workers.
        resumed: notes about each time that the run went on.
        seconds: how long the run has taken.
        lines: the numbers of lines of the files that it writes.
        seen: what was seen in the messages; None where they are not looked at.
        taken: the steps of this rank.
        end: the outcome in the last report.
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

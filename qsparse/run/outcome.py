"""How a run ended: whether its loss fell, and whether its workers could report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qsparse.ledger import Snapshot

#: The values of ``outcome`` in a summary; the saved bits are a gain only in a run that trained.
TRAINED: Final = "trained"
DIVERGED: Final = "diverged"
STARVED: Final = "starved"

#: The exit status of ``qsparse train`` for a run that has not trained its model but has a summary.
STATUS: Final = 3

#: In less than an epoch the loss of one batch may rise by chance, but not by this factor.
_CHANCE: Final = 1.5
#: The number of reports of each worker after which the forbidden ones are counted.
_ROUNDS: Final = 20

_WORD: Final = (
    "starved: the quantization error alone forbids speaking. In {starved:,} of the last {all:,} reports the "
    "errors, as trigger lazy weighs them, outweighed whatever there was to say, and the server goes on with "
    "what it heard last; use a radius for each layer, as in blockwise(uniform(bits=4), layers=true), or "
    "trigger lazy(most=0.5), both of which laq has unless published=true, or more bits"
)


class Starving:
    """Checks whether most reports of workers were forbidden because of the errors of their compressor.

    Args:
        workers: how many report.
    """

    def __init__(self, workers: int) -> None:
        self._least = _ROUNDS * workers
        self._before = (0, 0)
        self._told = False

    def look(self, counted: Snapshot) -> str | None:
        """Return a sentence, once, if most reports since the last check of enough reports were forbidden.

        Args:
            counted: the counters of all ranks, from the beginning on.
        """
        now = _reports(counted), int(counted["starved"])
        reports, starved = (after - before for after, before in zip(now, self._before, strict=True))
        if reports < self._least:
            return None
        self._before = now
        if self._told or 2 * starved < reports:
            return None
        self._told = True
        return _WORD.format(starved=starved, all=reports)


def _reports(counted: Snapshot) -> int:
    return int(counted["messages"]["up"] + counted["skips"])


def judged(
    first: Sequence[float], again: Sequence[float], counted: Snapshot, epochs: float
) -> dict[str, Any]:
    """The part of the summary about how the run ended.

    Args:
        first: for each worker, the loss of its first batch before the first step.
        again: the loss of the same batches at the end.
        counted: the counters of all ranks.
        epochs: how often the data were seen.

    Returns:
        ``loss_at_start`` and ``loss_at_end``, which are means, or None where no worker knows them (a run that
        goes on from a checkpoint without them); and ``outcome``.
    """
    start, end = (sum(each) / len(each) if each else None for each in (first, again))
    outcome = TRAINED
    if start is not None and end is not None:
        most = start if epochs >= 1 else _CHANCE * start
        if not (math.isfinite(end) and end <= most):
            outcome = DIVERGED
    if 2 * counted["starved"] >= _reports(counted) > 0:
        outcome = STARVED  # also if the loss has risen, because this is the cause
    return {"loss_at_start": start, "loss_at_end": end, "outcome": outcome}


def verdict(summary: Mapping[str, Any]) -> str | None:
    """A sentence about a run that does not count as trained; None for one that does."""
    outcome = summary.get("outcome", TRAINED)
    if outcome == DIVERGED:
        return (
            f"diverged: on its first batches the loss was {summary['loss_at_start']:.4g} before the first "
            f"step and is {summary['loss_at_end']:.4g} at the end: lower the learning rate, or see the "
            "warnings above and docs/sharp-bits.md; the bits of this run are no gain"
        )
    if outcome == STARVED:
        return (
            "starved: the quantization error alone forbade most reports, so the bits of this run are no "
            "gain; see docs/sharp-bits.md"
        )
    return None

"""What a run came to: its ``summary.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from qsparse.algorithm import Algorithm
from qsparse.payload import HEADER_BYTES
from qsparse.registry import spell
from qsparse.run.problem import Problem
from qsparse.run.settings import Settings
from qsparse.wire.base import Wire


def summarized(
    last: Mapping[str, Any],
    end: Mapping[str, Any],
    settings: Settings,
    algorithm: Algorithm,
    problem: Problem,
    wire: Wire,
    steps: int,
    stretches: Sequence[tuple[int, float, int]],
    resumed: Sequence[Mapping[str, Any]],
    warnings: Sequence[str],
    over: bool,
) -> dict[str, Any]:
    """The summary of a run, on rank 0.

    Args:
        last: the last line of its history.
        end: how it ended, see `qsparse.run.outcome.judged`.
        settings, algorithm, problem, wire: of the run; the algorithm as it was for so many steps.
        steps: that were taken.
        stretches: of the run with the same ranks: the step and the epoch where each began, its workers.
        resumed: the checkpoints from which it went on.
        warnings: that it gave.
        over: it has come to what it aims at before its last step.
    """
    workers = len(settings.exchange.workers(wire.size))
    ends = [step for step, _, _ in stretches[1:]] + [steps]
    taken = sum((to - step) * n for to, (step, _, n) in zip(ends, stretches, strict=True))
    dense = 32 * problem.vector.size * taken
    # A coordinator that is a worker as well sends itself nothing.
    apart = taken - steps * (workers == wire.size)
    # The size of a dense float32 frame; to make one would cost rank 0 a kernel that no other rank needs.
    crossed = apart * (HEADER_BYTES + 2 + 4 * problem.vector.size)
    # Of a ring, as many bytes up (its sums) as down (its results), sent and received together.
    parts = zip(ends, stretches, strict=True)
    ring = round(sum((to - step) * 2 * (n - 1) / n for to, (step, _, n) in parts) * 4 * problem.vector.size)
    record = dict(last)
    wire_bytes = record.pop("wire_bytes")
    aim = settings.until
    return {
        "algorithm": algorithm.axes(),
        "exchange": spell(settings.exchange),
        "ranks": wire.size,
        "workers": workers,
        "parameters": problem.vector.size,
        "steps": record.pop("step"),
        "epochs": record.pop("epoch"),
        "test_accuracy": record.pop("test_accuracy"),
        **({"top5": record.pop("top5")} if "top5" in record else {}),
        "test_loss": record.pop("test_loss"),
        "train_loss": record.pop("train_loss"),
        **({} if aim is None else {"until": str(aim), "reached": over or aim.reached(last)}),
        "paper_bits": record.pop("paper_bits"),
        "wire_bytes": {"up": wire_bytes["up"], "down": wire_bytes["down"]},
        "wire_bytes_control": wire_bytes["control"],
        "busiest_link_bytes": sum(record["link_bytes"].values()),
        "link_bytes": record.pop("link_bytes"),
        "dense_bits": {"up": dense, "down": dense},
        "dense_link_bytes": {"up": crossed, "down": crossed},
        "ring_link_bytes": {"up": ring, "down": ring},
        **record,
        **end,
        "warnings": list(warnings),
        "seed": settings.seed,
        "straggler": settings.straggler,
        **({"wire": wire.simulates} if wire.simulates else {}),
        **({"resumed": list(resumed)} if resumed else {}),
        "model_sha256": hashlib.sha256(problem.vector.tobytes() + problem.buffers.tobytes()).hexdigest(),
    }

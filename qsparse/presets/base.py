"""What presets share."""

from __future__ import annotations

from qsparse.algorithm import Algorithm
from qsparse.compressors import TopK
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.schedules import Rate
from qsparse.triggers import Every, Trigger


def local_steps(
    lr: Rate,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    up: Link,
    trigger: Trigger | None = None,
) -> Algorithm:
    """Workers run SGD and report the net update; the coordinator subtracts its mean."""
    local = SGD(lr, momentum, nesterov, weight_decay)
    return Algorithm(local=local, trigger=trigger or Every(1), up=up)


def top(k: int | None, ratio: float | None) -> TopK:
    """Top-k with 1 % of the coordinates unless told otherwise."""
    return TopK(k, 0.01 if k is None and ratio is None else ratio)

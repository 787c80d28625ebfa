"""What a program without qsparse would write with torch, for measurements beside ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from qsparse.types import Vector

VERSION: Final = str(torch.__version__)


class TorchTopK:
    """Error feedback around `torch.topk`: t = v + m, keep the k largest, m = t − what is said of them.

    Args:
        n, k: how many values there are, and how many are kept.
        said: (torch, kept values) → what a receiver would make of them.
    """

    def __init__(self, n: int, k: int, said: Callable[[Any, Any], Any]) -> None:
        self.k, self._said = k, said
        self._residual, self._target, self._size = (torch.zeros(n) for _ in range(3))

    @property
    def residual(self) -> Vector:
        """m, (n,)."""
        residual: Vector = self._residual.numpy()
        return residual

    def step(self, v: Vector) -> np.ndarray:
        """Say v; returns the kept positions, in no order."""
        target = torch.add(torch.from_numpy(v), self._residual, out=self._target)
        kept = torch.topk(torch.abs(target, out=self._size), self.k, sorted=False).indices
        values = target[kept]
        target[kept] = values - self._said(torch, values)
        self._residual, self._target = target, self._residual
        return kept.numpy()

"""The k coordinates of largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsparse.compressors.base import refuse
from qsparse.compressors.composed import Kept, Selector, SelectorClaims, index_width
from qsparse.kernels import accumulate, select
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@dataclass(frozen=True)
class Counted(Selector):
    """A selector that keeps k of n coordinates, k given as a number or as a share of n.

    Args:
        k: how many, at least 1 and at most n.
        ratio: which share, in (0, 1]; k = max(1, round(ratio·n)).
    """

    k: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.k is None) == (self.ratio is None):
            raise refuse(self, "give either k or ratio")
        if self.k is not None and (not isinstance(self.k, int) or self.k < 1):
            raise refuse(self, "k must be a whole number of at least 1")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise refuse(self, "ratio must lie in (0, 1]")

    def count(self, n: int) -> int:
        """k for vectors of n coordinates."""
        if self.k is not None:
            return self.k
        assert self.ratio is not None
        return max(1, round(self.ratio * n))

    def check(self, n: int) -> None:
        """k must not exceed n, unless n = 0."""
        if self.count(n) > n > 0:
            raise refuse(self, f"cannot keep {self.k} of {n} coordinates; use ratio, or a smaller k")

    def limited(self, n: int) -> Counted:
        """k_t = min(k, n)."""
        return self if self.k is None or self.k <= n or n == 0 else type(self)(k=n)


@register("topk")
@dataclass(frozen=True)
class TopK(Counted):
    """Keep the k coordinates of largest magnitude, exactly; among equals those of lowest index.

    γ = k/n (Stich et al., 2018; Basu et al., 2019).

    >>> x = np.array([1.0, -3.0, 2.0, 3.0], np.float32)
    >>> TopK(k=2).select(x, Seed(0)).indices
    array([1, 3])
    """

    def select(self, x: Vector, seed: Seed) -> Kept:
        """Indices and values of the k largest."""
        k = self.count(x.size)
        if k == x.size:
            return Kept(None, x)
        indices = np.empty(k, np.intp)
        if x.dtype == np.float32:
            select.top_k(x.view(np.int32), 0x7FFF_FFFF, 20, indices)
        else:
            select.top_k(x.view(np.int64), 0x7FFF_FFFF_FFFF_FFFF, 52, indices)
        values = np.empty(k, x.dtype)
        accumulate.gather(x, indices, values)
        return Kept(indices, values)

    def promise(self, n: int) -> SelectorClaims:
        """What is dropped is the smallest."""
        k = min(self.count(n), n)
        return SelectorClaims(
            unbiased=k == n,
            gamma=k / n,
            omega=0.0 if k == n else None,
            kept=k,
            index_bits=0 if k == n else k * index_width(n),
        )

"""The k coordinates of largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qsparse.compressors.base import refuse
from qsparse.compressors.composed import Kept, Selector, SelectorClaims
from qsparse.compressors.positions import index_width
from qsparse.compressors.sums import Sum
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@dataclass(frozen=True)
class KeepsK(Selector):
    """A selector that keeps k of n coordinates; k is given as a number or as a share of n.

    Args:
        k: the number of coordinates, at least 1 and at most n.
        ratio: the share of coordinates, in (0, 1]; k = max(1, round(ratio·n)).
    """

    #: Settings of which one is given.
    one_of: ClassVar[frozenset[str]] = frozenset({"k", "ratio"})
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
        """The number k for vectors of n coordinates."""
        if self.k is not None:
            return self.k
        assert self.ratio is not None
        return max(1, round(self.ratio * n))

    def check(self, n: int) -> None:
        """Refuse a k that is larger than n, unless n = 0."""
        if self.count(n) > n > 0:
            raise refuse(self, f"cannot keep {self.k} of {n} coordinates; use ratio, or a smaller k")

    def limited(self, n: int) -> KeepsK:
        """The selector with k_t = min(k, n)."""
        return self if self.k is None or self.k <= n or n == 0 else type(self)(k=n)


@register("topk")
@dataclass(frozen=True)
class TopK(KeepsK):
    """Keep exactly the k coordinates of largest magnitude; among equal ones those of lowest index.

    γ = k/n (Stich et al., 2018; Basu et al., 2019).

    >>> import numpy as np
    >>> x = np.array([1.0, -3.0, 2.0, 3.0], np.float32)
    >>> TopK(k=2).select(x, Seed(0)).indices
    array([1, 3])
    """

    def select(self, x: Vector, seed: Seed) -> Kept:
        """Indices and values of the k largest."""
        return self.select_sum(Sum(x), seed)

    def select_sum(self, total: Sum, seed: Seed) -> Kept:
        """Indices and values of the k largest entries of a sum."""
        k = self.count(total.size)
        return Kept(None, total.add()) if k == total.size else Kept(*total.largest(k))

    def claims_for(self, n: int) -> SelectorClaims:
        """The claims, which use that the smallest coordinates are dropped."""
        k = min(self.count(n), n)
        return SelectorClaims(
            unbiased=k == n,
            gamma=k / n,
            omega=0.0 if k == n else None,
            kept=k,
            index_bits=0 if k == n else k * index_width(n),
            largest=True,
        )

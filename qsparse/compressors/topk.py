"""The k coordinates of largest magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from qsparse.compressors.base import refuse
from qsparse.compressors.composed import Kept, Selector, SelectorClaims
from qsparse.compressors.decoding import Indices
from qsparse.compressors.positions import index_width
from qsparse.compressors.sums import LARGEST, Sum
from qsparse.kernels import accumulate, select, threads
from qsparse.kernels.jit import simd
from qsparse.kernels.scratch import scratch
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector

#: Shorter vectors are looked at as a whole, without a sample.
_LONG: Final = 1 << 16
#: The number of entries from which the bound on the k-th largest is estimated.
_SAMPLE: Final = 1 << 15


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

    >>> x = np.array([1.0, -3.0, 2.0, 3.0], np.float32)
    >>> TopK(k=2).select(x, Seed(0)).indices
    array([1, 3])
    """

    def select(self, x: Vector, seed: Seed) -> Kept:
        """Indices and values of the k largest."""
        return self.select_sum(Sum(x), seed)

    def select_sum(self, total: Sum, seed: Seed) -> Kept:
        """Indices and values of the k largest entries of a sum, found in the pass that adds."""
        n = total.size
        k = self.count(n)
        if k == n:
            return Kept(None, total.add())
        found = _among_candidates(total, k) if total.simple and n >= _LONG and 2 * k <= n else None
        if found is not None:
            return found
        x = total.add()
        indices = np.empty(k, np.intp)
        if x.dtype == np.float32:
            select.top_k(x.view(np.int32), 0x7FFF_FFFF, 20, indices)
        else:
            select.top_k(x.view(np.int64), 0x7FFF_FFFF_FFFF_FFFF, 52, indices)
        values = np.empty(k, x.dtype)
        accumulate.gather(x, indices, values)
        return Kept(indices, values)

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


def _among_candidates(total: Sum, k: int) -> Kept | None:
    """The k largest of the entries not below a bound; None where the bound was wrong or does not help."""
    n = total.size
    scale, sampled = np.float32(total.scale), scratch("sampled", _SAMPLE, np.float32)
    if total.y is None:
        select.sample(total.x, sampled)
    else:
        select.sample_sum(total.x, scale, total.y, sampled)
    # The number of sampled entries among the k largest deviates by about the root of the expected number. A
    # margin of four roots makes too high a bound rare; four more make room for the entries above it.
    rank = _beyond(k * _SAMPLE / n)
    if rank >= _SAMPLE:
        return None
    bound = np.partition(sampled, _SAMPLE - rank)[_SAMPLE - rank]
    if not 0 < bound <= LARGEST:
        return None
    room = int(_beyond(rank) * n / _SAMPLE) + 2 * simd.WIDTH
    streamed = total.streamed

    def share(start: int, stop: int) -> tuple[int, Indices, Vector]:
        size = min(room, stop - start + 2 * simd.WIDTH)
        if start == 0:  # these arrays belong to this thread
            positions, values = scratch("candidates", size, np.intp), scratch("values", size, np.float32)
        else:
            positions, values = np.empty(size, np.intp), np.empty(size, np.float32)
        if total.y is None:
            found = select.collect(total.x, start, stop, bound, positions, values)
        else:
            found = select.collect_sum(
                total.x, scale, total.y, start, stop, bound, streamed, total.out, positions, values
            )
        return found, positions[: max(found, 0)], values[: max(found, 0)]

    shares = threads.spread(share, n)
    if any(found < 0 for found, _, _ in shares) or sum(found for found, _, _ in shares) < k:
        return None
    positions, values = (
        parts[0] if len(parts) == 1 else np.concatenate(parts)
        for parts in ([each[1] for each in shares], [each[2] for each in shares])
    )
    # NaN and infinity are not below the bound, so they are among the candidates.
    if not np.all(np.isfinite(values)):
        total.add()
    indices, kept = np.empty(k + 1, np.intp), np.empty(k + 1, np.float32)
    select.narrow(positions, values, values.view(np.int32), k, indices, kept)
    return Kept(indices[:k], kept[:k])


def _beyond(expected: float) -> int:
    return int(expected + 4 * math.sqrt(expected)) + 4

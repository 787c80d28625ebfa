"""Unbiased sparsification with probabilities proportional to the magnitudes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qsparse.compressors.base import refuse
from qsparse.compressors.composed import Kept, Selector, SelectorClaims
from qsparse.compressors.sums import LARGEST, max_abs
from qsparse.errors import NotFinite
from qsparse.kernels import accumulate, quantize, random, vector
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("randsparse")
@dataclass(frozen=True)
class RandSparse(Selector):
    """Keep coordinate i with probability p_i = φ|x_i|/‖x‖₁ and send x_i/p_i = sign(x_i)·‖x‖₁/φ.

    Sparse-AsyLPG (Yu et al., 2019, section 4). Unbiased; φ entries are expected, and
    E‖β − x‖² = ‖x‖₁²/φ − ‖x‖².

    Args:
        budget: φ, lowered to ‖x‖₁/‖x‖∞ where it is larger, so that p_i ≤ 1; None means
            φ = ‖x‖₁/‖x‖∞, as in the paper's experiments.
    """

    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise refuse(self, "budget must be positive and finite")

    def select(self, x: Vector, seed: Seed) -> Kept:
        """Draw which coordinates are sent, and scale them."""
        largest = max_abs(x)
        if largest == 0:
            return Kept(np.empty(0, np.intp), np.empty(0, x.dtype))
        total = vector.norm1(x)
        phi = total / largest if self.budget is None else min(self.budget, total / largest)
        magnitude = total / phi
        if magnitude > LARGEST:
            raise NotFinite(
                f"{self}: the kept values would be ±{magnitude:.3g}, beyond float32; raise the budget", -1
            )
        drawn = np.empty(x.size, np.int32)
        quantize.levels_random(x, 1 / magnitude, 1, 0, *random.halves(seed.key), 0, drawn)
        indices = np.flatnonzero(drawn)
        values = np.empty(indices.size, np.int32)
        accumulate.gather(drawn, indices, values)
        return Kept(indices, values.astype(x.dtype) * x.dtype.type(magnitude))

    def claims_for(self, n: int) -> SelectorClaims:
        """The claims, by ‖x‖₁‖x‖∞ ≤ ‖x‖₂²(1 + √n)/2 and ‖x‖₁² ≤ n‖x‖₂²."""
        most = (1 + math.sqrt(n)) / 2
        if self.budget is not None:
            most = max(most, n / self.budget)
        return SelectorClaims(unbiased=True, gamma=None, omega=most - 1, kept=None, index_bits=None)

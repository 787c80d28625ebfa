"""k coordinates drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsparse.compressors.composed import Kept, SelectorClaims
from qsparse.compressors.topk import KeepsK
from qsparse.kernels import accumulate, random
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("randk")
@dataclass(frozen=True)
class RandK(KeepsK):
    """Keep k coordinates, every subset equally likely, values as they are.

    The receiver draws the positions again from a 64-bit key, so they are never sent. γ = k/n in
    expectation (Stich et al., 2018).
    """

    def select(self, x: Vector, seed: Seed) -> Kept:
        """Draw positions and take their values."""
        k = self.count(x.size)
        if k == x.size:
            return Kept(None, x)
        indices = np.empty(k, np.intp)
        random.sample(*random.halves(seed.key), x.size, indices)
        values = np.empty(k, x.dtype)
        accumulate.gather(x, indices, values)
        return Kept(indices, values, key=seed.key)

    def claims_for(self, n: int) -> SelectorClaims:
        """The claims, which hold in expectation: the dropped coordinates are drawn at random."""
        k = min(self.count(n), n)
        return SelectorClaims(
            unbiased=k == n,
            gamma=k / n,
            omega=0.0 if k == n else None,
            kept=k,
            index_bits=0 if k == n else 64,
        )

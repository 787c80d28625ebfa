"""Three values."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.compressors.base import Reader
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import contraction, flat_variance
from qsparse.kernels import pack, quantize, random, threads, vector
from qsparse.payload import raw
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("ternary")
@dataclass(frozen=True)
class Ternary(Quantizer):
    """‖v‖∞·sign(v_i)·b_i with P(b_i = 1) = |v_i|/‖v‖∞ (TernGrad: Wen et al., 2017).

    Unbiased, ω = (√k − 1)/2. The paper's bits are 32 + ⌈k·log2 3⌉; five values share a byte.
    """

    code: ClassVar[int] = 8

    def encode(self, values: Vector, seed: Seed) -> Section:
        """‖v‖∞ (f32), trits."""
        scale = float(np.float32(vector.reach(values)))
        out = np.empty((values.size + 4) // 5, np.uint8)
        key = random.halves(seed.key)

        def share(start: int, stop: int) -> None:
            codes = np.empty(stop - start, np.uint8)
            quantize.levels_random(values[start:stop], 1 / scale, 1, 1, *key, start, codes)
            pack.pack_trits(codes, out[start // 5 : (stop + 4) // 5])

        if scale > 0:
            threads.spread(share, values.size)
        else:
            pack.pack_trits(np.ones(values.size, np.uint8), out)
        return Section([struct.pack("<f", scale), raw(out)], self._bits(values.size))

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """scale·code."""
        scale = section.f32()
        data = section.array((k + 4) // 5, "u1")

        def fill(start: int, out: Vector) -> None:
            codes = np.empty(out.size, np.uint8)
            pack.unpack_trits(data[start // 5 :], codes)
            quantize.grid_values(codes, 1, 0.0, scale, out)

        return fill

    def promise(self, k: int) -> QuantizerClaims:
        """Unbiased."""
        omega = flat_variance(k)
        return QuantizerClaims(
            unbiased=True, homogeneous=True, gamma=contraction(omega), omega=omega, bits=self._bits(k)
        )

    @staticmethod
    def _bits(k: int) -> int:
        return 32 + math.ceil(k * math.log2(3))

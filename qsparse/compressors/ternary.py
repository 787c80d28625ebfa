"""Three values."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.compressors.base import Reader
from qsparse.compressors.composed import Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import check_coder, contraction, flat_variance, on_grid, squeezed, unsqueezed
from qsparse.kernels import pack, quantize, random, vector
from qsparse.payload import raw
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("ternary")
@dataclass(frozen=True)
class Ternary(Quantizer):
    """‖v‖∞·sign(v_i)·b_i with P(b_i = 1) = |v_i|/‖v‖∞ (TernGrad: Wen et al., 2017).

    Unbiased, ω = (√k − 1)/2. The paper's bits are 32 + ⌈k·log2 3⌉; five values share a byte.

    Args:
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
    """

    coder: str = "packed"
    code: ClassVar[int] = 8

    def __post_init__(self) -> None:
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """‖v‖∞ (f32), trits."""
        low, high = vector.extremes(values)
        scale = float(np.float32(max(-low, high)))
        codes = np.zeros(values.size, np.int32)
        if scale > 0:
            quantize.levels_random(values, scale, 1, *random.halves(seed.key), codes)
        head, nbits = struct.pack("<f", scale), self._bits(values.size)
        out = np.empty((values.size + 4) // 5, np.uint8)
        short = squeezed(codes, -1, 3, out.size) if self.coder == "ans" else None
        if short is not None:
            return Section([head, short], nbits, coded=True)
        pack.pack_trits(codes, out)
        return Section([head, raw(out)], nbits)

    @staticmethod
    def decode(section: Reader, out: Vector) -> Vector:
        """scale·code."""
        scale = section.f32()
        if section.coded:
            codes = unsqueezed(section, out.size, -1, 3)
        else:
            codes = np.empty(out.size, np.int32)
            pack.unpack_trits(section.array((out.size + 4) // 5, "u1"), codes)
        return on_grid(codes, 0.0, scale, out)

    def promise(self, k: int) -> QuantizerClaims:
        """Unbiased."""
        omega = flat_variance(k)
        return QuantizerClaims(
            unbiased=True, homogeneous=True, gamma=contraction(omega), omega=omega, bits=self._bits(k)
        )

    @staticmethod
    def _bits(k: int) -> int:
        return 32 + math.ceil(k * math.log2(3))

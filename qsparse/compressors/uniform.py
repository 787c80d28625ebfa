"""LAQ's grid."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.compressors.base import Reader, refuse
from qsparse.compressors.composed import Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import check_coder, on_grid, read_width, spelled, unspelled
from qsparse.kernels import quantize, vector
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("uniform")
@dataclass(frozen=True)
class Uniform(Quantizer):
    """To the nearest of 2ᵇ points from −R to R, R = ‖v‖∞ (Sun et al., 2019, eqs. 4–6).

    q_i = ⌊(v_i + R)/(2τR) + 1/2⌋, τ = 1/(2ᵇ − 1); the value is 2τR·q_i − R, off by at most τR.

    Args:
        bits: b, 1 to 16; a message takes 32 + b·k bits.
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
    """

    bits: int = 4
    coder: str = "packed"
    code: ClassVar[int] = 6

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise refuse(self, "bits must be a whole number of 1 to 16")
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """Bits (u8), R (f32), codes."""
        low, high = vector.extremes(values)
        radius = float(np.float32(max(-low, high)))
        most = (1 << self.bits) - 1
        codes = np.zeros(values.size, np.int32)
        if radius > 0:
            quantize.radius_nearest(values, radius, most, codes)
        head = struct.pack("<Bf", self.bits, radius)
        return spelled(head, codes, 0, self.bits, 32 + self.bits * values.size, self.coder)

    @staticmethod
    def decode(section: Reader, out: Vector) -> Vector:
        """2τR·q − R."""
        bits, radius = read_width(section), section.f32()
        codes = unspelled(section, out.size, 0, bits)
        return on_grid(codes, -radius, 2 * radius / max((1 << bits) - 1, 1), out)

    def promise(self, k: int) -> QuantizerClaims:
        """‖error‖² ≤ k(τR)² ≤ kτ²‖v‖²."""
        loss = k / ((1 << self.bits) - 1) ** 2
        return QuantizerClaims(
            unbiased=False,
            homogeneous=True,
            gamma=1 - loss if loss < 1 else None,
            omega=None,
            bits=32 + self.bits * k,
        )

"""Rounding to the grid of LAQ."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import refuse
from qsparse.compressors.body import Reader
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import Grid, check_coder, decode_grid, encode_codes, read_width
from qsparse.compressors.sums import Sum, max_abs
from qsparse.kernels import quantize
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("uniform")
@dataclass(frozen=True)
class Uniform(Quantizer):
    """Rounding to the nearest of 2ᵇ points from −R to R, R = ‖v‖∞ (Sun et al., 2019, eqs. 4–6).

    q_i = ⌊(v_i + R)/(2τR) + 1/2⌋, τ = 1/(2ᵇ − 1); the value is 2τR·q_i − R, off by at most τR.

    Args:
        bits: b, 1 to 16; a message takes 32 + b·k bits.
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
    """

    bits: int = 4
    coder: str = "packed"
    code: ClassVar[int] = 6
    packing_bytes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise refuse(self, "bits must be a whole number of 1 to 16")
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """A section of: bits (u8), R (f32), codes."""
        return self._coded(values, max_abs(values), None)

    def encode_sum(self, total: Sum, seed: Seed) -> Section:
        """The section of a sum: the pass that adds finds R, the pass that rounds leaves the unsaid rest."""
        return self._coded(*total.add_max_abs(), total.out if total.rest else None)

    def _coded(self, values: Vector, max_abs: float, rest: Vector | None) -> Section:
        radius = float(np.float32(max_abs))
        most = (1 << self.bits) - 1

        def codes(start: int, out: npt.NDArray[Any]) -> None:
            quantize.radius_nearest(values[start : start + out.size], 1 / radius, most, out)

        head, nbits = struct.pack("<Bf", self.bits, radius), 32 + self.bits * values.size
        made, grid = codes if radius > 0 else None, _grid(self.bits, radius)
        return encode_codes(head, made, values.size, self.bits, nbits, self.coder, grid, rest)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """The values 2τR·q − R."""
        bits, radius = read_width(section, 1), section.scale()
        high = (1 << bits) - 1 if radius > 0 else 0
        return decode_grid(section, k, bits, _grid(bits, radius), 0, high)

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """Bits, the grid's end, and codes of so many bits."""
        return 5, int(head[0])

    def claims_for(self, k: int) -> QuantizerClaims:
        """The claims: ‖error‖∞ ≤ τR, so ‖error‖² ≤ k(τR)² ≤ kτ²‖v‖²."""
        most = (1 << self.bits) - 1
        loss = k / most**2
        return QuantizerClaims(
            unbiased=False,
            homogeneous=True,
            gamma=1 - loss if loss < 1 else None,
            omega=None,
            bits=32 + self.bits * k,
            gamma_max=1 - 1 / most if most > 1 else None,
        )


def _grid(bits: int, radius: float) -> Grid:
    return Grid(0, -radius, 2 * radius / ((1 << bits) - 1))

"""Stochastic levels between the smallest and the largest value."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import refuse
from qsparse.compressors.body import Reader
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import (
    Grid,
    check_coder,
    code_width,
    contraction,
    decode_grid,
    encode_codes,
)
from qsparse.compressors.sums import LARGEST
from qsparse.errors import Corrupted
from qsparse.kernels import quantize, random, vector
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("minmax")
@dataclass(frozen=True)
class MinMax(Quantizer):
    """Stochastic rounding to s + 1 levels from min v to max v (Suresh et al., 2017).

    Unbiased, ω = k/(2s²): each value is off by at most a step, (max − min)² ≤ 2‖v‖².

    Args:
        levels: s ≥ 1, at most 65535; a value takes ⌈log2(s + 1)⌉ bits.
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
    """

    levels: int = 15
    coder: str = "packed"
    code: ClassVar[int] = 5
    packing_bytes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 65535:
            raise refuse(self, "levels must be a whole number of 1 to 65535")
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """A section of: levels (u16), min (f32), max (f32), codes."""
        low, high = (float(np.float32(edge)) for edge in vector.min_max(values))
        width = code_width(self.levels)
        key = random.halves(seed.key)

        def codes(start: int, out: npt.NDArray[Any]) -> None:
            some, inverse = values[start : start + out.size], self.levels / (high - low)
            quantize.grid_random(some, low, inverse, 0, self.levels, *key, start, out)

        head, nbits = struct.pack("<Hff", self.levels, low, high), 64 + values.size * width
        return encode_codes(head, codes if high > low else None, values.size, width, nbits, self.coder)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """The values min + (max − min)/s·code."""
        levels, low, high = struct.unpack("<Hff", section.take(10))
        if levels == 0 or not -LARGEST <= low <= high <= LARGEST:
            raise Corrupted(f"a frame has {levels} levels from {low:g} to {high:g}: no quantizer writes them")
        most = levels if low < high else 0
        return decode_grid(section, k, code_width(levels), Grid(0, low, (high - low) / levels), 0, most)

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """Levels, two float32, and codes."""
        return 10, code_width(int.from_bytes(bytes(head), "little"))

    def claims_for(self, k: int) -> QuantizerClaims:
        """The claims: unbiased, with ω = k/(2s²)."""
        omega = k / (2 * self.levels**2)
        return QuantizerClaims(
            unbiased=True,
            homogeneous=True,
            gamma=contraction(omega),
            omega=omega,
            bits=64 + k * code_width(self.levels),
            gamma_max=1 - 2 / self.levels if self.levels > 2 else None,
        )

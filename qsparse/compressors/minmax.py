"""Stochastic levels between the smallest and the largest value."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.compressors.base import Reader, refuse
from qsparse.compressors.composed import Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import check_coder, code_width, contraction, on_grid, spelled, unspelled
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

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 65535:
            raise refuse(self, "levels must be a whole number of 1 to 65535")
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """Levels (u16), min (f32), max (f32), codes."""
        low, high = (float(np.float32(edge)) for edge in vector.extremes(values))
        codes = np.zeros(values.size, np.int32)
        if high > low:
            step = (high - low) / self.levels
            quantize.grid_random(values, low, step, 0, self.levels, *random.halves(seed.key), codes)
        width = code_width(self.levels)
        head = struct.pack("<Hff", self.levels, low, high)
        return spelled(head, codes, 0, width, 64 + values.size * width, self.coder)

    @staticmethod
    def decode(section: Reader, out: Vector) -> Vector:
        """min + (max − min)/s·code."""
        levels, low, high = struct.unpack("<Hff", section.take(10))
        codes = unspelled(section, out.size, 0, code_width(levels))
        return on_grid(codes, low, (high - low) / max(levels, 1), out)

    def promise(self, k: int) -> QuantizerClaims:
        """Unbiased."""
        omega = k / (2 * self.levels**2)
        return QuantizerClaims(
            unbiased=True,
            homogeneous=True,
            gamma=contraction(omega),
            omega=omega,
            bits=64 + k * code_width(self.levels),
        )

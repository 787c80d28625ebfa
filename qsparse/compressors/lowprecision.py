"""The (δ, b) grid of double quantization."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.compressors.base import LARGEST, Reader, refuse
from qsparse.compressors.composed import Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import contraction, on_grid, packed, read_width, unpacked
from qsparse.errors import NotFinite
from qsparse.kernels import quantize, random, vector
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("lowprecision")
@dataclass(frozen=True)
class LowPrecision(Quantizer):
    """Stochastic rounding to δ·{−2ᵇ⁻¹, …, 2ᵇ⁻¹ − 1}, clipped outside (Yu et al., 2019, section 2).

    With δ = ‖v‖∞/(2ᵇ⁻¹ − 1) every value lies inside, so it is unbiased with
    E‖Q(v) − v‖² ≤ kδ²/4. A fixed δ clips: biased, and not homogeneous.

    Args:
        bits: b, 2 to 16; a message takes 32 + b·k bits.
        delta: a fixed δ > 0, or None for the one above.
    """

    bits: int = 8
    delta: float | None = None
    code: ClassVar[int] = 7

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise refuse(self, "bits must be a whole number of 2 to 16")
        if self.delta is not None and not 0 < self.delta < float("inf"):
            raise refuse(self, "delta must be positive")

    def encode(self, values: Vector, seed: Seed) -> Section:
        """Bits (u8), the grid's upper end δ(2ᵇ⁻¹ − 1) (f32), codes."""
        half = 1 << (self.bits - 1)
        if self.delta is None:
            low, high = vector.extremes(values)
            end = max(-low, high)
        else:
            end = self.delta * (half - 1)
            if self.delta * half > LARGEST:
                raise NotFinite(f"{self}: the grid ends at {end:.3g}, beyond float32", -1)
        end = float(np.float32(end))
        codes = np.zeros(values.size, np.int32)
        if end > 0:
            step = end / (half - 1)
            quantize.grid_random(values, 0.0, step, -half, half - 1, *random.halves(seed.key), codes)
        parts = [struct.pack("<Bf", self.bits, end), packed(codes, -half, self.bits)]
        return Section(parts, 32 + self.bits * values.size)

    @staticmethod
    def decode(section: Reader, out: Vector) -> Vector:
        """δ·code."""
        bits, end = read_width(section), section.f32()
        half = 1 << max(bits - 1, 1)
        return on_grid(unpacked(section, out.size, -half, bits), 0.0, end / (half - 1), out)

    def promise(self, k: int) -> QuantizerClaims:
        """Unbiased unless δ is fixed."""
        free = self.delta is None
        omega = k / (4 * ((1 << (self.bits - 1)) - 1) ** 2)
        return QuantizerClaims(
            unbiased=free,
            homogeneous=free,
            gamma=contraction(omega) if free else None,
            omega=omega if free else None,
            bits=32 + self.bits * k,
        )

"""The (δ, b) grid of double quantization."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import Compressor, refuse
from qsparse.compressors.body import Reader
from qsparse.compressors.composed import FLOAT32, Fill, Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import (
    WIDEST,
    Grid,
    check_coder,
    contraction,
    decode_grid,
    encode_codes,
    read_width,
)
from qsparse.compressors.sums import LARGEST, as_sendable, max_abs
from qsparse.errors import CompositionError, NotFinite
from qsparse.kernels import quantize, random, vector
from qsparse.registry import register, spell
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("lowprecision")
@dataclass(frozen=True)
class LowPrecision(Quantizer):
    """Stochastic rounding to δ·{−2ᵇ⁻¹, …, 2ᵇ⁻¹ − 1}, clipped outside (Yu et al., 2019, section 2).

    With δ = ‖v‖∞/(2ᵇ⁻¹ − 1) every value lies inside, so it is unbiased with
    E‖Q(v) − v‖² ≤ kδ²/4. A fixed δ clips, so it is biased and not homogeneous.

    Args:
        bits: b, 2 to 16, and the smallest b that `within` may choose; a message takes 32 + b·k bits.
        delta: a fixed δ > 0, or None for the one above.
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
    """

    bits: int = 8
    delta: float | None = None
    coder: str = "packed"
    code: ClassVar[int] = 7
    packing_bytes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise refuse(self, "bits must be a whole number of 2 to 16")
        if self.delta is not None and not 0 < self.delta < float("inf"):
            raise refuse(self, "delta must be positive")
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """A section of: bits (u8), the grid's upper end δ(2ᵇ⁻¹ − 1) (f32), codes."""
        half = 1 << (self.bits - 1)
        if self.delta is None:
            end = float(np.float32(max_abs(values)))
        else:
            end = self.delta * (half - 1)
            if self.delta * half > LARGEST:
                raise NotFinite(f"{self}: the grid ends at {end:.3g}, beyond float32", -1)
            end = float(np.float32(end))
        key = random.halves(seed.key)

        def codes(start: int, out: npt.NDArray[Any]) -> None:
            if end > 0:
                some, inverse = values[start : start + out.size], (half - 1) / end
                quantize.grid_random(some, 0.0, inverse, -half, half - 1, *key, start, out)
            else:
                out[...] = half

        head, nbits = struct.pack("<Bf", self.bits, end), 32 + self.bits * values.size
        return encode_codes(head, codes, values.size, self.bits, nbits, self.coder)

    def within(self, x: Vector, tolerance: float) -> Compressor:
        """The least b ≥ ``bits`` with E‖Q(x) − x‖² = δ²·Σf_i(1 − f_i) ≤ tolerance (Yu et al., 2019, eq. 2).

        f_i is the fractional part of x_i/δ. Where 16 bits are too few the result is `Float32`, which is exact
        for float32 vectors. See `Compressor.within` for arguments and errors; a fixed δ is refused.
        """
        if self.delta is not None:
            raise CompositionError(
                f"{spell(self)}: more bits of a fixed delta reach further and are no finer; leave delta out"
            )
        x = as_sendable(x)
        if not tolerance >= 0:
            raise refuse(self, f"a tolerance must be at least 0, not {tolerance}")
        end = float(np.float32(max_abs(x))) if x.size else 0.0
        # The error does not always fall with b, because a value may lie on a coarse grid and between the
        # points of a finer one. So b is searched from below; a far too small b shows after few values.
        for bits in range(self.bits, WIDEST + 1):
            half = 1 << (bits - 1)
            if end > 0:
                error = quantize.expected_error(x, end / (half - 1), -half, half - 1, float(tolerance))
            else:
                error = vector.squared_norm(x)
            if error <= tolerance:
                return replace(self, bits=bits)
        return FLOAT32

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """The values δ·code."""
        bits, end = read_width(section, 2), section.scale()
        half = 1 << (bits - 1)
        # A grid whose width is zero has one code.
        low, high = (0, 2 * half - 1) if end > 0 else (half, half)
        return decode_grid(section, k, bits, Grid(half, 0.0, end / (half - 1)), low, high)

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """Bits, the grid's end, and codes of so many bits."""
        return 5, int(head[0])

    def claims_for(self, k: int) -> QuantizerClaims:
        """The claims: unbiased unless δ is fixed."""
        free = self.delta is None
        most = (1 << (self.bits - 1)) - 1
        omega = k / (4 * most**2)
        return QuantizerClaims(
            unbiased=free,
            homogeneous=free,
            gamma=contraction(omega) if free else None,
            omega=omega if free else None,
            bits=32 + self.bits * k,
            gamma_max=1 - 1 / most if free and most > 1 else None,
            any_precision=free,
        )

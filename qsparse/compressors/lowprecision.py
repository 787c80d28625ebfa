"""The (δ, b) grid of double quantization."""

from __future__ import annotations

import math
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
from qsparse.errors import Imprecise, NotFinite
from qsparse.kernels import quantize, random, vector
from qsparse.registry import register, spell
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("lowprecision")
@dataclass(frozen=True)
class LowPrecision(Quantizer):
    """Stochastic rounding to δ·{−2ᵇ⁻¹, …, 2ᵇ⁻¹ − 1}, clipped outside (Yu et al., 2019, section 2).

    With δ = c·‖v‖∞/(2ᵇ⁻¹ − 1) and c = 1 every value lies inside, so it is unbiased with
    E‖Q(v) − v‖² ≤ kδ²/4. With c < 1 the largest values are clipped, by at most (1 − c)‖v‖∞, and all others
    are rounded more finely. A fixed δ clips as well, and is not homogeneous. What clips is biased.

    Args:
        bits: b, 2 to 16, and the smallest b that `within` may choose; a message takes 32 + b·k bits.
        delta: a fixed δ > 0, or None for the one above.
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
        clip: c, where the grid ends as a part of ‖v‖∞, on both sides, above 0 and at most 1; it goes without
            ``delta``.
    """

    bits: int = 8
    delta: float | None = None
    coder: str = "packed"
    clip: float = 1.0
    code: ClassVar[int] = 7
    packing_bytes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise refuse(self, "bits must be a whole number of 2 to 16")
        if self.delta is not None and not 0 < self.delta < float("inf"):
            raise refuse(self, "delta must be positive")
        if not 0 < self.clip <= 1:
            raise refuse(self, "clip must be above 0 and at most 1, a part of the largest value")
        if self.delta is not None and self.clip != 1:
            raise refuse(self, "a fixed delta says where the grid ends: give delta or clip, not both")
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """A section of: bits (u8), the grid's upper end δ(2ᵇ⁻¹ − 1) (f32), codes."""
        half = 1 << (self.bits - 1)
        end = self._end(values, self.bits)
        key = random.halves(seed.key)

        def codes(start: int, out: npt.NDArray[Any]) -> None:
            if end > 0:
                some, inverse = values[start : start + out.size], (half - 1) / end
                low = self._low(half)
                quantize.grid_random(some, 0.0, inverse, low, half - 1, *key, start, out)
                if low > -half:
                    out += low + half
            else:
                out[...] = half

        head, nbits = struct.pack("<Bf", self.bits, end), 32 + self.bits * values.size
        return encode_codes(head, codes, values.size, self.bits, nbits, self.coder)

    def _end(self, values: Vector, bits: int) -> float:
        """The upper end δ(2ᵇ⁻¹ − 1) of the grid of so many bits, as it is sent."""
        if self.delta is None:
            return float(np.float32(self.clip * max_abs(values))) if values.size else 0.0
        half = 1 << (bits - 1)
        if self.delta * half > LARGEST:
            raise NotFinite(f"{self}: the grid ends at {self.delta * (half - 1):.3g}, beyond float32", -1)
        return float(np.float32(self.delta * (half - 1)))

    def _low(self, half: int) -> int:
        """The lowest code that is used: a part of the largest value is as far below zero as above."""
        return -half if self.clip == 1 else 1 - half

    def within(self, x: Vector, tolerance: float) -> Compressor:
        """The least b ≥ ``bits`` with E‖Q(x) − x‖² = δ²·Σ(f_i(1 − f_i) + o_i²) ≤ tolerance.

        Condition (2) of Yu et al. (2019). f_i is the fractional part of x_i/δ; where that lies o_i beyond the
        grid, it is the end of the grid that counts. Where nothing is clipped and 16 bits are too few the
        result is `Float32`, which is exact for float32 vectors. More bits of a fixed δ reach further and are
        no finer, and with ``clip`` no grid reaches the largest value, so there may be no b then. A tolerance
        of 0, which asks for x itself, is met by `Float32` all the same. See `Compressor.within` for arguments
        and errors.
        """
        x = as_sendable(x)
        if not tolerance >= 0:
            raise refuse(self, f"a tolerance must be at least 0, not {tolerance}")
        # The error does not always fall with b, because a value may lie on a coarse grid and between the
        # points of a finer one. So b is searched from below; a far too small b shows after few values.
        for bits in range(self.bits, self._widest + 1):
            if self._error(x, bits, float(tolerance)) <= tolerance:
                return replace(self, bits=bits)
        if tolerance > 0 and self.claims.checks_precision:
            raise Imprecise(self._refused(x, float(tolerance)))
        return FLOAT32

    @property
    def _widest(self) -> int:
        """The most bits whose grid float32 holds; not fewer than there are."""
        if self.delta is None:
            return WIDEST
        most = math.floor(math.log2(LARGEST / self.delta)) + 1
        return max(self.bits, min(WIDEST, most))

    def _error(self, x: Vector, bits: int, limit: float) -> float:
        """E‖Q(x) − x‖² with so many bits; any number beyond the limit if it is beyond."""
        end, half = self._end(x, bits), 1 << (bits - 1)
        if end == 0:
            return float(vector.squared_norm(x))
        return float(quantize.expected_error(x, end / (half - 1), self._low(half), half - 1, limit))

    def _refused(self, x: Vector, tolerance: float) -> str:
        """Why no b keeps to a tolerance."""
        bits, most = self._widest, max_abs(x)
        error, end = self._error(x, bits, math.inf), self._end(x, bits)
        said = f"{spell(self)}: E‖Q(x) − x‖² is {error:.3g} with {bits} bits, and {tolerance:.3g} is allowed"
        if self.delta is None:
            return f"{said}; the largest value {most:.3g} is clipped to {end:.3g}: use a larger clip, or none"
        if end < most:
            return f"{said}; the grid ends at {end:.3g}, the largest value is {most:.3g}: leave delta out"
        return f"{said}: use a smaller delta, or leave delta out"

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
        """The claims: unbiased unless something is clipped.

        With c < 1 a value beyond c‖v‖∞ loses |v_i| − c‖v‖∞ ≤ (1 − c)|v_i|, so all together lose at most
        ((1 − c)² + k·c²/(4(2ᵇ⁻¹ − 1)²))‖v‖².
        """
        scaled = self.delta is None
        free = scaled and self.clip == 1
        most = (1 << (self.bits - 1)) - 1
        omega = k * self.clip**2 / (4 * most**2)
        largest = 1 - max(1 - self.clip, self.clip / most)
        return QuantizerClaims(
            unbiased=free,
            homogeneous=scaled,
            gamma=contraction(omega + (1 - self.clip) ** 2) if scaled else None,
            omega=omega if free else None,
            bits=32 + self.bits * k,
            gamma_max=largest if scaled and largest > 0 else None,
            any_precision=free,
            checks_precision=not free,
        )

"""Stochastic rounding to levels between 0 and the Euclidean norm."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import refuse
from qsparse.compressors.body import Reader, Writer
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import (
    Grid,
    are_filled,
    are_scales,
    check_coder,
    code_width,
    contraction,
    decode_grid,
    encode_codes,
    read_width,
)
from qsparse.compressors.positions import ALL
from qsparse.compressors.sums import LARGEST, Sum
from qsparse.errors import NotFinite
from qsparse.kernels import quantize, random, vector
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector

#: Bytes before the codes of a block: coding of the indices, code of the quantizer, width and step.
_HEAD: Final = 7


@register("qsgd")
@dataclass(frozen=True)
class QSGD(Quantizer):
    """Send ‖v‖₂·sign(v_i)·ξ_i/s with ξ_i ∈ {⌊s|v_i|/‖v‖₂⌋, … + 1} at random (Alistarh et al., 2017).

    Unbiased, ω = β = min(k/s², √k/s). Scaled by 1/(1 + β) it is a contraction for every s, with
    γ = 1/(1 + β) (Basu et al., 2019, Lemma 2).

    Args:
        levels: s ≥ 1, at most 32767; a value takes 1 + ⌈log2(s + 1)⌉ bits.
        scaled: send Q(v)/(1 + β).
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
    """

    levels: int = 15
    scaled: bool = False
    coder: str = "packed"
    code: ClassVar[int] = 4
    packing_bytes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 32767:
            raise refuse(self, "levels must be a whole number of 1 to 32767")
        check_coder(self, self.coder)

    def beta(self, k: int) -> float:
        """The bound β(k, s) = min(k/s², √k/s)."""
        return min(k / self.levels**2, math.sqrt(k) / self.levels)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """A section of: width (u8), step (f32), signed levels."""
        return self.encode_sum(Sum(values), seed)

    def encode_sum(self, total: Sum, seed: Seed) -> Section:
        """The section of a sum; an entry that is not finite is found by the norm."""
        values = total.x if total.y is None else total.add()
        norm = math.sqrt(vector.squared_norm(values))
        if not norm <= LARGEST:
            total.add()
        step = self._step(norm, values.size)
        width = 1 + code_width(self.levels)
        zero = 1 << (width - 1)
        key = random.halves(seed.key)

        def codes(start: int, out: npt.NDArray[Any]) -> None:
            some = values[start : start + out.size]
            if np.float32(norm / self.levels) > 0:
                quantize.levels_random(some, self.levels / norm, self.levels, zero, *key, start, out)
            else:
                out[...] = zero

        head, nbits = struct.pack("<Bf", width, step), 32 + values.size * width
        grid, rest = Grid(zero, 0.0, float(np.float32(step))), total.out if total.rest else None
        return encode_codes(head, codes, values.size, width, nbits, self.coder, grid, rest)

    def encode_blocks(self, total: Sum, size: int, seed_of: Callable[[int], Seed], out: Writer) -> int | None:
        """Append the bodies with one kernel, where codes fit a byte."""
        width = 1 + code_width(self.levels)
        if width > 8 or self.coder != "packed":
            return None
        values = total.add()
        stride = _HEAD + (size * width + 7) // 8
        count = total.size // size
        data, norms = np.empty(count * stride, np.uint8), np.empty(count)
        keys = np.array([random.halves(seed_of(place).key) for place in range(count)])
        zero = 1 << (width - 1)
        quantize.levels_blocks(values, size, self.levels, zero, keys, width, _HEAD, stride, data, norms)
        largest = int(norms.argmax())
        self._step(norms[largest], size, size * largest)
        rows = data.reshape(-1, stride)
        rows[:, :3] = ALL, self.code, width
        steps = (norms / self.levels / (1 + self.beta(size) if self.scaled else 1.0)).astype("<f4")
        rows[:, 3:_HEAD] = steps.view(np.uint8).reshape(-1, 4)
        out.array(data)
        if total.rest and total.out is not None:
            said = np.empty_like(values)
            quantize.values_blocks(data, size, zero, width, steps, _HEAD, stride, said)
            np.subtract(values, said, out=total.out)
        return count * (32 + size * width)

    @classmethod
    def decode_blocks(cls, section: Reader, size: int, count: int, out: Vector) -> bool:
        """Read the bodies that `encode_blocks` wrote."""
        head = section.peek(3)
        width = int(head[-1]) if head.size == 3 else 0
        stride = _HEAD + (size * width + 7) // 8
        data = section.peek(count * stride)
        if not 2 <= width <= 8 or data.size < count * stride:
            return False
        rows = data.reshape(count, stride)
        if np.any(rows[:, :3] != (ALL, cls.code, width)):
            return False
        steps, zero = rows[:, 3:_HEAD].copy().view("<f4").reshape(count), 1 << (width - 1)
        if not are_scales(steps) or zero * float(steps.max()) > LARGEST or not are_filled(rows, size * width):
            return False
        if not quantize.values_blocks(data, size, zero, width, steps, _HEAD, stride, out):
            return False
        section.take(data.size)
        return True

    def _step(self, norm: float, k: int, start: int = -1) -> float:
        if norm > LARGEST * (1 - 1e-6):
            raise NotFinite(f"{self}: the Euclidean norm {norm:.3g} is beyond float32", start)
        return norm / self.levels / (1 + self.beta(k) if self.scaled else 1.0)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """The values step·level."""
        width, step = read_width(section, 2), section.scale()
        zero = 1 << (width - 1)
        # There are as many levels below zero as above, so code 0 is not used.
        return decode_grid(section, k, width, Grid(zero, 0.0, step), 1, 2 * zero - 1)

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """Width, a float32, and codes of that width."""
        return 5, int(head[0])

    def claims_for(self, k: int) -> QuantizerClaims:
        """The claims: unbiased unless scaled."""
        beta = self.beta(k)
        return QuantizerClaims(
            unbiased=not self.scaled,
            homogeneous=True,
            gamma=1 / (1 + beta) if self.scaled else contraction(beta),
            omega=None if self.scaled else beta,
            bits=32 + k * (1 + code_width(self.levels)),
        )

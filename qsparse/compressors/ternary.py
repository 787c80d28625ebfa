"""Stochastic rounding to three values."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qsparse.compressors.body import Reader
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section, copy_of
from qsparse.compressors.grids import (
    Grid,
    ans_decode,
    ans_encode,
    check_coder,
    contraction,
    dequantize,
    flat_variance,
)
from qsparse.compressors.sums import max_abs
from qsparse.errors import Corrupted
from qsparse.kernels import pack, quantize, random, threads
from qsparse.payload import raw
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("ternary")
@dataclass(frozen=True)
class Ternary(Quantizer):
    """Send ‖v‖∞·sign(v_i)·b_i with P(b_i = 1) = |v_i|/‖v‖∞ (TernGrad: Wen et al., 2017).

    Unbiased, ω = (√k − 1)/2. The paper's bits are 32 + ⌈k·log2 3⌉; five values share a byte.

    Args:
        coder: ``packed``, or ``ans`` for codes by their entropy where that is shorter.
    """

    coder: str = "packed"
    code: ClassVar[int] = 8

    def __post_init__(self) -> None:
        check_coder(self, self.coder)

    def encode(self, values: Vector, seed: Seed) -> Section:
        """A section of: ‖v‖∞ (f32), trits."""
        scale = float(np.float32(max_abs(values)))
        head, nbits = struct.pack("<f", scale), self._bits(values.size)
        key = random.halves(seed.key)

        def codes(start: int, out: npt.NDArray[Any]) -> None:
            if scale > 0:
                some = values[start : start + out.size]
                quantize.levels_random(some, 1 / scale, 1, 1, *key, start, out)
            else:
                out[...] = 1

        return _spelled(head, codes, values.size, nbits, self.coder)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """The values scale·code."""
        scale = section.scale()
        size, grid = (k + 4) // 5, Grid(1, 0.0, scale)
        low, high = (0, 2) if scale > 0 else (1, 1)
        if section.coded:
            return dequantize(copy_of(ans_decode(section, k, 3, size)), np.int32, grid, low, high, 3)
        data = section.array(size, "u1")
        if data.max() >= 3**5 or data[-1] >= 3 ** (k - 5 * (size - 1)):
            raise Corrupted("a frame has five trits in a byte beyond 242, or more of them than it has values")
        return dequantize(
            lambda start, out: pack.unpack_trits(data[start // 5 :], out), np.uint8, grid, low, high, 3
        )

    @staticmethod
    def cut(section: Reader, k: int, cuts: Sequence[tuple[int, int]]) -> list[Section]:
        """The same scale for every part."""
        head, size = bytes(section.take(4)), (k + 4) // 5
        codes = np.empty(k, np.uint8)
        if section.coded:
            codes[:] = ans_decode(section, k, 3, size)
        else:
            pack.unpack_trits(section.array(size, "u1"), codes)
        coder = "ans" if section.coded else "packed"
        return [_spelled(head, copy_of(codes[lo:hi]), hi - lo, 0, coder) for lo, hi in cuts]

    def claims_for(self, k: int) -> QuantizerClaims:
        """The claims: unbiased, with ω = (√k − 1)/2."""
        omega = flat_variance(k)
        return QuantizerClaims(
            unbiased=True, homogeneous=True, gamma=contraction(omega), omega=omega, bits=self._bits(k)
        )

    @staticmethod
    def _bits(k: int) -> int:
        return 32 + math.ceil(k * math.log2(3))


def _spelled(head: bytes, codes: Fill, count: int, nbits: int, coder: str) -> Section:
    """The section of codes 0, 1 and 2 after a head."""
    size = (count + 4) // 5
    if coder == "ans":
        whole = np.empty(count, np.int32)
        codes(0, whole)
        short = ans_encode(whole, 3, size)
        if short is not None:
            return Section([head, short], nbits, coded=True)
    data = np.empty(size, np.uint8)

    def share(start: int, stop: int) -> None:
        some = np.empty(stop - start, np.uint8)
        codes(start, some)
        pack.pack_trits(some, data[start // 5 : (stop + 4) // 5])

    threads.spread(share, count)
    return Section([head, raw(data)], nbits)

"""Quantizers to floats of 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from qsparse.compressors.body import Reader
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section, finite_floats
from qsparse.payload import raw
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("float16")
@dataclass(frozen=True)
class Float16(Quantizer):
    """IEEE half precision, to nearest; beyond ±65504 it saturates, below 6e-8 it sends zero.

    Its range is fixed, so it is not homogeneous.
    """

    code: ClassVar[int] = 1

    def encode(self, values: Vector, seed: Seed) -> Section:
        """The values in 16 bits each."""
        most = np.finfo(np.float16).max
        halves = np.clip(values, -most, most).astype("<f2")
        return Section([raw(halves)], 16 * values.size)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """Read the values back."""
        return finite_floats(section.array(k, "f2"))

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """Nothing before the values."""
        return 0, 16

    def claims_for(self, k: int) -> QuantizerClaims:
        """No γ holds for all x: tiny values vanish and large ones saturate."""
        return QuantizerClaims(unbiased=False, homogeneous=False, gamma=None, omega=None, bits=16 * k)


@register("bfloat16")
@dataclass(frozen=True)
class BFloat16(Quantizer):
    """The upper half of a float32, to nearest, ties to even; saturates at the largest bfloat16.

    Relative error at most 2⁻⁹ for normal values; homogeneous for powers of two, and for other
    factors within that error.
    """

    code: ClassVar[int] = 2

    def encode(self, values: Vector, seed: Seed) -> Section:
        """The values in 16 bits each."""
        bits = values.astype(np.float32, copy=False).view(np.uint32)
        upper = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
        # Rounding up the largest floats would give infinity.
        saturated = np.where((upper & 0x7FFF) >= 0x7F80, (upper & 0x8000) | 0x7F7F, upper)
        return Section([raw(saturated.astype("<u2"))], 16 * values.size)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """Read the values back."""
        return finite_floats((section.array(k, "u2").astype(np.uint32) << 16).view(np.float32))

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """Nothing before the values."""
        return 0, 16

    def claims_for(self, k: int) -> QuantizerClaims:
        """No γ holds for all x: the smallest denormals vanish."""
        return QuantizerClaims(unbiased=False, homogeneous=True, gamma=None, omega=None, bits=16 * k)

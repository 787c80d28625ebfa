"""One bit a value."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.compressors.base import LARGEST, Reader, refuse
from qsparse.compressors.composed import Quantizer, QuantizerClaims, Section
from qsparse.errors import NotFinite
from qsparse.kernels import pack, vector
from qsparse.payload import raw
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector


@register("sign")
@dataclass(frozen=True)
class Sign(Quantizer):
    """Signs times one scale; sign(±0) = +1.

    With norm m the scale is ‖v‖_m/k (Basu et al., 2019, Lemma 3; m = 1: Karimireddy et al., 2019,
    and Zheng et al., 2019). γ ≥ 1/k: ‖v − c·sign(v)‖² = ‖v‖² − 2c‖v‖₁ + kc².

    Args:
        norm: 1, 2, or None for raw ±1, whose sum is a majority vote (Bernstein et al., 2018).
    """

    norm: int | None = 1
    code: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.norm not in (1, 2, None):
            raise refuse(self, "norm must be 1, 2 or none")

    def encode(self, values: Vector, seed: Seed) -> Section:
        """A scale and one bit a value."""
        k = values.size
        bits = np.empty((k + 7) // 8, np.uint8)
        pack.pack_signs(values, bits)
        scale = 1.0
        if self.norm == 1:
            scale = vector.norm1(values) / k
        elif self.norm == 2:
            scale = vector.squared_norm(values) ** 0.5 / k
        if scale > LARGEST:
            raise NotFinite(f"{self}: the scale {scale:.3g} is beyond float32", -1)
        return Section([struct.pack("<f", scale), raw(bits)], k + (32 if self.norm else 0))

    @staticmethod
    def decode(section: Reader, out: Vector) -> Vector:
        """±scale."""
        scale = section.f32()
        pack.unpack_signs(section.array((out.size + 7) // 8, "u1"), scale, out)
        return out

    def promise(self, k: int) -> QuantizerClaims:
        """A contraction for both norms; raw signs are none."""
        return QuantizerClaims(
            unbiased=False,
            homogeneous=self.norm is not None,
            gamma=1 / k if self.norm else None,
            omega=None,
            bits=k + (32 if self.norm else 0),
        )

"""One bit a value."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import LARGEST, Reader, Sum, Writer, finite, refuse
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section
from qsparse.errors import NotFinite
from qsparse.kernels import signs, threads, vector
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
        return self.encode_sum(Sum(values), seed)

    def encode_sum(self, total: Sum, seed: Seed) -> Section:
        """As `encode`, in the pass that adds."""
        k = total.size
        bits = np.empty((k + 7) // 8, np.uint8)
        if total.simple and self.norm != 2:
            norm = self._look(total, k, 0, bits.size, bits)[0]
        else:
            values = total.add()
            signs.bits(values, bits)
            norm = vector.squared_norm(values) ** 0.5 if self.norm == 2 else vector.norm1(values)
        return Section([struct.pack("<f", self._scale(norm, k)), raw(bits)], self._bits(k))

    def encode_blocks(self, total: Sum, size: int, out: Writer) -> int | None:
        """One section after the other, in one pass."""
        if not total.simple or self.norm == 2:
            return None
        head, stride = 6, 6 + (size + 7) // 8
        data = np.empty(total.size // size * stride, np.uint8)
        norms = self._look(total, size, head, stride, data)
        rows = data.reshape(-1, stride)
        rows[:, :2] = 0, self.code
        scales = np.array([self._scale(norm, size) for norm in norms], "<f4")
        rows[:, 2:head] = scales.view(np.uint8).reshape(-1, 4)
        out.array(data)
        return scales.size * self._bits(size)

    @staticmethod
    def _look(total: Sum, size: int, first: int, stride: int, data: npt.NDArray[np.uint8]) -> Vector:
        """Bits of all blocks into ``data``; their norms."""
        norms = np.empty(total.size // size)

        def share(start: int, stop: int) -> None:
            part = total.part(start * size, stop * size)
            where = size, first, stride
            bits, sums = data[start * stride : stop * stride], norms[start:stop]
            if part.y is None:
                signs.encode(part.x, *where, bits, sums)
            else:
                signs.encode_sum(
                    part.x, np.float32(total.scale), part.y, streamed, *where, part.out, bits, sums
                )

        # Blocks that begin within a line of the caches cannot be written past them.
        streamed = total.streamed and size % 64 == 0
        threads.spread(share, norms.size, size)
        if not np.all(np.isfinite(norms)):
            finite(total.x if total.out is None else total.out)
        return norms

    def _scale(self, norm: float, k: int) -> float:
        scale = 1.0 if self.norm is None else norm / k
        if scale > LARGEST:
            raise NotFinite(f"{self}: the scale {scale:.3g} is beyond float32", -1)
        return scale

    def _bits(self, k: int) -> int:
        return k + (32 if self.norm else 0)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """±scale."""
        scale = section.f32()
        data = section.array((k + 7) // 8, "u1")

        def fill(start: int, out: Vector) -> None:
            signs.decode(data[start // 8 :], np.array([scale], out.dtype), out.size, 0, 0, out)

        return fill

    @classmethod
    def decode_blocks(cls, section: Reader, size: int, count: int, out: Vector) -> bool:
        """The sections that `encode_blocks` wrote."""
        stride = 6 + (size + 7) // 8
        data = section.peek(count * stride)
        if data.size < count * stride:
            return False
        rows = data.reshape(count, stride)
        if np.any(rows[:, 0] != 0) or np.any(rows[:, 1] != cls.code):
            return False
        scales = rows[:, 2:6].copy().view("<f4").reshape(count).astype(out.dtype)
        signs.decode(data, scales, size, 6, stride, out)
        section.take(data.size)
        return True

    def promise(self, k: int) -> QuantizerClaims:
        """A contraction for both norms; raw signs are none."""
        return QuantizerClaims(
            unbiased=False,
            homogeneous=self.norm is not None,
            gamma=1 / k if self.norm else None,
            omega=None,
            bits=self._bits(k),
        )

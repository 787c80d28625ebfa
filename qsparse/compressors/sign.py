"""Quantizers with one bit for each value."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import refuse
from qsparse.compressors.body import Reader, Writer
from qsparse.compressors.composed import Fill, Quantizer, QuantizerClaims, Section
from qsparse.compressors.grids import are_filled, are_scales
from qsparse.compressors.positions import ALL
from qsparse.compressors.sums import LARGEST, Sum
from qsparse.errors import NotFinite
from qsparse.kernels import signs, threads, vector
from qsparse.payload import raw
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import Vector

#: Bytes before the bits of a block: coding of the indices, code of the quantizer, scale.
_HEAD: Final = 6


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
        """A section of a scale and one bit for each value."""
        return self.encode_sum(Sum(values), seed)

    def encode_sum(self, total: Sum, seed: Seed) -> Section:
        """The section of a sum, made in the pass that adds."""
        k = total.size
        bits = np.empty((k + 7) // 8, np.uint8)
        simple = total.simple and self.norm != 2
        if simple:
            norm = self._look(total, k, 0, bits.size, bits)[0]
        else:
            values = total.add()
            signs.bits(values, bits)
            norm = vector.squared_norm(values) ** 0.5 if self.norm == 2 else vector.norm1(values)
        head = struct.pack("<f", self._scale(norm, k))
        return Section([head, raw(bits)], self._bits(k), subtracted=simple and total.rest)

    def encode_blocks(self, total: Sum, size: int, seed_of: Callable[[int], Seed], out: Writer) -> int | None:
        """Append the bodies in one pass."""
        if not total.simple or self.norm == 2:
            return None
        stride = _HEAD + (size + 7) // 8
        data = np.empty(total.size // size * stride, np.uint8)
        norms = self._look(total, size, _HEAD, stride, data)
        rows = data.reshape(-1, stride)
        rows[:, :2] = ALL, self.code
        largest = int(norms.argmax())
        self._scale(norms[largest], size, size * largest)
        scales = (norms / size if self.norm else np.ones_like(norms)).astype("<f4")
        rows[:, 2:_HEAD] = scales.view(np.uint8).reshape(-1, 4)
        out.array(data)
        return scales.size * self._bits(size)

    def _look(
        self, total: Sum, size: int, first: int, stride: int, data: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float64]:
        """Write the bits of all blocks into ``data``; return their norms."""
        norms = np.empty(total.size // size)
        # Blocks that begin within a line of the caches cannot be written around the caches.
        streamed = total.streamed and (size % 64 == 0 or norms.size == 1)

        def share(start: int, stop: int) -> None:
            part = total.part(start * size, stop * size)
            there = data[start * stride : stop * stride], norms[start:stop]
            addends = part.x, np.float32(part.scale), part.y, streamed
            if part.y is None:
                signs.encode(part.x, size, first, stride, *there)
            elif part.rest:
                signs.encode_rest(*addends, self.norm is not None, size, first, stride, part.out, *there)
            else:
                signs.encode_sum(*addends, size, first, stride, part.out, *there)

        threads.spread(share, norms.size, size)
        if not np.all(np.isfinite(norms)):
            total.add()
        return norms

    def _scale(self, norm: float, k: int, start: int = -1) -> float:
        scale = 1.0 if self.norm is None else norm / k
        if scale > LARGEST:
            raise NotFinite(f"{self}: the scale {scale:.3g} is beyond float32", start)
        return scale

    def _bits(self, k: int) -> int:
        return k + (32 if self.norm else 0)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """The values ±scale."""
        scale, data = section.scale(), section.packed(k, 1)

        def fill(start: int, out: Vector) -> None:
            signs.decode(data[start // 8 :], np.array([scale], out.dtype), out.size, 0, 0, out)

        return fill

    @classmethod
    def decode_blocks(cls, section: Reader, size: int, count: int, out: Vector) -> bool:
        """Read the bodies that `encode_blocks` wrote."""
        stride = _HEAD + (size + 7) // 8
        data = section.peek(count * stride)
        if data.size < count * stride:
            return False
        rows = data.reshape(count, stride)
        if np.any(rows[:, 0] != ALL) or np.any(rows[:, 1] != cls.code):
            return False
        scales = rows[:, 2:_HEAD].copy().view("<f4").reshape(count)
        if not are_scales(scales) or not are_filled(rows, size):
            return False
        signs.decode(data, scales.astype(out.dtype), size, _HEAD, stride, out)
        section.take(data.size)
        return True

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """A scale, and a bit for each value."""
        return 4, 1

    def claims_for(self, k: int) -> QuantizerClaims:
        """The claims: a contraction for both norms; raw signs are not one."""
        return QuantizerClaims(
            unbiased=False,
            homogeneous=self.norm is not None,
            gamma=1 / k if self.norm else None,
            omega=None,
            bits=self._bits(k),
        )

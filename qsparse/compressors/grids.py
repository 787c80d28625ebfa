"""What quantizers on a grid share: codes of b bits behind a short header."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import Reader
from qsparse.errors import Corrupted
from qsparse.kernels import pack, quantize
from qsparse.payload import Bytes, raw
from qsparse.types import Vector

#: Bits of the widest code that a quantizer writes.
WIDEST: Final = 16


def code_width(levels: int) -> int:
    """⌈log2(s + 1)⌉: bits for a level of 0 … s."""
    return levels.bit_length()


def read_width(section: Reader) -> int:
    """The width of codes (u8) as a section states it; Corrupted where no quantizer writes such codes."""
    bits = section.u8()
    if not 1 <= bits <= WIDEST:
        raise Corrupted(f"a frame has codes of {bits} bits, which no quantizer writes")
    return bits


def packed(codes: npt.NDArray[np.int32], low: int, bits: int) -> Bytes:
    """Codes − low in b bits each."""
    out = np.empty((codes.size * bits + 7) // 8, np.uint8)
    pack.pack(codes, low, bits, out)
    return raw(out)


def unpacked(section: Reader, count: int, low: int, bits: int) -> npt.NDArray[np.int32]:
    """The codes that `packed` wrote."""
    codes = np.empty(count, np.int32)
    pack.unpack(section.array((count * bits + 7) // 8, "u1"), low, bits, codes)
    return codes


def on_grid(codes: npt.NDArray[np.int32], origin: float, step: float, out: Vector) -> Vector:
    """out = origin + step·codes."""
    quantize.grid_values(codes, origin, step, out)
    return out


def contraction(omega: float) -> float | None:
    """γ of an unbiased quantizer: ‖v − Q(v)‖² ≤ ω‖v‖² in expectation, so 1 − ω where positive."""
    return 1 - omega if omega < 1 else None


def flat_variance(k: int) -> float:
    """sup (‖v‖₁‖v‖∞ − ‖v‖₂²)/‖v‖₂² = (√k − 1)/2 over v of k values."""
    return (math.sqrt(k) - 1) / 2

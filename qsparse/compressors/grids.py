"""What quantizers on a grid share: codes of b bits behind a short header."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from qsparse.compressors.base import Reader
from qsparse.compressors.composed import Fill
from qsparse.errors import Corrupted
from qsparse.kernels import pack, quantize, threads
from qsparse.kernels.threads import GRAIN
from qsparse.payload import Bytes, raw
from qsparse.types import Vector

#: How many codes are made or read at a time.
_PART: Final = 64 * GRAIN
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


def packed(codes: Fill | None, count: int, bits: int) -> Bytes:
    """So many codes of b bits each, made in parts that caches hold; zeros where nothing makes them."""
    data = np.zeros((count * bits + 7) // 8, np.uint8)
    if codes is None:
        return raw(data)

    def share(start: int, stop: int) -> None:
        part = np.empty(min(_PART, stop - start), np.uint8 if bits <= 8 else np.int32)
        for first in range(start, stop, _PART):
            some = part[: min(_PART, stop - first)]
            codes(first, some)
            there = data[first * bits // 8 : (min(first + _PART, stop) * bits + 7) // 8]
            if bits <= 8:
                pack.pack_bytes(some, bits, there)
            else:
                pack.pack(some, 0, bits, there)

    threads.spread(share, count)
    return raw(data)


def on_grid(section: Reader, count: int, bits: int, zero: int, origin: float, step: float) -> Fill:
    """origin + step·(code − zero) of the codes that `packed` wrote."""
    data = section.array((count * bits + 7) // 8, "u1")

    def fill(start: int, out: Vector) -> None:
        codes = np.empty(out.size, np.uint8 if bits <= 8 else np.int32)
        here = data[start * bits // 8 : ((start + out.size) * bits + 7) // 8]
        if bits <= 8:
            pack.unpack_bytes(here, bits, codes)
        else:
            pack.unpack(here, 0, bits, codes)
        quantize.grid_values(codes, zero, origin, step, out)

    return fill


def contraction(omega: float) -> float | None:
    """γ of an unbiased quantizer: ‖v − Q(v)‖² ≤ ω‖v‖² in expectation, so 1 − ω where positive."""
    return 1 - omega if omega < 1 else None


def flat_variance(k: int) -> float:
    """sup (‖v‖₁‖v‖∞ − ‖v‖₂²)/‖v‖₂² = (√k − 1)/2 over v of k values."""
    return (math.sqrt(k) - 1) / 2

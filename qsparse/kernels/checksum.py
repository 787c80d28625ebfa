"""CRC-32 as zlib has it, at the speed of memory: bytes are folded by products without carries.

A message of any length is folded to a few vectors that have its checksum (Gopal et al., "Fast CRC Computation
for Generic Polynomials Using PCLMULQDQ Instruction", 2009); of those zlib makes the number. Where a processor
has no such product, and for what is short, zlib does it all.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qsparse.kernels.jit import kernel, simd
from qsparse.kernels.vector import max_abs

_Bytes = npt.NDArray[np.uint8]

#: What is shorter is not worth compiling a kernel for.
_SHORT: Final = 1 << 14
#: What the caches hold while zlib and NumPy look at it in turn.
_PART: Final = 1 << 17
_MAGNITUDE: Final = np.int32(0x7FFF_FFFF)


@kernel
def fold(data, state):
    """Fold all data after the first, which are in the state, as far as they fill it."""
    for i in range(state.size, data.size - state.size + 1, state.size):
        simd.fold(data, i, state)


@kernel
def fold_copy(data, state, most, out):
    """As `fold`; out = those data, whose bits as |float32| raise the maxima."""
    for i in range(state.size, data.size - state.size + 1, state.size):
        simd.fold_copy(data, i, state, most, out)


def crc32(data: _Bytes, start: int = 0) -> int:
    """`zlib.crc32` of read-only data: the checksum of them and of what comes before, which is ``start``."""
    if data.size < _SHORT or not simd.FOLDED:
        return _zlib(data, start)
    state = _begun(data, start)
    fold(data, state)
    return _ended(data, state)


def copy(data: _Bytes, start: int, out: _Bytes) -> tuple[int, float]:
    """out = data, read-only; `crc32` of them, and the largest magnitude of the float32 that they may be.

    That is NaN or infinity where one is. Up to three bytes at the end that are no float32 are left out of it.
    """
    if data.size < _SHORT or not simd.FOLDED:
        most = np.int32(0)
        for first in range(0, data.size, _PART):
            part = data[first : first + _PART]
            out[first : first + _PART] = part
            start = _zlib(part, start)
            most = max(most, _max_abs(part))
        return start, _as_float(most)
    state, maxima = _begun(data, start), np.zeros(simd.FOLDED // 4, np.int32)
    fold_copy(data, state, maxima, out)
    ends = slice(0, state.size), slice(_whole(data, state), None)
    for end in ends:
        out[end] = data[end]
    return _ended(data, state), _as_float(max(maxima.max(), *(_max_abs(data[end]) for end in ends)))


def _zlib(data: Any, start: int) -> int:
    return zlib.crc32(data, start)


def _max_abs(data: _Bytes) -> Any:
    # Of a copy: `max_abs` is compiled for what can be written to, and a second time for what cannot.
    return max_abs(data[: data.size // 4 * 4].copy().view(np.int32), _MAGNITUDE)


def _as_float(bits: Any) -> float:
    return float(np.int32(bits).view(np.float32))


def _whole(data: _Bytes, state: _Bytes) -> int:
    """How many bytes are folded, those included that the state begins with."""
    return data.size // state.size * state.size


def _begun(data: _Bytes, start: int) -> _Bytes:
    state = data[: simd.FOLDED].copy()
    state[:4] ^= np.frombuffer((start ^ 0xFFFF_FFFF).to_bytes(4, "little"), np.uint8)
    return state


def _ended(data: _Bytes, state: _Bytes) -> int:
    # zlib adds all ones to what it begins with, which were added to the state.
    return _zlib(data[_whole(data, state) :], _zlib(state, 0xFFFF_FFFF))

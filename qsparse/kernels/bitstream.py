"""Streams of bits in words of 32, lowest bit first.

Kernels hold words as signed 64-bit numbers: two words and a shift fit, so nothing overflows, and plain
Python does the same as the JIT.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qsparse.kernels.jit import inlined

MASK: Final = 0xFFFF_FFFF
#: Words of zeros behind a stream, so that `get` may look at the word behind the last bit.
GUARD: Final = 2

# A power of two times this constant shows another number in its upper five bits for each power (a de
# Bruijn sequence); the table says which power it was.
_SEQUENCE: Final = 0x077C_B531
_PLACES: Final = np.zeros(32, np.int64)
for _place in range(32):
    _PLACES[((_SEQUENCE << _place) & MASK) >> 27] = _place


@inlined
def lowest(word):
    """The place of the lowest 1 of a word that is not zero."""
    return _PLACES[(((word & -word) * _SEQUENCE) & MASK) >> 27]


@inlined
def put(words, bit, value, width):
    """Write ``value``, below 2^width, at a place of zeroed words; width ≤ 32."""
    at = bit >> 5
    shifted = value << (bit & 31)
    words[at] |= shifted & MASK
    words[at + 1] |= shifted >> 32


@inlined
def get(words, bit, width):
    """What `put` wrote."""
    at = bit >> 5
    both = np.int64(words[at]) | (np.int64(words[at + 1]) << 32)
    return (both >> (bit & 31)) & ((1 << width) - 1)


def zeroed(bits: int) -> npt.NDArray[np.uint32]:
    """Room for so many bits, and the guard."""
    return np.zeros((bits + 31) // 32 + GUARD, np.uint32)


def as_words(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Bytes as words and the guard."""
    words = zeroed(8 * data.size)
    words.view(np.uint8)[: data.size] = data
    return words.view("<u4").astype(np.uint32, copy=False)


def as_bytes(words: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[Any]:
    """The bytes of the first bits of words."""
    return words.astype("<u4", copy=False).view(np.uint8)[: (bits + 7) // 8]

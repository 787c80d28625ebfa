"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).

Number i of a stream is a function of the key and of i alone, so a stream can be entered anywhere
and split among threads without changing it.
"""

from __future__ import annotations

import numpy as np

from qsparse.kernels.jit import inlined, kernel

_LOW = np.uint64(0xFFFF_FFFF)
_32 = np.uint64(32)
_8 = np.uint64(8)
_UNIT = np.float32(1.0 / 16777216.0)
_M0 = np.uint64(0xD251_1F53)
_M1 = np.uint64(0xCD9E_8D57)
_W0 = np.uint64(0x9E37_79B9)
_W1 = np.uint64(0xBB67_AE85)


def halves(key: int) -> tuple[np.uint64, np.uint64]:
    """A 64-bit key as the two words that kernels take."""
    return np.uint64(key & 0xFFFF_FFFF), np.uint64(key >> 32)


@inlined
def _rounds(k0, k1, c0, c1):
    """Ten rounds on counter (c0, c1, 0, 0): four 32-bit words as uint64.

    Products of two 32-bit words fit in 64 bits, so nothing overflows with the JIT off either.
    """
    x0 = c0
    x1 = c1
    x2 = np.uint64(0)
    x3 = np.uint64(0)
    for _ in range(10):
        p0 = _M0 * x0
        p1 = _M1 * x2
        x0 = ((p1 >> _32) ^ x1 ^ k0) & _LOW
        x1 = p1 & _LOW
        x2 = ((p0 >> _32) ^ x3 ^ k1) & _LOW
        x3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return x0, x1, x2, x3


@kernel
def philox(k0, k1, c0, c1):
    """Four 32-bit words (as uint64) of counter (c0, c1, 0, 0)."""
    return _rounds(k0, k1, c0, c1)


@kernel
def uniforms(k0, k1, first, out):
    """Uniforms in [0, 1) with 24 bits, from number ``first`` of a stream, which is a multiple of 4."""
    n = out.size
    start = first // 4
    whole = n // 4
    # The counter's words lie apart here so that the loop vectorizes.
    for block in range(whole):
        counter = np.uint64(start + block)
        w0, w1, w2, w3 = _rounds(k0, k1, counter & _LOW, counter >> _32)
        out[4 * block] = np.float32(np.int32(w0 >> _8)) * _UNIT
        out[4 * block + 1] = np.float32(np.int32(w1 >> _8)) * _UNIT
        out[4 * block + 2] = np.float32(np.int32(w2 >> _8)) * _UNIT
        out[4 * block + 3] = np.float32(np.int32(w3 >> _8)) * _UNIT
    if n % 4:
        counter = np.uint64(start + whole)
        rest = _rounds(k0, k1, counter & _LOW, counter >> _32)
        for j in range(n % 4):
            out[4 * whole + j] = np.float32(np.int32(rest[j] >> _8)) * _UNIT


@kernel
def sample(k0, k1, n, out):
    """k = out.size distinct indices below n, ascending, every subset equally likely.

    Draws with a bitmap of what was drawn; of the smaller of the subset and its complement, so that
    fewer than two draws an index are expected.
    """
    k = out.size
    wanted = min(k, n - k)
    drawn = np.zeros((n + 7) // 8, np.uint8)
    have = 0
    first = 0
    u = np.empty(4)
    while have < wanted:
        uniforms(k0, k1, first, u)
        first += 4
        for j in range(0, 4, 2):
            index = int((u[j] + u[j + 1] / 16777216.0) * n)
            byte = index >> 3
            bit = 1 << (index & 7)
            if have < wanted and drawn[byte] & bit == 0:
                drawn[byte] |= bit
                have += 1
    keep = 1 if wanted == k else 0
    at = 0
    for index in range(n):
        if (drawn[index >> 3] >> (index & 7)) & 1 == keep:
            out[at] = index
            at += 1

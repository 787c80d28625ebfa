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
_M0 = np.uint64(0xD251_1F53)
_M1 = np.uint64(0xCD9E_8D57)
_W0 = np.uint64(0x9E37_79B9)
_W1 = np.uint64(0xBB67_AE85)


def halves(key: int) -> tuple[np.uint64, np.uint64]:
    """A 64-bit key as the two words that kernels take."""
    return np.uint64(key & 0xFFFF_FFFF), np.uint64(key >> 32)


@kernel
def philox(k0, k1, c0, c1):
    """Four 32-bit words (as uint64) of counter (c0, c1, 0, 0).

    Products of two 32-bit words fit in 64 bits, so nothing overflows with the JIT off either.
    """
    x0 = c0
    x1 = c1
    x2 = np.uint64(0)
    x3 = np.uint64(0)
    for _ in range(10):
        p0 = _M0 * x0
        p1 = _M1 * x2
        x0 = (p1 >> _32) ^ x1 ^ k0
        x1 = p1 & _LOW
        x2 = (p0 >> _32) ^ x3 ^ k1
        x3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return x0, x1, x2, x3


@inlined
def four_uniforms(k0, k1, block):
    """Uniforms 4·block … 4·block + 3 of a stream, in [0, 1) with 24 bits."""
    w0, w1, w2, w3 = philox(k0, k1, np.uint64(block) & _LOW, np.uint64(block) >> _32)
    scale = 1.0 / 16777216.0
    return (
        float(w0 >> _8) * scale,
        float(w1 >> _8) * scale,
        float(w2 >> _8) * scale,
        float(w3 >> _8) * scale,
    )


@kernel
def uniforms(k0, k1, out):
    """Fill ``out`` with uniforms in [0, 1)."""
    n = out.size
    for block in range((n + 3) // 4):
        u = four_uniforms(k0, k1, block)
        for j in range(min(4, n - 4 * block)):
            out[4 * block + j] = u[j]


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
    block = 0
    while have < wanted:
        u = four_uniforms(k0, k1, block)
        block += 1
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

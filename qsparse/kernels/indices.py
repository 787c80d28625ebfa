"""Positions of the kept entries: blocked Golomb–Rice codes of their gaps, or a bitmap.

Indices are ascending and distinct. A gap is the number of entries between two kept ones. Its Rice code
with parameter r is gap >> r in unary (that many zeros, then a one) and the low r bits as they are. Each
`BLOCK` of entries has a parameter of its own, as entries crowd in some layers of a model and are rare in
others. Unary codes come first, low bits behind them, so that neither has to wait for the other.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qsparse.kernels.bitstream import GUARD, get, lowest
from qsparse.kernels.jit import inlined, kernel

BLOCK: Final = 64
#: The largest parameter; low bits of a gap fit a word.
_MOST: Final = 32


@inlined
def _expected(total, count):
    """The parameter for ``count`` gaps that sum to ``total``, as if they were geometric.

    The least r with 2^r ≥ ln φ·(mean + 1/2): there the codes with r and r + 1 are equally long. ln φ/2 is
    77/320.
    """
    r = 0
    while r < _MOST and (320 * count) << r < 77 * (2 * total + count):
        r += 1
    return r


@inlined
def _zigzag(step):
    """0, −1, 1, −2, 2, … as 0, 1, 2, 3, 4, …"""
    return 2 * step if step >= 0 else -2 * step - 1


@kernel
def rice_plan(indices, n, parameters):
    """Choose the parameter of each block and return the length of the code in bits."""
    k = indices.size
    bits = 0
    before = -1
    last = _expected(n - k, k)
    for block in range(parameters.size):
        start = block * BLOCK
        count = min(BLOCK, k - start)
        end = indices[start + count - 1]
        r = _expected(end - before - count, count)
        parameters[block] = r
        bits += _zigzag(r - last) + 1 + count * (r + 1)
        bits += (indices[start] - before - 1) >> r
        for i in range(start + 1, start + count):
            bits += (indices[i] - indices[i - 1] - 1) >> r
        before = end
        last = r
    return bits


@kernel
def rice_encode(indices, n, parameters, bits, words):
    """Write the code that `rice_plan` has planned into zeroed words."""
    k = indices.size
    lows = bits
    for block in range(parameters.size):
        lows -= np.int64(parameters[block]) * min(BLOCK, k - block * BLOCK)
    at = lows >> 5
    held = lows & 31
    low = 0
    bit = 0
    before = -1
    last = _expected(n - k, k)
    for block in range(parameters.size):
        r = np.int64(parameters[block])
        bit += _zigzag(r - last)
        last = r
        words[bit >> 5] |= 1 << (bit & 31)
        bit += 1
        mask = (1 << r) - 1
        for i in range(block * BLOCK, min(block * BLOCK + BLOCK, k)):
            gap = indices[i] - before - 1
            before = indices[i]
            bit += gap >> r
            words[bit >> 5] |= 1 << (bit & 31)
            bit += 1
            low |= (gap & mask) << held
            held += r
            if held >= 32:
                words[at] |= low & 0xFFFF_FFFF
                at += 1
                low >>= 32
                held -= 32
    words[at] |= low


@kernel
def rice_decode(words, n, parameters, out):
    """Read k = out.size indices below n and return how many bits they took, or −1 where they do not fit.

    Nor do parameters that `rice_plan` does not choose.

    ``parameters`` has room for ⌈k/BLOCK⌉.
    """
    k = out.size
    within = words.size - GUARD
    at = 0
    word = np.int64(words[0])
    before = -1
    last = _expected(n - k, k)
    for block in range(parameters.size):
        start = block * BLOCK
        # The unary code of a block's parameter stands before those of its gaps.
        while word == 0 and at + 1 < within:
            at += 1
            word = np.int64(words[at])
        one = 32 * at + lowest(word)
        ahead = one - before - 1
        before = one
        last += ahead >> 1 if ahead & 1 == 0 else -(ahead >> 1) - 1
        if word == 0 or last < 0 or last > _MOST:
            return -1
        word &= word - 1
        parameters[block] = last
        for i in range(start, min(start + BLOCK, k)):
            while word == 0:
                at += 1
                if at >= within:
                    return -1
                word = np.int64(words[at])
            one = 32 * at + lowest(word)
            word &= word - 1
            out[i] = one - before - 1
            before = one
    bit = before + 1
    before = -1
    for block in range(parameters.size):
        r = np.int64(parameters[block])
        start = block * BLOCK
        stop = min(start + BLOCK, k)
        if bit + r * (stop - start) > 32 * within:
            return -1
        most = n >> r
        ahead = before
        for i in range(start, stop):
            # Checked before the shift, which could overflow into a negative index.
            if out[i] > most:
                return -1
            before += (out[i] << r | get(words, bit, r)) + 1
            out[i] = before
            bit += r
        if before >= n or _expected(before - ahead - (stop - start), stop - start) != r:
            return -1
    return bit


@kernel
def bitmap_encode(indices, out):
    """Set bit i of zeroed ``out`` for every index i."""
    for i in range(indices.size):
        out[indices[i] >> 3] |= 1 << (indices[i] & 7)


@kernel
def bitmap_decode(words, n, out):
    """Read the k = out.size set bits below n; 0, or −1 where there are more or fewer."""
    found = 0
    for at in range(words.size):
        word = np.int64(words[at])
        while word != 0:
            i = 32 * at + lowest(word)
            if found == out.size or i >= n:
                return -1
            out[found] = i
            found += 1
            word &= word - 1
    return 0 if found == out.size else -1

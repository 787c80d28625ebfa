"""Positions of the kept entries: Golomb–Rice codes of their gaps, or a bitmap.

Indices are ascending and distinct. A gap is the number of entries between two kept ones; a Rice
code of parameter r spells gap >> r in unary (that many ones, then a zero) and the low r bits as
they are.
"""

from __future__ import annotations

from qsparse.kernels.jit import kernel


@kernel
def rice_bits(indices, r):
    """Length in bits of the Rice code with parameter r."""
    total = 0
    before = -1
    for i in range(indices.size):
        total += ((indices[i] - before - 1) >> r) + 1 + r
        before = indices[i]
    return total


@kernel
def rice_encode(indices, r, out):
    """Write the Rice code into zeroed ``out`` of ⌈rice_bits/8⌉ bytes."""
    bit = 0
    before = -1
    for i in range(indices.size):
        gap = indices[i] - before - 1
        before = indices[i]
        for _ in range(gap >> r):
            out[bit >> 3] |= 1 << (bit & 7)
            bit += 1
        bit += 1
        low = gap & ((1 << r) - 1)
        written = 0
        while written < r:
            room = 8 - (bit & 7)
            out[bit >> 3] |= ((low >> written) << (bit & 7)) & 0xFF
            step = min(room, r - written)
            written += step
            bit += step


@kernel
def rice_decode(data, r, n, out):
    """Read k = out.size indices below n; 0, or −1 where the code does not fit data or n."""
    bits = 8 * data.size
    bit = 0
    before = -1
    for i in range(out.size):
        gap = 0
        while bit < bits and (data[bit >> 3] >> (bit & 7)) & 1:
            gap += 1
            bit += 1
        bit += 1
        # Checked before the shift, which could overflow into a negative index.
        if bit + r > bits or gap > n >> r:
            return -1
        gap <<= r
        read = 0
        while read < r:
            step = min(8 - (bit & 7), r - read)
            gap |= ((int(data[bit >> 3]) >> (bit & 7)) & ((1 << step) - 1)) << read
            read += step
            bit += step
        before += gap + 1
        if before >= n:
            return -1
        out[i] = before
    return 0


@kernel
def bitmap_encode(indices, out):
    """Set bit i of zeroed ``out`` for every index i."""
    for i in range(indices.size):
        out[indices[i] >> 3] |= 1 << (indices[i] & 7)


@kernel
def bitmap_decode(data, n, out):
    """Read the k = out.size set bits below n; 0, or −1 where there are more or fewer."""
    at = 0
    for i in range(n):
        if (data[i >> 3] >> (i & 7)) & 1:
            if at == out.size:
                return -1
            out[at] = i
            at += 1
    return 0 if at == out.size else -1

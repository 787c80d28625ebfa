"""Exact selection of the k entries of largest magnitude.

The magnitudes of finite floats are ordered like their bits without the sign, so the k-th largest is found
exactly by its digits. Where k is small beside n most entries need no more than one look: a sample gives a
bound that the k-th largest hardly ever misses, and only what is not below it, the *candidates*, is looked at
again. Fewer than k candidates, or more than there is room for, mean that the bound was wrong; the caller then
takes all entries for candidates.
"""

from __future__ import annotations

import numpy as np

from qsparse.kernels.jit import inlined, kernel, simd

_BUCKETS = 2048


@kernel
def differing(x, other, out):
    """The indices at which two vectors are not equal, ascending; returns how many there are.

    Args:
        x, other: (n,).
        out: where the indices are left, (n,).
    """
    n = x.size
    k = 0
    for start in range(0, n, 64):
        stop = min(start + 64, n)
        # Most blocks are equal where few entries have changed, and a block without branches is fast.
        some = 0
        for i in range(start, stop):
            some |= x[i] != other[i]
        if some:
            for i in range(start, stop):
                if x[i] != other[i]:
                    out[k] = i
                    k += 1
    return k


@kernel
def _descend(histogram, need):
    """From the top bucket down: the bucket that holds the ``need``-th, and how many lie above it."""
    bucket = histogram.size - 1
    above = 0
    while above + histogram[bucket] < need:
        above += histogram[bucket]
        bucket -= 1
    return bucket, above


@kernel
def kth_largest(raw, k, mask, low):
    """The magnitude of the k-th largest of n ≥ k ≥ 1 entries as bits, and how many of the k are equal to it.

    Digit by digit: 11 bits over all entries, the rest over those that share them.

    Args:
        raw: the entries' bits as a signed integer array, (n,).
        k: 1 … n.
        mask: all bits but the sign.
        low: how many bits lie below the first digit (20 for float32, 52 for float64).
    """
    n = raw.size
    # Four counts for each digit, as neighbours often share it and a count is slow to be read again.
    counts = np.zeros((_BUCKETS, 4), np.int64)
    whole = n - n % 4
    for i in range(0, whole, 4):
        counts[(raw[i] & mask) >> low, 0] += 1
        counts[(raw[i + 1] & mask) >> low, 1] += 1
        counts[(raw[i + 2] & mask) >> low, 2] += 1
        counts[(raw[i + 3] & mask) >> low, 3] += 1
    for i in range(whole, n):
        counts[(raw[i] & mask) >> low, 0] += 1
    histogram = np.zeros(_BUCKETS, np.int64)
    for digit in range(_BUCKETS):
        histogram[digit] = counts[digit, 0] + counts[digit, 1] + counts[digit, 2] + counts[digit, 3]
    digit, over = _descend(histogram, k)
    need = k - over
    prefix = digit

    # Written whether it shares the digit or not, and kept if so: a branch would be guessed wrong too often.
    sharing = np.empty(histogram[digit] + 1, np.int64)
    count = 0
    for i in range(n):
        magnitude = raw[i] & mask
        sharing[count] = magnitude
        count += magnitude >> low == prefix

    while low > 0:
        width = min(11, low)
        low -= width
        histogram[:] = 0
        for i in range(count):
            histogram[(sharing[i] >> low) & ((1 << width) - 1)] += 1
        digit, over = _descend(histogram, need)
        need -= over
        prefix = (prefix << width) | digit
        kept = 0
        for i in range(count):
            magnitude = sharing[i]
            sharing[kept] = magnitude
            kept += magnitude >> low == prefix
        count = kept
    return prefix, need


@kernel
def top_k(raw, mask, low, out):
    """Indices of the k = out.size ≤ n largest magnitudes, ascending; among equals the lowest index.

    Arguments as for `kth_largest`; ``out`` is intp, (k,).
    """
    if out.size == 0:
        return
    least, equals = kth_largest(raw, out.size, mask, low)
    at = 0
    for i in range(raw.size):
        magnitude = raw[i] & mask
        if magnitude > least:
            out[at] = i
            at += 1
        elif magnitude == least and equals > 0:
            out[at] = i
            at += 1
            equals -= 1


@kernel
def narrow(positions, values, raw, k, indices, kept):
    """The k largest of the candidates: positions into ``indices``, (k + 1,), values into ``kept``, (k + 1,).

    The last of these are scratch.

    Args:
        positions, values: of the candidates in the order of positions, float32, (c,) with c ≥ k.
        raw: the bits of the values, int32.
        k: how many are kept.
        indices, kept: are given their positions and values.
    """
    mask = 0x7FFF_FFFF
    least, equals = kth_largest(raw, k, mask, 20)
    at = 0
    for i in range(values.size):
        magnitude = raw[i] & mask
        indices[at] = positions[i]
        kept[at] = values[i]
        equal = magnitude == least
        at += magnitude > least or (equal and equals > 0)
        equals -= equal


@inlined
def _place(i, n, count):
    """Sampled entry i of ``count`` ≤ n: one of each n/count in a row, spread so that none is favoured."""
    start = i * n // count
    stop = (i + 1) * n // count
    # The golden ratio in 20 bits: neighbouring i are spread evenly.
    return start + ((i * 648056 & 0xFFFFF) * (stop - start) >> 20)


@kernel
def sample(x, out):
    """Magnitudes of entries from everywhere in x: out.size/2 ≤ n/2 pairs of neighbours, read as one."""
    for i in range(out.size // 2):
        place = 2 * _place(i, x.size // 2, out.size // 2)
        out[2 * i] = abs(x[place])
        out[2 * i + 1] = abs(x[place + 1])


@kernel
def sample_sum(x, scale, y, out):
    """As `sample`, of x + scale·y."""
    for i in range(out.size // 2):
        place = 2 * _place(i, x.size // 2, out.size // 2)
        out[2 * i] = abs(x[place] + scale * y[place])
        out[2 * i + 1] = abs(x[place + 1] + scale * y[place + 1])


@kernel
def collect(x, start, stop, threshold, positions, values):
    """The entries start … stop − 1 with |x| ≥ threshold, or NaN; how many, −1 where there is no room.

    ``start`` is a multiple of 64, float32; room is needed for 64 more than there are.
    """
    count = 0
    room = positions.size - simd.WIDTH
    whole = start + (stop - start) // simd.WIDTH * simd.WIDTH
    for i in range(start, whole, simd.WIDTH):
        mask = simd.above(x, i, threshold)
        if mask != 0:
            if count > room:
                return -1
            while mask != 0:
                place = i + simd.lowest(mask)
                positions[count] = place
                values[count] = x[place]
                count += 1
                mask &= mask - np.uint64(1)
    if count > room:
        return -1
    for i in range(whole, stop):
        if not abs(x[i]) < threshold:
            positions[count] = i
            values[count] = x[i]
            count += 1
    return count


@kernel
def collect_sum(x, scale, y, start, stop, threshold, streamed, out, positions, values):
    """out = x + scale·y for a scale of ±1, and `collect` of it in the same pass over memory.

    All of start … stop − 1 is written where there is room, and nothing is promised of ``out`` where not.
    """
    count = 0
    room = positions.size - simd.WIDTH
    whole = start + (stop - start) // simd.WIDTH * simd.WIDTH
    for i in range(start, whole, simd.WIDTH):
        if streamed:
            mask = simd.stream_above(x, scale, y, i, threshold, out)
        else:
            mask = simd.add_above(x, scale, y, i, threshold, out)
        if mask != 0:
            if count > room:
                return -1
            while mask != 0:
                place = i + simd.lowest(mask)
                positions[count] = place
                # Added again rather than read: what was streamed is far away by now.
                values[count] = x[place] + scale * y[place]
                count += 1
                mask &= mask - np.uint64(1)
    if count > room:
        return -1
    for i in range(whole, stop):
        value = x[i] + scale * y[i]
        out[i] = value
        if not abs(value) < threshold:
            positions[count] = i
            values[count] = value
            count += 1
    return count

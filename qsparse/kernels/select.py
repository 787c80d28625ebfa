"""Exact selection of the k entries of largest magnitude."""

from __future__ import annotations

import numpy as np

from qsparse.kernels.jit import kernel

_BUCKETS = 2048


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
def top_k(raw, mask, low, out):
    """Indices of the k = out.size ≤ n largest magnitudes, ascending; among equals the lowest index.

    The magnitudes of finite floats are ordered like their bits without the sign, so the k-th
    largest is found exactly by its digits: 11 bits over the whole vector, the rest over the entries
    that share them.

    Args:
        raw: the vector's bits as a signed integer array, (n,).
        mask: all bits but the sign.
        low: how many bits lie below the first digit (20 for float32, 52 for float64).
        out: intp, (k,).
    """
    n = raw.size
    k = out.size
    if k == 0:
        return
    histogram = np.zeros(_BUCKETS, np.int64)
    for i in range(n):
        histogram[(raw[i] & mask) >> low] += 1
    digit, above = _descend(histogram, k)
    need = k - above
    prefix = digit

    candidates = np.empty(histogram[digit], np.int64)
    count = 0
    for i in range(n):
        magnitude = raw[i] & mask
        if magnitude >> low == prefix:
            candidates[count] = magnitude
            count += 1

    while low > 0:
        width = min(11, low)
        low -= width
        histogram[:] = 0
        for i in range(count):
            histogram[(candidates[i] >> low) & ((1 << width) - 1)] += 1
        digit, above = _descend(histogram, need)
        need -= above
        prefix = (prefix << width) | digit
        kept = 0
        for i in range(count):
            if candidates[i] >> low == prefix:
                candidates[kept] = candidates[i]
                kept += 1
        count = kept

    at = 0
    for i in range(n):
        magnitude = raw[i] & mask
        if magnitude > prefix:
            out[at] = i
            at += 1
        elif magnitude == prefix and need > 0:
            out[at] = i
            at += 1
            need -= 1

"""Sparse into dense: gather, put, add, subtract at distinct indices."""

from __future__ import annotations

from qsparse.kernels.jit import kernel


@kernel
def gather(x, indices, out):
    """out[i] = x[indices[i]]."""
    for i in range(indices.size):
        out[i] = x[indices[i]]


@kernel
def add_at(indices, values, out):
    """out[indices[i]] += values[i]."""
    for i in range(indices.size):
        out[indices[i]] += values[i]


@kernel
def subtract_at(indices, values, out):
    """out[indices[i]] −= values[i]."""
    for i in range(indices.size):
        out[indices[i]] -= values[i]


@kernel
def divide_at(indices, start, parts, done, out):
    """out[start + indices[i]] /= parts, unless the bit of that entry is set in ``done``; sets it."""
    for i in range(indices.size):
        place = start + indices[i]
        bit = 1 << (place & 7)
        if done[place >> 3] & bit == 0:
            done[place >> 3] |= bit
            out[place] = out[place] / parts

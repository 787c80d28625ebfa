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

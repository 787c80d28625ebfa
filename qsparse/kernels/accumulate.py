"""Sparse into dense: gather, put, add, subtract, sum at distinct indices."""

from __future__ import annotations

from qsparse.kernels.jit import kernel, simd


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
def sum_at(indices, values, begins, stops, start, stop, parts, lead, scratch, stamps, out):
    """out[start:stop] = the sum of sparse vectors, in their order, divided by ``parts``; False: out of order.

    Formed in a block that stays in the cache, so that ``out`` is written once and never read.

    Args:
        indices, values: of all vectors in a row, those of each ascending.
        begins, stops: where the entries of each vector that lie in start … stop − 1 begin and end.
        start, stop: the stretch of ``out`` that is written.
        parts: what the sum is divided by.
        lead: how many entries of ``out`` lie before a multiple of 64 bytes; from there on it is written
            past the caches, if it is float32. −1: not so.
        scratch: zeros like ``out``, and zeros again afterwards.
        stamps: intp, as many; no place of ``out`` plus one, such as zeros before the first call.
        out: (n,), of the type of ``values``.
    """
    size = scratch.size
    upto = begins.copy()
    first = start
    while first < stop:
        # All blocks but the first begin where a line of the caches does.
        last = min(first + size - (first - lead) % size, stop)
        for part in range(begins.size):
            i = upto[part]
            while i < stops[part] and indices[i] < last:
                place = indices[i] - first
                if place < 0:
                    return False
                scratch[place] += values[i]
                i += 1
            upto[part] = i
        if parts != 1:
            for part in range(begins.size):
                for i in range(begins[part], upto[part]):
                    place = indices[i] - first
                    # What several have added to is divided once.
                    if stamps[place] != first + 1:
                        stamps[place] = first + 1
                        scratch[place] = scratch[place] / parts
        whole = first
        if out.itemsize == 4 and lead >= 0 and (first - lead) % simd.WIDTH == 0:
            whole = last - (last - first) % simd.WIDTH
            for i in range(first, whole, simd.WIDTH):
                simd.stream(scratch, i - first, i, out)
        for i in range(whole, last):
            out[i] = scratch[i - first]
        for part in range(begins.size):
            for i in range(begins[part], upto[part]):
                scratch[indices[i] - first] = 0
            begins[part] = upto[part]
        first = last
    return True

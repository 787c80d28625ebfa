"""Rounding to grids: codes from values, values from codes. All arithmetic in float64.

Codes are clipped as floats: a value far outside a fixed grid does not fit an integer before that.
"""

from __future__ import annotations

import math

import numpy as np

from qsparse.kernels.jit import inlined, kernel
from qsparse.kernels.pack import pack_bytes, unpack_bytes
from qsparse.kernels.random import uniforms
from qsparse.kernels.vector import squared_norm, total

#: Entries between two looks at a limit: a multiple of eight.
_STRIDE = 4096
#: How many uniforms are drawn at a time: a multiple of 4.
_DRAWN = 1024


@kernel
def radius_nearest(x, inverse, high, out):
    """out = clip(⌊(1 + x·inverse)·high/2 + 1/2⌋, 0, high) with inverse = 1/radius: the nearest of 0 … high.

    A value of zero lies exactly between two codes where high is odd. Written this way it gets the
    upper one for every radius; dividing by the width of a step would leave that to rounding.
    """
    for i in range(x.size):
        code = np.floor((1.0 + np.float64(x[i]) * inverse) * (0.5 * high) + 0.5)
        out[i] = np.int32(min(max(code, 0.0), np.float64(high)))


@kernel
def grid_random(x, origin, inverse, low, high, k0, k1, first, out):
    """out = clip(⌊(x − origin)·inverse + u⌋, low, high) − low with u uniform in [0, 1): unbiased inside.

    ``inverse`` is 1/step; x_0 takes uniform number ``first``, a multiple of 4, of the stream.
    """
    u = np.empty(min(_DRAWN, x.size), np.float32)
    for start in range(0, x.size, _DRAWN):
        some = x[start : start + _DRAWN]
        codes = out[start : start + _DRAWN]
        uniforms(k0, k1, first + start, u[: some.size])
        for i in range(some.size):
            code = np.floor((np.float64(some[i]) - origin) * inverse + np.float64(u[i]))
            codes[i] = np.int32(min(max(code, np.float64(low)), np.float64(high))) - low


@inlined
def _expected_square(t, low, high):
    """E(clip(⌊t + u⌋, low, high) − t)²: f(1 − f) for the fractional part f of what lies inside."""
    inside = min(max(t, low), high)
    outside = t - inside
    f = inside - np.floor(inside)
    return f * (1.0 - f) + outside * outside


@kernel
def expected_error(x, step, low, high, limit):
    """E‖Q(x) − x‖² where Q is `grid_random` at origin 0, in the sums of `vector`.

    Once that is beyond the limit, some number beyond it: terms are not negative, so it is not worth
    reading on.
    """
    sums = np.zeros(8)
    whole = x.size - x.size % 8
    for start in range(0, whole, _STRIDE):
        for i in range(start, min(start + _STRIDE, whole), 8):
            for j in range(8):
                sums[j] += _expected_square(np.float64(x[i + j]) / step, low, high)
        if step * step * total(sums) > limit:
            break
    for i in range(whole, x.size):
        sums[i - whole] += _expected_square(np.float64(x[i]) / step, low, high)
    return step * step * total(sums)


@kernel
def levels_random(x, inverse, high, zero, k0, k1, first, out):
    """out = zero + sign(x)·min(⌊|x|·inverse + u⌋, high): stochastic rounding of magnitudes.

    ``inverse`` and ``first`` as for `grid_random`.
    """
    u = np.empty(min(_DRAWN, x.size), np.float32)
    for start in range(0, x.size, _DRAWN):
        some = x[start : start + _DRAWN]
        codes = out[start : start + _DRAWN]
        uniforms(k0, k1, first + start, u[: some.size])
        for i in range(some.size):
            value = np.float64(some[i])
            level = np.int32(min(np.floor(abs(value) * inverse + np.float64(u[i])), np.float64(high)))
            codes[i] = zero - level if value < 0.0 else zero + level


@kernel
def grid_values(codes, zero, origin, step, end, out):
    """out = origin + step·(codes − zero), of codes below ``end``.

    Few codes are looked up, where there are many values: that takes less time than arithmetic.
    """
    if codes.itemsize == 1 and 2 * end <= codes.size:
        table = np.empty(end, out.dtype)
        for code in range(end):
            table[code] = origin + step * np.float64(code - zero)
        for i in range(codes.size):
            out[i] = table[codes[i]]
        return
    for i in range(codes.size):
        out[i] = origin + step * np.float64(np.int32(codes[i]) - zero)


@kernel
def subtract_values(codes, zero, origin, step, out):
    """out −= `grid_values`, which are rounded to the type of ``out`` first."""
    for i in range(codes.size):
        value = origin + step * np.float64(np.int32(codes[i]) - zero)
        out[i] = out[i] - (np.float32(value) if out.itemsize == 4 else value)


@kernel
def levels_blocks(x, size, levels, zero, keys, bits, first, stride, data, norms):
    """`levels_random` of blocks with the step norm/levels, packed in ``bits`` ≤ 8 each; their norms.

    Block b draws from the stream of keys[b], two words; its codes begin at byte first + b·stride.
    """
    codes = np.empty(size, np.uint8)
    for block in range(norms.size):
        part = x[block * size : (block + 1) * size]
        norm = math.sqrt(squared_norm(part))
        norms[block] = norm
        if np.float32(norm / levels) > 0:
            levels_random(part, levels / norm, levels, zero, keys[block, 0], keys[block, 1], 0, codes)
        else:
            codes[:] = zero
        pack_bytes(codes, bits, data[block * stride + first : (block + 1) * stride])


@kernel
def values_blocks(data, size, zero, bits, steps, first, stride, out):
    """What `levels_blocks` wrote, in steps; False where there is a code 0, which it does not write."""
    codes = np.empty(size, np.uint8)
    least = np.uint8(1)
    for block in range(steps.size):
        unpack_bytes(data[block * stride + first : (block + 1) * stride], bits, codes)
        for i in range(size):
            least = min(least, codes[i])
        there = out[block * size : (block + 1) * size]
        grid_values(codes, zero, 0.0, np.float64(steps[block]), 1 << bits, there)
    return least > 0

"""Rounding to grids: codes from values, values from codes. All arithmetic in float64.

Codes are clipped as floats: a value far outside a fixed grid does not fit an integer before that.
"""

from __future__ import annotations

import numpy as np

from qsparse.kernels.jit import inlined, kernel
from qsparse.kernels.random import four_uniforms
from qsparse.kernels.vector import total

#: Entries between two looks at a limit: a multiple of eight.
_STRIDE = 4096


@kernel
def radius_nearest(x, radius, high, out):
    """out = clip(⌊(1 + x/radius)·high/2 + 1/2⌋, 0, high), int32: to the nearest of 0 … high.

    A value of zero lies exactly between two codes where high is odd. Written this way it gets the
    upper one for every radius; dividing by the width of a step would leave that to rounding.
    """
    for i in range(x.size):
        code = np.floor((1.0 + float(x[i]) / radius) * (0.5 * high) + 0.5)
        out[i] = min(max(code, 0), high)


@kernel
def grid_random(x, origin, step, low, high, k0, k1, out):
    """out = clip(⌊(x − origin)/step + u⌋, low, high) with u uniform in [0, 1): unbiased inside."""
    n = x.size
    for block in range((n + 3) // 4):
        u = four_uniforms(k0, k1, block)
        for j in range(min(4, n - 4 * block)):
            i = 4 * block + j
            code = np.floor((float(x[i]) - origin) / step + u[j])
            out[i] = min(max(code, low), high)


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
def levels_random(x, step, high, k0, k1, out):
    """out = sign(x)·min(⌊|x|/step + u⌋, high): stochastic rounding of magnitudes, int32."""
    n = x.size
    for block in range((n + 3) // 4):
        u = four_uniforms(k0, k1, block)
        for j in range(min(4, n - 4 * block)):
            i = 4 * block + j
            value = float(x[i])
            level = min(np.floor(abs(value) / step + u[j]), high)
            out[i] = -level if value < 0.0 else level


@kernel
def grid_values(codes, origin, step, out):
    """out = origin + step·codes."""
    for i in range(codes.size):
        out[i] = origin + step * codes[i]

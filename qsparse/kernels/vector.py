"""Whole-vector work: checks, norms and optimizer steps.

Norms run eight float64 sums side by side. Of 64 entries those with the same i mod 8 are added in pairs, pairs
of pairs and so on, then to sum i mod 8; what is left at the end is added one by one. That vectorizes, and
gives the same bits everywhere.
"""

from __future__ import annotations

import math

import numpy as np

from qsparse.kernels.jit import inlined, kernel, simd


@kernel
def first_beyond(x, limit):
    """Index of the first entry that is NaN or of magnitude above limit; −1 if there is none."""
    for i in range(x.size):
        if not abs(x[i]) <= limit:
            return i
    return -1


@kernel
def total(sums):
    """The sum of eight sums, added up in a fixed order."""
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))


@inlined
def _eights(x, i, j, square):
    """Magnitudes, or squares, of entries j, j + 8, … of the 64 from i on, added in pairs."""
    terms = (
        np.float64(x[i + j]), np.float64(x[i + j + 8]), np.float64(x[i + j + 16]), np.float64(x[i + j + 24]),
        np.float64(x[i + j + 32]), np.float64(x[i + j + 40]), np.float64(x[i + j + 48]),
        np.float64(x[i + j + 56]),
    )  # fmt: skip
    if square:
        a, b = terms[0] * terms[0] + terms[1] * terms[1], terms[2] * terms[2] + terms[3] * terms[3]
        c, d = terms[4] * terms[4] + terms[5] * terms[5], terms[6] * terms[6] + terms[7] * terms[7]
    else:
        a, b = abs(terms[0]) + abs(terms[1]), abs(terms[2]) + abs(terms[3])
        c, d = abs(terms[4]) + abs(terms[5]), abs(terms[6]) + abs(terms[7])
    return (a + b) + (c + d)


@kernel
def norm1(x):
    """Σ|x_i| in float64."""
    sums = np.zeros(8)
    whole = x.size - x.size % simd.WIDTH
    for i in range(0, whole, simd.WIDTH):
        if x.itemsize == 4:
            simd.negative(x, i, sums)
        else:
            for j in range(8):
                sums[j] += _eights(x, i, j, False)
    for i in range(whole, x.size):
        sums[(i - whole) % 8] += abs(np.float64(x[i]))
    return total(sums)


@kernel
def squared_norm(x):
    """Σ x_i² in float64."""
    sums = np.zeros(8)
    whole = x.size - x.size % simd.WIDTH
    for i in range(0, whole, simd.WIDTH):
        if x.itemsize == 4:
            simd.squares(x, i, sums)
        else:
            for j in range(8):
                sums[j] += _eights(x, i, j, True)
    for i in range(whole, x.size):
        # float() of a float32 stays one under the JIT, and its square would leave the range.
        value = np.float64(x[i])
        sums[(i - whole) % 8] += value * value
    return total(sums)


@kernel
def min_max(x):
    """Smallest and largest entry of a vector that has at least one."""
    low = float(x[0])
    high = low
    for i in range(x.size):
        value = float(x[i])
        low = min(low, value)
        high = max(high, value)
    return low, high


@kernel
def max_abs(raw, mask):
    """The bits of max |x_i|, 0 where there are none, of floats given as integers of their size.

    Magnitudes are ordered like their bits, and those of infinity and NaN are above all others.
    ``mask`` is all bits but the sign, of the integers' type.
    """
    most = 0
    for i in range(raw.size):
        most = max(most, raw[i] & mask)
    return most


@kernel
def add_max_abs(x, scale, y, streamed, out):
    """out = x + scale·y for a scale of ±1, float32; returns what `largest` says of it."""
    most = np.zeros(16, np.int32)
    whole = x.size - x.size % simd.WIDTH
    for i in range(0, whole, simd.WIDTH):
        if streamed:
            simd.stream_largest(x, scale, y, i, most, out)
        else:
            simd.add_largest(x, scale, y, i, most, out)
    rest = out[whole:]
    for i in range(rest.size):
        rest[i] = x[whole + i] + scale * y[whole + i]
    return max(most.max(), max_abs(rest.view(np.int32), np.int32(0x7FFF_FFFF)))


@kernel
def copy_largest(data, out):
    """out = the float32 that lie in read-only bytes, aligned or not; returns what `largest` says of it."""
    most = np.zeros(16, np.int32)
    whole = out.size - out.size % simd.WIDTH
    for i in range(0, whole, simd.WIDTH):
        simd.copy_largest(data, i, most, out)
    rest = out[whole:].view(np.uint8)
    for i in range(rest.size):
        rest[i] = data[4 * whole + i]
    return max(most.max(), max_abs(out[whole:].view(np.int32), np.int32(0x7FFF_FFFF)))


@kernel
def add_scaled(x, a, y, out):
    """out = x + a·y, rounded once."""
    for i in range(x.size):
        out[i] = float(x[i]) + a * float(y[i])


@kernel
def sign_step(x, a, u):
    """x −= a·sign(u), with sign(0) = 0."""
    for i in range(x.size):
        if u[i] > 0:
            x[i] = float(x[i]) - a
        elif u[i] < 0:
            x[i] = float(x[i]) + a


@kernel
def momentum(g, m, beta, nesterov, out):
    """m = β·m + g; out = g + β·m with Nesterov, else m. ``out`` may be ``g``."""
    for i in range(g.size):
        gradient = float(g[i])
        velocity = beta * float(m[i]) + gradient
        m[i] = velocity
        out[i] = gradient + beta * velocity if nesterov else velocity


@kernel
def adamw_step(x, g, m, v, t, lr, beta1, beta2, eps, decay):
    """One step of AdamW (Loshchilov & Hutter, 2019, Algorithm 2); t counts from 1."""
    correct1 = 1.0 - beta1**t
    correct2 = 1.0 - beta2**t
    for i in range(x.size):
        gradient = float(g[i])
        first = beta1 * float(m[i]) + (1.0 - beta1) * gradient
        second = beta2 * float(v[i]) + (1.0 - beta2) * gradient * gradient
        m[i] = first
        v[i] = second
        value = float(x[i])
        step = (first / correct1) / (math.sqrt(second / correct2) + eps)
        x[i] = value - lr * (step + decay * value)

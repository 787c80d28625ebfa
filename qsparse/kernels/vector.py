"""Whole-vector work: checks, norms and optimizer steps.

Norms run eight float64 sums side by side, entry i into sum i mod 8, added up in a fixed order: fast
enough to vectorize, and the same bits everywhere.
"""

from __future__ import annotations

import math

import numpy as np

from qsparse.kernels.jit import kernel

#: How many maxima run side by side.
_LANES = 16
#: How many entries are added before they are looked at, while they are near.
_BLOCK = 2048


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


@kernel
def norm1(x):
    """Σ|x_i| in float64."""
    sums = np.zeros(8)
    whole = x.size - x.size % 8
    for i in range(0, whole, 8):
        for j in range(8):
            sums[j] += abs(float(x[i + j]))
    for i in range(whole, x.size):
        sums[i - whole] += abs(float(x[i]))
    return total(sums)


@kernel
def squared_norm(x):
    """Σ x_i² in float64."""
    sums = np.zeros(8)
    whole = x.size - x.size % 8
    for i in range(0, whole, 8):
        for j in range(8):
            # float() of a float32 stays one under the JIT, and its square would leave the range.
            value = np.float64(x[i + j])
            sums[j] += value * value
    for i in range(whole, x.size):
        value = np.float64(x[i])
        sums[i - whole] += value * value
    return total(sums)


@kernel
def extremes(x):
    """Smallest and largest entry of a vector that has at least one."""
    low = float(x[0])
    high = low
    for i in range(x.size):
        value = float(x[i])
        low = min(low, value)
        high = max(high, value)
    return low, high


@kernel
def reach(x):
    """max |x_i| of finite entries, 0 where there are none, as float64."""
    most = np.zeros(_LANES, x.dtype)
    whole = x.size - x.size % _LANES
    for i in range(0, whole, _LANES):
        for j in range(_LANES):
            value = abs(x[i + j])
            most[j] = value if value > most[j] else most[j]
    largest = 0.0
    for j in range(_LANES):
        largest = max(largest, np.float64(most[j]))
    for i in range(whole, x.size):
        largest = max(largest, np.float64(abs(x[i])))
    return largest


@kernel
def add_reach(x, scale, y, out):
    """out = x + scale·y for a scale of ±1, float32; returns the bits of max |out_i|.

    Magnitudes are ordered like their bits, and those of infinity and NaN are above all others.
    """
    most = np.int32(0)
    for start in range(0, x.size, _BLOCK):
        left, right, there = x[start : start + _BLOCK], y[start : start + _BLOCK], out[start : start + _BLOCK]
        for i in range(left.size):
            there[i] = left[i] + scale * right[i]
        raw = there.view(np.int32)
        for i in range(raw.size):
            most = max(most, raw[i] & np.int32(0x7FFF_FFFF))
    return most


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

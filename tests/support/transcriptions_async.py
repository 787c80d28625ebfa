"""The presets whose workers do not wait, straight from their papers' formulas.

As in `transcriptions`; and what comes when is an input, since no formula knows it:

* ``order`` are the reports as the master took them, (worker, its own step) one after the other;
* ``g(r, x, None)`` is worker r's gradient on all its examples;
* ``u(MASTER, t, path, n)`` are the master's uniforms at clock t;
* each function returns the master's models: before each report of the order, and the last one.

The workers take T·R steps together. The clock, by which step sizes go, is the number of steps that
they have taken on average, rounded down.

Formulas: Basu et al. (2019), Algorithm 2; Yu et al. (2019), Algorithms 1 to 3.
"""

from __future__ import annotations

import numpy as np
from transcriptions import Momentum, f32

#: Who is no worker.
MASTER = -1


# --- who is answered when ------------------------------------------------------------------------


def phase(reports, R, T, ahead=None, first=0, clock=0):
    """Take reports until the workers have taken T·R steps and everyone has come once more.

    ``first`` is the step at which all workers begin. A worker is not answered while it has reported
    over ``ahead`` times more often than the slowest one.

    Yields:
        Who reports, at which step of its own, the clock, and the answers that follow: (worker, number).
    """
    taken, often, waiting, stopped, answers = [0] * R, [0] * R, set(), set(), 0
    while len(stopped) < R:
        r, step = next(reports)
        taken[r], often[r] = step - first, often[r] + 1
        waiting.add(r)
        now, answered = clock + min(-(-sum(taken) // R), T), []
        if sum(taken) >= R * T:
            stopped, waiting = stopped | waiting, set()
        for w in sorted(waiting):
            if ahead is None or often[w] <= min(often) + ahead:
                waiting.remove(w)
                answers += 1
                answered.append((w, answers))
        yield r, step, now, answered


# --- operators -----------------------------------------------------------------------------------


def on_grid(v, b):
    """v/δ, clipped to −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1, and δ = ‖v‖∞/(2ᵇ⁻¹ − 1), whose ‖v‖∞ is sent."""
    delta = f32(np.max(np.abs(v))) / (2 ** (b - 1) - 1)
    return np.clip(v / delta, -(2 ** (b - 1)), 2 ** (b - 1) - 1), delta


def low_precision(v, b, uniforms):
    """Q_(δ,b)(v): to one of the two neighbours on the grid, without bias."""
    if not np.any(v):
        return np.zeros_like(v)
    position, delta = on_grid(v, b)
    return delta * np.clip(np.floor(position + uniforms), -(2 ** (b - 1)), 2 ** (b - 1) - 1)


def expected_error(v, b):
    """E‖Q_(δ,b)(v) − v‖² = δ²Σf_i(1 − f_i), f_i the fractional part of v_i/δ; and what was clipped."""
    if not np.any(v):
        return 0.0
    position, delta = on_grid(v, b)
    f = position - np.floor(position)
    return delta**2 * np.sum(f * (1 - f) + (v / delta - position) ** 2)


def precise(x, bound, uniforms):
    """Q_(δ,b)(x) with the least b of 2 … 16 whose expected error is within the bound, else x itself."""
    for b in range(2, 17):
        if expected_error(x, b) <= bound:
            return low_precision(x, b, uniforms)
    return f32(x)


def sparse(a, budget, uniforms):
    """β_i = Z_iα_i/p_i, Z_i = 1 with probability p_i = φ|α_i|/‖α‖₁."""
    if not np.any(a):
        return np.zeros_like(a)
    size = np.sum(np.abs(a))
    phi = size / np.max(np.abs(a))
    phi = phi if budget is None else min(budget, phi)
    p = phi * np.abs(a) / size
    return np.where(uniforms >= 1 - p, np.sign(a) * f32(size / phi), 0.0)


def prox(z, eta, l1, l2):
    """argmin_x h(x) + ‖x − z‖²/(2η) with h(x) = l1·‖x‖₁ + (l2/2)·‖x‖²."""
    return np.sign(z) * np.maximum(np.abs(z) - eta * l1, 0) / (1 + eta * l2)


# --- the presets ---------------------------------------------------------------------------------


def qsparse_local_sgd_async(x, g, T, R, layers, u, eta, order, C, ahead=None, **momentum):
    """Basu et al. (2019), Algorithm 2: x_r is what worker r was last told, and the factor is 1/R."""
    x, models = x.copy(), []
    told, hat, m = np.stack([f32(x)] * R), np.stack([f32(x)] * R), np.zeros((R, len(x)))
    workers = [Momentum(len(x), **momentum) for _ in range(R)]
    stands, clock = [0] * R, [0] * R
    for r, step, now, answered in phase(iter(order), R, T, ahead):
        models.append(x)
        for t in range(stands[r] + 1, step + 1):
            clock[r] += 1
            hat[r] = hat[r] - eta(clock[r]) * workers[r].direction(g(r, hat[r], t), hat[r])
        stands[r] = step
        v = m[r] + (told[r] - hat[r])
        said = C(v, r, step)
        m[r] = v - said
        x = x - said / R
        for w, _ in answered:
            told[w] = hat[w] = f32(x)
            clock[w] = now
    return [*models, f32(x)]


def variance_reduced(x, g, T, R, eta, order, up, down, inner, ahead, l1, l2, accelerated=False):
    """Yu et al. (2019), Algorithm 3 with θ_s = 2/(s + 2); with θ_s = 1 and x̃ = the last x Algorithm 1.

    ``up(α, r, t)`` is the quantized α, ``down(x, ‖x − x̃‖², θ_s, clock, number)`` the quantized x. The
    full gradient at x̃ takes all workers a step. A phase's x̃ is sent in float32.
    """
    reports, models = iter(order), []
    y, first, clock, s = x.copy(), 0, 0, 0
    while T > 0:
        T, first, clock = T - 1, first + 1, clock + 1
        snapshot = x
        full = sum(f32(g(r, snapshot, None)) for r in range(R)) / R
        length = min(inner, T)
        if length == 0:
            break
        theta = 2 / (s + 2) if accelerated else 1.0
        y = y if accelerated else x
        here, last, passed = [snapshot] * R, first, []
        for r, step, now, answered in phase(reports, R, length, ahead, first, clock):
            models.append(x)
            alpha = g(r, here[r], step) - g(r, snapshot, step)
            rate = eta(now) / theta
            y = prox(y - rate * up(alpha, r, step) - rate * full, rate, l1, l2)
            x = theta * y + (1 - theta) * snapshot
            for w, number in answered:
                here[w] = down(x, np.sum((x - snapshot) ** 2), theta, now, number)
            last = max(last, step)
            passed.append(x)
        x = f32(sum(passed) / len(passed)) if accelerated else f32(x)
        T, first, clock, s = T - length, last, clock + length, s + 1
    return [*models, x]


def whole(x, way, theta, t, number):
    """The model in float32."""
    return f32(x)


def as_precise(mu, u):
    """The model with E‖Q(x) − x‖² ≤ θ_s·μ‖x − x̃‖² (Yu et al., 2019, eqs. 2 and 4)."""
    return lambda x, way, theta, t, n: precise(x, theta * mu * way, u(MASTER, t, (n, 1), len(x)))


def asylpg(x, g, T, R, layers, u, eta, order, bits=8, mu=0.5, inner=100, ahead=None, l1=0.0, l2=0.0, **way):
    """Yu et al. (2019), Algorithm 1."""
    up = lambda a, r, t: low_precision(a, bits, u(r, t, (1,), len(a)))  # noqa: E731
    return variance_reduced(x, g, T, R, eta, order, up, as_precise(mu, u), inner, ahead, l1, l2, **way)


def sparse_asylpg(
    x, g, T, R, layers, u, eta, order, budget=None, mu=0.5, inner=100, ahead=None, l1=0.0, l2=0.0
):
    """Yu et al. (2019), Algorithm 2; Q_b does not change the one magnitude of β."""
    up = lambda a, r, t: sparse(a, budget, u(r, t, (), len(a)))  # noqa: E731
    return variance_reduced(x, g, T, R, eta, order, up, as_precise(mu, u), inner, ahead, l1, l2)


def acc_asylpg(x, g, T, R, layers, u, eta, order, **settings):
    """Yu et al. (2019), Algorithm 3."""
    return asylpg(x, g, T, R, layers, u, eta, order, accelerated=True, **settings)


def asyfpg(x, g, T, R, layers, u, eta, order, inner=100, ahead=None, l1=0.0, l2=0.0, **way):
    """Algorithm 1 with float32 both ways."""
    up = lambda a, r, t: f32(a)  # noqa: E731
    return variance_reduced(x, g, T, R, eta, order, up, whole, inner, ahead, l1, l2, **way)


def acc_asyfpg(x, g, T, R, layers, u, eta, order, **settings):
    """Algorithm 3 with float32 both ways."""
    return asyfpg(x, g, T, R, layers, u, eta, order, accelerated=True, **settings)


def qsvrg(x, g, T, R, layers, u, eta, order, bits=8, inner=100, ahead=None, l1=0.0, l2=0.0):
    """Algorithm 1 with gradients quantized, and models in float32."""
    up = lambda a, r, t: low_precision(a, bits, u(r, t, (1,), len(a)))  # noqa: E731
    return variance_reduced(x, g, T, R, eta, order, up, whole, inner, ahead, l1, l2)


#: By the names under which the presets are registered.
TRANSCRIPTIONS = {
    "qsparse-local-sgd-async": qsparse_local_sgd_async,
    "asylpg": asylpg,
    "sparse-asylpg": sparse_asylpg,
    "acc-asylpg": acc_asylpg,
    "asyfpg": asyfpg,
    "acc-asyfpg": acc_asyfpg,
    "qsvrg": qsvrg,
}

"""Lazy algorithms, straight from their papers' formulas; see `transcriptions` for what is common.

Formulas: Chen et al. (2018), Sun et al. (2019), Chen et al. (2020).
"""

from __future__ import annotations

import numpy as np
from transcriptions import f32


def lazily(
    x, g, T, R, eta, Q, D=10, xi=None, tbar=100, skips=True, factor=3.0, ade=0.0, rolling=False, most=None,
    printed=False,
):  # fmt: skip
    """Sun et al. (2019), Algorithm 2; its α is η/R, since it sums over the workers.

    ``Q(v)`` is the quantized v; every worker keeps Q_m and, of its last upload, the error ε̂_m. The rule
    counts the last D moves and ``factor`` times the errors, but not more of them than ``most`` times
    ‖Q(v)‖², plus ``ade``. The code of the stochastic runs has a ``rolling`` buffer of D moves, the
    newest behind, and d = 1 … D − 1 takes entry k − d of it up to k = D, and D − d later.
    ``printed``: ξ_d = ξ as the paper has it; else ck/k while fewer than D differences are known, as its code
    has it.
    """
    x, models = x.copy(), {}
    sent, hat, clock = np.zeros((R, len(x))), np.zeros(R), np.zeros(R, int)
    aggregate, moves, seen = np.zeros(len(x)), [], f32(x)
    buffer = [0.0] * D
    for k in range(T):
        alpha = eta(k + 1) / R
        ck = 0.8 if xi is None else D * xi
        weight = ck / D if printed else ck / min(max(k, 1), D)
        if rolling:
            counted = [buffer[k - d if k <= D else D - d] for d in range(1, D) if d <= k]
        else:
            counted = [moves[k - d] for d in range(1, D + 1) if d <= k]
        for r in range(R):
            gradient = g(r, seen, k + 1)
            delta = Q(gradient - sent[r])
            eps = np.sum((gradient - sent[r] - delta) ** 2)
            errors = factor * (eps + hat[r])
            if most is not None:
                errors = min(errors, most * np.sum(delta**2))
            bound = weight * sum(counted) / (alpha * R) ** 2 + errors + ade
            if skips and np.sum(delta**2) < bound and clock[r] < tbar:
                clock[r] += 1
                continue
            sent[r] = sent[r] + delta
            aggregate = aggregate + delta
            hat[r], clock[r] = eps, 0
        x = x - alpha * aggregate
        moves.append(np.sum((f32(x) - seen) ** 2))
        buffer = [*buffer[1:], moves[-1]]
        seen = f32(x)
        models[k + 1] = seen
    return models


def grid(v, b):
    """Sun et al. (2019), eqs. 4 to 6: 2τR·q − R with q = ⌊(v + R)/(2τR) + 1/2⌋, R = ‖v‖∞."""
    tau, radius = 1 / (2**b - 1), f32(np.max(np.abs(v)))
    if radius == 0:
        return np.zeros_like(v)
    # Zero lies exactly between two codes; written so, no rounding decides about it.
    q = np.clip(np.floor((1 + v / radius) / (2 * tau) + 0.5), 0, 2**b - 1)
    return 2 * tau * radius * q - radius


def grids(b, layers):
    """One grid for each layer; for the whole vector where there are none."""
    return lambda v: np.concatenate([grid(v[layer], b) for layer in layers or [slice(None)]])


def gd(x, g, T, R, layers, u, eta):
    """θ ← θ − α·Σ_m ∇f_m(θ)."""
    x, models = x.copy(), {}
    for t in range(1, T + 1):
        seen = f32(x)
        x = x - eta(t) / R * sum(f32(g(r, seen, t)) for r in range(R))
        models[t] = f32(x)
    return models


def qgd(x, g, T, R, layers, u, eta, bits=4, published=False):
    """LAQ without skipping."""
    return lazily(x, g, T, R, eta, grids(bits, None if published else layers), skips=False)


def lag_wk(x, g, T, R, layers, u, eta, **rule):
    """Chen et al. (2018), LAG-WK: LAQ's rule with exact differences."""
    return lazily(x, g, T, R, eta, f32, **rule)


def laq(x, g, T, R, layers, u, eta, bits=4, published=False, **rule):
    """Sun et al. (2019), Algorithm 2; else a radius for each layer, errors of half the news at most."""
    if published:
        return lazily(x, g, T, R, eta, grids(bits, None), **rule)
    return lazily(x, g, T, R, eta, grids(bits, layers), most=0.5, **rule)


def slaq(x, g, T, R, layers, u, eta, bits=3, ade=0.0, published=False, **rule):
    """The stochastic runs of Sun et al. (2019), their code: ec = 0.5 times the errors, plus ade."""
    rule |= {"factor": 0.5 * 3, "ade": ade, "rolling": True, "most": None if published else 0.5}
    return lazily(x, g, T, R, eta, grids(bits, None if published else layers), **rule)


def lag_ps(x, g, T, R, layers, u, eta, D=10, xi=None, tbar=100, L=None):
    """Chen et al. (2018), LAG-PS: m is asked where L_m²‖θ̂_m − θ^k‖² > (αM)⁻²·Σ_d ξ_d‖θ^{k+1−d} − θ^{k−d}‖².

    Without L_m, the largest quotient ‖∇f_m(θ^k) − ∇f_m(θ̂_m)‖/‖θ^k − θ̂_m‖ so far, everybody being asked
    until there is one.
    """
    x, models = x.copy(), {}
    gradients, hat = [np.zeros(len(x))] * R, [None] * R
    smooth = [0.0] * R if L is None else list(np.broadcast_to(L, R))
    alone, thetas = [0] * R, [f32(x)]
    for k in range(T):
        theta = thetas[-1]
        ck = 10.0 if xi is None else D * xi
        moves = [np.sum((a - b) ** 2) for a, b in zip(thetas[1:], thetas, strict=False)]
        bound = ck / min(max(k, 1), D) * sum(moves[-D:]) / eta(k + 1) ** 2
        for m in range(R):
            known = hat[m] is not None and smooth[m] > 0
            if known and smooth[m] ** 2 * np.sum((hat[m] - theta) ** 2) <= bound and alone[m] < tbar:
                alone[m] += 1
                continue
            difference = f32(g(m, theta, k + 1) - gradients[m])
            if L is None and hat[m] is not None:
                way = np.linalg.norm(theta - hat[m])
                smooth[m] = max(smooth[m], np.linalg.norm(difference) / way)
            gradients[m] = gradients[m] + difference
            hat[m], alone[m] = theta, 0
        x = x - eta(k + 1) / R * sum(gradients)
        thetas.append(f32(x))
        models[k + 1] = thetas[-1]
    return models


def lasg(x, g, T, R, eta, rule, D=10, xi=None, tbar=10):
    """Chen et al. (2020): upload where ‖…‖² ≥ (c/D)·Σ_{d=1…D} ‖θ^{k+1−d} − θ^{k−d}‖², c = ξD/η².

    While fewer than D moves are known the sum is divided by their number, as in the code of LAQ.
    """
    x, models = x.copy(), {}
    sent, clock, then, delta_hat = np.zeros((R, len(x))), [0] * R, [None] * R, [None] * R
    moves, theta = [], f32(x)
    for k in range(T):
        c = (0.8 if xi is None else xi * D) / eta(k + 1) ** 2
        bound = c / min(max(k, 1), D) * sum(moves[-D:])
        if k % D == 0:
            snapshot = theta
        for m in range(R):
            fresh = g(m, theta, k + 1)
            delta = fresh - g(m, snapshot, k + 1)
            if k == 0:
                news = np.inf
            elif rule == 1:
                news = np.sum((delta - delta_hat[m]) ** 2)
            else:
                news = np.sum((fresh - g(m, then[m], k + 1)) ** 2)
            if news < bound and clock[m] < tbar:
                clock[m] += 1
                continue
            sent[m] = sent[m] + f32(fresh - sent[m])
            then[m], delta_hat[m], clock[m] = theta, delta, 0
        x = x - eta(k + 1) / R * np.sum(sent, axis=0)
        moves.append(np.sum((f32(x) - theta) ** 2))
        theta = f32(x)
        models[k + 1] = theta
    return models


def lasg_wk1(x, g, T, R, layers, u, eta, **rule):
    """δ^k = ∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̃; ξ^k) against its value at the last upload."""
    return lasg(x, g, T, R, eta, 1, **rule)


def lasg_wk2(x, g, T, R, layers, u, eta, **rule):
    """∇ℓ(θ^k; ξ^k) against ∇ℓ(θ̂; ξ^k), θ̂ being the model of the last upload."""
    return lasg(x, g, T, R, eta, 2, **rule)


#: By the names under which the presets are registered.
TRANSCRIPTIONS = {
    "gd": gd,
    "qgd": qgd,
    "lag-wk": lag_wk,
    "laq": laq,
    "lag-ps": lag_ps,
    "slaq": slaq,
    "lasg-wk1": lasg_wk1,
    "lasg-wk2": lasg_wk2,
}

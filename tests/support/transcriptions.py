"""The presets, straight from their papers' formulas: plain NumPy, one process that loops over the workers.

Nothing of qsparse is imported. What is common to all:

* ``g(r, x, t)`` is worker r's stochastic gradient at x in step t = 1 … T, ``eta(t)`` the step size;
* ``layers`` are the slices of x that a formula takes one by one;
* ``u(r, t, path, n)`` are n uniforms in [0, 1), where an operator is random;
* floats travel in 32 bits, so `f32` stands wherever a real number is sent;
* each function returns {t: the workers' common model after step t}, for every t at which they meet.

Presets whose workers do not wait are in `transcriptions_async`.

Formulas: Stich (2019), Stich et al. (2018), Karimireddy et al. (2019), Basu et al. (2019), Alistarh et
al. (2017), Wen et al. (2017), Bernstein et al. (2018), Zheng et al. (2019). Lazy algorithms are in
`transcriptions_lazy`.
"""

from __future__ import annotations

import numpy as np


def f32(v):
    """What is left of v when it was sent."""
    return np.asarray(v, np.float32).astype(np.float64)


# --- operators -----------------------------------------------------------------------------------


def top_k(u, k):
    """Top_k(u): the k entries of largest magnitude, the others zero."""
    out = np.zeros_like(u)
    for i in sorted(range(len(u)), key=lambda i: (-abs(u[i]), i))[:k]:
        out[i] = f32(u[i])
    return out


def scaled_sign(v, norm=1):
    """(‖v‖_m/k)·sign(v), sign(0) = +1."""
    size = np.sum(np.abs(v)) if norm == 1 else np.sqrt(np.sum(v * v))
    return f32(size / len(v)) * np.where(v < 0, -1.0, 1.0)


def sign_top_k(u, k, norm=1):
    """(‖Top_k(u)‖_m/k)·sign on the kept entries."""
    kept = np.sort(np.argsort(-np.abs(u), kind="stable")[:k])
    out = np.zeros_like(u)
    out[kept] = scaled_sign(u[kept], norm)
    return out


def q_s(v, s, uniforms):
    """‖v‖₂·sign(v_i)·ξ_i/s, ξ_i = l + 1 with probability s|v_i|/‖v‖₂ − l, else l."""
    norm = np.sqrt(np.sum(v * v))
    if norm == 0:
        return np.zeros_like(v)
    position = s * np.abs(v) / norm
    lower = np.floor(position)
    xi = lower + (uniforms >= 1 - (position - lower))
    return f32(norm / s) * np.sign(v) * np.minimum(xi, s)


def q_s_top_k(u, k, s, uniforms, scaled):
    """Q_s(Top_k(u)), divided by 1 + β_{k,s} where scaled (Lemma 2)."""
    kept = np.sort(np.argsort(-np.abs(u), kind="stable")[:k])
    beta = min(k / s**2, np.sqrt(k) / s)
    norm = np.sqrt(np.sum(u[kept] ** 2))
    levels = np.round(q_s(u[kept], s, uniforms) / f32(norm / s))
    out = np.zeros_like(u)
    out[kept] = f32(norm / s / (1 + beta if scaled else 1)) * levels
    return out


def ternary(v, uniforms):
    """‖v‖∞·sign(v_i)·b_i, b_i = 1 with probability |v_i|/‖v‖∞."""
    s = f32(np.max(np.abs(v)))
    if s == 0:
        return np.zeros_like(v)
    return s * np.sign(v) * (uniforms >= 1 - np.abs(v) / s)


def by_layers(operator, v, layers):
    """The operator (of a vector and the layer's number) on each layer."""
    return np.concatenate([operator(v[layer], number) for number, layer in enumerate(layers)])


# --- what most of them share ---------------------------------------------------------------------


class Momentum:
    """d = g + λx; m ← βm + d; the direction is m, d + βm with Nesterov, d without momentum."""

    def __init__(self, d, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.m = np.zeros(d)
        self.beta, self.nesterov, self.decay = momentum, nesterov, weight_decay

    def direction(self, g, x):
        d = g + self.decay * x
        self.m = self.beta * self.m + d
        return d + self.beta * self.m if self.nesterov else self.m


def one_step_methods(x, g, T, R, eta, C, feedback, **momentum):
    """u_r = m_r + η·(direction of r);  g_r = C(u_r);  m_r = u_r − g_r;  x ← x − (1/R)Σ g_r."""
    x, models = x.copy(), {}
    workers = [Momentum(len(x), **momentum) for _ in range(R)]
    memory = np.zeros((R, len(x)))
    for t in range(1, T + 1):
        seen, total = f32(x), np.zeros_like(x)
        for r in range(R):
            u = memory[r] + eta(t) * workers[r].direction(g(r, seen, t), seen)
            said = C(u, r, t)
            if feedback:
                memory[r] = u - said
            total = total + said
        x = x - total / R
        models[t] = f32(x)
    return models


# --- the presets ---------------------------------------------------------------------------------


def sgd(x, g, T, R, layers, u, eta, momentum=0.0, nesterov=False, weight_decay=0.0):
    """x ← x − η·(direction of the mean gradient), one momentum for all."""
    x, models = x.copy(), {}
    common = Momentum(len(x), momentum, nesterov, weight_decay)
    for t in range(1, T + 1):
        x = x - eta(t) * common.direction(sum(g(r, x, t) for r in range(R)) / R, x)
        models[t] = x.copy()
    return models


def local_sgd(x, g, T, R, layers, u, eta, H=4, **momentum):
    """Each worker for itself; after every H steps (and at the end) the models are averaged."""
    local = [x.copy() for _ in range(R)]
    workers = [Momentum(len(x), **momentum) for _ in range(R)]
    models = {}
    for t in range(1, T + 1):
        for r in range(R):
            local[r] = local[r] - eta(t) * workers[r].direction(g(r, local[r], t), local[r])
        if t % H == 0 or t == T:
            mean = sum(local) / R
            local = [mean.copy() for _ in range(R)]
            models[t] = mean
    return models


def topk_sgd(x, g, T, R, layers, u, eta, k, **momentum):
    """Stich et al. (2018): C = Top_k with memory."""
    return one_step_methods(x, g, T, R, eta, lambda v, r, t: top_k(v, k), True, **momentum)


def ef_signsgd(x, g, T, R, layers, u, eta, **momentum):
    """Karimireddy et al. (2019): C = (‖·‖₁/d)·sign layer by layer, with memory."""

    def C(v, r, t):
        return by_layers(lambda part, number: scaled_sign(part), v, layers)

    return one_step_methods(x, g, T, R, eta, C, True, **momentum)


def signtopk_sgd(x, g, T, R, layers, u, eta, k, norm=1, **momentum):
    """Basu et al. (2019), Lemma 3, with memory."""
    return one_step_methods(x, g, T, R, eta, lambda v, r, t: sign_top_k(v, k, norm), True, **momentum)


def qsgd(x, g, T, R, layers, u, eta, levels=15, **momentum):
    """Alistarh et al. (2017): C = Q_s layer by layer, without memory."""

    def C(v, r, t):
        return by_layers(lambda part, number: q_s(part, levels, u(r, t, (number, 1), len(part))), v, layers)

    return one_step_methods(x, g, T, R, eta, C, False, **momentum)


def terngrad(x, g, T, R, layers, u, eta, **momentum):
    """Wen et al. (2017) without clipping: C = ternary layer by layer, without memory."""

    def C(v, r, t):
        return by_layers(lambda part, number: ternary(part, u(r, t, (number, 1), len(part))), v, layers)

    return one_step_methods(x, g, T, R, eta, C, False, **momentum)


def signum_majority(x, g, T, R, layers, u, eta, momentum=0.9):
    """m_r ← βm_r + (1 − β)g_r;  x ← x − η·sign(Σ_r sign(m_r)) (Bernstein et al., 2018, Algorithm 3)."""
    x, models = x.copy(), {}
    m = np.zeros((R, len(x)))
    for t in range(1, T + 1):
        votes = np.zeros_like(x)
        for r in range(R):
            m[r] = momentum * m[r] + (1 - momentum) * g(r, f32(x), t)
            votes += np.where(m[r] < 0, -1, 1)
        x = x - eta(t) * np.sign(votes)
        models[t] = f32(x)
    return models


def qsparse_local_sgd(x, g, T, R, layers, u, eta, meetings, C, wiped=(), **momentum):
    """Basu et al. (2019), Algorithm 1, with I_T = ``meetings`` and QComp = ``C(u, r, t)``.

    The authors' code wipes the memory after the steps ``wiped``, where the learning rate falls.
    """
    x, models = x.copy(), {}
    hat = np.stack([f32(x)] * R)
    known = f32(x)
    m = np.zeros((R, len(x)))
    workers = [Momentum(len(x), **momentum) for _ in range(R)]
    for t in range(T):
        half = np.stack(
            [hat[r] - eta(t + 1) * workers[r].direction(g(r, hat[r], t + 1), hat[r]) for r in range(R)]
        )
        if t in wiped:
            m[:] = 0
        if t + 1 not in meetings:
            hat = half
            continue
        total = np.zeros_like(x)
        for r in range(R):
            v = m[r] + known - half[r]
            said = C(v, r, t + 1)
            m[r] = v - said
            total = total + said
        x = x - total / R
        known = f32(x)
        hat = np.stack([known] * R)
        models[t + 1] = known
    return models


def qsparse_local_sgd_2way(x, g, T, R, layers, u, eta, meetings, C, D, **momentum):
    """Algorithm 1 of Basu et al. (2019), whose server says D of its model and keeps what it has not said."""
    x = x.copy()
    told, kept, models = x.copy(), np.zeros_like(x), {}
    local, m = np.stack([x] * R), np.zeros((R, len(x)))
    workers = [Momentum(len(x), **momentum) for _ in range(R)]
    for t in range(1, T + 1):
        for r in range(R):
            local[r] = local[r] - eta(t) * workers[r].direction(g(r, f32(local[r]), t), local[r])
        if t not in meetings:
            continue
        step = np.zeros_like(x)
        for r in range(R):
            v = m[r] + told - local[r]
            said = C(v, r, t)
            m[r] = v - said
            step = step + said / R
        # The server's update with what it has kept, as in Zheng et al. (2019).
        answer = D(kept - step, -1, t)
        kept = kept - step - answer
        told = told + answer
        local[:] = told
        models[t] = f32(told)
    return models


def dist_ef(x, g, T, R, eta, C, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Zheng et al. (2019), Algorithm 2 and its momentum version; steps outside, errors rescaled.

    As in the authors' code every worker decays the weights by itself: w ← μw + λx, x ← x − η(Δ + μw + λx).
    """
    x, models = x.copy(), {}
    decay = Momentum(len(x), momentum, nesterov)
    workers = [Momentum(len(x), momentum, nesterov) for _ in range(R)]
    e, server = np.zeros((R, len(x))), np.zeros(len(x))
    for t in range(1, T + 1):
        ratio = eta(t - 1) / eta(t) if t > 1 else 0.0
        mean = np.zeros_like(x)
        for r in range(R):
            p = workers[r].direction(g(r, x, t), x) + ratio * e[r]
            said = C(p)
            e[r] = p - said
            mean = mean + said / R
        total = mean + ratio * server
        answer = C(total)
        server = total - answer
        x = x - eta(t) * (answer + decay.direction(weight_decay * x, x))
        models[t] = x.copy()
    return models


def dist_ef_sgd(x, g, T, R, layers, u, eta, weight_decay=0.0):
    """C is the scaled sign of the whole vector, no momentum."""
    return dist_ef(x, g, T, R, eta, scaled_sign, weight_decay=weight_decay)


def dist_ef_sgdm(x, g, T, R, layers, u, eta, momentum=0.9, nesterov=True, weight_decay=0.0):
    """C is the scaled sign of the whole vector."""
    return dist_ef(x, g, T, R, eta, scaled_sign, momentum, nesterov, weight_decay)


def blocks(x, layers, size, bucket):
    """The layers; or stretches of a size; or layers side by side, as many as a bucket holds."""
    if size is not None:
        return [slice(i, i + size) for i in range(0, len(x), size)]
    if bucket is None:
        return layers
    found, start = [], 0
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if after is None or after.stop - start > bucket:
            found.append(slice(start, layer.stop))
            start = layer.stop
    return found


def dist_ef_blocksgd(x, g, T, R, layers, u, eta, size=None, bucket=None, weight_decay=0.0):
    """C is the scaled sign of each block, no momentum."""
    return dist_ef_blocksgdm(x, g, T, R, layers, u, eta, 0.0, False, size, bucket, weight_decay)


def dist_ef_blocksgdm(
    x, g, T, R, layers, u, eta, momentum=0.9, nesterov=True, size=None, bucket=None, weight_decay=0.0
):
    """C is the scaled sign of each block."""
    parts = blocks(x, layers, size, bucket)
    C = lambda v: by_layers(lambda w, _: scaled_sign(w), v, parts)  # noqa: E731
    return dist_ef(x, g, T, R, eta, C, momentum, nesterov, weight_decay)


#: By the names under which the presets are registered.
TRANSCRIPTIONS = {
    "sgd": sgd,
    "local-sgd": local_sgd,
    "topk-sgd": topk_sgd,
    "ef-signsgd": ef_signsgd,
    "signtopk-sgd": signtopk_sgd,
    "qsgd": qsgd,
    "terngrad": terngrad,
    "signum-majority": signum_majority,
    "qsparse-local-sgd": qsparse_local_sgd,
    "qsparse-local-sgd-2way": qsparse_local_sgd_2way,
    "dist-ef-sgd": dist_ef_sgd,
    "dist-ef-sgdm": dist_ef_sgdm,
    "dist-ef-blocksgd": dist_ef_blocksgd,
    "dist-ef-blocksgdm": dist_ef_blocksgdm,
}

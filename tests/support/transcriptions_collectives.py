"""Server compression inside collectives, straight from the formulas: plain NumPy, as `transcriptions`.

Zheng et al. (2019) compress the mean once more at the server. In a ring allreduce that is between
reduce-scatter and allgather, where every rank is the server of a chunk. Of two levels of servers, the inner
ones are workers of the outer one.
"""

from __future__ import annotations

import numpy as np
from transcriptions import Momentum, f32


def dist_ef_ring(x, g, T, R, eta, chunks, C, D, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Algorithm 2 of Zheng et al. (2019), and with momentum, whose server is cut into that of each chunk.

    ``C`` compresses what a worker says, and ``D`` the mean of a chunk with the chunk's own error.
    """
    x, models = x.copy(), {}
    decay = Momentum(len(x), momentum, nesterov)
    workers = [Momentum(len(x), momentum, nesterov) for _ in range(R)]
    e, kept = np.zeros((R, len(x))), [np.zeros(chunk.stop - chunk.start) for chunk in chunks]
    for t in range(1, T + 1):
        ratio = eta(t - 1) / eta(t) if t > 1 else 0.0
        said = np.zeros((R, len(x)))
        for r in range(R):
            p = workers[r].direction(g(r, x, t), x) + ratio * e[r]
            said[r] = C(p)
            e[r] = p - said[r]
        gathered = []
        for j, chunk in enumerate(chunks):
            scattered = np.mean(said[:, chunk], axis=0) + ratio * kept[j]
            gathered.append(D(scattered))
            kept[j] = scattered - gathered[j]
        x = x - eta(t) * (np.concatenate(gathered) + decay.direction(weight_decay * x, x))
        models[t] = x.copy()
    return models


def two_levels(x, g, T, machines, eta, meetings, inner, outer, feedback=True, down=None, **momentum):
    """Workers say ``inner`` of their net updates at home; machines say ``outer`` of the means to the server.

    With feedback worker r keeps e_r, and machine m keeps ẽ_m, what the two have not said. ``machines`` are
    lists of workers; their means have weights, so the mean over machines is that over workers. A machine of
    one worker says what this one has to say. The server answers with ``down`` of its step and keeps the rest,
    or exactly.
    """
    R, M = sum(map(len, machines)), len(machines)
    x, models = x.copy(), {}
    told, kept = x.copy(), np.zeros_like(x)
    local, e, machine_e = np.stack([x] * R), np.zeros((R, len(x))), np.zeros((M, len(x)))
    workers = [Momentum(len(x), **momentum) for _ in range(R)]
    for t in range(1, T + 1):
        for r in range(R):
            local[r] = local[r] - eta(t) * workers[r].direction(g(r, local[r], t), local[r])
        if t not in meetings:
            continue
        step = np.zeros_like(x)
        for m, ranks in enumerate(machines):
            total = np.zeros_like(x)
            for r in ranks:
                v = told - local[r] + e[r]
                said = inner(v, r, t) if len(ranks) > 1 else f32(v)
                if feedback and len(ranks) > 1:
                    e[r] = v - said
                total = total + said
            q = M / R * total + machine_e[m]
            said = outer(q, ranks[0], t)
            if feedback:
                machine_e[m] = q - said
            step = step + said / M
        if down is None:
            x = x - step
            told = f32(x)
        else:
            answer = down(step + kept)
            kept = step + kept - answer
            told = told - answer
        local[:] = told
        models[t] = f32(told)
    return models

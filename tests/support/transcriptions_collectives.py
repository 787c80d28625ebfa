"""Server compression inside collectives, straight from the formulas: plain NumPy, as `transcriptions`.

Zheng et al. (2019) compress the mean once more at the server. In a ring allreduce that is between
reduce-scatter and allgather, where every rank is the server of a chunk.
"""

from __future__ import annotations

import numpy as np
from transcriptions import Momentum


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

"""Losses whose examples are dealt to workers: what the ranks of an experiment compute.

NumPy lets go of the interpreter's lock in its products, so that ranks which are threads compute at the
same time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from qsparse.local import Oracle
from qsparse.report.base import mean
from qsparse.reproduce.softmax import Array, on_cores
from qsparse.seeds import Seed
from qsparse.types import Vector

_Layers = list[tuple[Array, Array]]

#: Examples in one product.
_BLOCK = 1000


class Objective(ABC):
    """f(x) = (1/R)Σ_r f_r(x), f_r the mean loss of the examples of worker r = 0 … R − 1.

    Args:
        x, y: examples (N, features), float32, and their labels.
        workers: R; the examples are dealt at random.
        seed: of who gets what.

    Attributes:
        start: where training begins, (n,).
    """

    start: Vector

    def __init__(self, x: Array, y: Array, workers: int, seed: Seed) -> None:
        from qsparse.data import shard

        self._shares = [(x[part], y[part]) for part in shard(y, workers, "random", seed)]
        self._seed = seed

    @property
    def sizes(self) -> list[int]:
        """How many examples each worker has."""
        return [len(labels) for _, labels in self._shares]

    @abstractmethod
    def total(self, x: Vector, examples: Array, labels: Array, out: Vector | None) -> float:
        """The *sum* of the examples' losses; its gradient is added to ``out``, if there is one."""

    def oracle(self, worker: int) -> Oracle:
        """Gradients of f_r on a batch, given as indices into the worker's share, or on all of it."""
        examples, labels = self._shares[worker]

        def gradient(x: Vector, batch: Any, out: Vector) -> float:
            out[...] = 0
            if batch is not None:
                total, count = self.total(x, examples[batch], labels[batch], out), len(batch)
            else:
                total, count = self._whole(x, worker, out), len(labels)
            out /= count
            return total / count

        return gradient

    def _whole(self, x: Vector, worker: int, out: Vector | None) -> float:
        examples, labels = self._shares[worker]
        blocks = [slice(begin, begin + _BLOCK) for begin in range(0, len(labels), _BLOCK)]
        return sum(self.total(x, examples[block], labels[block], out) for block in blocks)

    def batches(self, worker: int, size: int) -> Any:
        """The worker's batches, as functions of the step."""
        from qsparse.data import Batches

        return Batches(np.arange(self.sizes[worker]), size, self._seed.at(rank=worker + 1, use="batch"))

    def value(self, x: Vector) -> float:
        """f(x)."""
        sizes = self.sizes
        return mean(on_cores(lambda worker: self._whole(x, worker, None) / sizes[worker], len(sizes)))


class Logistic(Objective):
    """Mean of log(1 + exp(−y(wᵀa + b))), y = ±1, (w, b) the model; it starts at zero.

    Args:
        x, y, workers, seed: as in `Objective`; labels are 0 and 1.
    """

    def __init__(self, x: Array, y: Array, workers: int, seed: Seed) -> None:
        one = np.ones((len(x), 1), x.dtype)
        super().__init__(np.hstack([x, one]), (2 * y - 1).astype(x.dtype), workers, seed)
        self.start = np.zeros(x.shape[1] + 1, x.dtype)

    def total(self, x: Vector, examples: Array, labels: Array, out: Vector | None) -> float:
        """The gradient is −Σ y·σ(−y·aᵀx)·a."""
        margins = labels * (examples @ x)
        # log(1 + exp(−m)) without overflow: exp of a negative number only.
        small = np.exp(-np.abs(margins))
        losses = np.log1p(small) + np.maximum(-margins, 0)
        if out is not None:
            odds = np.where(margins > 0, small, 1) / (1 + small)
            out -= (labels * odds) @ examples
        return float(losses.sum(dtype=np.float64))


class Perceptron(Objective):
    """Fully connected layers with max(0, ·) between them and cross entropy behind the last.

    Args:
        x, y, workers, seed: as in `Objective`.
        sizes: features, hidden units layer by layer, classes. Each layer has a kernel (below, above)
            and a bias, in this order in the model; kernels start normal with variance 2/below (He et
            al., 2015).
    """

    def __init__(self, x: Array, y: Array, workers: int, seed: Seed, sizes: Sequence[int]) -> None:
        super().__init__(x, y, workers, seed)
        self._pairs = list(pairwise(sizes))
        draw = seed.at(use="start").generator()
        layers = [
            (draw.normal(0, np.sqrt(2 / below), below * above), np.zeros(above))
            for below, above in self._pairs
        ]
        self.start = np.concatenate([part for layer in layers for part in layer]).astype(x.dtype)

    def total(self, x: Vector, examples: Array, labels: Array, out: Vector | None) -> float:
        """By backpropagation."""
        layers = self._layers(x)
        signals = [examples]
        for kernel, bias in layers:
            if len(signals) > 1:
                np.maximum(signals[-1], 0, out=signals[-1])
            signals.append(signals[-1] @ kernel + bias)
        scores = signals.pop()
        each = np.arange(len(labels))
        scores -= scores.max(axis=1, keepdims=True)
        true = scores[each, labels].sum(dtype=np.float64)
        np.exp(scores, out=scores)
        totals = scores.sum(axis=1, keepdims=True)
        if out is not None:
            scores /= totals
            scores[each, labels] -= 1
            self._back(layers, signals, scores, out)
        return float(np.log(totals).sum(dtype=np.float64) - true)

    def _back(self, layers: _Layers, signals: list[Array], back: Array, out: Vector) -> None:
        """Add gradients to ``out``, from the last layer to the first; ``back`` is that of the scores."""
        slopes = self._layers(out)
        for place in reversed(range(len(layers))):
            kernel_slope, bias_slope = slopes[place]
            kernel_slope += signals[place].T @ back
            bias_slope += back.sum(axis=0)
            if place:
                back = (back @ layers[place][0].T) * (signals[place] > 0)

    def _layers(self, x: Vector) -> _Layers:
        """Kernels and biases as views of a model."""
        views, at = [], 0
        for below, above in self._pairs:
            end = at + below * above
            views.append((x[at:end].reshape(below, above), x[end : end + above]))
            at = end + above
        return views

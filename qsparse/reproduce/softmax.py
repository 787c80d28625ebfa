"""Softmax regression, many models at once: one matrix product for all of them.

A model is a vector of (features + 1)·classes numbers: the kernel row by row, then the bias.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from qsparse.data.images import Examples as Images
from qsparse.data.images import Pictures
from qsparse.errors import DataError, SettingError, installing
from qsparse.reproduce.base import dataset
from qsparse.types import Vector

Array = npt.NDArray[Any]
T = TypeVar("T")

_WHERE: Final = "LIBSVM's data sets are at https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets"

#: Examples in one product: a block of scores of some dozen models fits the cache.
BLOCK = 2000


class Softmax:
    """f_m(θ) = mean of −log softmax(Wx + b)_y over the examples of worker m + (λ/2)‖θ‖², θ = (W, b).

    Worker m has the m-th of ``workers`` equal stretches of the examples.

    Args:
        x, y: examples (N, features) of the type of the models, and their labels.
        workers: M; N must be a multiple of it.
        decay: λ; the bias is regularised too.
        classes: how many labels there are.
    """

    def __init__(self, x: Array, y: Array, workers: int, decay: float, classes: int = 10) -> None:
        if len(x) % workers:
            raise SettingError(f"{len(x)} examples cannot be dealt evenly to {workers} workers")
        self.x = x
        self.y = y
        self.workers = workers
        self.decay = decay
        self.classes = classes
        self.size = (x.shape[1] + 1) * classes
        self.share = len(x) // workers

    def gradients(self, models: Sequence[Vector], out: Sequence[Array]) -> npt.NDArray[np.float64]:
        """Every worker's gradient of every model; workers are dealt to as many threads as there are cores.

        Args:
            models: (n,) each.
            out: for each model where its gradients go, (M, n), a row for each worker.

        Returns:
            the mean loss of each model, (1/M)Σ_m f_m; sums of it are kept in float64.
        """

        def work(worker: int) -> npt.NDArray[np.float64]:
            own = slice(worker * self.share, (worker + 1) * self.share)
            return gradients(self.x[own], self.y[own], models, [rows[worker] for rows in out], self.classes)

        losses = np.sum(on_cores(work, self.workers), axis=0) / self.workers
        for model, rows in zip(models, out, strict=True):
            rows += self.decay * model
        squares = [np.square(model, dtype=np.float64).sum() for model in models]
        mean: npt.NDArray[np.float64] = losses + self.decay / 2 * np.array(squares)
        return mean


def gradients(
    x: Array, y: Array, models: Sequence[Vector], out: Sequence[Vector], classes: int = 10
) -> npt.NDArray[np.float64]:
    """The gradient of the mean of −log softmax(Wx + b)_y, for each model; returns that mean of each.

    Args:
        x, y: examples (N, features) of the type of the models, and their labels.
        models: (n,) each.
        out: where the gradient of each goes, (n,).
        classes: how many labels there are.
    """
    stacked = stack(models, classes)
    loss = np.zeros(len(models))
    kernels, biases = np.zeros_like(stacked.kernels), np.zeros_like(stacked.biases)
    for begin in range(0, len(x), BLOCK):
        block = slice(begin, begin + BLOCK)
        scores = stacked.scores(x[block])
        loss += _slopes(scores.reshape(classes, len(models), -1), y[block])
        scores /= len(x)
        kernels += scores @ x[block]
        biases += scores.sum(axis=1, keepdims=True)
    for place, gradient in enumerate(out):
        mine = slice(place, None, len(models))
        gradient[:-classes].reshape(-1, classes)[...] = kernels[mine].T
        gradient[-classes:] = biases[mine, 0]
    return loss / len(x)


def _slopes(scores: Array, y: Array) -> npt.NDArray[np.float64]:
    """Turn scores, (classes, models, N), into p − 1_y in place; returns Σ −log p_y of each model."""
    each = np.arange(len(y))
    scores -= scores.max(axis=0)
    true = scores[y, :, each].sum(axis=0, dtype=np.float64)
    np.exp(scores, out=scores)
    totals = scores.sum(axis=0)
    scores /= totals
    scores[y, :, each] -= 1
    loss: npt.NDArray[np.float64] = np.log(totals).sum(axis=1, dtype=np.float64) - true
    return loss


def on_cores(work: Callable[[int], T], count: int) -> list[T]:
    """work(0) … work(count − 1), dealt to as many threads as there are cores: NumPy lets go of the lock.

    One thread of the linear algebra library each is quicker than all of its threads for one product
    after the other, above all where others use the cores too.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(work, range(count)))


class Stacked(NamedTuple):
    """Models one below the other, sorted by class, so that sums over classes run along whole rows."""

    kernels: Array  # (classes·models, features)
    biases: Array  # (classes·models, 1)

    def scores(self, x: Array) -> Array:
        """(classes·models, N): Wx + b of each example, class by class."""
        scores: Array = self.kernels @ x.T
        scores += self.biases
        return scores


def stack(models: Sequence[Vector], classes: int) -> Stacked:
    """The models side by side."""
    rows = np.stack([model.reshape(-1, classes).T for model in models], axis=1)
    rows = rows.reshape(-1, rows.shape[2])
    return Stacked(np.ascontiguousarray(rows[:, :-1]), rows[:, -1:].copy())


def accuracy(models: Sequence[Vector], x: Array, y: Array, classes: int = 10) -> list[float]:
    """Of each model, the share of examples whose highest score is that of their label."""
    scores = stack(models, classes).scores(x).reshape(classes, len(models), len(y))
    return [float(share) for share in (scores.argmax(axis=0) == y).mean(axis=1)]


class Examples(NamedTuple):
    """A data set as softmax regression takes it: features in float32, and labels."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array
    classes: int


def examples(name: str, data_dir: Path | None, workers: int = 1) -> Examples:
    """A data set by name: pictures as pixel/255, other values as they are.

    Args:
        name: as of `qsparse.data.load`.
        data_dir: the folder to look in first.
        workers: the last examples are left out, so that so many have equally many.

    Raises:
        SettingError: there is no such data set, or a library that loads it is missing.
        DataError: the data is nowhere, or malformed.
    """
    try:
        data = dataset(name, data_dir)
    except DataError as error:
        raise DataError(f"{error}. {_WHERE}" if name != "mnist" else str(error)) from None
    whole = len(data.train_y) - len(data.train_y) % workers
    train, test = _features(data.train_x), _features(data.test_x)
    return Examples(train[:whole], data.train_y[:whole], test, data.test_y, data.classes)


def mnist(data_dir: Path | None) -> tuple[Array, Array, Array, Array]:
    """MNIST's pictures as float32 of pixel/255, and labels: those to train on, then those to test."""
    return examples("mnist", data_dir)[:4]


def _features(found: Images) -> Array:
    if not isinstance(found, Pictures):
        return np.asarray(found[:], np.float32).reshape(len(found), -1)
    pixels = found.raw.reshape(len(found), -1).astype(np.float32)
    pixels /= np.float32(255)
    return pixels


def minimum(problem: Softmax) -> tuple[float, float]:
    """The smallest (1/M)Σ_m f_m, and ‖∇f‖ there, by L-BFGS in float64: off by at most ‖∇f‖²/(2λ).

    Raises:
        SettingError: SciPy is missing.
    """
    try:
        from scipy.optimize import minimize
    except ModuleNotFoundError as error:
        raise SettingError(f"the reference needs SciPy ({error}): {installing('train')}") from None
    exact = problem.x.astype(np.float64)
    whole = Softmax(exact, problem.y, problem.workers, problem.decay, problem.classes)
    gradients = np.empty((whole.workers, whole.size))

    def loss(theta: Array) -> tuple[float, Array]:
        value = whole.gradients([theta], [gradients])
        return float(value[0]), gradients.mean(axis=0)

    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 0.0, "gtol": 1e-8, "maxcor": 30}
    found = minimize(loss, np.zeros(whole.size), jac=True, method="L-BFGS-B", options=options)
    return float(found.fun), float(np.linalg.norm(found.jac))

"""Who trains on what, and in which order: functions of a seed, without a state to save."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qsparse.data import names
from qsparse.errors import SettingError
from qsparse.seeds import Seed

Indices = npt.NDArray[np.intp]


def permutation(n: int, seed: Seed) -> Indices:
    """A random order of 0 to ``n - 1`` that depends on the seed alone.

    It sorts the raw words of the counter-based generator, which every release of NumPy gives alike;
    the streams of `Generator.permutation` may change between releases.
    """
    return np.argsort(seed.generator().bit_generator.random_raw(n), kind="stable")


def shard(labels: npt.NDArray[Any], ranks: int, how: str, seed: Seed) -> list[Indices]:
    """Deal the examples to the ranks: every example goes to exactly one rank, every rank gets some.

    Args:
        labels: the label of each example, shape ``(N,)``.
        ranks: how many ranks share them.
        how: ``contiguous`` (rank i gets the i-th stretch of the file), ``random`` (a stretch of a
            random order) or ``dirichlet(ALPHA)`` (each label is spread over the ranks in proportions
            drawn from a symmetric Dirichlet distribution: the smaller ALPHA, the fewer labels a rank
            sees). The first two give sizes that differ by at most one.
        seed: of the run; its rank, step and use do not matter, so that all ranks agree.

    Returns:
        the indices of each rank, in the order of the ranks.

    Raises:
        SettingError: an unknown way of dealing, or more ranks than examples.

    >>> [part.tolist() for part in shard(np.zeros(7, np.int64), 3, "contiguous", Seed(0))]
    [[0, 1, 2], [3, 4], [5, 6]]
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise SettingError(f"labels have shape {labels.shape}: give one label per example")
    n = len(labels)
    if ranks < 1:
        raise SettingError(f"examples cannot be dealt to {ranks} ranks: give at least 1")
    if ranks > n:
        raise SettingError(f"{n} examples cannot be dealt to {ranks} ranks: every rank needs at least one")
    seed = seed.at(rank=0, step=0, use="shard")
    name, arguments = names.parse(how)
    if name == "dirichlet":
        return _dirichlet(labels, ranks, _alpha(how, arguments), seed)
    if name not in ("contiguous", "random"):
        raise SettingError(
            f"{how!r} is no way of dealing examples: use contiguous, random or dirichlet(ALPHA), "
            "e.g. dirichlet(0.5)"
        )
    if arguments:
        raise SettingError(f"{how!r}: {name} takes nothing in brackets")
    order = np.arange(n, dtype=np.intp) if name == "contiguous" else permutation(n, seed)
    return list(np.array_split(order, ranks))


def _alpha(how: str, arguments: tuple[str, ...]) -> float:
    try:
        (word,) = arguments
        alpha = float(word.removeprefix("alpha").lstrip(" ="))
    except ValueError:
        raise SettingError(f"{how!r} does not say ALPHA: write e.g. dirichlet(0.5)") from None
    if not (alpha > 0 and math.isfinite(alpha)):
        raise SettingError(f"{how!r}: ALPHA must be a number above 0")
    return alpha


def _dirichlet(labels: npt.NDArray[Any], ranks: int, alpha: float, seed: Seed) -> list[Indices]:
    owner = np.empty(len(labels), dtype=np.intp)
    for number, label in enumerate(np.unique(labels)):
        mine = np.flatnonzero(labels == label)
        draw = seed.child(number)
        shares = draw.generator().dirichlet(np.full(ranks, alpha))
        ends = np.rint(np.cumsum(shares) * len(mine)).astype(np.intp)
        ends[-1] = len(mine)
        shuffled = mine[permutation(len(mine), draw.child(0))]
        for rank, part in enumerate(np.split(shuffled, ends[:-1])):
            owner[part] = rank
    # A strong skew leaves ranks with nothing; the largest shard then gives its last example.
    sizes = np.bincount(owner, minlength=ranks)
    for empty in np.flatnonzero(sizes == 0):
        giver = int(np.argmax(sizes))
        owner[np.flatnonzero(owner == giver)[-1]] = empty
        sizes[giver] -= 1
        sizes[empty] += 1
    return [np.flatnonzero(owner == rank) for rank in range(ranks)]


class Batches:
    """The batches of one rank as a function of the step, so that resuming needs no state.

    Step t belongs to epoch ``e = t // steps_per_epoch``; its indices are a stretch of a permutation
    drawn from ``seed.at(step=e)``. The incomplete batch at the end of an epoch is dropped.

    Args:
        indices: the rank's examples, shape ``(n,)``.
        batch_size: examples per step.
        seed: the rank's stream, e.g. ``Seed(run, rank, use="batch")``.

    Raises:
        SettingError: a batch of less than one example, or of more than the shard has.

    Attributes:
        steps_per_epoch: whole batches in one pass over the shard.
    """

    def __init__(self, indices: npt.NDArray[Any], batch_size: int, seed: Seed) -> None:
        self._indices = np.array(indices, dtype=np.intp)
        if self._indices.ndim != 1:
            raise SettingError(f"indices have shape {self._indices.shape}: give a flat array")
        if batch_size < 1:
            raise SettingError(f"a batch of {batch_size} examples: give at least 1")
        if batch_size > len(self._indices):
            raise SettingError(
                f"a batch of {batch_size} examples is larger than the rank's shard of {len(self._indices)}: "
                "use smaller batches or fewer ranks"
            )
        self.batch_size = batch_size
        self.steps_per_epoch = len(self._indices) // batch_size
        self._seed = seed
        self._epoch: tuple[int, Indices] | None = None

    def batch(self, t: int) -> Indices:
        """The indices of step t, shape ``(batch_size,)``; t counts from 0 without end."""
        if t < 0:
            raise SettingError(f"there is no step {t}: steps count from 0")
        epoch, within = divmod(t, self.steps_per_epoch)
        cached = self._epoch
        if cached is None or cached[0] != epoch:
            order = permutation(len(self._indices), self._seed.at(step=epoch))
            cached = self._epoch = (epoch, self._indices[order])
        start = within * self.batch_size
        # A copy: a caller who sorts its batch must not change the epoch.
        return cached[1][start : start + self.batch_size].copy()

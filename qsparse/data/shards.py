"""Who trains on what, and in which order: functions of a seed, without a state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qsparse.data.base import Indices, Sharding
from qsparse.errors import SettingError
from qsparse.registry import build, register
from qsparse.seeds import Seed


def permutation(n: int, seed: Seed) -> Indices:
    """A random order of 0 to ``n - 1`` that depends on the seed alone.

    It sorts the raw words of the counter-based generator, which every release of NumPy gives alike;
    the streams of `Generator.permutation` may change between releases.
    """
    return np.argsort(seed.generator().bit_generator.random_raw(n), kind="stable")


#: A data set must be the same in every run.
_SPLIT: Final = Seed(0, use="split")


def split(n: int) -> tuple[Indices, Indices]:
    """The indices to train on and those to test on, a fifth, of n examples that come without a test set."""
    order = permutation(n, _SPLIT)
    cut = n * 4 // 5
    return order[:cut], order[cut:]


def shard(labels: npt.NDArray[Any], ranks: int, how: str, seed: Seed) -> list[Indices]:
    """Deal the examples to the ranks: every example goes to exactly one rank, every rank gets some.

    Args:
        labels: the label of each example, shape ``(N,)``.
        ranks: how many ranks share them.
        how: a sharding: ``contiguous``, ``random``, ``dirichlet(ALPHA)``, or one of yours.
        seed: of the run; its rank, step and use do not matter, so that all ranks agree.

    Returns:
        the indices of each rank, in the order of the ranks.

    Raises:
        UnknownPart: there is no sharding of this name.
        SettingError: a sharding that cannot be, or leaves examples or ranks out; more ranks than examples.

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
    sharding: Sharding = build(how, "sharding")
    shares = sharding.deal(labels, ranks, seed.at(rank=0, step=0, use="shard"))
    dealt = np.sort(np.concatenate([np.empty(0, np.intp), *shares]))
    if len(shares) != ranks or not all(map(len, shares)) or not np.array_equal(dealt, np.arange(n)):
        raise SettingError(
            f"{how!r} deals {n} examples to {ranks} ranks as {list(map(len, shares))}: every example must go "
            "to exactly one rank, and every rank must get some"
        )
    return shares


@register("contiguous")
@dataclass(frozen=True)
class Contiguous(Sharding):
    """Rank i gets the i-th stretch of the file; sizes differ by at most one."""

    def deal(self, labels: npt.NDArray[Any], ranks: int, seed: Seed) -> list[Indices]:
        """Stretches of the order that there is."""
        return list(np.array_split(np.arange(len(labels), dtype=np.intp), ranks))


@register("random")
@dataclass(frozen=True)
class Random(Sharding):
    """Every rank gets a stretch of a random order; sizes differ by at most one."""

    def deal(self, labels: npt.NDArray[Any], ranks: int, seed: Seed) -> list[Indices]:
        """Stretches of a random order."""
        return list(np.array_split(permutation(len(labels), seed), ranks))


@register("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Sharding):
    """Each label is spread over the ranks in proportions of a symmetric Dirichlet distribution.

    Args:
        alpha: of the distribution, above 0: the smaller, the fewer labels a rank sees.
    """

    alpha: float

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not (number and 0 < self.alpha < math.inf):
            raise SettingError(
                f"dirichlet({self.alpha}): ALPHA must be a number above 0, e.g. dirichlet(0.5)"
            )

    def deal(self, labels: npt.NDArray[Any], ranks: int, seed: Seed) -> list[Indices]:
        """Each label by itself; a rank with nothing then gets the last example of the largest share."""
        owner = np.empty(len(labels), dtype=np.intp)
        for number, label in enumerate(np.unique(labels)):
            mine = np.flatnonzero(labels == label)
            draw = seed.child(number)
            shares = draw.generator().dirichlet(np.full(ranks, float(self.alpha)))
            ends = np.rint(np.cumsum(shares) * len(mine)).astype(np.intp)
            ends[-1] = len(mine)
            shuffled = mine[permutation(len(mine), draw.child(0))]
            for rank, part in enumerate(np.split(shuffled, ends[:-1])):
                owner[part] = rank
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

"""A classifier and a data set as something that `qsparse.run` trains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from qsparse.data import Batches, Dataset, Examples, PictureFiles, SparseRows, shard
from qsparse.data.augment import crop_flip
from qsparse.data.base import Indices
from qsparse.errors import SettingError
from qsparse.kernels.vector import squared_norm
from qsparse.run.problem import Score
from qsparse.seeds import Seed
from qsparse.torch.flat import FlatModel, as_batch
from qsparse.torch.models import build_model
from qsparse.torch.recipe import Recipe
from qsparse.torch.sparse import takes_sparse
from qsparse.types import Vector


def use_threads(count: int) -> None:
    """Let torch compute with so many threads in this rank; called in each rank that is a thread too."""
    torch.set_num_threads(count)


#: Examples at a time in a gradient of a whole share; batch statistics, and the order of sums, go by it.
_CHUNK = 1000
#: Values of sparse examples at a time there: each time a gradient as long as the model is formed and added.
_VALUES = 2**20

#: Examples at a time in an evaluation, where resnet50 takes 4.5 MB for one, on each rank. So few stay in the
#: caches: resnet20 on pictures of CIFAR-10 takes a third less time than with 1000.
_TESTED = 256


class Classification:
    """Cross entropy of a model on one rank's share of a data set; a `qsparse.run.Problem`.

    Args:
        data: the whole data set.
        model: a name for `build_model`.
        batch_size: examples of one worker's step; None: all of its share, so that a step is an epoch.
        share: this rank's number among the workers; None where it does not work.
        workers: number of workers.
        sharding: a way of dealing for `shard`.
        seed: of the run.
        recipe: what is done to examples, loss and gradient.
    """

    def __init__(
        self,
        data: Dataset,
        model: str,
        batch_size: int | None,
        share: int | None,
        workers: int,
        sharding: str,
        seed: Seed,
        recipe: Recipe = Recipe(),
    ) -> None:
        if recipe.augment != "none" and len(data.shape) != 3:
            raise SettingError(
                f"{recipe.augment} needs pictures of shape (channels, height, width), and the examples of "
                f"{data.name} have shape {data.shape}: leave augment out"
            )
        if recipe.augment == "resized-crop-flip" and not isinstance(data.train_x, PictureFiles):
            raise SettingError(
                f"{recipe.augment} takes parts of pictures in files, as those of imagefolder:PATH, and "
                f"{data.name} has none: use crop-flip"
            )
        self.data, self.recipe = data, recipe
        self.flat = FlatModel(build_model(model, data.shape, data.classes, seed))
        self._sparse = takes_sparse(self.flat.model, data.train_x)
        if self._sparse and recipe.precision != "float32":
            raise SettingError(
                f"precision {recipe.precision} has no effect: {model} adds up the few values of sparse "
                "examples, and has no product of matrices to be narrowed; leave it out"
            )
        self._chunk = _CHUNK
        if isinstance(data.train_x, SparseRows) and self._sparse:
            self._chunk = max(1, _VALUES * len(data.train_x) // max(1, len(data.train_x.values)))
        self.vector, self.gradient_vector = self.flat.vector, self.flat.gradient
        self.buffers, self.layout = self.flat.buffers, self.flat.layout
        shares = shard(data.train_y, workers, sharding, seed)
        steps = "whole" if batch_size is None else f"batches of {batch_size}"
        told = filter(None, [data.describe(), f"{sharding} shares, {steps}", recipe.describe()])
        self.description = ", ".join(told)
        # Shares may differ by an example, or in size where labels are skewed; all ranks take the
        # same number of steps, so an epoch is the smallest share's.
        smallest = min(shares, key=len)
        self._share = shares[share or 0]
        self._batches: Batches | None = None
        if batch_size is not None:
            self.steps_per_epoch = Batches(smallest, batch_size, seed).steps_per_epoch
            self._batches = Batches(self._share, batch_size, seed.at(rank=share or 0, use="batch"))
        elif len(smallest):
            self.steps_per_epoch = 1
        else:
            raise SettingError("a worker has no examples, and its steps go over all it has: use fewer ranks")
        self._changes = seed.at(rank=share or 0, use="augment")

    def batch(self, t: int) -> Any:
        """The examples of step t = 1, 2, …; None where it is the whole share."""
        if self._batches is None:
            return None
        augment, seed = self.recipe.augment, self._changes.at(step=t)
        parts = seed if augment == "resized-crop-flip" else None
        examples, labels = self._taken(self._batches.batch(t - 1), parts)
        if augment == "crop-flip":
            crop_flip(examples.numpy(), seed)
        return examples, labels

    def gradient(self, x: Vector, batch: Any, out: Vector) -> float:
        """The gradient at the model's own vector, which lands in ``gradient_vector``.

        Without a batch it is that of the mean loss over this rank's whole share.
        """
        assert x is self.vector
        assert out is self.gradient_vector
        model = self.flat.model
        model.train()
        self.flat.zero_grad()
        loss = self._whole() if batch is None else self._add_gradient(batch, 1.0)
        self._clip(out)
        return loss

    def _whole(self) -> float:
        share = self._share
        chunks = [share[i : i + self._chunk] for i in range(0, len(share), self._chunk)]
        return sum(self._add_gradient(self._taken(chunk), len(chunk) / len(share)) for chunk in chunks)

    def _taken(self, indices: Indices, changes: Seed | None = None) -> tuple[Any, Any]:
        return as_batch(self.data.train_x, self.data.train_y, indices, self._sparse, changes)

    def _add_gradient(self, batch: Any, weight: float) -> float:
        examples, labels = batch
        # Each weight is used once, so keeping it as bfloat16 gains nothing, and threads would share that.
        narrow = self.recipe.precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow, cache_enabled=False):
            logits = self.flat.model(examples)
        smoothing = self.recipe.label_smoothing
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing) * weight
        loss.backward()
        return float(loss.detach())

    def _clip(self, gradient: Vector) -> None:
        most = self.recipe.clip
        # What is not finite goes on as it is, and is refused where it is to be said.
        if most is not None and (norm := math.sqrt(squared_norm(gradient))) > most:
            gradient *= gradient.dtype.type(most / norm)

    def evaluate(self, rank: int = 0, ranks: int = 1) -> Score:
        """How the model does on the rank-th of so many stretches of the test set, which may be empty."""
        x, y = self.data.test_x, self.data.test_y
        places = len(y) * rank // ranks, len(y) * (rank + 1) // ranks
        return evaluate(self.flat.model, x, y, *places, top5=self.data.classes > 5)

    def training_loss(self) -> float:
        """The mean loss on training examples, evenly spaced, at most as many as there are for tests."""
        x, y = self.data.train_x, self.data.train_y
        some = np.linspace(0, len(y), min(len(y), len(self.data.test_y)), endpoint=False).astype(np.int64)
        score = evaluate(self.flat.model, x[some], y[some])
        return score.loss / score.tested


class Network:
    """Gradients of a model's mean cross entropy at vectors that lie elsewhere: one for all virtual workers.

    Args:
        data: what to train and test on.
        model: a name for `build_model`; without batch statistics, which no vector here would hold.
        seed: of the starting point.

    Attributes:
        vector: the starting point, until a vector is `put` there, (n,).
        layout: the model's layers.
    """

    def __init__(self, data: Dataset, model: str, seed: Seed) -> None:
        self.data = data
        self.flat = FlatModel(build_model(model, data.shape, data.classes, seed))
        if self.flat.buffers.size:
            raise SettingError(f"{model} has batch statistics, which virtual workers do not share")
        self.vector, self.layout = self.flat.vector, self.flat.layout

    def put(self, x: Vector) -> None:
        """Compute at x, (n,), from here on."""
        np.copyto(self.vector, x)

    def gradient(self, examples: Indices, out: Vector) -> float:
        """The gradient on these examples of the training set, into ``out``, (n,); returns the loss."""
        flat, data = self.flat, self.data
        flat.model.train()
        flat.zero_grad()
        x, y = as_batch(data.train_x, data.train_y, examples, takes_sparse(flat.model, data.train_x))
        if len(data.shape) == 3:
            # A third less time for small convolutions.
            x = x.contiguous(memory_format=torch.channels_last)
        loss = functional.cross_entropy(flat.model(x), y)
        loss.backward()
        np.copyto(out, flat.gradient)
        return float(loss.detach())

    def accuracy(self, x: Examples, y: npt.NDArray[Any]) -> float:
        """The share of examples that it puts into their class."""
        return evaluate(self.flat.model, x, y).accuracy


def evaluate(
    model: torch.nn.Module,
    x: Examples,
    y: npt.NDArray[Any],
    first: int = 0,
    last: int | None = None,
    top5: bool = False,
) -> Score:
    """How a model does on some examples.

    Args:
        model: it is left in evaluation mode.
        x, y: examples and labels.
        first, last: from which to before which; all of them unless given.
        top5: also count those whose class is among the 5 highest.
    """
    model.eval()
    right, loss, last = 0, 0.0, len(y) if last is None else last
    among = 0
    sparse = takes_sparse(model, x)
    with torch.no_grad():
        for start in range(first, last, _TESTED):
            examples, labels = as_batch(x, y, np.arange(start, min(start + _TESTED, last)), sparse)
            logits = model(examples)
            right += int((logits.argmax(1) == labels).sum())
            if top5:
                among += int((_ranks(logits, labels) < 5).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return Score(right, loss, last - first, among if top5 else None)


def _ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many classes come before that of each label; of equal ones the first, as `torch.argmax` has it.

    What is not a number comes before all others, so a model that diverged is not right by chance.
    """
    own = logits.gather(1, labels[:, None])
    equal = (logits == own) & (torch.arange(logits.shape[1]) < labels[:, None])
    return (~(logits <= own) | equal).sum(1)

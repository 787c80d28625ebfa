"""What a run trains: a model, its data, and the score of the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from qsparse.types import Layout, Vector


class Score(NamedTuple):
    """The score of a model on some examples, as sums, which can be added over ranks.

    Attributes:
        right: the number of examples that are classified correctly.
        loss: the sum of their losses.
        tested: the number of examples.
        top5: the number of examples whose class is among the 5 highest; None where there are not more than 5.
    """

    right: int
    loss: float
    tested: int
    top5: int | None = None

    @classmethod
    def total(cls, scores: Iterable[Score]) -> Score:
        """The score on all examples of several scores; losses are added in their order."""
        right, loss, tested, top5 = zip(*scores, strict=True)
        return cls(sum(right), sum(loss), sum(tested), None if None in top5 else sum(top5))

    @property
    def accuracy(self) -> float:
        """The share of examples that are classified correctly."""
        return self.right / self.tested

    def figures(self) -> dict[str, float]:
        """The figures ``test_accuracy``, ``test_loss`` (the mean) and, with more than 5 classes, ``top5``."""
        found = {"test_accuracy": self.accuracy, "test_loss": self.loss / self.tested}
        return found if self.top5 is None else found | {"top5": self.top5 / self.tested}


class Problem(Protocol):
    """What is trained: one rank's model, its share of the data, and the score of the model.

    Attributes:
        vector: the model's parameters as one vector, (n,); changed in place.
        gradient_vector: the vector for the result of `gradient`, (n,).
        buffers: values that are not trained but averaged where the model is evaluated, such as batch
            statistics; may be empty.
        layout: the parameters' layers.
        description: values that must be equal on all ranks, e.g. the shapes and checksums of the data.
        steps_per_epoch: the number of steps in which a worker sees its share once.
    """

    vector: Vector
    gradient_vector: Vector
    buffers: Vector
    layout: Layout
    description: str
    steps_per_epoch: int

    def batch(self, t: int) -> Any:
        """This rank's batch of step t = 1, 2, …"""

    def gradient(self, x: Vector, batch: Any, out: Vector) -> float:
        """The oracle of `qsparse.local`: loss and gradient; without a batch, over this rank's whole share."""

    def evaluate(self, rank: int = 0, ranks: int = 1) -> Score:
        """The score of the model in ``vector`` on the rank-th of ``ranks`` parts of the test set."""

    def training_loss(self) -> float:
        """The mean loss of the model in ``vector`` on training examples, at most as many as are tested on."""

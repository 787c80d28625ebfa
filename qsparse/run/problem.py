"""What a run trains: a model, its data, and the score of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from qsparse.types import Layout, Vector

if TYPE_CHECKING:
    pass


class Score(NamedTuple):
    """The score of a model on some examples, as sums, which can be added over ranks.

    Attributes:
        right: the number of examples that are classified correctly.
        loss: the sum of their losses.
        tested: the number of examples.
    """

    right: int
    loss: float
    tested: int

    @property
    def accuracy(self) -> float:
        """The share of examples that are classified correctly."""
        return self.right / self.tested

    def figures(self) -> dict[str, float]:
        """The figures ``test_accuracy`` and ``test_loss`` (the mean)."""
        return {"test_accuracy": self.accuracy, "test_loss": self.loss / self.tested}


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

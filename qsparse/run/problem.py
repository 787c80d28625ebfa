"""What a run trains: a model, its data, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from qsparse.types import Layout, Vector

if TYPE_CHECKING:
    pass


class Score(NamedTuple):
    """How a model does on some examples: sums, which ranks can add up.

    Attributes:
        right: examples that are put into their class.
        loss: the sum of their losses.
        tested: how many examples there are.
    """

    right: int
    loss: float
    tested: int

    @property
    def accuracy(self) -> float:
        """The share of examples that are put into their class."""
        return self.right / self.tested

    def figures(self) -> dict[str, float]:
        """``test_accuracy`` and ``test_loss``, the mean."""
        return {"test_accuracy": self.accuracy, "test_loss": self.loss / self.tested}


class Problem(Protocol):
    """What is trained: one rank's model, its share of the data, and how good it is.

    Attributes:
        vector: the model's parameters as one vector, (n,); moved in place.
        gradient_vector: where `gradient` leaves its result, (n,).
        buffers: what is not trained but averaged where the model is evaluated, as batch statistics are; may
            be empty.
        layout: the parameters' layers.
        description: what must be equal on all ranks, e.g. the shapes and checksums of the data.
        steps_per_epoch: steps in which a worker sees its share once.
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
        """The oracle of `qsparse.local`; without a batch, over this rank's whole share."""

    def evaluate(self, rank: int = 0, ranks: int = 1) -> Score:
        """How the model in ``vector`` does on the rank-th of so many stretches of what it is tested on."""

"""The problems and the algorithms of the double-quantization experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from qsparse.algorithm import Algorithm
from qsparse.presets import acc_asyfpg, acc_asylpg, asyfpg, asylpg, qsvrg, sparse_asylpg

#: Of h(x) = (DECAY/2)‖x‖², in the server's prox; the bias is regularised too.
DECAY: Final = 1e-4
#: How often the loss is looked at in an epoch.
GRAIN: Final = 8
#: Features, hidden units, classes.
LAYERS: Final = (784, 64, 32, 10)


@dataclass(frozen=True)
class Case:
    """A problem, and how all rows go about it.

    Args:
        name, title: of the problem.
        lr: η of all rows; ηₛ = η/θₛ where accelerated.
        tried: the other values of η that were tried.
        mu: μ.
        batch: examples of a worker's step.
        inner: steps of a worker between snapshots.
        epochs: of a run; each ends with a new snapshot.
        compared: the common target is the baseline's loss after so many epochs,
        tolerance: and so much more, relatively.
        repetitions: with other shares, starts, batches, random numbers and arrivals.
        workers: R.
        bits: b, of a coordinate of a report.
        also: the other μ that were tried, for the note of the table.
    """

    name: str
    title: str
    lr: float
    tried: tuple[float, ...]
    mu: float
    batch: int
    inner: int
    epochs: int
    compared: int
    tolerance: float
    repetitions: int
    workers: int = 8
    bits: int = 4
    also: str = ""


A9A: Final = Case(
    "a9a", "a9a, logistic regression", 0.1, (0.05, 0.15, 0.2, 0.3, 1.0),
    mu=0.5, batch=40, inner=200, epochs=12, compared=10, tolerance=0.002, repetitions=3,
)  # fmt: skip
MNIST: Final = Case(
    "mnist", f"MNIST, fully connected {'-'.join(map(str, LAYERS))}", 0.02, (0.03, 0.04, 0.1),
    mu=1.0, batch=75, inner=225, epochs=8, compared=6, tolerance=0.01, repetitions=1,
    also=" (also tried: 0.5)",
)  # fmt: skip


class Row(NamedTuple):
    """An algorithm, the one that it is held against, and what is wanted and published of its gains.

    Attributes:
        up, total: times fewer bits that it should take.
        published: by problem; those of real-sim stand beside a9a, which is of its kind.
    """

    name: str
    baseline: str
    algorithm: Callable[[Case], Algorithm]
    up: float = 0.0
    total: float = 0.0
    published: tuple[float, float] | None = None


ROWS: Final = (
    Row("AsyFPG", "AsyFPG", lambda c: asyfpg(inner=c.inner).with_(lr=c.lr, l2=DECAY)),
    Row("QSVRG", "AsyFPG", lambda c: qsvrg(inner=c.inner).with_(lr=c.lr, bits=c.bits, l2=DECAY)),
    Row(
        "AsyLPG", "AsyFPG",
        lambda c: asylpg(inner=c.inner).with_(lr=c.lr, bits=c.bits, mu=c.mu, l2=DECAY), 7, 4.5, (6.48, 7.28),
    ),
    Row(
        "Sparse-AsyLPG", "AsyFPG",
        lambda c: sparse_asylpg(inner=c.inner).with_(lr=c.lr, mu=c.mu, l2=DECAY), 19, 6, (19.19, 19.13),
    ),
    Row("Acc-AsyFPG", "Acc-AsyFPG", lambda c: acc_asyfpg(inner=c.inner).with_(lr=c.lr, l2=DECAY)),
    Row(
        "Acc-AsyLPG", "Acc-AsyFPG",
        lambda c: acc_asylpg(inner=c.inner).with_(lr=c.lr, bits=c.bits, mu=c.mu, l2=DECAY),
        7, 4.5, (7.33, 8.87),
    ),
)  # fmt: skip
PUBLISHED: Final = {"a9a": 0, "mnist": 1}
#: Of AsyLPG on a9a, beside the μ of `A9A`.
MUS: Final = (0.05, 5.0)
#: Numbers of workers, of those whose seconds are compared; they take UPDATES steps an epoch together.
CREWS: Final = (4, 8, 12)
UPDATES: Final = 1200
TIMED: Final = ("AsyFPG", "AsyLPG")

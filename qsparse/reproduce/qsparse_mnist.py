"""Qsparse-local-SGD on MNIST (Basu et al., 2019, figures 2 and 3): bits until a test error of 0.10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Compressor, Sign, TopK
from qsparse.errors import SettingError
from qsparse.presets import local_sgd, qsparse_local_sgd, qsparse_local_sgd_async
from qsparse.registry import spell
from qsparse.report.base import Table, mean, number, spread
from qsparse.reproduce.base import Bar, Experiment, Measured, Say, median
from qsparse.reproduce.softmax import Array, accuracy, gradients, mnist, on_cores
from qsparse.rounds.virtual import Virtual
from qsparse.schedules import Inverse, Rate
from qsparse.seeds import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qsparse.data import Batches

WORKERS: Final = 15
BATCH: Final = 8
SIZE: Final = 7850
KEPT: Final = 40
DECAY: Final = 1 / 60_000
#: The test error is looked at every so many steps.
GRAIN: Final = 8
#: No row needs as many steps with its best step sizes.
LIMIT: Final = 4000


class Row(NamedTuple):
    """A method of the figure: C on the net update of H steps, with error feedback.

    ``steps`` and ``bits`` are those of an earlier program, from one seed and another grid of step sizes;
    it had no workers that do not wait for each other (``alone``), whose gaps are drawn from 1 … H.
    """

    name: str
    compressor: Compressor | None  # None: everything is sent
    H: int
    steps: int | None = None
    bits: float | None = None
    alone: bool = False

    def algorithm(self, lr: Rate) -> Algorithm:
        """The row with these step sizes."""
        row = qsparse_local_sgd_async(H=self.H) if self.alone else qsparse_local_sgd(H=self.H)
        row = local_sgd(H=self.H) if self.compressor is None else row.with_(compressor=self.compressor)
        return row.with_(lr=lr, weight_decay=DECAY)


_TOP: Final = TopK(KEPT)
ROWS: Final = (
    Row("SGD", None, 1, 136, 5.124e8),
    Row("SGD_4L", None, 4, 184, 1.733e8),
    Row("SGD_8L", None, 8, 200, 9.42e7),
    Row("EF-sign", Sign(), 1, 112, 1.324e7),
    Row("TopK", _TOP, 1, 144, 3.888e6),
    Row("TopK_8L", _TOP, 8, 376, 1.269e6),
    Row("QTopK", _TOP >> QSGD(15, scaled=True), 1, 128, 1.444e6),
    Row("SignTopK", _TOP >> Sign(), 1, 144, 1.279e6),
    Row("SignTopK_4L", _TOP >> Sign(), 4, 272, 6.038e5),
    Row("SignTopK_8L", _TOP >> Sign(), 8, 368, 4.085e5),
    Row("SignTopK_16L", _TOP >> Sign(), 16, 528, 2.930e5),
    Row("TopK_8L async", _TOP, 8, alone=True),
    Row("SignTopK_8L async", _TOP >> Sign(), 8, alone=True),
    Row("SignTopK_16L async", _TOP >> Sign(), 16, alone=True),
)
#: The rows whose bits should fall in this order.
ORDER: Final = (
    "SGD", "SGD_4L", "EF-sign", "TopK", "SignTopK", "SignTopK_4L", "SignTopK_8L", "SignTopK_16L",
)  # fmt: skip


#: Each row that does not wait, and the row that does.
TWINS: Final = {row: next(twin for twin in ROWS if twin.name == row.name[:-6]) for row in ROWS if row.alone}


def grid(row: Row, largest: float, quick: bool) -> list[Rate]:
    """The eight step sizes that are tried: η, and η·a/(a + t − 1) with the paper's a = dH/k."""
    starts = (largest, 2 * largest) if quick else tuple(largest / part for part in (8, 4, 2, 1))
    falling = [] if quick else [Inverse(start, SIZE * row.H / KEPT) for start in starts]
    return [*starts, *falling]


class _Run:
    """One row with one choice of step sizes."""

    def __init__(self, row: Row, lr: Rate, seed: int) -> None:
        self.row = row
        self.lr = lr
        self.virtual = Virtual(row.algorithm(lr), WORKERS, np.zeros(SIZE, np.float32), seed=Seed(seed))
        self.curve: list[tuple[int, int, float]] = []

    def record(self, seed: int) -> Measured:
        """What this run measured up to here."""
        ledger, (t, bits, error) = self.virtual.ledger, self.curve[-1]
        return {
            "name": self.row.name,
            "seed": seed,
            "lr": _text(self.lr),
            "algorithm": self.row.algorithm(self.lr).spelling(),
            "steps": t,
            "paper_bits": bits,
            "paper_bits_down": ledger.paper_bits["down"],
            "messages": ledger.messages["up"],
            "error": error,
            "curve": self.curve,
        }


@dataclass(frozen=True)
class QsparseLocalSGD(Experiment):
    """Every row with the best of its step sizes.

    Args:
        seeds: how many seeds of batches and of what is drawn in compressors.
        largest: the largest step size that is tried.
    """

    name: ClassVar[str] = "qsparse"
    source: ClassVar[str] = (
        "Basu, Data, Karakus, Diggavi: Qsparse-local-SGD: Distributed SGD with Quantization, "
        "Sparsification, and Local Computations, NeurIPS 2019, figure 2"
    )

    seeds: int = 3
    largest: float = 0.6

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise SettingError(f"--seeds must be at least 1, not {self.seeds}")
        if not self.largest > 0:
            raise SettingError(f"--largest must be positive, not {self.largest}")

    @property
    def target(self) -> float:
        """The test error at which a run ends."""
        return 0.2 if self.quick else 0.1

    def measure(self, data_dir: Path | None, say: Say) -> Measured:
        """All rows with all step sizes side by side, one seed after the other."""
        x, y, test_x, test_y = mnist(data_dir)
        runs: list[Measured] = []
        ends: list[Measured] = []
        for seed in range(1 if self.quick else self.seeds):
            say(f"seed {seed}")
            found = self._seed(seed, (x, y), (test_x, test_y), say)
            ends += self._ends(seed, found, (x, y), (test_x, test_y))
            runs += found
        return {
            "workers": WORKERS,
            "batch": BATCH,
            "kept": KEPT,
            "parameters": SIZE,
            "decay": DECAY,
            "target": self.target,
            "step_sizes": {
                row.name: [_text(lr) for lr in grid(row, self.largest, self.quick)] for row in ROWS
            },
            "runs": runs,
            "end": self.end,
            "ends": ends,
        }

    def _seed(
        self, seed: int, train: tuple[Array, Array], test: tuple[Array, Array], say: Say
    ) -> list[Measured]:
        """The best run of each row. The first to come to the target ends the others of its row."""
        x, y = train
        batches = _batches(y, seed)
        active = [_Run(row, lr, seed) for row in ROWS for lr in grid(row, self.largest, self.quick)]
        best: dict[str, Measured] = {}
        for t in range(1, LIMIT + 1):
            _fill(active, x, y, [each.batch(t - 1) for each in batches])
            for run in active:
                run.virtual.step()
            if t % GRAIN:
                continue
            errors = [1 - share for share in accuracy([run.virtual.model for run in active], *test)]
            for run, error in zip(active, errors, strict=True):
                run.curve.append((t, run.virtual.ledger.paper_bits["up"], error))
            # Of those that come to it at the same step, the one with the smallest error.
            for run in sorted(active, key=lambda run: run.curve[-1][2]):
                if run.curve[-1][2] <= self.target and run.row.name not in best:
                    best[run.row.name] = run.record(seed)
                    say(f"{run.row.name}: {t} steps with {_text(run.lr)}")
            active = [run for run in active if run.row.name not in best]
            if not active:
                break
        else:
            missing = sorted({run.row.name for run in active})
            raise SettingError(f"{', '.join(missing)} did not come to {self.target} in {LIMIT} steps")
        return [best[row.name] for row in ROWS]

    @property
    def end(self) -> int:
        """The step after which those that wait and those that do not are compared."""
        return 200 if self.quick else 1000

    def _ends(
        self, seed: int, found: Sequence[Measured], train: tuple[Array, Array], test: tuple[Array, Array]
    ) -> list[Measured]:
        """Where rows that wait for each other, and rows that do not, come with one step size."""
        x, y = train
        batches = _batches(y, seed)
        best = {run["name"]: run["lr"] for run in found}
        rates = {row: {_text(lr): lr for lr in grid(row, self.largest, self.quick)} for row in TWINS}
        active = [
            _Run(each, rates[row][best[TWINS[row].name]], seed) for row in TWINS for each in (row, TWINS[row])
        ]
        errors = np.zeros(len(active))
        looks = 5
        for t in range(1, self.end + 1):
            _fill(active, x, y, [each.batch(t - 1) for each in batches])
            for run in active:
                run.virtual.step(last=t == self.end)
            if t > self.end - looks * GRAIN and (self.end - t) % GRAIN == 0:
                errors += [1 - share for share in accuracy([run.virtual.model for run in active], *test)]
        return [
            {"name": run.row.name, "seed": seed, "lr": _text(run.lr), "error": float(error) / looks}
            for run, error in zip(active, errors, strict=True)
        ]

    def tables(self, measured: Measured) -> list[Table]:
        """Bits and gains, beside those of the earlier program; then what the paper says of them."""
        base = median(_bits(measured, "SGD"))
        rows = []
        for row in ROWS:
            runs = [run for run in measured["runs"] if run["name"] == row.name]
            bits = _bits(measured, row.name)
            steps = [run["steps"] for run in runs]
            rows.append(
                [
                    *(row.name, number(median(steps)), spread(steps), _given(row.steps)),
                    *(number(median(bits)), spread(bits), _given(row.bits), _ratio(bits, row.bits)),
                    *(f"{base / median(bits):,.1f}", _gain(row.bits)),
                    ", ".join(sorted({run["lr"] for run in runs})),
                ]
            )
        target = measured["target"]
        short = f"; stored for 0.1, ours for {target:g}" if self.quick else ""
        best = median(_bits(measured, "SignTopK_16L"))
        claims = [
            ["SGD", number(base / best), "about 1,000"],
            ["TopK", number(median(_bits(measured, "TopK")) / best), "10 … 15"],
        ]
        return [
            Table(
                f"MNIST, softmax regression, {WORKERS} workers, batches of {BATCH}, k = {KEPT}: steps and "
                f"paper bits of all workers, up, until a test error of {target:g}",
                ("", "steps", "range", "stored", "bits", "range", "stored", "ratio", "gain", "stored", "η"),
                rows,
                f"Medians, seeds: {len(runs)}, each with its best step sizes; gain: over SGD.\n"
                f"Stored: an earlier program, one seed, another grid of step sizes{short}.",
            ),
            Table("Times fewer bits with SignTopK_16L than with", ("", "ours", "published"), claims),
            Table(
                f"Test error after {measured['end']:,} steps, with and without waiting for each other",
                ("", "waiting", "not waiting", "difference"),
                [
                    [twin.name, *(f"{value:.4f}" for value in _ends(measured, twin, row))]
                    for row, twin in TWINS.items()
                ],
                "Means over seeds and the last five looks; with the best step size of the one that waits.",
            ),
        ]

    def bars(self, measured: Measured) -> list[Bar]:
        """The order of the rows, and what the last one saves."""
        bits = {name: median(_bits(measured, name)) for name in ORDER}
        bars = [
            Bar(f"bits of {more} over those of {less}", bits[more] / bits[less], 1.0)
            for more, less in pairwise(ORDER)
        ]
        last = bits[ORDER[-1]]
        bars.append(Bar("bits of SGD over those of SignTopK_16L", bits["SGD"] / last, 1500))
        # The gain goes by the grid of step sizes, so a factor of 2 is allowed for.
        bars.append(
            Bar("bits of TopK over those of SignTopK_16L, published 10 to 15", bits["TopK"] / last, 5, 30)
        )
        for row, twin in TWINS.items():
            difference = _ends(measured, twin, row)[2]
            bars.append(Bar(f"test error of {row.name} less that of {twin.name}", difference, -0.01, 0.01))
        return bars

    def draw(self, measured: Measured, figure: Figure) -> None:
        """Test error against bits for the first seed, and the medians."""
        left, right = figure.subplots(1, 2)
        for row in ROWS:
            run = next(run for run in measured["runs"] if run["name"] == row.name)
            # Before the first meeting there are no bits, and a logarithm has no place for none.
            _, bits, errors = zip(*(point for point in run["curve"] if point[1]), strict=True)
            left.plot(bits, errors, "--" if row.alone else "-", label=row.name, marker=".")
            right.barh(row.name, median(_bits(measured, row.name)))
        left.set(xlabel="paper bits of all workers, up", ylabel="test error", xscale="log")
        left.legend(fontsize="small")
        right.set(xlabel=f"paper bits until a test error of {measured['target']:g}", xscale="log")
        right.invert_yaxis()
        for axes in (left, right):
            axes.grid(alpha=0.3)


def _fill(active: Sequence[_Run], x: Array, y: Array, batches: Sequence[Array]) -> None:
    """The gradients of all runs; every run's worker has the same batch."""

    def work(rank: int) -> None:
        mine = batches[rank]
        models = [run.virtual.models[rank] for run in active]
        gradients(x[mine], y[mine], models, [run.virtual.gradients[rank] for run in active])

    on_cores(work, WORKERS)


def _batches(y: Array, seed: int) -> list[Batches]:
    from qsparse.data import Batches, shard

    shares = shard(y, WORKERS, "random", Seed(seed))
    return [Batches(share, BATCH, Seed(seed, rank=rank, use="batch")) for rank, share in enumerate(shares)]


def _ends(measured: Measured, twin: Row, row: Row) -> tuple[float, float, float]:
    """The test errors at the end of a row that waits and of one that does not, and how they differ."""
    errors = [
        mean([run["error"] for run in measured["ends"] if run["name"] == each.name]) for each in (twin, row)
    ]
    return errors[0], errors[1], errors[1] - errors[0]


def _bits(measured: Measured, name: str) -> Sequence[int]:
    return [run["paper_bits"] for run in measured["runs"] if run["name"] == name]


def _given(value: float | None) -> str:
    return "" if value is None else number(value)


def _ratio(bits: Sequence[int], stored: float | None) -> str:
    return "" if stored is None else f"{median(bits) / stored:.3f}"


def _gain(stored: float | None) -> str:
    return "" if stored is None or ROWS[0].bits is None else f"{ROWS[0].bits / stored:,.1f}"


def _text(lr: Rate) -> str:
    return f"{lr:g}" if isinstance(lr, float | int) else spell(lr)

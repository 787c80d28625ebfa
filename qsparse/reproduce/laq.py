"""LAQ on MNIST (Sun et al., 2019): softmax regression, ten workers, full batches, to a residual of 1e-6."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from qsparse.compressors import Uniform
from qsparse.errors import SettingError
from qsparse.payload import HEADER_BYTES
from qsparse.report.base import Table, mean, number, spread
from qsparse.reproduce import lyapunov
from qsparse.reproduce.base import Bar, Experiment, Measured, Say
from qsparse.reproduce.laq_rows import (
    ALPHA,
    COEFFICIENTS,
    COMPRESSED,
    MEMORY,
    WORKERS,
    XI,
    Row,
    coefficient,
    doubts,
    rows,
)
from qsparse.reproduce.softmax import Softmax, accuracy, examples, minimum
from qsparse.rounds.virtual import Virtual
from qsparse.seeds import Seed
from qsparse.types import Vector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECAY: Final = 0.01
#: The smallest loss: `minimum` gives 0.55510742994 with ‖∇f‖ = 1e-7, so exact to all these digits;
#: ``--solve-reference`` solves for it again, which takes minutes.
REFERENCE: Final = 0.5551074299
ACCURACY: Final = 0.9082
#: Uploads of those who always speak, from the first random starting point.
FULL: Final = {"GD": 28_100, "QGD": 28_060}
MNIST: Final = "mnist"
#: The name of the starting point that is not random.
ZERO: Final = "zero"
#: The labels of the paper's main row, and of the one that sends everything.
_MAIN: Final = f"LAQ α = {ALPHA:g}"
_GD: Final = f"GD α = {ALPHA:g}"
#: No run of the table needs as many iterations.
LIMIT: Final = 20_000
#: Every how many iterations the curves have a point.
GRAIN: Final = 20


#: From zero with α = 0.02: k, mean loss before iteration k, uploads up to its end. Measured with the
#: rule written out in NumPy, by an earlier program; iteration 2458 was its last.
STORED: Final = (
    (0, 2.302585, 10),
    (1, 2.096516, 10),
    (2, 1.914054, 10),
    (3, 1.756277, 10),
    (5, 1.512346, 10),
    (10, 1.132824, 26),
    (20, 0.842482, 46),
    (50, 0.748844, 84),
    (100, 0.655839, 94),
    (500, 0.563344, 186),
    (1000, 0.555869, 275),
    (2458, REFERENCE + 1e-6, 544),
)


class _Run:
    """One row from one starting point, as far as it has come."""

    def __init__(self, row: Row, start: str, model: Vector) -> None:
        self.row = row
        self.start = start
        self.virtual = Virtual(row.algorithm, WORKERS, model)
        self.k = 0
        self.loss = 0.0
        self.ended = False
        self.accuracy = 0.0
        self.curve: list[tuple[int, float, int]] = []
        self.marks: list[tuple[int, float, int]] = []

    def advance(self, k: int, loss: float, ended: bool) -> None:
        """Iteration k at a model of this loss; with the last one a run's uploads are counted too."""
        self.virtual.step()
        self.k, self.loss, self.ended = k, loss, ended
        point = (k, loss, self.virtual.ledger.messages["up"])
        if k % GRAIN == 0 or k < GRAIN or ended:
            self.curve.append(point)
        if any(k == mark for mark, _, _ in STORED):
            self.marks.append(point)

    def describe(self) -> str:
        """Who, and how far."""
        uploads = self.virtual.ledger.messages["up"]
        return f"{self.row.label} from start {self.start}: {self.k} iterations, {uploads} uploads"

    def record(self) -> Measured:
        """What this run measured."""
        ledger = self.virtual.ledger
        uploads = ledger.messages["up"]
        compressor = self.row.algorithm.up.compressor
        # All messages of a run are equally long.
        message = compressor.compress(self.virtual.gradients[0], Seed(0, use="up"))
        code_bits: float = ledger.paper_bits["up"] - (32 * uploads if isinstance(compressor, Uniform) else 0)
        if self.row.name == COMPRESSED:
            code_bits += uploads * math.log2(self.virtual.model.size)
        return {
            "row": self.row.label,
            "name": self.row.name,
            "alpha": self.row.alpha,
            "algorithm": self.row.algorithm.spelling(),
            "start": self.start,
            "iterations": self.k,
            "uploads": uploads,
            "skips": ledger.skips,
            "code_bits": code_bits,
            "paper_bits": ledger.paper_bits["up"],
            "wire_bytes": uploads * len(message) + ledger.skips * HEADER_BYTES,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "curve": self.curve,
            "marks": self.marks,
        }


@dataclass(frozen=True)
class LAQ(Experiment):
    """The authors' tables of step sizes, D and ξ, every combination, with GD, QGD and LAG-WK beside it.

    Args:
        inits: how many random starting points; uploads depend much on them.
        baselines: GD, QGD, LAG-WK and compressed gradient descent too, and the paper's main row from zero.
        inits_baselines: GD, QGD and LAG-WK from every starting point too, not from the first only.
        solve_reference: find the smallest loss anew.
        alpha: step sizes on the sum over the workers.
        D: how many moves of the model are remembered.
        xi: the weight of each, as text: a number, or a quotient whose divisor may be D.
        coefficients: whose ξ_d, of ``code`` and ``paper``; they differ while fewer than D moves are known.
        data: the data set; what was published is of mnist.
        lyapunov: in place of the tables, the Lyapunov function along runs, and its linear rate.
    """

    name: ClassVar[str] = "laq"
    source: ClassVar[str] = (
        "Sun, Chen, Giannakis, Yang: Communication-Efficient Distributed Learning via Lazily Aggregated "
        "Quantized Gradients, NeurIPS 2019, table 2, and the authors' response to its reviewers"
    )

    inits: int = 4
    baselines: bool = True
    inits_baselines: bool = False
    solve_reference: bool = False
    alpha: tuple[float, ...] = (0.01, 0.015, 0.02, 0.04)
    D: tuple[int, ...] = (MEMORY,)
    xi: tuple[str, ...] = (XI,)
    coefficients: tuple[str, ...] = (COEFFICIENTS[0],)
    data: str = MNIST
    lyapunov: bool = False

    def __post_init__(self) -> None:
        if self.inits < 1:
            raise SettingError(f"--inits must be at least 1, not {self.inits}")
        if not all(alpha > 0 for alpha in self.alpha):
            raise SettingError(f"--alpha takes positive numbers, not {_listed(self.alpha)}")
        if not all(D >= 1 for D in self.D):
            raise SettingError(f"--D takes whole numbers of at least 1, not {_listed(self.D)}")
        for xi in self.xi:
            coefficient(xi, MEMORY)
        if not set(self.coefficients) <= set(COEFFICIENTS):
            raise SettingError(
                f"--coefficients takes {_listed(COEFFICIENTS)}, not {_listed(self.coefficients)}"
            )

    @property
    def rows(self) -> list[Row]:
        """What is run."""
        found = rows(self.alpha, self.D, self.xi, self.coefficients, self.data == MNIST)
        return [row for row in found if row.name == "LAQ" or self.baselines]

    @property
    def tolerance(self) -> float:
        """The residual at which a run ends."""
        return 0.25 if self.quick else 1e-6

    def measure(self, data_dir: Path | None, say: Say) -> Measured:
        """All rows from all starting points, side by side."""
        data = examples(self.data, data_dir, WORKERS)
        if self.lyapunov:
            return {"data": self.data, "lyapunov": lyapunov.measure(data, self.quick, say)}
        problem = Softmax(data.x, data.y, WORKERS, DECAY, data.classes)
        reference, norm = REFERENCE, None
        solved = self.solve_reference or self.data != MNIST
        if solved:
            say("solving for the smallest loss in float64")
            reference, norm = minimum(problem)
        runs = self._runs(problem.size, data.classes)
        say(f"{len(runs)} runs of {WORKERS} workers, each until its loss is within {self.tolerance:g}")
        active = runs
        for k in range(LIMIT):
            models = [run.virtual.models[0] for run in active]
            losses = problem.gradients(models, [run.virtual.gradients for run in active])
            if not np.isfinite(losses).all():
                raise SettingError(f"a run has diverged by iteration {k}: its loss is no longer finite")
            for run, loss in zip(active, losses, strict=True):
                over = run.row.most is not None and k + 1 >= run.row.most
                run.advance(k, float(loss), over or loss - reference <= self.tolerance)
            ended = [run for run in active if run.ended]
            if ended:
                shares = accuracy(
                    [run.virtual.model for run in ended], data.test_x, data.test_y, data.classes
                )
                for run, share in zip(ended, shares, strict=True):
                    run.accuracy = share
                    say(run.describe())
            active = [run for run in active if not run.ended]
            if not active:
                break
            if k % 100 == 99:
                say(f"iteration {k + 1}: {len(active)} runs, residual up to {losses.max() - reference:.2g}")
        else:
            raise SettingError(f"{active[0].describe()}, and the loss is not yet within {self.tolerance:g}")
        return {
            "data": self.data,
            "workers": WORKERS,
            "parameters": problem.size,
            "decay": DECAY,
            "tolerance": self.tolerance,
            "reference": {"loss": reference, "gradient_norm": norm, "solved_here": solved},
            "runs": [run.record() for run in runs],
        }

    def _runs(self, size: int, classes: int = 10) -> list[_Run]:
        shown, runs = self.rows, []
        for init in range(1 if self.quick else self.inits):
            start = glorot(init, size, classes)
            for row in shown:
                if row.name == "LAQ" or init == 0 or self.inits_baselines:
                    runs.append(_Run(row, str(init), start))
        # The stored run from zero is one of the paper's main row.
        main = [row for row in shown if self.baselines and row.label == _MAIN and row.published is not None]
        return [*runs, *(_Run(row, ZERO, np.zeros(size, np.float32)) for row in main)]

    def tables(self, measured: Measured) -> list[Table]:
        """The response's tables, and the run from zero beside the stored one."""
        if self.lyapunov:
            return [lyapunov.table(measured["lyapunov"])]
        counts, bits = [], []
        for row in self.rows:
            if row.most is not None:
                continue
            runs, theirs = _of(measured, row.label), row.published
            line = [row.label]
            for name in ("iterations", "uploads"):
                values = [run[name] for run in runs]
                line += [
                    number(mean(values)),
                    spread(values),
                    *_beside(values, theirs and getattr(theirs, name)),
                ]
            counts.append([*line, str(len(runs)), row.source])
            code, paper, wire, right = (
                [run[name] for run in runs] for name in ("code_bits", "paper_bits", "wire_bytes", "accuracy")
            )
            bits.append(
                [
                    *(row.label, number(mean(code)), *_beside(code, theirs and theirs.bits)),
                    *(number(mean(paper)), number(mean(wire)), f"{mean(right):.5f}"),
                    f"{ACCURACY:.4f}" if self.data == MNIST else "",
                ]
            )
        loss, tolerance = measured["reference"]["loss"], measured["tolerance"]
        compared = ("ours", "range", "published", "ratio")
        short = f"; published for 1e-06, ours for {tolerance:g}" if self.quick else ""
        notes = [f"Ours: mean over random starting points; ratio: ours over theirs{short}."]
        if any(row.source == "table 2" for row in self.rows):
            notes.append("The figures of the paper's table 2 were not checked against its text.")
        return [
            Table(
                f"{self.data}, softmax regression, {WORKERS} workers: iterations, then uploads of all "
                f"workers, until f − {loss:.10f} ≤ {tolerance:g}",
                ("", *compared, *compared, "starts", "published in"),
                counts,
                "\n".join([*notes, *doubts(self.rows)]),
            ),
            Table(
                "Bits of all workers, up, and test accuracy",
                ("", "bits", "published", "ratio", "paper bits", "wire bytes", "accuracy", "published"),
                bits,
                "Bits as the authors' code counts them; paper bits have 32 more for each radius.\n"
                "Wire bytes are those of the frames, with the frames of skips.",
            ),
            *([_without_memory(measured)] if self.baselines else []),
            *(_checkpoints(run, self.quick) for run in _of(measured, _MAIN, ZERO)),
        ]

    def bars(self, measured: Measured) -> list[Bar]:
        """Iterations, accuracy, uploads, and what LAQ saves."""
        if self.lyapunov:
            return lyapunov.bars(measured["lyapunov"])
        bars: list[Bar] = []
        if self.data != MNIST:
            return bars
        for row in self.rows:
            runs, theirs = _of(measured, row.label), row.published
            # Of other D and ξ the published figures are in doubt.
            if theirs is None or theirs.iterations is None or (row.D, row.xi) != (MEMORY, XI):
                continue
            iterations, uploads = (mean([run[name] for run in runs]) for name in ("iterations", "uploads"))
            if row.name == "LAQ":
                bars.append(_within(f"{row.label}: mean iterations", iterations, theirs.iterations, 0.08))
                if row.alpha <= ALPHA:
                    ratio = uploads / theirs.uploads
                    bars.append(Bar(f"{row.label}: mean uploads over published", ratio, 1 / 1.4, 1.4))
            elif row.name in FULL:
                bars.append(_within(f"{row.label}: uploads", uploads, FULL[row.name], 0.01))
        arrived = [run for run in measured["runs"] if run["name"] != COMPRESSED]
        off = max(abs(run["accuracy"] - ACCURACY) for run in arrived)
        bars.append(Bar(f"largest distance of a test accuracy from {ACCURACY}", off, 0, 0.0002))
        zeros = _of(measured, _MAIN, ZERO)
        if not zeros:
            return bars
        full, lazy = (mean([run["code_bits"] for run in _of(measured, label)]) for label in (_GD, _MAIN))
        bars.append(Bar(f"bits of GD over those of LAQ, α = {ALPHA:g}", full / lazy, 260))
        (zero,) = zeros
        early = {k: (loss, uploads) for k, loss, uploads in STORED if k <= 100}
        marks = [(*early[k], loss, uploads) for k, loss, uploads in zero["marks"] if k in early]
        loss_off = max(abs(loss - stored) for stored, _, loss, _ in marks)
        uploads_off = max(abs(said - stored) for _, stored, _, said in marks)
        bars.append(Bar("from zero, up to k = 100: largest difference of the loss", loss_off, 0, 5e-5))
        bars.append(Bar("from zero, up to k = 100: largest difference of the uploads", uploads_off, 0, 0))
        bars.append(_within("from zero: uploads", zero["uploads"], STORED[-1][2], 0.1))
        return bars

    def draw(self, measured: Measured, figure: Figure) -> None:
        """The residual against iterations and against bits, from the first starting point."""
        if self.lyapunov:
            lyapunov.draw(measured["lyapunov"], figure.subplots())
            return
        loss = measured["reference"]["loss"]
        across = figure.subplots(1, 2, sharey=True)
        for row in self.rows:
            run = _of(measured, row.label)[0]
            k, losses, uploads = (np.array(column) for column in zip(*run["curve"], strict=True))
            left = np.maximum(losses - loss, 1e-9)
            style = {
                "label": row.label,
                "linestyle": "-" if row.name == "LAQ" else "--",
            }
            across[0].plot(k, left, **style)
            across[1].plot(uploads * (run["code_bits"] / run["uploads"]), left, **style)
        across[0].set(xlabel="iteration", ylabel="loss − smallest loss", yscale="log")
        across[1].set(xlabel="bits of all workers, up", xscale="log")
        across[0].legend()
        for axes in across:
            axes.grid(alpha=0.3)


def _without_memory(measured: Measured) -> Table:
    """What it takes all others to come as far as compressed gradient descent did."""
    (run,) = (run for run in measured["runs"] if run["name"] == COMPRESSED and run["start"] == "0")
    loss = measured["reference"]["loss"]
    table = []
    for other in [run, *(each for each in measured["runs"] if each is not run and each["start"] == "0")]:
        # In a quick run others may end before they are as far.
        for k, _, uploads in [point for point in other["curve"] if point[1] <= run["loss"]][:1]:
            bits = uploads * other["code_bits"] / other["uploads"]
            table.append([other["row"], number(k), number(uploads), number(bits)])
    return Table(
        f"As far as compressed gradient descent (Khirirat et al., 2018) comes in {run['iterations'] + 1:,} "
        f"iterations: f − {loss:.10f} = {run['loss'] - loss:.2g}",
        ("", "iterations", "uploads", "bits"),
        table,
        "The grid of QGD, and nothing remembered: log2 p + 4·p bits a message, as its authors count.\n"
        f"Iterations of the others to the next {GRAIN}.",
    )


def _checkpoints(run: Measured, quick: bool) -> Table:
    marks = {mark[0]: mark for mark in run["marks"]}
    rows = []
    for k, loss, uploads in STORED[:-1]:
        if k in marks:
            _, ours, said = marks[k]
            rows.append(
                [str(k), f"{ours:.6f}", f"{loss:.6f}", f"{ours - loss:+.6f}", str(said), str(uploads)]
            )
    if not quick:
        k, loss, uploads = STORED[-1]
        rows.append([f"{run['iterations']} ({k})", f"{run['loss']:.6f}", f"{loss:.6f}",
                     f"{run['loss'] - loss:+.6f}", str(run["uploads"]), str(uploads)])  # fmt: skip
    return Table(
        "From zero, LAQ with α = 0.02: mean loss before iteration k, uploads up to its end",
        ("k", "loss", "stored", "difference", "uploads", "stored"),
        rows,
        "Stored: an earlier program, which wrote the authors' rule out in NumPy"
        + ("." if quick else "; in brackets its last iteration."),
    )


def _of(measured: Measured, label: str, start: str | None = None) -> list[Measured]:
    """The runs of a row: from a starting point, or from all the random ones."""
    return [
        run
        for run in measured["runs"]
        if run["row"] == label and (run["start"] != ZERO if start is None else run["start"] == start)
    ]


def _beside(values: Sequence[float], published: float | None) -> tuple[str, str]:
    """What was published, and how many times as much ours is."""
    return ("", "") if published is None else (number(published), f"{mean(values) / published:.3f}")


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _within(claim: str, ours: float, theirs: float, part: float) -> Bar:
    return Bar(
        f"{claim} within {part:.0%} of {number(theirs)}", ours, theirs * (1 - part), theirs * (1 + part)
    )


def glorot(seed: int, size: int, classes: int = 10) -> Vector:
    """A kernel uniform within ±√(6/(features + classes)), as Keras starts a dense layer, and bias 0."""
    features = size // classes - 1
    limit = np.sqrt(6 / (features + classes))
    model = np.zeros((features + 1, classes), np.float32)
    model[:-1] = np.random.default_rng(seed).uniform(-limit, limit, (features, classes))
    return model.ravel()

"""Double quantization (Yu et al., 2019): bits until a common loss, the precision of models, and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from qsparse.report.base import Table
from qsparse.reproduce.asylpg_rows import (
    A9A,
    CREWS,
    DECAY,
    GRAIN,
    LAYERS,
    MNIST,
    MUS,
    ROWS,
    TIMED,
    UPDATES,
    Case,
    Row,
)
from qsparse.reproduce.asylpg_tables import compare, of, other_mus, precision, seconds, until, whole
from qsparse.reproduce.base import Bar, Experiment, Measured, Say, dataset
from qsparse.reproduce.objectives import Logistic, Objective, Perceptron
from qsparse.reproduce.softmax import mnist
from qsparse.reproduce.watched import one_thread_each, train
from qsparse.seeds import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AsyLPG(Experiment):
    """All rows on logistic regression and on a small net; real asynchrony, ranks as threads."""

    name: ClassVar[str] = "asylpg"
    source: ClassVar[str] = (
        "Yu, Wu, Huang: Double Quantization for Communication-Efficient Distributed Optimization, "
        "NeurIPS 2019, section 5, and the authors' response to its reviewers"
    )

    def measure(self, data_dir: Path | None, say: Say) -> Measured:
        """Problem by problem and row by row; then other μ, then other numbers of workers."""
        cases = [replace(A9A, epochs=3, compared=2, inner=50, repetitions=1)] if self.quick else [A9A, MNIST]
        problems = {case.name: _problem(case.name, data_dir) for case in cases}
        with one_thread_each():
            runs = [run for case in cases for run in _runs(case, problems[case.name], say)]
            mus = _mus(cases[0], problems["a9a"], (5.0,) if self.quick else MUS, say)
            crews = (2, 4) if self.quick else CREWS
            timed = replace(cases[-1], epochs=1 if self.quick else 2)
            split = _split(timed, problems[timed.name], crews, say)
        return {
            "cases": [asdict(case) for case in cases],
            "decay": DECAY,
            "runs": runs,
            "mus": mus,
            "split": split,
        }

    def tables(self, measured: Measured) -> list[Table]:
        """Bits until the common loss and in the whole runs, the models' precision, μ, seconds."""
        tables = []
        for case in measured["cases"]:
            found = {row.name: compare(measured, case, row) for row in ROWS}
            tables += [until(case, found), whole(measured, case), precision(measured, case)]
        return [*tables, other_mus(measured), seconds(measured)]

    def bars(self, measured: Measured) -> list[Bar]:
        """Each row reaches its baseline's loss with so many times fewer bits, and keeps the condition."""
        bars = []
        for case in measured["cases"]:
            for row in ROWS:
                if row.published is None:
                    continue
                held, who = compare(measured, case, row), f"{case['name']}, {row.name}"
                bars += [
                    Bar(f"{who}: times fewer bits up", held.gain_up, row.up),
                    Bar(f"{who}: times fewer bits up and down", held.gain, row.total),
                ]
        pulls = [run["pulls"] for run in measured["runs"] if run["pulls"]]
        worst = max(each["expected_over_allowed"] for each in pulls)
        # What is allowed is found here in another order of sums than by the coordinator.
        return [*bars, Bar("E‖Q(x) − x‖² over what is allowed, at any pull", worst, 0, 1 + 1e-6)]

    def draw(self, measured: Measured, figure: Figure) -> None:
        """Loss over bits, b_x and the error of models over epochs, of the first repetitions."""
        cases = measured["cases"]
        figure.set_size_inches(13, 4 * len(cases))
        for case, (left, middle, right) in zip(
            cases, figure.subplots(len(cases), 3, squeeze=False), strict=True
        ):
            for colour, row in enumerate(ROWS):
                run = of(measured, case, row.name)[0]
                _, up, down, losses = zip(*run["curve"][1:], strict=True)
                look = {"label": row.name, "color": f"C{colour}", "linewidth": 1}
                left.plot([sum(bits) for bits in zip(up, down, strict=True)], losses, **look)
                if run["pulls"]:
                    epochs, bits, errors, _ = zip(*run["pulls"]["series"], strict=True)
                    middle.plot(epochs, bits, **look)
                    right.plot(epochs, errors, **look)
            left.set(xlabel="paper bits, up and down", ylabel="loss", xscale="log", yscale="log")
            left.set_title(case["title"], fontsize="medium")
            left.legend(fontsize="small")
            middle.set(xlabel="epoch", ylabel="bits of a model's coordinate")
            middle.legend(fontsize="small")
            right.set(xlabel="epoch", ylabel="‖Q(x) − x‖²", yscale="log")
            for axes in (left, middle, right):
                axes.grid(alpha=0.3)


# --- runs ---------------------------------------------------------------------------------------


def _problem(name: str, data_dir: Path | None) -> Callable[[int, Seed], Objective]:
    """The objective as a function of the number of workers and the seed."""
    if name == "mnist":
        x, y, _, _ = mnist(data_dir)
        return lambda workers, seed: Perceptron(x, y, workers, seed, LAYERS)
    data = dataset("libsvm:a9a", data_dir)
    return lambda workers, seed: Logistic(data.train_x[:], data.train_y, workers, seed)


def _runs(case: Case, problem: Callable[[int, Seed], Objective], say: Say) -> list[Measured]:
    runs = []
    for repetition in range(case.repetitions):
        seed = Seed(repetition)
        objective = problem(case.workers, seed)
        for row in ROWS:
            run = train(row.algorithm(case), objective, case.batch, case.epochs, seed, GRAIN)
            runs.append({"case": case.name, "row": row.name, "repetition": repetition,
                         "parameters": objective.start.size, **run})  # fmt: skip
            say(f"{case.name}, {row.name}: loss {run['loss']:.5f} in {run['seconds']['total']:.1f} s")
    return runs


def _mus(
    case: Case, problem: Callable[[int, Seed], Objective], mus: Sequence[float], say: Say
) -> list[Measured]:
    runs = []
    objective = problem(case.workers, Seed(0))
    row = _row("AsyLPG")
    for mu in mus:
        run = train(row.algorithm(replace(case, mu=mu)), objective, case.batch, case.epochs, Seed(0), GRAIN)
        runs.append({"case": case.name, "mu": mu, **run})
        say(f"{case.name}, {row.name} with μ = {mu:g}: loss {run['loss']:.5f}")
    return runs


def _split(
    case: Case, problem: Callable[[int, Seed], Objective], crews: Sequence[int], say: Say
) -> list[Measured]:
    runs = []
    for workers in crews:
        mine = replace(case, workers=workers, inner=UPDATES // workers)
        objective = problem(workers, Seed(0))
        for name in TIMED:
            # At the pulls nothing is measured, which would take time.
            run = train(_row(name).algorithm(mine), objective, case.batch, case.epochs, Seed(0), watch=False)
            runs.append({"case": case.name, "row": name, "workers": workers, **run})
            say(f"{workers} workers, {name}: {run['seconds']['total']:.1f} s")
    return runs


def _row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)

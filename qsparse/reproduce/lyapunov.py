"""The Lyapunov function of LAQ along a run, and its linear rate against the condition number, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.presets import gd, lag_wk, laq
from qsparse.report.base import Table, number
from qsparse.reproduce.base import Bar, Measured, Say
from qsparse.reproduce.laq_rows import MEMORY, WORKERS
from qsparse.reproduce.softmax import Examples, Softmax, minimum
from qsparse.rounds.virtual import Virtual
from qsparse.types import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How many of the examples: with few of them there are many iterations.
EXAMPLES: Final = 1000
#: λ, which is μ; L hardly changes with it.
DECAYS: Final = (1.0, 0.3, 0.1)
#: Bits of the grid, None for exact values, and Σ_d ξ_d: gradient descent; what the decrease is proved for
#: with ᾱ = 1/(2L), exact and on a fine grid; the published Σ_d ξ_d on a fine grid; and as published.
ROWS: Final = ((None, 0.0), (None, 0.25), (8, 0.25), (8, 0.8), (4, 0.8))
#: A run ends when V is this part of what it was.
END: Final = 1e-8
#: Every how many iterations the curves have a point.
_GRAIN: Final = 10
_LIMIT: Final = 50_000


class Lyapunov:
    """V(θ^k) = f(θ^k) − f* + Σ_{d=1…D} Σ_{j=d…D} (ξ_j/α)·‖θ^{k+1−d} − θ^{k−d}‖² of one run.

    So Sun et al. (2019) have it. With F = f/M, the mean over the workers, and ᾱ = M·α it is M times

        F − F* + Σ_d β_d‖Δ_d‖², β_d = Σ_{j=d…D} ξ_j/ᾱ = (D − d + 1)·ξ/ᾱ, Δ_d = θ^{k+1−d} − θ^{k−d},

    which is what is computed. Why it decreases: the server's step is −ᾱ·G, where G differs from ∇F by what
    was skipped and by the errors of grids, so for F with an L-Lipschitz gradient

        F(θ^{k+1}) ≤ F(θ^k) − (ᾱ/2)‖∇F‖² + (ᾱ/2)‖G − ∇F‖² + (L/2 − 1/(2ᾱ))‖θ^{k+1} − θ^k‖²,
        (ᾱ/2)‖G − ∇F‖² ≤ ᾱ·mean_m of ‖δQ_m‖² of those that skip + ᾱ·‖mean_m ε_m‖²,

    and by the rule of skipping the first of these is at most (1/ᾱ)Σ_d ξ_d‖Δ_d‖² + 3ᾱ·mean_m(‖ε_m‖² + ‖ε̂_m‖²).
    From one iteration to the next Σ_d β_d‖Δ_d‖² changes by β_1‖θ^{k+1} − θ^k‖² − (1/ᾱ)Σ_d ξ_d‖Δ_d‖², so the
    sums over moves cancel, and but for the errors of grids

        V(θ^{k+1}) ≤ V(θ^k) − (ᾱ/2)‖∇F‖² if 2·Σ_d ξ_d ≤ 1 − ᾱL.

    The published Σ_d ξ_d = 0.8 is beyond that for every ᾱ: there V is measured, and nothing is promised.

    Args:
        D, xi: of the rule, with the paper's ξ_d = ξ.
        rate: ᾱ.
    """

    def __init__(self, D: int, xi: float, rate: float) -> None:
        self._weights = xi / rate * np.arange(D, 0, -1)
        self._moves = np.zeros(D)
        self._model: Vector | None = None

    def at(self, model: Vector, residual: float) -> float:
        """V/M at the next model.

        Args:
            model: θ^k, (n,), of all iterations in their order.
            residual: F(θ^k) − F*.
        """
        if self._model is not None:
            self._moves[1:] = self._moves[:-1]
            self._moves[0] = np.square(model - self._model).sum()
        self._model = model.copy()
        return residual + float(self._weights @ self._moves)


def measure(data: Examples, quick: bool, say: Say) -> list[Measured]:
    """V along runs with other λ and ξ, from zero, with ᾱ = 1/(2L).

    Args:
        data: of which the first examples are taken, in float64.
        quick: one λ, and only as far as a tenth of V.
        say: takes lines of progress.
    """
    count = min(EXAMPLES, len(data.y))
    x, y = data.x[: count - count % WORKERS].astype(np.float64), data.y[: count - count % WORKERS]
    padded = np.hstack([x, np.ones((len(x), 1))])
    # The Hessian of cross entropy in the scores is at most half the identity.
    smooth = float(np.linalg.eigvalsh(padded.T @ padded / len(x))[-1]) / 2
    runs = []
    for decay in DECAYS[:1] if quick else DECAYS:
        problem = Softmax(x, y, WORKERS, decay, data.classes)
        least, _ = minimum(problem)
        for bits, total in ROWS:
            run = _run(problem, least, smooth + decay, bits, total, 0.1 if quick else END)
            say(f"λ = {decay:g}, {run['row']}: {run['iterations']} iterations")
            runs.append(run)
    return runs


def _run(
    problem: Softmax, least: float, smooth: float, bits: int | None, total: float, end: float
) -> Measured:
    rate = 1 / (2 * smooth)
    virtual = Virtual(_algorithm(bits, total, rate), WORKERS, np.zeros(problem.size))
    function, values = Lyapunov(MEMORY, total / MEMORY, rate), []
    for _ in range(_LIMIT):
        model = virtual.models[0]
        (loss,) = problem.gradients([model], [virtual.gradients])
        values.append(function.at(model, float(loss) - least))
        if values[-1] <= end * values[0]:
            break
        virtual.step()
    growth = np.diff(values)
    half = len(values) // 2
    sigma = (values[-1] / values[half]) ** (1 / max(len(values) - 1 - half, 1))
    return {
        "row": f"{f'LAQ, {bits} bits' if bits else 'LAG-WK'}, Σξ = {total:g}" if total else "GD",
        "bits": bits,
        "total": total,
        "decay": problem.decay,
        "smooth": smooth,
        "condition": smooth / problem.decay,
        "rate": rate,
        "iterations": len(values) - 1,
        "uploads": virtual.ledger.messages["up"],
        "grew": int((growth > 0).sum()),
        "by": float(max((growth / values[:-1]).max(), 0.0)),
        "sigma": sigma,
        "curve": [(k, values[k]) for k in range(0, len(values), _GRAIN)],
    }


def _algorithm(bits: int | None, total: float, rate: float) -> Algorithm:
    if not total:
        return gd(rate)
    row = laq(rate, published=True).with_(bits=bits) if bits else lag_wk(rate)
    return row.with_(xi=total / MEMORY, spread=False)


def table(runs: Sequence[Measured]) -> Table:
    """Whether V decreased, and how quickly."""
    rows = [
        [
            *(f"{run['row']}, λ = {run['decay']:g}", f"{run['condition']:.1f}", number(run["iterations"])),
            *(f"{run['uploads'] / max(WORKERS * run['iterations'], 1):.1%}", number(run["grew"])),
            *(f"{run['by']:.1e}", f"{1 - run['sigma']:.3e}", f"{_constant(run):.3f}"),
        ]
        for run in runs
    ]
    return Table(
        "The Lyapunov function V, float64, from zero, with ᾱ = 1/(2L)",
        ("", "κ", "iterations", "speak", "V grew in", "by at most", "1 − σ", "(1 − σ)·κ"),
        rows,
        f"At most {EXAMPLES:,} examples; κ = L/λ. σ: the factor of V in an iteration, in the second half of\n"
        "the run. By at most: of V. But for errors of grids it is proved to decrease if 2Σξ ≤ 1 − ᾱL = 1/2.",
    )


def bars(runs: Sequence[Measured]) -> list[Bar]:
    """But for coarse grids, V decreases, and 1 − σ goes by 1/κ."""
    fine = [run for run in runs if run["bits"] is None or run["bits"] >= 8]
    names = dict.fromkeys(run["row"] for run in fine)
    by_row = [[_constant(run) for run in fine if run["row"] == name] for name in names]
    plain, *lazy = by_row
    spread = max(max(row) / min(row) for row in by_row)
    return [
        Bar("exact, or with 8 bits: iterations in which V grew", sum(run["grew"] for run in fine), 0, 0),
        Bar("so: largest (1 − σ)·κ of a row over its smallest", spread, 1, 2),
        Bar("so: smallest (1 − σ)·κ of LAG and LAQ over GD's largest", min(map(min, lazy)) / max(plain), 0.8),
    ]


def _constant(run: Measured) -> float:
    value: float = (1 - run["sigma"]) * run["condition"]
    return value


def draw(runs: Sequence[Measured], axes: Axes) -> None:
    """V against the iteration."""
    for run in runs:
        k, values = zip(*run["curve"], strict=True)
        axes.plot(k, values, "-" if run["total"] else "--", label=f"{run['row']}, λ = {run['decay']:g}")
    axes.set(xlabel="iteration", ylabel="V", yscale="log", xscale="log")
    axes.legend()

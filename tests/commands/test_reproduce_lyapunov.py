"""The Lyapunov function of LAQ: its formula, its decrease, and what the command says of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reproducing import separable, shown

from qsparse.presets import lag_wk
from qsparse.reproduce import lyapunov
from qsparse.reproduce.laq import LAQ
from qsparse.reproduce.lyapunov import ROWS, Lyapunov
from qsparse.reproduce.softmax import Softmax, examples, minimum
from qsparse.rounds.virtual import Virtual


def test_the_formula() -> None:
    """Against its two sums, term by term."""
    D, xi, rate = 4, 0.07, 0.3
    rng = np.random.default_rng(0)
    models = list(rng.normal(size=(9, 6)))
    function = Lyapunov(D, xi, rate)
    for k, model in enumerate(models):
        wanted = 0.5
        for d in range(1, D + 1):
            for _ in range(d, D + 1):
                if k >= d:
                    wanted += xi / rate * np.sum((models[k + 1 - d] - models[k - d]) ** 2)
        assert function.at(model, 0.5) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("total", [0.0, 0.25])
def test_it_decreases_by_as_much_as_is_proved(tmp_path: Path, total: float) -> None:
    """With exact values by (ᾱ/2)‖∇F‖² at least, as 2Σξ ≤ 1 − ᾱL = 1/2."""
    data = examples(f"libsvm:{separable(tmp_path / 'halves')}", None, 10)
    x = data.x.astype(np.float64)
    padded = np.hstack([x, np.ones((len(x), 1))])
    smooth = float(np.linalg.eigvalsh(padded.T @ padded / len(x))[-1]) / 2 + 0.1
    problem, rate = Softmax(x, data.y, 10, 0.1, 2), 1 / (2 * smooth)
    least, _ = minimum(problem)
    virtual = Virtual(lag_wk(rate).with_(xi=total / 10, spread=False), 10, np.zeros(problem.size))
    function, last, slope = Lyapunov(10, total / 10, rate), np.inf, 0.0
    for _ in range(100):
        model = virtual.models[0]
        (loss,) = problem.gradients([model], [virtual.gradients])
        value = function.at(model, float(loss) - least)
        # Models are answered in float32.
        assert value <= last - rate / 2 * slope + 1e-9
        last, slope = value, float(np.square(virtual.gradients.mean(axis=0)).sum())
        virtual.step()
    assert last < 0.02
    skipped = virtual.ledger.skips / (virtual.ledger.skips + virtual.ledger.messages["up"])
    assert skipped > 0.3 if total else skipped == 0


def test_the_command(tmp_path: Path) -> None:
    file = separable(tmp_path / "halves")
    record = shown(LAQ(quick=True, lyapunov=True), tmp_path, "--lyapunov", "--data", f"libsvm:{file}")
    runs = record["measured"]["lyapunov"]
    assert [(run["bits"], run["total"]) for run in runs] == list(ROWS)
    for run in runs:
        assert run["condition"] == pytest.approx(run["smooth"] / run["decay"])
        assert run["rate"] == pytest.approx(1 / (2 * run["smooth"]))
        assert 0 < run["sigma"] < 1
        assert run["curve"][0][1] == pytest.approx(runs[0]["curve"][0][1])  # all start at zero


def test_bars() -> None:
    def met(**change: float) -> list[bool]:
        runs = [
            {
                "row": f"{bits} {total}", "bits": bits, "total": total, "condition": condition,
                "grew": change.get("coarse", 7) if bits == 4 else change.get("fine", 0),
                "sigma": 1 - change.get(f"{bits} {total}", 1) / condition,
            }
            for condition in (10.0, 100.0)
            for bits, total in ROWS
        ]  # fmt: skip
        return [bar.met for bar in lyapunov.bars(runs)]

    assert met() == [True, True, True]
    assert met(fine=1) == [False, True, True]
    assert met(**{"8 0.8": 0.3}) == [True, True, False]
    assert met(**{"4 0.8": 0.3}) == [True, True, True]

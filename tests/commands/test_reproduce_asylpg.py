"""``qsparse reproduce asylpg``: a short run on the real data, and what it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reproducing import shown

from qsparse.compressors import Float32, LowPrecision
from qsparse.errors import NotFinite
from qsparse.presets import asylpg
from qsparse.reproduce.asylpg import AsyLPG
from qsparse.reproduce.asylpg_rows import ROWS
from qsparse.reproduce.asylpg_tables import compare
from qsparse.reproduce.objectives import Logistic, Objective, Perceptron
from qsparse.reproduce.watched import Pull, _pull, _summary, train
from qsparse.seeds import Seed

DENSE = 32 * 124
MODELS = ("AsyLPG", "Sparse-AsyLPG", "Acc-AsyLPG")


# --- losses -------------------------------------------------------------------------------------


def logistic(dtype: type = np.float64) -> Logistic:
    rng = np.random.default_rng(0)
    return Logistic(rng.normal(size=(61, 4)).astype(dtype), rng.integers(0, 2, 61), 3, Seed(0))


def perceptron(dtype: type = np.float64) -> Perceptron:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(61, 5)).astype(dtype), rng.integers(0, 3, 61)
    return Perceptron(x, y, 3, Seed(0), (5, 7, 6, 3))


@pytest.mark.parametrize("make", [logistic, perceptron])
def test_the_gradient_is_the_slope_of_the_loss(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsparse.reproduce.objectives._BLOCK", 8)  # shares then end in a shorter block
    objective = make()
    rng = np.random.default_rng(1)
    x = objective.start + 0.3 * rng.normal(size=objective.start.size)
    for batch in (None, np.array([3, 0, 11, 3])):
        oracle = objective.oracle(1)
        gradient, waste = np.full_like(x, np.nan), np.empty_like(x)
        oracle(x, batch, gradient)
        for place in rng.permutation(x.size)[:12]:
            step = np.zeros_like(x)
            step[place] = 1e-6
            slope = (oracle(x + step, batch, waste) - oracle(x - step, batch, waste)) / 2e-6
            assert gradient[place] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_loss_of_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(61, 4)), rng.integers(0, 2, 61)
    objective = Logistic(a, y, 1, Seed(0))
    w = np.array([0.5, -2, 1, 0.1, 0.3])
    odds = 1 / (1 + np.exp(-(a @ w[:4] + w[4])))
    assert objective.value(w) == pytest.approx(-np.log(np.where(y == 1, odds, 1 - odds)).mean())
    far = objective.value(1e4 * w)
    assert np.isfinite(far)
    assert far == pytest.approx(np.maximum(0, -(2 * y - 1) * (a @ w[:4] + w[4]) * 1e4).mean())


def test_the_loss_of_a_net() -> None:
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(61, 5)), rng.integers(0, 3, 61)
    objective = Perceptron(a, y, 1, Seed(0), (5, 7, 6, 3))
    x = objective.start + 0.1 * rng.normal(size=objective.start.size)
    (k1, b1), (k2, b2), (k3, b3) = (
        (x[at : at + m * n].reshape(m, n), x[at + m * n : at + m * n + n])
        for at, m, n in ((0, 5, 7), (42, 7, 6), (90, 6, 3))
    )
    scores = np.maximum(0, np.maximum(0, a @ k1 + b1) @ k2 + b2) @ k3 + b3
    likely = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert objective.value(x) == pytest.approx(-np.log(likely[np.arange(61), y]).mean())


@pytest.mark.parametrize("make", [logistic, perceptron])
def test_the_loss_is_the_mean_over_the_workers(make: Any) -> None:
    objective: Objective = make(np.float32)
    assert sorted(objective.sizes) == [20, 20, 21]
    x = objective.start + np.float32(0.1)
    waste = np.empty_like(x)
    losses = [objective.oracle(worker)(x, None, waste) for worker in range(3)]
    assert len(set(losses)) == 3
    assert objective.value(x) == pytest.approx(np.mean(losses), rel=1e-6)
    steps = [set(objective.batches(worker, 5).batch(0)) for worker in range(3)]
    assert steps[0] != steps[1]


# --- pulls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 6])
def test_the_expected_error_is_the_mean_of_the_realised(bits: int) -> None:
    x = np.random.default_rng(0).normal(size=500).astype(np.float32)
    pulls = [_pull(LowPrecision(bits).compress(x, Seed(i)), x, 7.0) for i in range(300)]
    assert {pull.bits for pull in pulls} == {bits}
    assert [type(value) for value in pulls[0]] == [int, float, float, float]  # as a file can have them
    assert {pull.allowed for pull in pulls} == {7.0}
    assert len({pull.expected for pull in pulls}) == 1
    assert np.mean([pull.realised for pull in pulls]) == pytest.approx(pulls[0].expected, rel=0.01)
    assert len({pull.realised for pull in pulls}) == 300


def test_a_float32_model_has_no_error() -> None:
    x = np.arange(5, dtype=np.float32)
    assert _pull(Float32().compress(x, Seed(0)), x, 0.0) == Pull(32, 0.0, 0.0, 0.0)


def test_what_is_said_of_pulls() -> None:
    epochs = [[Pull(3, 1.0, 1.5, 2.0), Pull(4, 0.2, 0.5, 0.4)], [Pull(5, 0.3, 0.1, 0.25)]]
    assert _summary(epochs, 2) == {
        "number": 3,
        "expected_over_allowed": 1.2,
        "realised_over_allowed": 1.25,
        "realised_beyond": 1,
        "bits": 4,
        "bits_by_epoch": [3.5, 5],
        "error_by_epoch": [1, 0.1],
        "series": [(0, 3, 1.5, 2.0), (2 / 3, 4, 0.5, 0.4), (4 / 3, 5, 0.1, 0.25)],
    }
    assert _summary([[], []], 2) is None
    found = _summary([[Pull(2, 0.1, 0.1, 0.0)]], 1)
    assert found is not None
    assert found["expected_over_allowed"] == np.inf


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers overflow before they are refused
def test_a_run_that_diverges_is_refused() -> None:
    with pytest.raises(NotFinite, match="lower the learning rate"):
        train(asylpg(1e30, inner=5), perceptron(np.float32), 5, 2, Seed(0))


# --- the experiment -----------------------------------------------------------------------------


def test_quick_asylpg(data_dir: Path, tmp_path: Path) -> None:
    record = shown(AsyLPG(quick=True), tmp_path, "--data-dir", data_dir)
    measured = record["measured"]
    (case,) = measured["cases"]
    epochs, inner = case["epochs"], case["inner"]
    runs = {run["row"]: run for run in measured["runs"]}
    assert list(runs) == [row.name for row in ROWS]
    # The last reports of an epoch are one for each worker, of which one was asked for.
    reports = epochs * (8 * inner + 7)
    pulls = epochs * (8 * inner - 1)
    for name, run in runs.items():
        assert run["parameters"] == 124
        assert run["messages"] == {"up": reports + 8 * epochs, "down": reports}
        dense = 8 * epochs * DENSE
        if name in ("AsyFPG", "Acc-AsyFPG"):
            assert run["paper_bits"] == {"up": dense + reports * DENSE, "down": reports * DENSE}
        elif name == "Sparse-AsyLPG":
            assert dense < run["paper_bits"]["up"] < dense + reports * (32 + 8 * 124 / 4)
            assert run["paper_bits"]["up"] % 8 == 0  # a sign and 7 bits of an index each
        else:
            assert run["paper_bits"]["up"] == dense + reports * (32 + 4 * 124)
        for way in ("up", "down"):
            assert 8 * run["wire_bytes"][way] > run["paper_bits"][way]
        places, ups, downs, losses = zip(*run["curve"], strict=True)
        assert places == pytest.approx(np.arange(0, epochs + 1 / 8, 1 / 8), abs=1 / (8 * inner))
        assert (ups[0], downs[0], losses[0]) == (0, 0, pytest.approx(np.log(2)))
        assert (ups[-1], downs[-1], losses[-1]) == (*run["paper_bits"].values(), run["loss"])
        assert list(ups) == sorted(ups)
        assert run["staleness"]["max"] >= run["staleness"]["mean"] > 6  # 7 others are on their way
        if name not in MODELS:
            assert run["pulls"] is None
            continue
        seen = run["pulls"]
        assert seen["number"] == pulls
        # It is met, and as many bits as that takes are hardly more than enough.
        assert 0.9 < seen["expected_over_allowed"] <= 1 + 1e-6
        assert 0 < seen["realised_beyond"] < pulls / 10
        sent = 32 * pulls + 124 * sum((8 * inner - 1) * bits for bits in seen["bits_by_epoch"])
        snapshots = 8 * epochs * DENSE
        assert run["paper_bits"]["down"] == pytest.approx(sent + snapshots)
        assert seen["bits_by_epoch"] == sorted(seen["bits_by_epoch"])
        assert seen["error_by_epoch"] == sorted(seen["error_by_epoch"], reverse=True)
    for row in ROWS:
        assert runs[row.name]["loss"] == pytest.approx(runs[row.baseline]["loss"], rel=0.01)
        if row.published:
            held = compare(measured, case, row)
            assert held.gain_up > 5
            assert held.gain > 4.5
    (coarse,) = measured["mus"]
    assert coarse["mu"] > case["mu"]
    assert coarse["pulls"]["expected_over_allowed"] <= 1 + 1e-6
    assert coarse["paper_bits"]["down"] < runs["AsyLPG"]["paper_bits"]["down"]
    assert [(run["row"], run["workers"]) for run in measured["split"]] == [
        ("AsyFPG", 2), ("AsyLPG", 2), ("AsyFPG", 4), ("AsyLPG", 4),
    ]  # fmt: skip
    for run in measured["split"]:
        assert run["messages"]["up"] == run["epochs"] * (1200 + 2 * run["workers"] - 1)
        assert all(spent > 0 for spent in run["seconds"]["worker"].values())


def measured(**change: Any) -> dict[str, Any]:
    """Two epochs of every row, in which it needs a tenth of the bits of its baseline."""
    runs = []
    for row in ROWS:
        bits = 100 if row.name == row.baseline else 10
        change_up, allowed = change.get(row.name, (1, 1.0))
        curve = [(0, 0, 0, 0.7), (1, bits * change_up, bits, 0.5), (2, 2 * bits * change_up, 2 * bits, 0.3)]
        pulls = {"expected_over_allowed": allowed} if row.name in MODELS else None
        runs.append({"case": "a9a", "row": row.name, "curve": curve, "pulls": pulls})
    case = {"name": "a9a", "tolerance": 0.01, "compared": 1}
    return {"cases": [case], "runs": runs}


def test_bars_of_asylpg() -> None:
    def failing(**change: Any) -> list[int]:
        return [place for place, bar in enumerate(AsyLPG().bars(measured(**change))) if not bar.met]

    assert failing() == [2]  # 19 times fewer bits up
    assert failing(**{"Sparse-AsyLPG": (0.5, 1)}) == []
    assert failing(AsyLPG=(2, 1)) == [0, 2]
    assert failing(AsyLPG=(4, 1)) == [0, 1, 2]
    assert failing(**{"Acc-AsyLPG": (2, 1.01)}) == [2, 4, 6]


def test_a_row_that_never_comes_to_the_loss_gains_nothing() -> None:
    found = measured()
    row = next(row for row in ROWS if row.name == "AsyLPG")
    held = compare(found, found["cases"][0], row)
    assert (held.gain_up, held.gain, held.target) == (10, 10, pytest.approx(0.505))
    (run,) = (run for run in found["runs"] if run["row"] == "AsyLPG")
    run["curve"] = [(*place, 0.51) for *place, _ in run["curve"]]
    held = compare(found, found["cases"][0], row)
    assert (held.gain_up, held.gain) == (0, 0)

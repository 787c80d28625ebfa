"""``qsparse reproduce``: short runs on the real data, and what they are made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reproducing import invoke, refused, separable, shown

from qsparse.compressors import Uniform
from qsparse.payload import HEADER_BYTES
from qsparse.presets import laq
from qsparse.reproduce import softmax
from qsparse.reproduce.base import Bar
from qsparse.reproduce.laq import DECAY, LAQ, REFERENCE, STORED, ZERO
from qsparse.reproduce.laq_rows import Published, doubts
from qsparse.reproduce.qsparse_mnist import ROWS, TWINS, QsparseLocalSGD, _fill, _Run
from qsparse.reproduce.softmax import Softmax, accuracy, examples, minimum
from qsparse.rounds.virtual import Virtual
from qsparse.seeds import Seed

# --- softmax regression -------------------------------------------------------------------------


def naive(theta: np.ndarray, x: np.ndarray, y: np.ndarray, decay: float) -> tuple[float, np.ndarray]:
    """Loss and gradient, an example at a time, in float64."""
    theta, x = theta.astype(np.float64), x.astype(np.float64)
    kernel, bias = theta[:-10].reshape(-1, 10), theta[-10:]
    loss, gradient = 0.0, np.zeros_like(theta)
    for row, label in zip(x, y, strict=True):
        odds = np.exp(row @ kernel + bias)
        odds /= odds.sum()
        loss -= np.log(odds[label])
        odds[label] -= 1
        gradient += np.concatenate([np.outer(row, odds).ravel(), odds])
    return loss / len(x) + decay / 2 * theta @ theta, gradient / len(x) + decay * theta


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 3e-6), (np.float64, 1e-13)])
def test_gradients_of_many_models_at_once(dtype: type, close: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "BLOCK", 7)  # shares of 20 then end in a shorter block
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(dtype)
    y = rng.integers(0, 10, 60)
    problem = Softmax(x, y, workers=3, decay=0.3)
    models = [rng.normal(size=problem.size).astype(dtype) * 3 for _ in range(4)]
    out = [np.full((3, problem.size), np.nan, dtype) for _ in models]
    losses = problem.gradients(models, out)
    for model, rows, loss in zip(models, out, losses, strict=True):
        wanted = [naive(model, x[20 * m : 20 * m + 20], y[20 * m : 20 * m + 20], 0.3) for m in range(3)]
        for row, (_, gradient) in zip(rows, wanted, strict=True):
            np.testing.assert_allclose(row, gradient, rtol=0, atol=close * np.abs(gradient).max())
        assert loss == pytest.approx(np.mean([each for each, _ in wanted]), rel=close)


def test_the_loss_is_known_to_a_tenth_of_the_tolerance(data_dir: Path) -> None:
    x, y, test_x, _ = softmax.mnist(data_dir)
    assert x.dtype == np.float32
    assert np.array_equal(x * 255, np.rint(x * 255))
    assert (x.min(), x.max(), x.shape, test_x.shape) == (0, 1, (60000, 784), (10000, 784))
    y = y[:6000]
    problems = {dtype: Softmax(x[:6000].astype(dtype), y, 2, DECAY) for dtype in (np.float32, np.float64)}
    for size in (0.01, 0.1, 1):
        theta = size * np.random.default_rng(3).normal(size=7850)
        theta = theta.astype(np.float32)
        ours, exact = (
            problem.gradients([theta.astype(dtype)], [np.empty((2, 7850), dtype)])
            for dtype, problem in problems.items()
        )
        assert ours[0] == pytest.approx(exact[0], rel=1e-7)


def test_scores_beyond_the_range_of_exp() -> None:
    x = np.array([[1.0], [-1.0]], np.float32)
    theta = np.zeros(20, np.float32)
    theta[3] = 1000
    out = np.empty((1, 20), np.float32)
    (loss,) = Softmax(x, np.array([3, 0]), 1, 0.0).gradients([theta], [out[:1]])
    # The first is certain and right; of the second, all but class 3 are equally likely.
    assert loss == pytest.approx(np.log(9) / 2)
    assert np.isfinite(out).all()


def test_uneven_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="7 examples cannot be dealt evenly to 2 workers"):
        Softmax(np.zeros((7, 2), np.float32), np.zeros(7, np.int64), 2, 0.0)


def test_accuracy_of_each_model() -> None:
    x = np.eye(3, dtype=np.float32)
    right = np.zeros((4, 10), np.float32)
    right[[0, 1, 2], [4, 5, 6]] = 1
    biased = np.zeros((4, 10), np.float32)
    biased[3, 5] = 1
    assert accuracy([right.ravel(), biased.ravel()], x, np.array([4, 5, 6])) == [1, pytest.approx(1 / 3)]


def test_the_minimum_has_no_slope() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    problem = Softmax(x, rng.integers(0, 10, 200), 2, DECAY)
    loss, norm = minimum(problem)
    assert norm**2 / (2 * DECAY) < 1e-10
    out = np.empty((2, problem.size), np.float32)
    theta = np.zeros(problem.size, np.float32)
    for _ in range(1000):  # each takes 1.5 % of the way that is left, at least
        (reached,) = problem.gradients([theta], [out])
        theta -= 1.5 * out.mean(axis=0)
    assert reached == pytest.approx(loss, abs=1e-6)
    assert reached > loss - 1e-8


# --- LAQ ----------------------------------------------------------------------------------------


def test_quick_laq(data_dir: Path, tmp_path: Path) -> None:
    record = shown(LAQ(quick=True), tmp_path / "deep" / "out", "--data-dir", data_dir, "--inits", 3)
    measured = record["measured"]
    assert record["settings"] == {
        "quick": True, "inits": 3, "baselines": True, "inits_baselines": False, "solve_reference": False,
        "alpha": [0.01, 0.015, 0.02, 0.04], "D": [10], "xi": ["0.8/D"], "coefficients": ["code"],
        "data": "mnist", "lyapunov": False,
    }  # fmt: skip
    assert measured["reference"] == {"loss": REFERENCE, "gradient_norm": None, "solved_here": False}
    runs = {(run["name"], run["alpha"], run["start"]): run for run in measured["runs"]}
    assert set(runs) == {
        *(("LAQ", alpha, "0") for alpha in (0.01, 0.015, 0.02, 0.04)),
        *((name, 0.02, "0") for name in ("GD", "QGD", "LAG-WK", "CGD")),
        ("LAQ", 0.02, ZERO),
    }
    codes = np.ones(7850, np.float32)
    frame = len(Uniform(4).compress(codes, Seed(0, use="up")))
    for (name, _, _), run in runs.items():
        rounds = 10 * (run["iterations"] + 1)
        assert run["uploads"] + run["skips"] == rounds
        # The run ended where it had to, and not before.
        *_, (_, before, _), (k, last, uploads) = [p for p in run["curve"] if p[0] <= run["iterations"]]
        assert (k, last, uploads) == (run["iterations"], run["loss"], run["uploads"])
        assert last - REFERENCE <= measured["tolerance"] < before - REFERENCE
        assert 0.75 < run["accuracy"] < 0.9082
        if name in ("GD", "QGD", "CGD"):
            assert run["uploads"] == rounds
        else:
            assert run["uploads"] < rounds / 2
        if name in ("GD", "LAG-WK"):
            assert run["code_bits"] == run["paper_bits"] == 32 * 7850 * run["uploads"]
            assert run["wire_bytes"] > 4 * 7850 * run["uploads"]
        else:
            place = np.log2(7850) if name == "CGD" else 0
            assert run["code_bits"] == pytest.approx((4 * 7850 + place) * run["uploads"], rel=1e-12)
            assert run["paper_bits"] == (32 + 4 * 7850) * run["uploads"]
            assert run["wire_bytes"] == frame * run["uploads"] + HEADER_BYTES * run["skips"]
    assert runs["QGD", 0.02, "0"]["iterations"] == pytest.approx(runs["GD", 0.02, "0"]["iterations"], abs=2)
    marks = {k: (loss, uploads) for k, loss, uploads in runs["LAQ", 0.02, ZERO]["marks"]}
    for k, loss, uploads in STORED[:7]:
        # A code that rounding turns over moves the loss by some 1e-5.
        assert marks[k] == (pytest.approx(loss, abs=5e-5), uploads)


def test_every_start_is_another() -> None:
    starts = [run.virtual.model.copy() for run in LAQ(inits=2, inits_baselines=True)._runs(7850)]
    assert len(starts) == 8 + 8 + 1
    assert len({start.tobytes() for start in starts}) == 3
    limit = np.sqrt(6 / 794)
    assert 0.999 * limit < np.abs(starts[0]).max() < limit
    assert not starts[0][7840:].any()
    assert len(LAQ(inits=2)._runs(7850)) == 8 + 4 + 1
    assert [run.row.name for run in LAQ(baselines=False)._runs(7850)] == 4 * 4 * ["LAQ"]


def test_bars_of_laq() -> None:
    def bars(change: dict[tuple[str, float], dict[str, Any]]) -> list[bool]:
        runs = []
        for run in LAQ()._runs(7850):
            published = run.row.published or Published(2999, 30_000, 1e9)  # of CGD, nothing
            figures = {
                "row": run.row.label, "name": run.row.name, "alpha": run.row.alpha, "start": run.start,
                "iterations": published.iterations, "uploads": published.uploads,
                "code_bits": published.bits, "accuracy": 0.9082,
            }  # fmt: skip
            if run.start == ZERO:
                figures |= {"marks": [list(mark) for mark in STORED[:-1]], "uploads": 540}
            key = (ZERO if run.start == ZERO else run.row.name, run.row.alpha)
            runs.append(figures | change.get(key, {}))
        return [bar.met for bar in LAQ().bars({"runs": runs})]

    assert bars({}) == [True] * 14
    assert bars({("LAQ", 0.02): {"accuracy": 0.9084}}) == [True] * 14
    for change, failing in [
        ({("LAQ", 0.01): {"iterations": 5219 * 1.09}}, 0),
        ({("LAQ", 0.02): {"uploads": 618 / 1.5}}, 5),
        ({("GD", 0.02): {"uploads": 28_400}}, 7),
        ({("QGD", 0.02): {"accuracy": 0.9079}}, 9),
        ({("LAQ", 0.02): {"code_bits": 2.8e7}}, 10),
        ({(ZERO, 0.02): {"marks": [[100, 0.6559, 94], [500, 1.0, 300]]}}, 11),
        ({(ZERO, 0.02): {"marks": [[100, 0.655839, 93]]}}, 12),
        ({(ZERO, 0.02): {"uploads": 600}}, 13),
    ]:
        assert [place for place, met in enumerate(bars(change)) if not met] == [failing]


def test_every_combination_on_data_of_ones_own(tmp_path: Path) -> None:
    file = separable(tmp_path / "halves")
    result = invoke(
        "laq", "--quick", "--out", tmp_path, "--data", f"libsvm:{file}", "--alpha", "0.05,0.1", "--D", "2,10",
        "--xi", "0.8/D,1/160", "--coefficients", "code,paper",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "laq.json").read_text())
    assert record["measured"]["reference"]["solved_here"] is True
    runs = {run["row"]: run for run in record["measured"]["runs"]}
    assert len(runs) == len(record["measured"]["runs"]) == 2 * 2 * 2 * 2 + 4
    assert {run["name"]: run["alpha"] for run in runs.values() if run["name"] != "LAQ"} == {
        "GD": 0.05, "QGD": 0.05, "LAG-WK": 0.05, "CGD": 0.05,
    }  # fmt: skip
    one = runs["LAQ α = 0.1, D = 2, ξ = 1/160, ξ_d of the paper"]
    assert one["algorithm"] == laq(1.0, published=True).with_(D=2, xi=1 / 160, spread=False).spelling()
    counts = {run["row"]: (run["iterations"], run["uploads"]) for run in record["measured"]["runs"]}
    assert len(set(counts.values())) > 4
    table, _, short = record["tables"]
    assert all(
        row[3] == row[4] == row[7] == row[8] == "" for row in table["rows"]
    )  # nothing is published of it
    assert len(examples(f"libsvm:{file}", None, 10).y) % 10 == 0
    first, *others = short["rows"]
    own = runs["CGD α = 0.05"]
    assert first[:3] == ["CGD α = 0.05", str(own["iterations"]), str(own["uploads"])]
    assert float(first[3].replace(",", "")) == pytest.approx(own["uploads"] * (40 + np.log2(10)), abs=1)
    for label, k, uploads, _ in others:  # those that came as far, and how soon
        point = next(point for point in runs[label]["curve"] if point[1] <= own["loss"])
        assert (str(point[0]), str(point[2])) == (k, uploads)


def test_without_a_memory_gradient_descent_stops_short(tmp_path: Path) -> None:
    """The gradients of workers do not vanish at the minimum, so a grid on them stays off by as much."""
    data = examples(f"libsvm:{separable(tmp_path / 'halves')}", None, 10)
    problem = Softmax(data.x, data.y, 10, DECAY, 2)
    least, _ = minimum(problem)
    left = {}
    for row in LAQ(alpha=(0.5,)).rows:
        if row.name in ("QGD", "CGD"):
            run = Virtual(row.algorithm.with_(bits=2), 10, np.zeros(problem.size, np.float32))
            for _ in range(120):
                (loss,) = problem.gradients([run.models[0]], [run.gradients])
                run.step()
            left[row.name] = loss - least
    assert left["CGD"] > 1e-4 > 1e-5 > left["QGD"]


def test_published_figures_stand_beside_their_rows() -> None:
    shown = LAQ(alpha=(0.01, 0.02), D=(2, 10), xi=("0.8/D", "1/160")).rows
    published = {row.label: row.published[:2] for row in shown if row.published is not None}
    assert published == {
        "LAQ α = 0.01": (5219, 825), "LAQ α = 0.01, ξ = 1/160": (2530, 530),
        "LAQ α = 0.02, D = 2": (None, 534), "LAQ α = 0.02": (2663, 618),
        "LAQ α = 0.02, ξ = 1/160": (2530, 530),
        "GD α = 0.02": (2820, 28200), "QGD α = 0.02": (2805, 28050), "LAG-WK α = 0.02": (2659, 2382),
    }  # fmt: skip
    assert len(list(doubts(shown))) == 2
    assert list(doubts(LAQ().rows)) == []


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--alpha", "0.1,-1"], "--alpha takes positive numbers, not 0.1, -1.0"),
        (["--D", "0"], "--D takes whole numbers of at least 1, not 0"),
        (["--xi", "0.8/E"], "--xi takes numbers of at least 0, such as 0.08, 1/160 or 0.8/D, not '0.8/E'"),
        (["--xi", "1/0"], "not '1/0'"),
        (["--xi=-1"], "not '-1'"),
        (["--coefficients", "code,book"], "--coefficients takes code, paper, not code, book"),
        (["--data", "libsvm:nowhere"], "nowhere"),
        (["--data", "libsvm:nowhere"], "LIBSVM's data sets are at https://"),
    ],
)
def test_what_laq_refuses(args: list[str], text: str, tmp_path: Path) -> None:
    refused(invoke("laq", "--quick", "--out", tmp_path, *args), text)


# --- Qsparse-local-SGD --------------------------------------------------------------------------

#: What one message of each operator takes: values or signs, 13 bits an index, 32 a scale.
MESSAGE = {
    "SGD": 32 * 7850,
    "EF-sign": 32 + 7850,
    "TopK": 40 * (32 + 13),
    "QTopK": 32 + 40 * (1 + 4 + 13),
    "SignTopK": 32 + 40 * (1 + 13),
}


def test_quick_qsparse(data_dir: Path, tmp_path: Path) -> None:
    record = shown(QsparseLocalSGD(quick=True), tmp_path, "--data-dir", data_dir, "--quiet")
    runs = {run["name"]: run for run in record["measured"]["runs"]}
    assert list(runs) == [row.name for row in ROWS]
    for row in ROWS:
        run = runs[row.name]
        if row.alone:  # gaps of 1 … H, of each worker another
            assert 15 * run["steps"] / row.H < run["messages"] < 15 * run["steps"]
        else:
            assert run["messages"] == 15 * (run["steps"] // row.H)
        assert run["paper_bits"] == run["messages"] * MESSAGE[row.name.split("_")[0]]
        whole = run["messages"] * 32 * 7850
        if "TopK" in row.name and not row.alone:  # answered with what has changed, or with the reports
            assert 0 < run["paper_bits_down"] < whole / 2
        else:
            assert run["paper_bits_down"] == whole
        assert [t for t, _, _ in run["curve"]] == list(range(8, run["steps"] + 1, 8))
        *before, (_, bits, error) = run["curve"]
        assert (bits, error) == (run["paper_bits"], run["error"])
        assert error <= record["measured"]["target"] < min([1.0, *(each for _, _, each in before)])
    assert runs["SGD"]["paper_bits"] > 100 * runs["SignTopK"]["paper_bits"]
    ends = {run["name"]: run for run in record["measured"]["ends"]}
    assert set(ends) == {each.name for pair in TWINS.items() for each in pair}
    for row, twin in TWINS.items():
        assert ends[row.name]["lr"] == ends[twin.name]["lr"] == runs[twin.name]["lr"]
        assert 0.05 < ends[row.name]["error"] != ends[twin.name]["error"] < 0.2


def test_every_worker_of_every_run_has_the_gradient_of_its_batch() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 784)).astype(np.float32), rng.integers(0, 10, 40)
    batches = [rng.permutation(40)[:8] for _ in range(15)]
    runs = [_Run(ROWS[place], 0.1, 0) for place in (0, 9)]
    for run in runs:
        run.virtual.models[...] = 0.05 * rng.normal(size=run.virtual.models.shape)
    _fill(runs, x, y, batches)
    for run in runs:
        for rank, batch in enumerate(batches):
            _, gradient = naive(run.virtual.models[rank], x[batch], y[batch], 0.0)
            np.testing.assert_allclose(run.virtual.gradients[rank], gradient, rtol=0, atol=1e-5)


def test_bars_of_qsparse() -> None:
    def failing(**change: float) -> list[int]:
        runs = [{"name": row.name, "paper_bits": change.get(row.name, row.bits or 6e5)} for row in ROWS]
        ends = [{"name": row.name, "error": change.get(f"{row.name} end", 0.1)} for row in ROWS]
        bars = QsparseLocalSGD().bars({"runs": runs, "ends": ends})
        return [place for place, bar in enumerate(bars) if not bar.met]

    assert failing() == []
    assert failing(TopK=1.2e6) == [3, 8]
    assert failing(SGD=4e8) == [7]
    assert failing(SignTopK_16L=1e5) == [8]
    assert failing(**{"SignTopK_8L async end": 0.111}) == [10]
    assert failing(**{"SignTopK_16L end": 0.111}) == [11]


# --- the command --------------------------------------------------------------------------------


def test_a_bar_says_what_is_met() -> None:
    assert str(Bar("uploads", 2, 1)) == "met: uploads: 2, wanted at least 1"
    assert str(Bar("uploads", 2.5, 1, 2)) == "NOT MET: uploads: 2.5, wanted 1 to 2"
    assert not Bar("uploads", 0.5, 1, 2).met


def test_without_matplotlib_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(invoke("laq", "--out", tmp_path / "out"), 'pip install -c constraints.txt ".[train]" in a clone')
    assert not (tmp_path / "out").exists()


def test_what_reproduce_refuses(tmp_path: Path) -> None:
    refused(invoke("laq", "--inits", 0), "--inits must be at least 1, not 0")
    refused(invoke("qsparse", "--seeds", 0), "--seeds must be at least 1, not 0")
    (tmp_path / "file").touch()
    refused(invoke("laq", "--out", tmp_path / "file" / "deeper"), f"cannot write to --out {tmp_path}/file")
    refused(invoke("laq", "--out", tmp_path, "--data-dir", tmp_path / "none"), "does not exist")

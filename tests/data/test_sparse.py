"""Sparse examples: kept as they are where that is smaller, and the same to every model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mpirun import mpi_train

import qsparse
from qsparse.data import Dataset, SparseRows, load, sparse
from qsparse.errors import DataError, SettingError
from qsparse.seeds import Seed
from qsparse.torch.problem import Classification, Network
from qsparse.torch.recipe import Recipe

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QSPARSE_DATA", raising=False)
    return tmp_path / "cache"


def dense(n: int, width: int = 50) -> np.ndarray:
    """Mostly zeros; one row has nothing else."""
    x = RNG.normal(size=(n, width)).astype(np.float32) * (RNG.random((n, width)) < 0.1)
    x[n // 2] = 0
    return (x + 0).astype(np.float32)  # no −0


def rows(x: np.ndarray) -> SparseRows:
    """The same as sparse rows."""
    starts = np.concatenate([[0], np.cumsum((x != 0).sum(1))]).astype(np.int64)
    return SparseRows(starts, np.nonzero(x)[1].astype(np.int32), x[x != 0], x.shape[1])


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 4000])
def test_what_is_taken_is_what_a_dense_array_gives(n: int) -> None:
    """With 4000 rows more is unfolded than at one time."""
    x = dense(n, 50 if n < 4000 else 3000)
    kept = rows(x)
    assert kept.shape == x.shape
    assert (len(kept), kept.size) == (n, x.size)
    places = [
        slice(None),
        slice(1, -1),
        slice(None, None, 3),
        slice(0, 0),
        RNG.integers(0, n, 5),
        np.array([-1]),
    ]
    for which in places:
        assert kept[which].tobytes() == x[which].tobytes()
        assert kept.rows(which)[:].tobytes() == x[which].tobytes()
    assert np.array_equal(np.asarray(kept), x)


def test_rows_that_cannot_be() -> None:
    starts, columns, values = np.array([0, 1, 2]), np.array([0, 3], np.int32), np.ones(2, np.float32)
    SparseRows(starts, columns, values, 4)
    for wrong, message in (
        ((starts, columns, values, 3), "outside of 0 to 2"),
        ((starts[:2], columns, values, 4), "end with the number"),
        ((np.array([0, 3, 2]), columns, values, 4), "ascend"),
        ((starts, columns.astype(np.int64), values, 4), "columns of int32"),
    ):
        with pytest.raises(DataError, match=message):
            SparseRows(*wrong)
    with pytest.raises(DataError, match="first axis"):
        rows(dense(3))[0]


# --- files ---------------------------------------------------------------------------------------


def text(n: int, width: int) -> str:
    """Two classes that one feature tells apart, among others; the last feature is there."""
    lines = []
    for i in range(n):
        label = 1 if i % 3 else -1
        lines.append(f"{label:+d} 1:{label * (1 + i % 4)} {3 + i % 7}:0.5 {width - i % 2}:0.25")
    return "\n".join(lines) + "\n"


def test_a_wide_file_stays_sparse_and_a_narrow_one_does_not(tmp_path: Path) -> None:
    (tmp_path / "wide").write_text(text(60, 2_000_000))
    (tmp_path / "narrow").write_text(text(60, 200))
    wide, narrow = load("libsvm:wide", tmp_path), load("libsvm:narrow", tmp_path)
    assert isinstance(wide.train_x, SparseRows)
    assert isinstance(wide.test_x, SparseRows)
    assert isinstance(narrow.train_x, np.ndarray)
    # The same rows are for tests, and a row has the same values.
    assert wide.test_y.tolist() == narrow.test_y.tolist()
    for x, y in ((wide.train_x, narrow.train_x), (wide.test_x, narrow.test_x)):
        assert x.shape == (len(y), 2_000_000)
        assert np.array_equal(x[[2]][:, :190], y[[2]][:, :190])
        assert np.array_equal(x[[2]][:, -2:], y[[2]][:, -2:])
    assert wide.describe() == load("libsvm:wide", tmp_path).describe()


def test_wide_and_full_is_no_reason_to_stay_sparse() -> None:
    full = SparseRows(
        np.array([0, 2**14]), np.arange(2**14, dtype=np.int32), np.ones(2**14, np.float32), 2**14
    )
    many = [full] * 2**13  # half a GiB
    assert not sparse.stays_sparse(many)
    empty = SparseRows(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 2**14)
    assert sparse.stays_sparse([empty] * 2**13)
    assert not sparse.stays_sparse([empty] * 2**12)


def test_checksums_see_values_columns_and_rows() -> None:
    x, y = dense(20), np.arange(20) % 2
    texts = set()
    for change in range(4):
        starts, columns, values = (each.copy() for each in (rows(x).starts, rows(x).columns, rows(x).values))
        if change == 1:
            values[5] += 1
        elif change == 2:
            columns[5] += 1
        elif change == 3:
            starts[1] += 1
        kept = SparseRows(starts, columns, values, 60)
        texts.add(Dataset("some", kept, y, kept, y, 2, (60,)).describe())
    assert len(texts) == 4


def test_a_long_file_is_read_once_on_a_machine(tmp_path: Path, cache: Path) -> None:
    for name, extra in (("long", b"# " + b"x" * 2**22 + b"\n"), ("short", b"")):
        (tmp_path / name).write_bytes(extra + text(60, 2_000_000).encode())
        (tmp_path / f"{name}.t").write_bytes(text(30, 1_000_000).encode())
    short = load("libsvm:short", tmp_path)
    assert not (cache / "decoded").exists()
    first, again = load("libsvm:long", tmp_path), load("libsvm:long", tmp_path)
    (kept,) = (cache / "decoded").glob("*.bin")
    assert not again.train_x.values.flags.writeable
    for each in (first, again):
        assert each.describe() == short.describe().replace("short", "long")
        assert np.array_equal(each.train_x[[7]], short.train_x[[7]])
    damaged = bytearray(kept.read_bytes())
    damaged[-1] ^= 1
    kept.write_bytes(damaged)
    assert load("libsvm:long", tmp_path).describe() == first.describe()


# --- models --------------------------------------------------------------------------------------


def problem(
    x: np.ndarray, model: str, form: bool, recipe: Recipe = Recipe(), batch: int | None = 8
) -> Classification:
    classes = 2 if model == "logistic" else 3
    y = np.arange(len(x)) % classes
    kept = rows(x) if form else x
    data = Dataset("some", kept, y, kept, y, classes, x.shape[1:])
    return Classification(data, model, batch, 0, 2, "random", Seed(1), recipe)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(label_smoothing=0.1, clip=0.01)])
@pytest.mark.parametrize("batch", [8, None])
@pytest.mark.parametrize("model", ["softmax", "logistic"])
def test_linear_models_on_sparse_rows_are_those_on_dense_ones(
    model: str, recipe: Recipe, batch: int | None
) -> None:
    x = dense(2600)  # so that a share has more than one chunk
    plain, kept = (problem(x, model, form, recipe, batch) for form in (False, True))
    assert np.array_equal(plain.vector, kept.vector)
    for t in (1, 2):
        losses = [one.gradient(one.vector, one.batch(t), one.gradient_vector) for one in (plain, kept)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        np.testing.assert_allclose(kept.gradient_vector, plain.gradient_vector, rtol=1e-4, atol=1e-7)
        assert np.abs(plain.gradient_vector).max() > 1e-4
    scores = [one.evaluate(1, 2) for one in (plain, kept)]
    assert scores[0].right == scores[1].right
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-6)


def test_logistic_is_logistic_regression() -> None:
    """The loss and its gradient, written out for labels of −1 and 1."""
    x = dense(40)
    one = problem(x, "logistic", True, batch=None)
    share, w, b = one._share, one.vector[:-1].astype(float), float(one.vector[-1])
    signs = np.where(one.data.train_y[share] == 1, 1.0, -1.0)
    margins = signs * (x[share] @ w + b)
    loss = one.gradient(one.vector, None, one.gradient_vector)
    assert loss == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)
    slopes = -signs / (1 + np.exp(margins)) / len(share)
    np.testing.assert_allclose(one.gradient_vector[:-1], x[share].T @ slopes, rtol=1e-4, atol=1e-7)
    assert one.gradient_vector[-1] == pytest.approx(slopes.sum(), rel=1e-4)


def test_a_share_goes_by_chunks_of_so_many_values() -> None:
    """A share of 30,000 rows has 1.5 million values, which are two chunks."""
    x = RNG.normal(size=(60_000, 50)).astype(np.float32)
    plain, kept = (problem(x, "softmax", form, batch=None) for form in (False, True))
    assert 15_000 < kept._chunk < 30_000
    for one in (plain, kept):
        one.gradient(one.vector, None, one.gradient_vector)
    np.testing.assert_allclose(kept.gradient_vector, plain.gradient_vector, rtol=1e-3, atol=1e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    x, found = dense(2600), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one = problem(x, "softmax", True, batch=None)
        loss = one.gradient(one.vector, None, one.gradient_vector)
        found.append((loss, one.gradient_vector.tobytes()))
    torch.set_num_threads(1)
    assert found[0] == found[1]


def test_other_models_get_the_bits_of_a_dense_array() -> None:
    x = dense(300)
    plain, kept = (problem(x, "mlp(7)", form) for form in (False, True))
    for one in (plain, kept):
        one.gradient(one.vector, one.batch(3), one.gradient_vector)
    assert plain.gradient_vector.tobytes() == kept.gradient_vector.tobytes()
    assert plain.evaluate() == kept.evaluate()
    data = kept.data
    virtual, out = Network(data, "softmax", Seed(1)), np.empty(50 * 3 + 3, np.float32)
    virtual.gradient(np.arange(9), out)
    assert 0 < virtual.accuracy(data.test_x, data.test_y) < 1
    assert np.abs(out).max() > 0


def test_what_a_model_cannot_take_is_refused_with_one_that_can() -> None:
    huge = SparseRows(np.zeros(9, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 2**30)
    y = np.arange(8) % 2
    data = Dataset("some", huge, y, huge, y, 2, (2**30,))
    with pytest.raises(
        DataError,
        match=r"8 rows of 1,073,741,824 features are 32 GiB .* linear model on them, softmax or logistic",
    ):
        huge[:]
    with pytest.raises(DataError, match="linear model on them, softmax or logistic"):
        Classification(replaced(data), "mlp(1)", 1, 0, 1, "random", Seed(0))
    with pytest.raises(SettingError, match=r"precision bf16 has no effect: softmax .* sparse examples"):
        problem(dense(30), "softmax", True, Recipe(precision="bf16"))


def replaced(data: Dataset) -> Dataset:
    """As many values, and fewer features than a model of would take the memory of this machine."""
    width = 2**20
    wide = SparseRows(np.zeros(2**13 + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), width)
    y = np.arange(2**13) % 2
    return Dataset(data.name, wide, y, wide, y, 2, (width,))


def test_threads_and_processes_train_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "wide").write_text(text(700, 100_000))
    lines, found = [], {}
    for algorithm in ("qsparse-local-sgd", "laq"):
        given = {
            "data": f"libsvm:{tmp_path / 'wide'}",
            "model": "softmax",
            "algorithm": algorithm,
            "steps": 20,
        }
        found[algorithm] = here = qsparse.run(qsparse.RunConfig(**given, ranks=2, wire="threads")).summary
        assert here["test_accuracy"] > 0.8  # 0.67 have one label
        assert here["parameters"] == 200_002
        options = [part for name, value in given.items() for part in (f"--{name}", value)]
        lines.append([*options, "--out", tmp_path / algorithm])
    mpi_train(2, lines, timeout=120)
    for algorithm, here in found.items():
        there = json.loads((tmp_path / algorithm / "summary.json").read_text())
        assert there["model_sha256"] == here["model_sha256"]

"""The sets of LIBSVM that have names of their own, in tiny files of the published names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_files import write

from qsparse.data import load
from qsparse.data.download import SOURCES
from qsparse.errors import DataError

NAMES = sorted(name for name, source in SOURCES.items() if "libsvm" in source.folders)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QSPARSE_DATA", raising=False)
    return tmp_path / "cache"


def text(rows: int) -> bytes:
    return b"".join(b"%d 1:%d 3:0.5\n" % (1 - 2 * (i % 2), i) for i in range(1, rows + 1))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("ijcnn1", ["ijcnn1", "ijcnn1.t"]),
        ("rcv1", ["rcv1_train.binary", "rcv1_test.binary"]),
        ("covtype", ["covtype.libsvm.binary.scale"]),
        ("covtype", ["covtype.libsvm.binary"]),
        ("real-sim", ["real-sim"]),
        ("news20", ["news20.binary"]),
    ],
)
@pytest.mark.parametrize(("folder", "suffix"), [("", ".bz2"), ("libsvm", ""), ("own", ".xz")])
def test_published_files_are_found(
    tmp_path: Path, name: str, files: list[str], folder: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data" / (name if folder == "own" else folder)
    write(place, {file: text(20 + 10 * number) for number, file in enumerate(files)}, suffix)
    found = load(name, tmp_path / "data")
    assert found.name == name
    assert (found.classes, found.shape) == (2, (3,))
    values = [sorted(x[:, 0].tolist()) for x in (found.train_x, found.test_x)]
    if len(files) == 2:
        assert values == [list(range(1, 21)), list(range(1, 31))]
    else:
        assert len(values[1]) == 4
        assert sorted(values[0] + values[1]) == list(range(1, 21))
    monkeypatch.setenv("QSPARSE_DATA", str(tmp_path / "data"))
    assert load(name).describe() == found.describe()


def test_scaled_places_come_before_those_as_they_were_measured(tmp_path: Path) -> None:
    write(tmp_path, {"covtype.libsvm.binary": text(30), "covtype.libsvm.binary.scale": text(10)})
    assert len(load("covtype", tmp_path).train_y) == 8


def test_the_last_half_million_of_susy_is_for_tests(tmp_path: Path) -> None:
    rows = b"0 1:1\n" + b"1 2:0.5\n" * 2 + b"0 1:0.25\n1\n" * 250_000
    write(tmp_path, {"SUSY": rows}, ".gz")
    susy = load("susy", tmp_path)
    assert susy.train_x.tolist() == [[1, 0], [0, 0.5], [0, 0.5]]
    assert susy.train_y.tolist() == [0, 1, 1]
    assert np.array_equal(susy.test_y, np.arange(500_000) % 2)
    assert susy.test_x.sum() == 250_000 * 0.25
    write(tmp_path / "less", {"SUSY": text(20)})
    with pytest.raises(DataError, match=r"SUSY has 20 rows, and the last 500,000 of susy are its test set"):
        load("susy", tmp_path / "less")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there_is_to_be_had_at_libsvm(tmp_path: Path, name: str, cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / name), str(tmp_path / "libsvm"), str(cache / "libsvm"), "--data-dir DIR"):
        assert part in message
    assert "LIBSVM Data: Classification (Binary Class)" in message
    for file in SOURCES[name].layouts[0]:
        assert file in message
    assert not cache.exists()


def test_half_of_a_set_is_not_taken_for_all(tmp_path: Path) -> None:
    write(tmp_path, {"ijcnn1": text(20)}, ".bz2")
    with pytest.raises(DataError, match=r"which lacks ijcnn1\.t\)"):
        load("ijcnn1", tmp_path)

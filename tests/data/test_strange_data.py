"""Data as strangers have it: LIBSVM text of other programs, and the names that archives give."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_files import IDX, cifar_binary, tiny_cifar, tiny_mnist, write

from qsparse.data import load
from qsparse.errors import DataError, SettingError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a cache beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QSPARSE_DATA", raising=False)
    return tmp_path / "work"


# --- LIBSVM text --------------------------------------------------------------------------------------

ROWS = b"+1 1:1 3:2\n-1 2:1\n+1 1:3\n-1 3:1\n+1 1:1\n"


def libsvm(data: bytes, name: str = "rows") -> str:
    Path(name).write_bytes(data)
    return f"libsvm:{Path(name).absolute()}"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + ROWS,
        ROWS.replace(b"\n", b"\r\n"),
        ROWS.replace(b" ", b"\t"),
        ROWS.rstrip(),
        ROWS.replace(b"1:1 3:2", b"3:2 1:1"),
        ROWS.replace(b"1:1 3:2", b"3:2  01:1 # 1_000 : seen"),
        b"# a header_with_a_line\n\n" + ROWS,
        ROWS.replace(b"-1 2:1", b"-1 qid:3 2:1").replace(b"1:1 3:2", b"qid:1 3:2 1:1"),
        ROWS.replace(b"+1", b"1.0").replace(b"-1", b"-1e0").replace(b"1:1 3:2", b"3:2. 1:1"),
        gzip.compress(ROWS, mtime=0),
        bz2.compress(b"\xef\xbb\xbf" + ROWS),
        lzma.compress(ROWS),
    ],
)
def test_libsvm_text_however_it_was_written(data: bytes) -> None:
    expected = load(libsvm(ROWS, "expected"))
    found = load(libsvm(data))
    assert np.array_equal(found.train_x, expected.train_x)
    assert np.array_equal(found.train_y, expected.train_y)
    assert np.array_equal(found.test_x, expected.test_x)


def test_files_that_were_joined_with_their_marks() -> None:
    mark = b"\xef\xbb\xbf"
    assert len(load(libsvm(mark + ROWS + mark + ROWS)).train_y) == 8


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"-1 1: 1", "'1:' has no value behind the colon, which no space may follow"),
        (b"-1 1:1 1:2", "index 1 comes twice"),
        (b"-1 3:1 1:2 3:2", "index 3 comes twice"),
        (b"-1 1:1,5", "the value in '1:1,5' is not a number, such as 1.5"),
        (b"-1 1:1_0", "the value in '1:1_0' is not a number"),
        (b"-1 1:0x1", "the value in '1:0x1' is not a number"),
        (b"-1 1", "'1' has no colon"),
        (b"-1 -1:3", "the index in '-1:3' is not a whole number of at least 0"),
        (b"-1 1.5:3", "the index in '1.5:3' is not a whole number"),
        (b"-1 :3", "the index in ':3' is not a whole number"),
        (b"-1 3000000000:3", "the index in '3000000000:3' is larger than 2147483647"),
        (b"-1 " + b"9" * 5000 + b":3", "is larger than 2147483647"),
        (b"1:1 2:3", "it begins with an index, without a label, '1:1'"),
        (b"cat 1:1", "its label, 'cat', is not one number"),
        (b"1,2 1:1", "its label, '1,2', is not one number"),
        (b"label,pixel", "its label, 'label,pixel', is not one number"),
        (b"-1 1:1 \xfc:3", r"the index in '\\xfc:3' is not a whole number"),
        (b"-1 1:1\0", "the value in '1:1\\x00' is not a number"),
        (b"inf 1:1", "has a label inf: labels of classes are whole numbers"),
        (b"-Infinity 1:1", "has a label -inf"),
        (b"nan 1:1", "has a label nan"),
        (b"1e999 1:1", "has a label inf"),
        (b"0.5 1:1", "has a label 0.5"),
        (b"-1 1:nan", "has a value nan, which is not finite"),
        (b"-1 1:1 2:inf", "has a value inf, which is not finite"),
        (b"-1 2:1e39 1:3", "has a value 1e+39, which is not finite, or too large for float32"),
        (
            b"-1 2147483647:3",
            "has the largest index: a linear model of 2147483647 features",
        ),
    ],
)
def test_the_line_that_is_wrong_is_named(line: bytes, text: str) -> None:
    data = ROWS + b"\n# between\n" + ROWS + line + b"\n" + ROWS
    with pytest.raises(DataError) as caught:
        load(libsvm(data))
    said = str(caught.value)
    assert said.startswith(f"{Path('rows').absolute()}, line 13, "), said
    assert text in said
    # In the file beside it, too.
    libsvm(data, "good.t")
    with pytest.raises(DataError) as caught:
        load(libsvm(ROWS, "good"))
    assert str(caught.value).startswith(f"{Path('good.t').absolute()}, line 13, ")


def test_what_is_no_text_at_all() -> None:
    for data, text in [
        (b"", "has no rows"),
        (b"\xef\xbb\xbf\n\n# nothing\n", "has no rows"),
        (ROWS.decode().encode("utf-16"), "line 1, "),
        (b"PK\x03\x04 and more", "is a ZIP archive: unpack it"),
        (gzip.compress(ROWS, mtime=0)[:-9], "cannot be read: "),
    ]:
        with pytest.raises(DataError, match=text):
            load(libsvm(data))
    for name in ("libsvm:.", "libsvm:/", "libsvm:~", "libsvm:" + "x" * 300):
        with pytest.raises((DataError, SettingError)):
            load(name)


# --- names of archives --------------------------------------------------------------------------------

NAMES: dict[str, Callable[[str], str]] = {
    "7-Zip": lambda name: name.replace("-idx", ".idx"),
    "capitals": str.upper,
    "underscores": lambda name: name.replace("-", "_"),
}


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("below", ["mnist", "MNIST/raw", "mnist/RAW", "Mnist", "raw", "."])
def test_mnist_under_the_names_of_archives(how: str, below: str, place: Path) -> None:
    files = {NAMES[how](name): data for name, data in tiny_mnist().items()}
    write(place / below, files, ".gz" if below == "raw" else "")
    mnist = load("mnist", place)
    assert len(mnist.train_y) == 30
    assert mnist.test_y.tolist() == list(range(10))


def test_a_suffix_does_not_say_how_a_file_is_packed(place: Path) -> None:
    files = tiny_mnist()
    write(place / "plain", {f"{name}.gz": data for name, data in files.items()})
    write(place / "packed", {name: gzip.compress(data, mtime=0) for name, data in files.items()})
    write(place / "other", {f"{name}.gz": bz2.compress(data) for name, data in files.items()})
    for folder in ("plain", "packed", "other"):
        assert len(load("mnist", place / folder).train_y) == 30
    batches = {name.upper(): data for name, data in cifar_binary(tiny_cifar()).items()}
    assert len(load("cifar10", write(place / "CIFAR-10", batches)).train_y) == 100


def test_of_two_files_the_publishers_is_read(place: Path) -> None:
    write(place, tiny_mnist())
    write(place, {name.replace("-idx", ".idx"): data for name, data in tiny_mnist(train=20).items()})
    write(place, {f"{name}.gz": data for name, data in tiny_mnist(train=10).items()})
    assert len(load("mnist", place).train_y) == 30


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", ["train-images.gz", "train-labels.gz", "t10k-images.gz", "t10k-labels.gz"]),
        ("mnist", ["mnist/train-images-idx3-ubyte (1).gz", *(f"mnist/{name}.gz" for name in IDX[1:])]),
        ("mnist", ["mnist.npz"]),
        ("mnist", ["mnist_train.csv", "mnist_test.csv"]),
        ("mnist", [f"{name}/{name}" for name in IDX]),
        ("fashion-mnist", ["fashion-mnist_train.csv"]),
        ("cifar10", ["cifar-10-python.tar.gz"]),
        ("cifar10", ["cifar-10/data_batch_1.mat", "cifar-10/test_batch.mat"]),
    ],
)
def test_a_folder_that_seems_to_hold_the_data_is_not_passed_over(
    name: str, files: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files:
        write((place / "data" / file).parent, {Path(file).name: b"x"})
    with pytest.raises(DataError) as caught:
        load(name, place / "data")
    assert f"{place / 'data'} was named for the data and has no whole {name}: there is " in str(caught.value)
    assert str(place / "data" / files[0].split("/")[0]) in str(caught.value)
    monkeypatch.setenv("QSPARSE_DATA", str(place / "data"))
    with pytest.raises(DataError, match="was named for the data"):
        load(name)
    assert not Path(os.environ["QSPARSE_CACHE"]).exists()

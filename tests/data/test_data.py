"""Data sets: their formats, and where their files come from."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tiny_files import BATCHES, IDX, cifar_binary, idx, tiny_cifar, tiny_mnist, write

from qsparse.data import Dataset, load, readers, search_path, sources
from qsparse.data.download import SOURCES
from qsparse.errors import DataError, SettingError, UnknownPart


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no folder in the environment."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("qsparse.data.download.cache", lambda: folder)
    monkeypatch.delenv("QSPARSE_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


# digits and real files


def test_digits_are_those_of_scikit_learn_which_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; from qsparse.data import load; load('digits'); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    from sklearn.datasets import load_digits

    bunch = load_digits()
    wanted = np.column_stack([bunch.data, bunch.target])
    assert np.array_equal(sources._digits_table(), wanted)
    # Where the file lies elsewhere, and where there is none.
    monkeypatch.setattr(sources, "find_spec", lambda name: importlib.util.spec_from_loader(name, None))
    assert np.array_equal(sources._digits_table(), wanted)
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="part of scikit-learn, which is missing"):
        load("digits")


def test_digits_are_all_there_and_standardised() -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load("digits")
    assert digits.train_x.shape == (1437, 1, 8, 8)
    assert digits.test_x.shape == (360, 1, 8, 8)
    assert abs(digits.train_x.mean(dtype=np.float64)) < 1e-6
    assert digits.train_x.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)

    pixels, labels = load_digits(return_X_y=True)
    x = np.concatenate([digits.train_x, digits.test_x]).reshape(-1, 64).astype(np.float64)
    y = np.concatenate([digits.train_y, digits.test_y])
    scale = (x.max() - x.min()) / 16
    again = np.column_stack([np.rint((x - x.min()) / scale), y])
    order = np.lexsort(again.T)
    given = np.column_stack([pixels, labels])
    assert np.array_equal(again[order], given[np.lexsort(given.T)])


def test_loading_twice_gives_the_same_description() -> None:
    assert load("digits").describe() == load("digits").describe()


def test_description_tells_data_apart() -> None:
    digits = load("digits")
    labels = digits.train_y.copy()
    labels[0] = (labels[0] + 1) % 10
    assert dataclasses.replace(digits, train_y=labels).describe() != digits.describe()
    brighter = dataclasses.replace(digits, test_x=digits.test_x + np.float32(0.25))
    assert brighter.describe() != digits.describe()


def test_description_sees_every_pixel_position() -> None:
    # 40,000 pictures of 28 x 28: the sample must not fall on the same column of each.
    x = np.zeros((40_000, 1, 28, 28), np.float32)
    y = np.zeros(40_000, np.int64)
    blank = Dataset("blank", x, y, x[:1], y[:1], 2, (1, 28, 28)).describe()
    for column in (0, 13, 27):
        lit = x.copy()
        lit[..., column] = 1
        assert Dataset("blank", lit, y, x[:1], y[:1], 2, (1, 28, 28)).describe() != blank


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("train_x", np.zeros((2, 3)), "float64"),
        ("train_x", np.zeros((3, 3), np.float32), "shape"),
        ("train_x", np.asfortranarray(np.zeros((2, 3), np.float32)), "contiguous"),
        ("train_y", np.zeros(2, np.int32), "int32"),
        ("test_y", np.array([0, 2]), "0 to 1"),
        ("test_y", np.array([-1, 1]), "-1"),
    ],
)
def test_dataset_refuses_arrays_that_are_not_as_stated(field: str, value: Any, word: str) -> None:
    x, y = np.zeros((2, 3), np.float32), np.array([0, 1])
    good = Dataset("mine", x, y, x, y, 2, (3,))
    with pytest.raises(DataError, match=word):
        dataclasses.replace(good, **{field: value})


def test_mnist(data_dir: Path) -> None:
    mnist = load("mnist", data_dir)
    assert mnist.train_x.shape == (60000, 1, 28, 28)
    assert mnist.test_x.shape == (10000, 1, 28, 28)
    assert mnist.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(mnist.train_y).tolist()[:3] == [5923, 6742, 5958]
    x = np.asarray(mnist.train_x)
    assert abs(x.mean(dtype=np.float64)) < 1e-3
    assert x.std(dtype=np.float64) == pytest.approx(1, abs=1e-3)


def test_cifar10(data_dir: Path) -> None:
    cifar = load("cifar10", data_dir)
    assert cifar.train_x.shape == (50000, 3, 32, 32)
    assert cifar.test_x.shape == (10000, 3, 32, 32)
    assert np.bincount(cifar.train_y).tolist() == [5000] * 10
    assert np.bincount(cifar.test_y).tolist() == [1000] * 10
    assert cifar.train_y[:3].tolist() == [6, 9, 9]
    assert cifar.test_y[:3].tolist() == [3, 8, 8]
    x = np.asarray(cifar.train_x)
    for colour in range(3):
        plane = x[:, colour]
        assert abs(plane.mean(dtype=np.float64)) < 1e-3
        assert plane.std(dtype=np.float64) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("path", ["a9a", "a9a.bz2", "libsvm/a9a.bz2"])
def test_a9a_with_its_test_set(data_dir: Path, path: str) -> None:
    a9a = load(f"libsvm:{path}", data_dir)
    assert a9a.name == "libsvm:a9a"
    # The test file has 122 features only.
    assert a9a.train_x.shape == (32561, 123)
    assert a9a.test_x.shape == (16281, 123)
    assert a9a.shape == (123,)
    assert np.bincount(a9a.train_y).tolist() == [24720, 7841]
    assert np.count_nonzero(a9a.train_x) == 451592


def test_a1a_without_a_test_set_is_split(data_dir: Path) -> None:
    a1a = load(f"libsvm:{data_dir / 'libsvm' / 'a1a.bz2'}")
    assert len(a1a.train_y) == 1284
    assert len(a1a.test_y) == 321
    assert set(a1a.test_y.tolist()) == {0, 1}


# places


@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_idx_layouts(tmp_path: Path, folder: str, suffix: str) -> None:
    write(tmp_path / "data" / folder, tiny_mnist(), suffix)
    mnist = load("mnist", tmp_path / "data")
    assert mnist.train_x.shape == (30, 1, 28, 28)
    assert mnist.train_x[:].flags.c_contiguous
    raw = np.arange(784) % 256
    expected = ((raw / 255 - 0.1307) / 0.3081).reshape(1, 28, 28)
    np.testing.assert_allclose(mnist.train_x[:1][0], expected, rtol=0, atol=1e-6)
    assert mnist.test_y.tolist() == list(range(10))


def test_places_are_tried_in_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = write(tmp_path / "given", tiny_mnist(train=11))
    named = write(tmp_path / "named", tiny_mnist(train=12))
    write(cache / "mnist", tiny_mnist(train=13))
    assert len(load("mnist").train_y) == 13
    monkeypatch.setenv("QSPARSE_DATA", str(named))
    assert len(load("mnist").train_y) == 12
    assert len(load("mnist", given).train_y) == 11
    assert search_path(given) == [given, named, cache]


def test_fashion_and_mnist_are_not_mixed_up(tmp_path: Path) -> None:
    files = tiny_mnist()
    files[IDX[1]] = idx(np.array([5, 0, 4, 1, 9, 2, 1, 3, 1, 4] * 3))
    write(tmp_path / "data", files)
    assert len(load("mnist", tmp_path / "data").train_y) == 30
    with pytest.raises(DataError, match="holds mnist"):
        load("fashion-mnist", tmp_path / "data")


def test_fashion_has_its_own_mean(tmp_path: Path) -> None:
    write(tmp_path / "FashionMNIST" / "raw", tiny_mnist())
    fashion = load("fashion-mnist", tmp_path)
    assert fashion.train_x[:].min() == pytest.approx(-0.2860 / 0.3530)


def test_a_given_folder_must_exist(tmp_path: Path) -> None:
    for name in ("digits", "mnist", "libsvm:a9a"):
        with pytest.raises(DataError, match=r"nowhere.*does not exist"):
            load(name, tmp_path / "nowhere")


def test_a_misspelt_environment_downloads_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.offer("mnist", {f"{name}.gz": gzip.compress(data) for name, data in tiny_mnist().items()})
    monkeypatch.setenv("QSPARSE_DATA", str(tmp_path / "dtaa"))
    with pytest.raises(DataError, match=r"QSPARSE_DATA names .*dtaa"):
        load("mnist")
    assert server.requests == []


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UnknownPart, match=r"did you mean 'fashion-mnist'\?.*digits, fashion-mnist"):
        load("fashionmnist")
    with pytest.raises(UnknownPart, match="no data set is named 'MNIST': did you mean 'mnist'"):
        load("MNIST")
    for text in ("libsvm:", "libsvm", "libsvm('')", "libsvm(3)"):
        with pytest.raises(SettingError, match="libsvm"):
            load(text)


# malformed files


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (0, lambda d: d[:-1], r"30 x 28 x 28 bytes and has 23519"),
        (0, lambda d: d + b"x", "incomplete or damaged"),
        (0, lambda d: d[:7], "fewer than the 16"),
        (0, lambda d: b"", "fewer than the 16"),
        (0, lambda d: b"\0\0\x0d\x03" + d[4:], "0x00000d03"),
        (0, lambda d: idx(np.zeros((30, 27, 28))), "27 x 28"),
        (0, lambda d: idx(np.zeros((29, 28, 28))), "29 pictures .* 30 labels"),
        (1, lambda d: d[:-1] + b"\x0a", "label 10"),
        (1, lambda d: idx(np.zeros((30, 1, 1))), "no idx file"),
    ],
)
def test_malformed_idx_files(
    tmp_path: Path, file: int, change: Callable[[bytes], bytes], message: str
) -> None:
    files = tiny_mnist()
    files[IDX[file]] = change(files[IDX[file]])
    write(tmp_path / "data", files)
    with pytest.raises(DataError, match=message) as caught:
        load("mnist", tmp_path / "data")
    assert str(tmp_path / "data" / IDX[file]) in str(caught.value)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"not packed at all", lambda d: b""]
)
def test_damaged_compression(tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    write(tmp_path / "data", tiny_mnist(), suffix)
    broken = tmp_path / "data" / (IDX[0] + suffix)
    broken.write_bytes(damage(broken.read_bytes()))
    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path / "data")
    assert str(broken) in str(caught.value)


def test_truncated_cifar(tmp_path: Path) -> None:
    files = cifar_binary(tiny_cifar())
    files["data_batch_3.bin"] = files["data_batch_3.bin"][:-5]
    write(tmp_path / "data", files)
    with pytest.raises(DataError, match=r"data_batch_3\.bin has 61455 bytes"):
        load("cifar10", tmp_path / "data")


# the layouts of CIFAR-10


_Base: Any = pickle._Pickler


class Python2Pickler(_Base):  # type: ignore[misc]
    """Writes byte strings as Python 2 did, which wrote the published files."""

    dispatch: ClassVar[dict[type, object]] = dict(_Base.dispatch)

    def save_bytes(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch[bytes] = save_bytes


def python2(value: object) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue()


def check_cifar(dataset: Dataset, batches: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    x = np.concatenate([batches[name][0] for name in BATCHES[:5]]).reshape(-1, 3, 32, 32)
    mean = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    std = np.array([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    np.testing.assert_allclose(dataset.train_x, (x / 255 - mean) / std, rtol=0, atol=1e-6)
    assert dataset.train_y.tolist() == np.concatenate([batches[name][1] for name in BATCHES[:5]]).tolist()
    assert dataset.test_y.tolist() == batches["test_batch"][1].tolist()


@pytest.mark.parametrize("folder", ["", "cifar-10", "cifar-10-batches-bin"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_cifar_binary_layout(tmp_path: Path, folder: str, suffix: str) -> None:
    batches = tiny_cifar()
    write(tmp_path / "data" / folder, cifar_binary(batches), suffix)
    check_cifar(load("cifar10", tmp_path / "data"), batches)


PICKLES: dict[str, Callable[[object], bytes]] = {
    "python 2": python2,
    **{f"protocol {number}": partial(pickle.dumps, protocol=number) for number in range(2, 6)},
}


@pytest.mark.parametrize("form", PICKLES)
@pytest.mark.parametrize("text_keys", [True, False])
def test_cifar_python_layout(tmp_path: Path, form: str, text_keys: bool) -> None:
    batches = tiny_cifar()
    files = {}
    for number, (name, (x, y)) in enumerate(batches.items()):
        labels: object = y.tolist() if number else y.astype(np.int64)
        pixels = np.asfortranarray(x) if number == 1 else x
        entries = {b"data": pixels, b"labels": labels, b"batch_label": b"some", b"filenames": [b"a.png"]}
        files[name] = PICKLES[form](
            {key.decode(): value for key, value in entries.items()} if text_keys else entries
        )
    write(tmp_path / "data" / "cifar-10-batches-py", files)
    check_cifar(load("cifar10", tmp_path / "data"), batches)


@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize("folder", ["", "cifar-100", "cifar-100-python", "CIFAR-100-binary"])
def test_cifar100_in_both_layouts(tmp_path: Path, form: str, folder: str) -> None:
    """Its classes are the fine ones, which stand behind the groups; the last one is there."""
    rng, files, kept = np.random.default_rng(2), {}, {}
    for part, n in (("train", 12), ("test", 5)):
        x, fine = rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 100, n, dtype=np.uint8)
        fine[0] = 99
        coarse, kept[part] = fine // 5, (x.reshape(-1, 3, 32, 32), fine)
        if form == "bin":
            files[f"{part}.bin"] = np.column_stack([coarse, fine, x]).tobytes()
        else:
            entries = {b"data": x, b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
            files[part] = pickle.dumps(entries, protocol=2)
    write(tmp_path / "data" / folder, files)
    found = load("cifar100", tmp_path / "data")
    assert (found.name, found.classes, found.shape) == ("cifar100", 100, (3, 32, 32))
    mean = np.array([0.5071, 0.4865, 0.4409]).reshape(3, 1, 1)
    std = np.array([0.2673, 0.2564, 0.2762]).reshape(3, 1, 1)
    for part, x, y in (("train", found.train_x, found.train_y), ("test", found.test_x, found.test_y)):
        np.testing.assert_allclose(x, (kept[part][0] / 255 - mean) / std, rtol=0, atol=1e-6)
        assert y.tolist() == kept[part][1].tolist()


def test_a_file_of_cifar10_is_none_of_cifar100(tmp_path: Path) -> None:
    x, y = next(iter(tiny_cifar(3).values()))
    write(tmp_path, {name: np.column_stack([y, x]).tobytes() for name in ("train.bin", "test.bin")})
    with pytest.raises(DataError, match=r"not a whole number of CIFAR-100 records of 3074"):
        load("cifar100", tmp_path)
    write(tmp_path, {name: pickle.dumps({b"data": x, b"labels": y}) for name in ("train", "test")})
    (tmp_path / "train.bin").unlink()
    with pytest.raises(DataError, match="train has no usable entry 'fine_labels'"):
        load("cifar100", tmp_path)


def test_folders_of_other_data_do_not_stand_in_the_way_of_a_download(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "train", {"a.png": b""})
    write(tmp_path, tiny_mnist())
    records = b"\1\7" + bytes(3072)
    server.offer(
        "cifar100", {"cifar-100-binary.tar.gz": archive({"train.bin": records, "test.bin": records})}
    )
    assert load("cifar100", tmp_path).train_y.tolist() == [7]


class Calls:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("how", ["system", "eval", "getattr", "open", "inside", "global"])
def test_hostile_pickles_are_refused_and_not_run(tmp_path: Path, protocol: int, how: str) -> None:
    mark = tmp_path / "mark"
    hostile: object = {
        "system": Calls(os.system, f"touch {mark}"),
        "eval": Calls(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "open": Calls(open, str(mark), "w"),
        "inside": {b"data": np.zeros((2, 3072), np.uint8), b"labels": [Calls(os.system, f"touch {mark}"), 1]},
        "global": np.array([Calls(os.system, f"touch {mark}")], dtype=object),
    }[how]
    file = tmp_path / "data_batch_1"
    file.write_bytes(pickle.dumps(hostile, protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_1 is no CIFAR-10 batch: .*it was not run"):
        readers.read_cifar_pickle(file)
    assert not mark.exists()
    # The same bytes do run elsewhere, so the test above has something to refuse.
    if how == "system":
        pickle.loads(file.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}q\x00",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -2]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": 2}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": ["cat", "dog"]}),
        pickle.dumps({b"data": np.zeros((2, 3072), object), b"labels": [1, 2]}),
        # An array that claims more elements than it has bytes.
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}).replace(
            b"M\x00\x0c", b"M\x00\x0d"
        ),
    ],
)
def test_pickles_without_pictures_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "data_batch_1"
    file.write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1"):
        readers.read_cifar_pickle(file)


def test_every_truncation_of_a_pickle_is_a_data_error(tmp_path: Path) -> None:
    whole = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]})
    file = tmp_path / "data_batch_1"
    for end in [*range(200), *range(len(whole) - 60, len(whole))]:
        file.write_bytes(whole[:end])
        with pytest.raises(DataError, match="data_batch_1"):
            readers.read_cifar_pickle(file)


# LIBSVM text


def libsvm(folder: Path, text: str, name: str = "some") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return f"libsvm:{folder / name}"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["-1", "+1", "-1", "1"], [0, 1, 0, 1]),
        (["0", "1", "1", "0"], [0, 1, 1, 0]),
        (["3", "1", "2", "1"], [2, 0, 1, 0]),
        (["1.0", "2.000", "2", "1"], [0, 1, 1, 0]),
    ],
)
def test_label_formats(tmp_path: Path, labels: list[str], expected: list[int]) -> None:
    text = "".join(f"{label} 1:{row} 3:0.5\n" for row, label in enumerate(labels))
    libsvm(tmp_path, text, "some.t")
    dataset = load(libsvm(tmp_path, text))
    assert dataset.train_y.tolist() == dataset.test_y.tolist() == expected
    assert dataset.classes == max(expected) + 1
    assert dataset.train_x[:, 0].tolist() == [0, 1, 2, 3]
    assert dataset.train_x[0].tolist() == [0, 0, 0.5]


def test_empty_rows_and_comments(tmp_path: Path) -> None:
    text = "# a comment\n+1 2:1.5\n-1\n+1 # nothing here\n\n-1 1:2\n"
    libsvm(tmp_path, text, "some.t")
    dataset = load(libsvm(tmp_path, text))
    assert dataset.train_x.tolist() == [[0, 1.5], [0, 0], [0, 0], [2, 0]]
    assert dataset.train_y.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("train", "test"), [("1:1", "1:1 5:2"), ("1:1 5:2", "1:1"), ("0:1 4:2", "1:1")])
def test_both_files_get_the_same_features(tmp_path: Path, train: str, test: str) -> None:
    libsvm(tmp_path, f"1 {test}\n-1 {test}\n", "some.t")
    dataset = load(libsvm(tmp_path, f"1 {train}\n-1 {train}\n"))
    assert dataset.train_x.shape == dataset.test_x.shape == (2, 5)
    assert dataset.train_x[0, 0] == 1
    assert dataset.test_x[0, 1 if train.startswith("0") else 0] == 1


def test_a_label_of_the_test_file_only_is_a_class_too(tmp_path: Path) -> None:
    libsvm(tmp_path, "3 1:1\n1 1:1\n", "some.t")
    dataset = load(libsvm(tmp_path, "1 1:1\n2 1:1\n"))
    assert dataset.classes == 3
    assert dataset.test_y.tolist() == [2, 0]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_libsvm_paths(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"some": b"1 1:1\n-1 2:1\n", "some.t": b"1 3:1\n"}
    write(tmp_path / "data", data, suffix)
    expected = load(f"libsvm:{tmp_path / 'data' / 'some'}{suffix}").describe()
    assert "2 + 1 examples of (3,)" in expected
    assert load(f"libsvm:some{suffix}", tmp_path / "data").describe() == expected
    monkeypatch.setenv("QSPARSE_DATA", str(tmp_path / "data"))
    assert load("libsvm:some").describe() == expected
    monkeypatch.delenv("QSPARSE_DATA")
    monkeypatch.chdir(tmp_path)
    assert load("libsvm:data/some").describe() == expected


def test_a_split_is_the_same_each_time_and_loses_nothing(tmp_path: Path) -> None:
    name = libsvm(tmp_path, "".join(f"{row % 2} 1:{row + 1}\n" for row in range(50)))
    dataset = load(name)
    assert len(dataset.train_y) == 40
    assert len(dataset.test_y) == 10
    rows = np.concatenate([dataset.train_x, dataset.test_x]).ravel()
    assert sorted(rows.tolist()) == list(range(1, 51))
    assert load(name).train_x.tolist() == dataset.train_x.tolist()
    assert dataset.test_x.ravel().tolist() != list(range(41, 51))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1:1\n0.5 1:1\n", "label 0.5"),
        ("nan 1:1\n1 1:1\n", "label nan"),
        ("1 1:1\n1 2:1\n", "nothing to learn"),
        ("1 1:one\n2 1:1\n", "line 1, is not .* of LIBSVM text: the value in '1:one' is not a number"),
        ("1 2:1 2:1\n2 1:1\n", "line 1, is not .* of LIBSVM text: index 2 comes twice"),
        ("1,2 1:1\n2 1:1\n", "line 1, is not .* of LIBSVM text: its label, '1,2', is not one number"),
        ("a,b,c\n", "line 1, is not .* of LIBSVM text: its label, 'a,b,c'"),
        ("1 1:nan\n2 1:1\n", "finite"),
        ("1 1:1e39\n2 1:1\n", "finite"),
        ("", "no rows"),
        ("1 1:1\n2 2147480000:1\n2 1:1\n", "line 2, has the largest index: .* 16 GiB, more than 8"),
    ],
)
def test_malformed_libsvm(tmp_path: Path, text: str, message: str) -> None:
    name = libsvm(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        load(name)
    assert str(tmp_path / "some") in str(caught.value)


def test_a_missing_libsvm_file_says_where_was_looked(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("libsvm:missing", tmp_path)
    for folder in (Path.cwd(), tmp_path, tmp_path / "libsvm", cache):
        assert str(folder / "missing") in str(caught.value)


# downloads, from a real server on this machine


class Server:
    """Serves what it is offered and counts what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.content: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.announced: int | None = None
        self.monkeypatch = monkeypatch
        outer = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path.removeprefix("/"))
                body = outer.content.get(self.path.removeprefix("/"))
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(outer.announced or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.base = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def offer(self, name: str, files: dict[str, bytes], algorithm: str = "sha256") -> None:
        """Serve these files as the official ones of a data set."""
        self.content |= files
        sums = tuple(
            (n, f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}") for n, data in files.items()
        )
        self.monkeypatch.setitem(
            SOURCES, name, dataclasses.replace(SOURCES[name], base=self.base, files=sums)
        )

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server(monkeypatch)
    yield running
    running.close()


def packed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()}


def files_in(folder: Path) -> list[str]:
    """What was downloaded."""
    found = (f.relative_to(folder) for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock")
    return sorted(str(f) for f in found if "decoded" not in f.parts)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_what_is_missing_is_downloaded_once(server: Server, cache: Path, algorithm: str) -> None:
    server.offer("mnist", packed(tiny_mnist()), algorithm)
    first = load("mnist")
    assert first.train_y.tolist() == [i % 10 for i in range(30)]
    assert files_in(cache) == sorted(f"mnist/{name}.gz" for name in IDX)
    assert server.requests == [f"{name}.gz" for name in IDX]
    assert load("mnist").describe() == first.describe()
    assert len(server.requests) == 4


def test_the_official_files_pass_their_checksums(
    server: Server, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = SOURCES["mnist"]
    server.content = {name: (data_dir / "mnist" / name).read_bytes() for name, _ in official.files}
    monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(official, base=server.base))
    assert load("mnist").describe() == load("mnist", data_dir).describe()


def test_an_explicit_folder_is_read_but_not_written(server: Server, tmp_path: Path, cache: Path) -> None:
    server.offer("mnist", packed(tiny_mnist()))
    (tmp_path / "given").mkdir()
    assert len(load("mnist", tmp_path / "given").train_y) == 30
    assert files_in(tmp_path / "given") == []
    assert len(files_in(cache)) == 4


def test_several_ranks_of_a_node_download_once(server: Server) -> None:
    server.offer("mnist", packed(tiny_mnist()))
    with ThreadPoolExecutor(4) as pool:
        described = list(pool.map(lambda _: load("mnist").describe(), range(4)))
    assert len(set(described)) == 1
    assert len(server.requests) == 4


def test_a_broken_off_download_goes_on_with_the_missing_files(server: Server, cache: Path) -> None:
    server.offer("mnist", packed(tiny_mnist()))
    last = f"{IDX[3]}.gz"
    kept = server.content.pop(last)
    with pytest.raises(DataError, match="404"):
        load("mnist")
    assert len(files_in(cache)) == 3
    server.content[last] = kept
    load("mnist")
    assert server.requests.count(f"{IDX[0]}.gz") == 1


def test_a_wrong_checksum_is_refused_and_nothing_left_behind(server: Server, cache: Path) -> None:
    server.offer("mnist", packed(tiny_mnist()))
    server.content[f"{IDX[0]}.gz"] = gzip.compress(b"something else")
    with pytest.raises(DataError, match=f"{IDX[0]}.gz gave a file with sha256 .* instead of"):
        load("mnist")
    assert files_in(cache) == []


def test_a_cut_connection_is_refused_and_nothing_left_behind(server: Server, cache: Path) -> None:
    server.offer("mnist", packed(tiny_mnist()))
    server.announced = 10**6
    with pytest.raises(DataError, match=r"after \d+ of 1000000 bytes"):
        load("mnist")
    assert files_in(cache) == []


def test_without_a_network_the_error_says_what_to_do(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    monkeypatch.setitem(SOURCES, "cifar10", dataclasses.replace(SOURCES["cifar10"], base=base))
    given, named = tmp_path / "given", tmp_path / "named"
    named.mkdir()
    write(given / "cifar-10", {"data_batch_1.bin": b""})
    monkeypatch.setenv("QSPARSE_DATA", str(named))
    with pytest.raises(DataError) as caught:
        load("cifar10", given)
    message = str(caught.value)
    for top in (given, named, cache):
        for folder in ("", "cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py"):
            assert f"{top / folder}," in message or f"{top / folder} " in message
    assert f"{given / 'cifar-10'} (which lacks data_batch_2.bin, " in message
    assert f"{base}cifar-10-binary.tar.gz: " in message
    assert "refused" in message
    assert "--data-dir DIR" in message
    assert "QSPARSE_DATA" in message


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"the download to .*cache.* failed: .*--data-dir DIR"):
        load("mnist")


def archive(files: dict[str, bytes], top: str = "cifar-10-batches-bin/") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_an_archive_is_unpacked_and_only_where_it_should_be(server: Server, cache: Path) -> None:
    batches = tiny_cifar()
    files = {**cifar_binary(batches), "../../../evil": b"x", "readme.html": b"x"}
    server.offer("cifar10", {"cifar-10-binary.tar.gz": archive(files)}, "md5")
    check_cifar(load("cifar10"), batches)
    assert files_in(cache.parent) == sorted(f"cache/cifar-10/{name}.bin" for name in BATCHES)


def test_a_shared_cache_can_be_read_by_others(server: Server, cache: Path) -> None:
    server.offer("mnist", packed(tiny_mnist()))
    server.offer("cifar10", {"cifar-10-binary.tar.gz": archive(cifar_binary(tiny_cifar()))}, "md5")
    load("mnist")
    load("cifar10")
    files = files_in(cache)
    assert len(files) == 10
    assert {(cache / file).stat().st_mode & 0o777 for file in files} == {0o644}


@pytest.mark.parametrize("refused", ["a", "ar"])
def test_a_lock_of_another_user_is_no_condition(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Such a lock may be read, and held; where not even that, files are whole because of their names."""
    server.offer("mnist", packed(tiny_mnist()))
    opened, asked = Path.open, []

    def theirs(path: Path, mode: str = "r", *args: Any, **given: Any) -> Any:
        if "lock" in path.name:
            asked.append(mode)
            if mode in refused:
                raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *args, **given)

    cache.mkdir()
    (cache / "download.lock").touch()
    (cache / "decoded").mkdir()
    (cache / "decoded" / "lock").touch()
    monkeypatch.setattr(Path, "open", theirs)
    for _ in range(2):
        assert len(load("mnist").train_y) == 30
    assert asked == ["a", "r", "a", "r"]
    assert len(list((cache / "decoded").glob("mnist-*.bin"))) == 1


def test_an_archive_without_the_files_is_refused(server: Server) -> None:
    files = cifar_binary(tiny_cifar())
    del files["test_batch.bin"]
    server.offer("cifar10", {"cifar-10-binary.tar.gz": archive(files)})
    with pytest.raises(DataError, match="not complete"):
        load("cifar10")


def test_progress_is_shown_on_request(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.offer("mnist", packed(tiny_mnist()))
    load("mnist", progress=True)
    assert f"{IDX[0]}.gz" in capsys.readouterr().err

"""The data sets by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qsparse.data import readers
from qsparse.data.base import Source
from qsparse.data.cache import Arrays, decoded
from qsparse.data.dataset import Dataset
from qsparse.data.download import locate, search_path
from qsparse.data.images import Floats, Pictures, standardised
from qsparse.data.shards import split
from qsparse.errors import DataError
from qsparse.files import named_path
from qsparse.registry import build, register


def load(name: str, data_dir: Path | None = None, *, progress: bool = False) -> Dataset:
    """Load a data set; what is not on disk is downloaded (see `qsparse.data.download`).

    Args:
        name: ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``susy`` and
            other names of LIBSVM's sets (see `qsparse.data.libsvm_sets`), ``libsvm:PATH``,
            ``imagefolder:PATH``, or one of yours.
        data_dir: the folder to look in first.
        progress: show a bar while downloading.

    Pictures are scaled to 0..1 and standardised with the mean and standard deviation of the training
    set, per colour; the values of LIBSVM files stay as they are. Those of mnist, fashion-mnist, cifar10 and
    cifar100 are unpacked once on a machine (see `qsparse.data.cache`) and become floats when they are taken.

    Raises:
        UnknownPart: there is no data set of this name.
        DataError: `data_dir` does not exist, the data is nowhere, or a file is malformed.
    """
    data_dir = None if data_dir is None else named_path(data_dir)
    search_path(data_dir)  # a folder that is not there is an error for every data set
    source: Source = build(name, "data")
    return source.load(data_dir, progress=progress)


@register("digits")
@dataclass(frozen=True)
class Digits(Source):
    """1797 handwritten digits of 8 x 8 pixels, a part of scikit-learn."""

    def load(self, data_dir: Path | None, *, progress: bool = False) -> Dataset:
        """From the package."""
        return _digits()


class _Mnist(Source):
    """Pictures of 28 x 28 in the four files of MNIST.

    Attributes:
        mean, std: of the training set.
    """

    downloads: ClassVar[bool] = True
    mean: ClassVar[float]
    std: ClassVar[float]

    def load(self, data_dir: Path | None, *, progress: bool = False) -> Dataset:
        """From disk, or over the network."""
        name = self.registered_name
        return _idx(name, self.mean, self.std, locate(name, data_dir, progress=progress))


@register("mnist")
@dataclass(frozen=True)
class Mnist(_Mnist):
    """70,000 handwritten digits of 28 x 28 pixels."""

    mean: ClassVar[float] = 0.1307
    std: ClassVar[float] = 0.3081


@register("fashion-mnist")
@dataclass(frozen=True)
class FashionMnist(_Mnist):
    """70,000 pictures of clothes, of 28 x 28 pixels."""

    mean: ClassVar[float] = 0.2860
    std: ClassVar[float] = 0.3530


class _Cifar(Source):
    """Colour pictures of 32 x 32.

    Attributes:
        classes: how many kinds of things there are.
        mean, std: of the training set, for red, green and blue.
    """

    downloads: ClassVar[bool] = True
    classes: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    def load(self, data_dir: Path | None, *, progress: bool = False) -> Dataset:
        """From disk, or over the network."""
        name, classes = self.registered_name, self.classes
        files = locate(name, data_dir, progress=progress)
        table = np.stack([standardised(255, *each) for each in zip(self.mean, self.std, strict=True)])
        return _pictures(name, decoded(name, files, lambda: _read_cifar(files, classes)), table, classes)


@register("cifar10")
@dataclass(frozen=True)
class Cifar10(_Cifar):
    """60,000 colour pictures of things and animals, of 32 x 32 pixels."""

    classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)


@register("cifar100")
@dataclass(frozen=True)
class Cifar100(_Cifar):
    """60,000 colour pictures of a hundred kinds of things and animals, of 32 x 32 pixels."""

    classes: ClassVar[int] = 100
    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4865, 0.4409)
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)


def _digits() -> Dataset:
    table = _digits_table()
    raw = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    y = table[:, -1].astype(np.int64)
    train, test = split(len(y))
    # Sums of integers, which are exact: every machine gets the same bits.
    seen = raw[train].astype(np.int64)
    total, squares = int(seen.sum()), int((seen * seen).sum())
    mean = total / seen.size / 16
    std = math.sqrt(squares * seen.size - total * total) / seen.size / 16
    x = standardised(16, mean, std)[raw]
    return Dataset("digits", x[train], y[train], x[test], y[test], 10, (1, 8, 8))


def _digits_table() -> npt.NDArray[np.float64]:
    """64 pixels and the label of every picture.

    The file is read as `sklearn.datasets.load_digits` reads it, without loading all of scikit-learn and
    SciPy, which takes as long as loading torch; should it lie elsewhere one day, they are loaded.
    """
    package = find_spec("sklearn")
    if package is None:
        raise DataError("digits is a part of scikit-learn, which is missing: pip install qsparse[train]")
    for folder in package.submodule_search_locations or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    table: npt.NDArray[np.float64] = np.column_stack([bunch.data, bunch.target])
    return table


#: The labels that the training files begin with: MNIST and Fashion-MNIST have the same file names.
_FIRST_LABELS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    "fashion-mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}


def _idx(name: str, mean: float, std: float, files: Sequence[Path]) -> Dataset:
    arrays = decoded(name, files, lambda: _read_idx(name, files))
    return _pictures(name, arrays, standardised(255, mean, std)[np.newaxis])


def _read_idx(name: str, files: Sequence[Path]) -> Arrays:
    arrays: Arrays = {}
    for part, (pictures, labels) in (("train", files[:2]), ("test", files[2:])):
        y = readers.read_idx(labels, 1)
        if part == "train":
            for other, first in _FIRST_LABELS.items():
                if other != name and tuple(y[: len(first)].tolist()) == first:
                    raise DataError(
                        f"{labels.parent} holds {other}, whose files have the same names: "
                        f"put those of {name} into a folder {name}"
                    )
        raw = readers.read_idx(pictures, 3)
        if raw.shape[1:] != (28, 28):
            raise DataError(f"{pictures} holds pictures of {raw.shape[1]} x {raw.shape[2]}, not 28 x 28")
        _matching(pictures, len(raw), labels, y)
        arrays |= {f"{part}_x": raw[:, np.newaxis], f"{part}_y": y}
    return arrays


def _pictures(name: str, arrays: Arrays, table: Floats, classes: int = 10) -> Dataset:
    """The data set with these pictures and labels."""
    train, test = (
        (Pictures(arrays[f"{part}_x"], table), arrays[f"{part}_y"].astype(np.int64))
        for part in ("train", "test")
    )
    return Dataset(name, *train, *test, classes, train[0].shape[1:])


def _matching(pictures: Path, count: int, labels: Path, y: npt.NDArray[np.uint8], classes: int = 10) -> None:
    if count != len(y):
        raise DataError(f"{pictures} holds {count} pictures and {labels} {len(y)} labels")
    if not count:
        raise DataError(f"{pictures} holds no pictures")
    if y.max() >= classes:
        raise DataError(f"{labels} holds a label {y.max()}: there are {classes} classes, 0 to {classes - 1}")


def _read_cifar(files: Sequence[Path], classes: int) -> Arrays:
    """The last file is the test set."""
    binary = ".bin" in files[0].name.lower()
    read = readers.read_cifar_binary if binary else readers.read_cifar_pickle
    batches = []
    for file in files:
        pictures, labels = read(file, classes)
        _matching(file, len(pictures), file, labels, classes)
        batches.append((pictures, labels))
    arrays: Arrays = {}
    for part, chosen in (("train", batches[:-1]), ("test", batches[-1:])):
        for letter, each in zip("xy", zip(*chosen, strict=True), strict=True):
            arrays[f"{part}_{letter}"] = np.concatenate(each)
    return arrays

"""What a data set is, whatever file it came from."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsparse.data.images import Examples, Floats, Pictures
from qsparse.data.photos import PictureFiles
from qsparse.data.sparse import SparseRows
from qsparse.errors import DataError

Labels = npt.NDArray[np.int64]

#: How many values of x, about, enter the checksum of `Dataset.describe`.
_SAMPLED = 65536


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples and their labels, for training and for testing.

    Args:
        name: what was asked for, without folders.
        train_x, train_y, test_x, test_y: examples and labels. Examples are normalised, of shape
            ``(N, *shape)``: float32 and C-contiguous, or `Pictures`, `PictureFiles` or `SparseRows`, of
            which indices and slices of the first axis give such arrays. Labels are int64 of shape
            ``(N,)``, from 0 to ``classes - 1``.
        classes: how many labels there are.
        shape: of one example: ``(channels, height, width)`` or ``(features,)``.

    Raises:
        DataError: the arrays are not as stated.
    """

    name: str
    train_x: Examples
    train_y: Labels
    test_x: Examples
    test_y: Labels
    classes: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            where = f"the {part} part of data set {self.name!r}"
            plain = isinstance(x, Pictures | PictureFiles | SparseRows) or (
                x.dtype == np.float32 and x.flags.c_contiguous
            )
            if not plain:
                raise DataError(f"{where} is {x.dtype} or not C-contiguous: give float32 in C order")
            if y.dtype != np.int64 or y.ndim != 1:
                raise DataError(f"{where} has labels of {y.dtype} and shape {y.shape}: give int64, one each")
            if x.shape != (len(y), *self.shape):
                raise DataError(
                    f"{where} has shape {x.shape}, its labels and shape say {(len(y), *self.shape)}"
                )
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.classes:
                raise DataError(
                    f"{where} has labels from {y.min()} to {y.max()}: they must be 0 to {self.classes - 1}"
                )

    def describe(self) -> str:
        """One line that tells whether two ranks read the same data: name, shapes and a checksum.

        The checksum covers all labels and about 65,536 evenly spaced values of each x; of sparse rows
        these are values that are kept, with their columns, and where each row begins; of files with pictures
        their names, and a few of them as a whole.
        """
        checksum = 0
        for x, y in ((self.train_x, self.train_y), (self.test_x, self.test_y)):
            checksum = zlib.crc32(_little(y), checksum)
            for sample in _samples(x):
                checksum = zlib.crc32(_little(sample), checksum)
        return (
            f"{self.name}: {len(self.train_y)} + {len(self.test_y)} examples of {self.shape}, "
            f"{self.classes} classes, crc32 {checksum:08x}"
        )


def _samples(x: Examples) -> Iterator[npt.NDArray[Any]]:
    if isinstance(x, SparseRows):
        yield x.starts
        yield from (kept[:: max(1, len(kept) // _SAMPLED)] for kept in (x.columns, x.values))
    elif isinstance(x, PictureFiles):
        yield from x.samples()
    else:
        yield _sample(x)


def _sample(x: Floats | Pictures) -> Floats:
    # Coprime to the size of an example: otherwise the sample could visit the same pixels of every
    # picture, and those of a border are all alike.
    size = math.prod(x.shape[1:])
    stride = max(1, x.size // _SAMPLED)
    while math.gcd(stride, size) > 1:
        stride += 1
    return x.every(stride) if isinstance(x, Pictures) else x.reshape(-1)[::stride]


def _little(values: npt.NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()

"""What a data set is, whatever file it came from."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsparse.errors import DataError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

#: How many values of x, about, enter the checksum of `Dataset.describe`.
_SAMPLED = 65536


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples and their labels, for training and for testing.

    Args:
        name: what was asked for, without folders.
        train_x, test_x: float32, C-contiguous, of shape ``(N, *shape)``, normalised.
        train_y, test_y: int64 of shape ``(N,)``, from 0 to ``classes - 1``.
        classes: how many labels there are.
        shape: of one example: ``(channels, height, width)`` or ``(features,)``.

    Raises:
        DataError: the arrays are not as stated.
    """

    name: str
    train_x: Floats
    train_y: Labels
    test_x: Floats
    test_y: Labels
    classes: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            where = f"the {part} part of data set {self.name!r}"
            if x.dtype != np.float32 or not x.flags.c_contiguous:
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

        The checksum covers all labels and about 65,536 evenly spaced values of each x.
        """
        checksum = 0
        for x, y in ((self.train_x, self.train_y), (self.test_x, self.test_y)):
            checksum = zlib.crc32(_little(y), checksum)
            checksum = zlib.crc32(_little(x.reshape(-1)[:: _stride(x)]), checksum)
        return (
            f"{self.name}: {len(self.train_y)} + {len(self.test_y)} examples of {self.shape}, "
            f"{self.classes} classes, crc32 {checksum:08x}"
        )


def _stride(x: Floats) -> int:
    # Coprime to the size of an example: otherwise the sample could visit the same pixels of every
    # picture, and those of a border are all alike.
    size = math.prod(x.shape[1:])
    stride = max(1, x.size // _SAMPLED)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


def _little(values: npt.NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()

"""Pictures as they lie on the disk, a byte for each value, which become floats when they are taken."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qsparse.data.photos import PictureFiles
from qsparse.data.sparse import SparseRows
from qsparse.errors import DataError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def standardised(white: int, mean: float, std: float) -> Floats:
    """What the values 0 to `white` become: scaled to 0..1 and standardised, rounded once each."""
    table: Floats = ((np.arange(256) / white - mean) / std).astype(np.float32)
    return table


class Pictures:
    """An array of float32 of which only the bytes are kept: a quarter of the memory, shared if it is mapped.

    What is taken is looked up in a table, so it is rounded once, and has the same bits however it is taken.

    Args:
        raw: (N, channels, height, width), uint8, C-contiguous.
        table: (channels, 256), float32: what each byte stands for.

    Raises:
        DataError: the arrays are not as stated.

    >>> Pictures(np.array([[[[0, 2]]]], np.uint8), np.arange(256, dtype=np.float32)[np.newaxis] / 2)[[0]]
    array([[[[0., 1.]]]], dtype=float32)
    """

    dtype = np.dtype(np.float32)

    def __init__(self, raw: Bytes, table: Floats) -> None:
        if raw.dtype != np.uint8 or raw.ndim != 4 or not raw.flags.c_contiguous:
            raise DataError(
                f"pictures of {raw.dtype} and shape {raw.shape}: give uint8 and 4 axes in C order"
            )
        if table.dtype != np.float32 or table.shape != (raw.shape[1], 256):
            raise DataError(
                f"a table of {table.dtype} and shape {table.shape} for {raw.shape[1]} channels: "
                f"give float32 and ({raw.shape[1]}, 256)"
            )
        self.raw, self.table = raw, table
        self.shape: tuple[int, ...] = raw.shape

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def ndim(self) -> int:
        """4."""
        return self.raw.ndim

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.raw.size

    def __getitem__(self, which: Any) -> Floats:
        """Some of the pictures, by index or slice of the first axis."""
        chosen = self.raw[which]
        if chosen.ndim != 4:
            raise DataError("pictures are taken by a slice or by an array of indices of the first axis")
        return self._looked_up(chosen, np.empty(chosen.shape, np.float32))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of them: four times the memory."""
        if copy is False:
            raise ValueError("floats are made of bytes, which cannot be done without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def take(self, indices: npt.NDArray[Any], out: Floats) -> Floats:
        """Those at ``indices``, (n,), into ``out``, (n, channels, height, width)."""
        return self._looked_up(self.raw[indices], out)

    def every(self, stride: int) -> Floats:
        """Every stride-th value of all of them in a row."""
        at = np.arange(0, self.size, stride)
        channels = at // math.prod(self.shape[2:]) % self.shape[1]
        values: Floats = self.table[channels, self.raw.reshape(-1)[at]]
        return values

    def _looked_up(self, raw: Bytes, out: Floats) -> Floats:
        for channel, values in enumerate(self.table):
            out[:, channel] = values[raw[:, channel]]
        return out


#: Examples as an array, or as what becomes one when it is taken.
Examples: TypeAlias = Floats | Pictures | PictureFiles | SparseRows

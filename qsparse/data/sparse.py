"""Examples of which most values are 0: only the others are kept, and a linear model takes them so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qsparse.errors import DataError

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

#: The largest x that may be unfolded, in bytes.
DENSE_LIMIT: Final = 16 * 2**30
#: What unfolds to no more is unfolded: a batch of a dense array is taken and multiplied faster.
_SMALL: Final = 2**28
#: What is kept sparse is so many times smaller than it would be dense.
_GAIN: Final = 4
#: Values that are unfolded at a time, where each needs the number of its row.
_BLOCK: Final = 2**20


class SparseRows:
    """An array of float32, (N, features), as compressed sparse rows (CSR).

    What is taken by an index or a slice is a dense array, as of every other form of examples; `rows` takes
    examples as they are.

    Args:
        starts: where each row begins in the two arrays below, and the end of the last: (N + 1,), int64.
        columns: of the values, int32.
        values: float32, row by row; no column comes twice in a row.
        width: how many features there are.

    Raises:
        DataError: the arrays are not as stated.

    >>> x = SparseRows(np.array([0, 2, 2]), np.array([0, 3], np.int32), np.array([1, 5], np.float32), 4)
    >>> x[:]
    array([[1., 0., 0., 5.],
           [0., 0., 0., 0.]], dtype=float32)
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self, starts: npt.NDArray[np.int64], columns: npt.NDArray[np.int32], values: Floats, width: int
    ) -> None:
        kinds = [str(each.dtype) for each in (starts, columns, values)]
        if kinds != ["int64", "int32", "float32"]:
            raise DataError(
                f"sparse rows of {', '.join(kinds)}: give starts of int64, columns of int32 and "
                "values of float32"
            )
        if len(starts) < 1 or starts[0] != 0 or not starts[-1] == len(columns) == len(values):
            raise DataError("starts of sparse rows begin with 0 and end with the number of values")
        if np.any(np.diff(starts) < 0) or (len(columns) and not 0 <= columns.min() <= columns.max() < width):
            raise DataError(f"sparse rows do not ascend, or have a column outside of 0 to {width - 1}")
        self.starts, self.columns, self.values = starts, columns, values
        self.shape = (len(starts) - 1, width)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """How many values there are, zeros included."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    def rows(self, which: slice | npt.NDArray[Any]) -> SparseRows:
        """Some of the rows, as sparse rows; those of a slice are copied as well.

        Args:
            which: a slice, or indices, (n,).
        """
        chosen = np.arange(len(self))[which]
        begins = self.starts[chosen]
        lengths = self.starts[chosen + 1] - begins
        starts = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        # Entry by entry: how far its row has moved, added to its own place.
        at = np.repeat(begins - starts[:-1], lengths)
        at += np.arange(starts[-1])
        return SparseRows(starts, self.columns[at], self.values[at], self.shape[1])

    def __getitem__(self, which: Any) -> Floats:
        """Some of the rows as a dense array, by index or slice of the first axis.

        Raises:
            DataError: it would be larger than `DENSE_LIMIT`.
        """
        chosen = np.arange(len(self))[which]
        if chosen.ndim != 1:
            raise DataError("sparse rows are taken by a slice or by an array of indices of the first axis")
        self._check(len(chosen))
        out = np.zeros((len(chosen), self.shape[1]), np.float32)
        mean = max(1, len(self.values) // max(1, len(self)))
        block = max(1, _BLOCK // mean)
        for begin in range(0, len(chosen), block):
            part = self.rows(chosen[begin : begin + block])
            # Added, so that a −0 that a file may hold becomes the 0 that it is.
            out[part.numbers() + begin, part.columns] += part.values
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of them, dense."""
        if copy is False:
            raise ValueError("sparse rows are unfolded, which cannot be done without a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def numbers(self) -> Indices:
        """The row of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def check_unfolds(self) -> None:
        """Refuse rows that are too many to be unfolded.

        Raises:
            DataError: all of them would be larger than `DENSE_LIMIT`.
        """
        self._check(len(self))

    def _check(self, rows: int) -> None:
        if (size := rows * self.shape[1] * 4) > DENSE_LIMIT:
            raise DataError(
                f"{rows:,} rows of {self.shape[1]:,} features are {size / 2**30:.0f} GiB as a dense array, "
                f"more than {DENSE_LIMIT / 2**30:.0f}: train a linear model on them, softmax or logistic, "
                "which takes them as they are"
            )


def stays_sparse(parts: Sequence[SparseRows]) -> bool:
    """Whether the parts of a data set together are kept as they are; else they are unfolded.

    It goes by the data alone, so that all ranks, and all models, have the same examples.
    """
    dense = sum(4 * part.size for part in parts)
    return dense > _SMALL and _GAIN * sum(part.nbytes for part in parts) <= dense

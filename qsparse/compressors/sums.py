"""Vectors to compress, and sums of two vectors that may not be computed yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from qsparse.compressors.decoding import Indices, Piece, subtract
from qsparse.compressors.largest import largest
from qsparse.errors import NotFinite, SettingError
from qsparse.kernels import vector
from qsparse.types import CACHE_LINE, Vector

#: Scales travel as float32, so this is the largest magnitude that can be sent.
LARGEST: Final = float(np.finfo(np.float32).max)
#: Vectors of so many entries are larger than the caches of a core.
LONG: Final = 1 << 20


class Sum(NamedTuple):
    """The sum x + scale·y, which may not be computed yet: a compressor may add in a pass of its own.

    A compressor asks a sum for what it needs: a `part` or equal `parts` of it, its k `largest` entries or, by
    `add`, all of them. A memory asks what a message leaves of it: the sum `minus` the message's pieces. A sum
    on a device (`qsparse.torch.device`) answers the same questions there, and only the answers are copied.
    Whoever looks there at anything else that stands here looks at a copy of the whole.

    Attributes:
        x: (n,), float32 or float64, contiguous.
        scale, y: what is added, with y shaped like x; nothing is added where y is None.
        out: (n,), an array like x, but neither x nor y; the sum is written into it.
        rest: if true, ``out`` gets what the message leaves unsaid of the sum instead.
    """

    x: Vector
    scale: float = 0.0
    y: Vector | None = None
    out: Vector | None = None
    rest: bool = False

    @property
    def size(self) -> int:
        """The number n of entries."""
        return self.x.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the entries."""
        return self.x.dtype

    @property
    def simple(self) -> bool:
        """Whether kernels of float32 can form the sum with the same rounding as `add`."""
        if self.y is None or self.out is None:
            return self.x.dtype == np.float32
        return abs(self.scale) == 1 and self.x.dtype == self.y.dtype == self.out.dtype == np.float32

    @property
    def streamed(self) -> bool:
        """Whether to write ``out`` around the caches: it is larger than they are, and begins at a line."""
        return self.out is not None and self.out.size >= LONG and self.out.ctypes.data % CACHE_LINE == 0

    def checked(self) -> Sum:
        """The sum as compressors take it.

        Raises:
            SettingError: as of `as_vector`, or the vectors do not fit each other.
        """
        total = self._replace(x=as_vector(self.x))
        if self.y is not None and (self.out is None or not self.size == self.y.size == self.out.size):
            raise SettingError(
                f"a vector of {self.size} values needs one like it to be added and one for the sum"
            )
        return total

    def part(self, start: int, stop: int) -> Sum:
        """The part with entries start … stop − 1."""
        if self.y is None or self.out is None:
            return Sum(self.x[start:stop])
        return Sum(self.x[start:stop], self.scale, self.y[start:stop], self.out[start:stop], self.rest)

    def parts(self, size: int) -> Iterator[Sum]:
        """Neighbouring parts of ``size`` entries each, of which there is a whole number."""
        return (self.part(start, start + size) for start in range(0, self.size, size))

    def largest(self, k: int) -> tuple[Indices, Vector]:
        """The k entries of largest magnitude, 0 < k < n; among equals those of lowest index.

        Indices, ascending, and values; ``out`` holds the sum then. NotFinite as of `add`.
        """
        return largest(self, k)

    def add(self) -> Vector:
        """Return the sum, in ``out`` where something is added; NotFinite where float32 cannot hold it."""
        return finite(self._added())

    def add_max_abs(self) -> tuple[Vector, float]:
        """Return the sum as `add` does, and its largest magnitude."""
        if self.y is None or self.out is None or not self.simple:
            total = self._added()
            most = max_abs(total)
        else:
            total = self.out
            bits = vector.add_max_abs(self.x, np.float32(self.scale), self.y, self.streamed, total)
            most = float(np.int32(bits).view(np.float32))
        if not most <= LARGEST:
            finite(total)
        return total, most

    def formed(self) -> Vector:
        """The sum, (n,), after a compressor has had it: formed again where its rest was left in its place."""
        if self.y is None or self.out is None:
            return self.x
        return self._replace(out=np.empty_like(self.out)).add() if self.rest else self.out

    def minus(self, pieces: Iterable[Piece]) -> Vector:
        """What pieces leave of the sum, (n,), in memory of its own; after a compressor has had it."""
        return subtract(pieces, self.formed().copy())

    def _added(self) -> Vector:
        if self.y is None or self.out is None:
            return self.x
        vector.add_scaled(self.x, self.scale, self.y, self.out)
        return self.out


def as_vector(x: Vector) -> Vector:
    """Refuse anything but a contiguous float vector; a read-only one is copied.

    Kernels are compiled for writable arrays only, so that there is one version of each.
    """
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64) or x.ndim != 1:
        what = f"{x.dtype} array of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise SettingError(f"a compressor takes a float32 or float64 vector, not a {what}")
    if not x.flags.c_contiguous:
        raise SettingError("a compressor takes a contiguous vector: pass numpy.ascontiguousarray(x)")
    return x if x.flags.writeable else x.copy()


def as_sendable(x: Vector) -> Vector:
    """Refuse what `as_vector` refuses, and values that float32 cannot hold."""
    return finite(as_vector(x))


def finite(x: Vector) -> Vector:
    """Return x; NotFinite where it has a value that float32 cannot hold."""
    if not max_abs(x) <= LARGEST:
        raise unsendable(x, vector.first_beyond(x, LARGEST))
    return x


def max_abs(x: Vector) -> float:
    """The largest |x_i|, 0 without entries; NaN or infinity where an entry is."""
    if x.dtype == np.float32:
        return float(np.int32(vector.max_abs(x.view(np.int32), np.int32(0x7FFF_FFFF))).view(np.float32))
    bits = vector.max_abs(x.view(np.int64), np.int64(0x7FFF_FFFF_FFFF_FFFF))
    return float(np.int64(bits).view(np.float64))


def unsendable(x: Vector, index: int) -> NotFinite:
    """The error that names an entry which float32 cannot hold."""
    return NotFinite(f"element {index} is {x[index]}, which cannot be sent", index)

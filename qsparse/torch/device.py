"""Sums that lie on a GPU: what is found there, and what is copied.

Where the report and what error feedback keeps are tensors, a compressor gets copied of their sum what it asks
for: of top-k the k entries, else the whole. The code that asks, and that spells what it got, is the same as
for vectors of the host, so the bytes are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from qsparse.compressors.decoding import Indices, Piece
from qsparse.compressors.sums import LARGEST, Sum, max_abs
from qsparse.types import Vector


def largest(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k entries of largest magnitude of each row; among equals those of lowest index.

    Args:
        x: (rows, size), float32 or float64, contiguous; NaN counts as larger than infinity.
        k: at least 1, less than size.

    Returns:
        Indices within the rows, ascending, and values, (rows, k) each.
    """
    # Magnitudes are ordered like their bits, and no hardware takes denormals for zeros.
    kind = torch.int32 if x.dtype == torch.float32 else torch.int64
    magnitudes = x.view(kind) & torch.iinfo(kind).max
    # Which of several equals `topk` takes, nobody has promised; the least of them is certain.
    least = magnitudes.topk(k, sorted=False).values.amin(1, keepdim=True)
    kept = magnitudes >= least
    if int(kept.sum()) > k * len(x):
        above = magnitudes > least
        equal = kept ^ above
        kept = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    indices = kept.nonzero()[:, 1].reshape(-1, k).contiguous()
    return indices, x.gather(1, indices)


class _Rows:
    """Equal neighbours, (count, size): what is asked of one of them is found, or copied, for all at once."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.largest = functools.cache(lambda k: [found.cpu().numpy() for found in largest(values, k)])

    @functools.cached_property
    def here(self) -> np.ndarray[Any, Any]:
        """All entries, on the host."""
        return self.values.cpu().numpy()


class DeviceSum:
    """A sum on a device, one of equal neighbours; what is not said here it has of the `Sum` of a copy."""

    #: Nothing is left to be added. What a message leaves unsaid is formed when it is asked for.
    scale, y, out, rest = 0.0, None, None, False

    def __init__(self, rows: _Rows, place: int = 0) -> None:
        self._rows, self._place, self.size = rows, place, rows.values.shape[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(Sum(self._rows.here[self._place]), name)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of `Sum`."""
        return np.dtype(str(self._rows.values.dtype).removeprefix("torch."))

    def checked(self) -> DeviceSum:
        """It is as compressors take it."""
        return self

    def part(self, start: int, stop: int) -> Any:
        """As of `Sum`: of the copy, where there is one."""
        if "here" in vars(self._rows):
            return Sum(self.x[start:stop])
        return DeviceSum(_Rows(self._rows.values[self._place, None, start:stop]))

    def parts(self, size: int) -> Iterator[Any]:
        """As of `Sum`."""
        if "here" in vars(self._rows):
            return Sum(self.x).parts(size)
        rows = _Rows(self._rows.values[self._place].view(-1, size))
        return (DeviceSum(rows, place) for place in range(self.size // size))

    def largest(self, k: int) -> tuple[Indices, Vector]:
        """As of `Sum`."""
        indices, values = (found[self._place] for found in self._rows.largest(k))
        # Where there is an entry that cannot be sent, it is among the largest.
        if not max_abs(values) <= LARGEST:
            self.add()
        return indices, values

    def minus(self, pieces: Iterable[Piece]) -> torch.Tensor:
        """As of `Sum`; single entries are subtracted all at once."""
        left, places, values = self._rows.values[self._place].clone(), [], []
        for piece in pieces:
            if piece.indices is None:
                left[piece.start : piece.stop] -= torch.from_numpy(piece.values).to(left.device)
            else:
                places.append(piece.start + piece.indices)
                values.append(piece.values.copy())
        if places:
            there = torch.from_numpy(np.concatenate(places)).to(left.device)
            left[there] -= torch.from_numpy(np.concatenate(values)).to(left.device)
        return left


def device_sum(x: torch.Tensor, scale: float = 0.0, y: torch.Tensor | None = None, *_: Any) -> Any:
    """What `Sender.form` is for tensors, (n,): rounded as by `Sum.add`, product and sum in float64 each."""
    if y is not None:
        x = x + y if scale == 1 else (x.double() + y.double() * scale).to(x.dtype)
    return DeviceSum(_Rows(x[None]))

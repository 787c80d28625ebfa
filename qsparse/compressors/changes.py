"""Messages with the exact entries of a vector that have changed since it was last sent."""

from __future__ import annotations

from typing import Final

import numpy as np

from qsparse.compressors.base import framed
from qsparse.compressors.body import Writer
from qsparse.compressors.composed import COMPOSED, FLOAT32
from qsparse.compressors.decoding import Indices, fitting
from qsparse.compressors.positions import index_width, write_indices
from qsparse.compressors.sums import LARGEST, as_vector, unsendable
from qsparse.kernels import select
from qsparse.kernels.scratch import scratch
from qsparse.payload import Payload
from qsparse.seeds import Seed
from qsparse.types import Vector

#: Entries that are compared at a time: few enough for the fast caches.
_PART: Final = 1 << 15


def compress_changes(x: Vector, known: Vector, seed: Seed) -> Payload:
    """Spell the entries of x that differ from what the receiver has: their places and their new values.

    All of x is spelled where that is shorter. The receiver replaces its own values by the new ones. The body
    is that of ``selector >> float32`` (``docs/wire-format.md``). A zero has no sign, as in sums.

    Paper bits: min(32·k + min(k·⌈log2 n⌉, n), 32·n) for k changed entries, because their places are a list or
    a bitmap.

    Args:
        x: (n,) float32 or float64, contiguous.
        known: what the receiver has, shaped like x; each entry is a float32.
        seed: its rank, step and use go into the header; nothing is drawn.

    Raises:
        NotFinite: a changed entry is NaN, infinity or what float32 cannot hold.
        SettingError: x has another type or shape.
    """
    x, n = as_vector(x), x.size
    indices = _changed(x, known)
    if indices is None:
        return FLOAT32.compress(x, seed)
    values = x[indices] + x.dtype.type(0)
    wrong = np.flatnonzero(~(np.abs(values) <= LARGEST))
    if wrong.size:
        raise unsendable(x, int(indices[wrong[0]]))
    k, out = values.size, Writer()
    if n:
        write_indices(indices, n, out)
    if k:
        out.u8(FLOAT32.code)
        out.array(values.astype(np.float32, copy=False))
    return framed(out, COMPOSED, n, 32 * k + min(k * index_width(n), n), seed)


def put_changes(payload: Payload, known: Vector) -> Vector:
    """Put the entries of `compress_changes` into the receiver's vector, (n,), and return it.

    Raises:
        Corrupted: the body contradicts itself or the header.
        SettingError: ``known`` has another length.
    """
    for piece in fitting(payload, known):
        part = known[piece.start : piece.stop]
        part[... if piece.indices is None else piece.indices] = piece.values
    return known


def _changed(x: Vector, known: Vector) -> Indices | None:
    """The places where x, in float32, differs from ``known``; None where all of x is shorter."""
    n = x.size
    # Up to so many, k values with one bit for each place are shorter than n values.
    room = 31 * n / 32
    found, k = [], 0
    buffer = scratch("changed places", _PART, np.intp)
    for start in range(0, n, _PART):
        part = x[start : start + _PART]
        if x.dtype != np.float32:
            with np.errstate(over="ignore"):  # such an entry is found below, with its place
                part = part.astype(np.float32).astype(x.dtype)
        count = int(select.differing(part, known[start : start + _PART], buffer))
        k += count
        if k >= room:
            return None
        found.append(buffer[:count] + start)
    return np.concatenate(found) if found else np.empty(0, np.intp)

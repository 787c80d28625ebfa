"""Decoding payloads: the pieces of a vector, and how they are added to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qsparse.compressors.body import Reader
from qsparse.errors import Corrupted, SettingError
from qsparse.kernels import accumulate
from qsparse.payload import Kind, Payload
from qsparse.types import Vector

Indices = npt.NDArray[np.intp]
#: The largest number of entries of a vector: kernels count bits of positions in 64 bits.
_LONGEST: Final = 1 << 48
#: How many values may be made of almost no bytes, and more per byte, without an expected number.
_MADE: Final = 1 << 26
_MADE_OF_A_BYTE: Final = 64


class Piece(NamedTuple):
    """Decoded values: those of ``indices`` within start … stop − 1, or all of these where it is None.

    Values and indices may be overwritten when the next piece, of any payload, is read by the same thread.
    """

    start: int
    stop: int
    indices: Indices | None
    values: Vector


#: A function that reads a body: (reader, n, start of the piece, dtype of the values) → pieces.
BodyReader = Callable[[Reader, int, int, np.dtype[Any]], Iterator[Piece]]
_bodies: dict[int, BodyReader] = {}


def body_reader(codec: int) -> Callable[[BodyReader], BodyReader]:
    """A decorator that registers the function for reading bodies of a codec."""

    def add(function: BodyReader) -> BodyReader:
        _bodies[codec] = function
        return function

    return add


def read_body(reader: Reader, codec: int, n: int, start: int, dtype: np.dtype[Any]) -> Iterator[Piece]:
    """The pieces of a body of n coordinates that begin at ``start`` of the vector."""
    if codec not in _bodies:
        raise Corrupted(f"a frame is written in codec {codec}, which this release does not know")
    return _bodies[codec](reader, n, start, dtype)


def unpack(
    payload: Payload, dtype: np.dtype[Any] | type = np.float32, n: int | None = None
) -> Iterator[Piece]:
    """The values that a payload spells, read from the payload alone.

    Args:
        payload: a payload of kind DATA.
        dtype: the type of the values, float32 or float64.
        n: how many values are expected. A few bytes may stand for any number of values: without n, a payload
            is refused if it would make many more values than is normal for its bytes.

    Raises:
        Corrupted: the body contradicts itself or the header, or cannot come from a sender.
        SettingError: the payload has another length.
    """
    if n is not None and payload.n != n:
        raise SettingError(f"a payload of {payload.n} values does not fit a vector of {n}")
    if payload.kind is not Kind.DATA:
        raise Corrupted(f"a frame of kind {payload.kind.name} spells no vector")
    if payload.n > _LONGEST:
        raise Corrupted(f"a frame says that it spells {payload.n} values, more than any vector has")
    reader = Reader(payload.body)
    if n is None:
        reader.most = max(_MADE, _MADE_OF_A_BYTE * len(payload.body))
    return _pieces(reader, payload, np.dtype(dtype))


def _pieces(reader: Reader, payload: Payload, dtype: np.dtype[Any]) -> Iterator[Piece]:
    yield from read_body(reader, payload.codec, payload.n, 0, dtype)
    if len(reader.rest):
        raise Corrupted(f"{len(reader.rest)} bytes of a frame's body were not read")


def accumulate_into(payload: Payload, out: Vector) -> Vector:
    """Add the vector that a payload spells to ``out``, without a dense temporary."""
    return apply(fitting(payload, out), out, np.add, accumulate.add_at)


def subtract_from(payload: Payload, out: Vector) -> Vector:
    """Subtract the vector that a payload spells from ``out``, without a dense temporary."""
    return subtract(fitting(payload, out), out)


def fitting(payload: Payload, out: Vector) -> Iterator[Piece]:
    """The pieces that `unpack` gives for a vector of the length and type of ``out``."""
    return unpack(payload, out.dtype, out.size)


def subtract(pieces: Iterable[Piece], out: Vector) -> Vector:
    """Subtract pieces from ``out``."""
    return apply(pieces, out, np.subtract, accumulate.subtract_at)


def apply(
    pieces: Iterable[Piece], out: Vector, dense: np.ufunc, sparse: Callable[[Indices, Vector, Vector], None]
) -> Vector:
    """Apply pieces to ``out``: ``dense`` for pieces with all entries, ``sparse`` for those with some."""
    for piece in pieces:
        target = out[piece.start : piece.stop]
        if piece.indices is None:
            dense(target, piece.values, out=target)
        else:
            sparse(piece.indices, piece.values, target)
    return out


def decompress(payload: Payload, out: Vector) -> Vector:
    """Write the vector that a payload spells into ``out``, (n,).

    Raises:
        Corrupted: the body contradicts itself or the header.
        SettingError: ``out`` has another length.
    """
    pieces = fitting(payload, out)
    out[...] = 0
    return apply(pieces, out, np.add, accumulate.add_at)

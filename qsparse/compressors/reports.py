"""The reports of several workers in one message: each rank forms the same mean, and so the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from qsparse.compressors.base import framed
from qsparse.compressors.body import Reader, Writer, varint_size
from qsparse.compressors.decoding import Piece, body_reader
from qsparse.compressors.sign import Sign
from qsparse.compressors.ternary import Ternary
from qsparse.compressors.totals import add_up
from qsparse.errors import Corrupted
from qsparse.payload import Kind, Payload
from qsparse.seeds import Seed
from qsparse.types import Vector

#: The codec of frames that hold the bodies of reports.
REPORTS: Final = 3

_BITS: Final = Sign(norm=None)
_TRITS: Final = Ternary()


def bundle_size(reports: Sequence[Payload]) -> int:
    """The number of bytes of the body that `bundle` would make."""
    bodies = [len(report.body) for report in _spoken(reports)]
    head = varint_size(len(reports)) + varint_size(len(bodies))
    return head + sum(1 + varint_size(size) + size for size in bodies)


def bundle(reports: Sequence[Payload], n: int, seed: Seed) -> Payload:
    """One frame with the bodies of the reports of a round, in rank order; it spells their mean.

    Paper bits: the sum of those of the reports.

    Args:
        reports: those of all workers, with n coordinates; a SKIP counts as a report of zeros.
        n: the number of coordinates.
        seed: its rank, step and use go into the header; nothing is drawn.
    """
    spoken = _spoken(reports)
    out = Writer()
    out.varint(len(reports))
    out.varint(len(spoken))
    for report in spoken:
        out.u8(report.codec)
        out.varint(len(report.body))
        out.sections.append(report.body)
    return framed(out, REPORTS, n, sum(report.nbits for report in spoken), seed)


def vote(u: Vector, seed: Seed) -> Payload:
    """A frame as of `bundle` that spells sign(u), sign(0) = 0: in one bit each, or log2 3 with zeros.

    Whoever goes by the signs of the mean report alone takes the same step with it.

    Args:
        u: the mean report, (n,) float32, finite.
        seed: its rank, step and use go into the header; nothing is drawn.
    """
    quantizer = _BITS if np.all(u) else _TRITS  # of 0 and ±1 nothing is rounded
    return bundle([quantizer.compress(np.sign(u), seed)], u.size, seed)


def merged(payload: Payload, out: Vector) -> Vector:
    """Write the mean of a `bundle` into ``out``, (n,), formed as a coordinator forms the mean of reports.

    Raises:
        Corrupted: the body contradicts itself or the header.
        SettingError: ``out`` has another length.
    """
    reports, workers = _opened(payload)
    return add_up(reports, out, workers)


def handed_on(payload: Payload) -> list[Payload]:
    """The reports in a `bundle`, in rank order, without those that were a SKIP.

    Raises:
        Corrupted: the body contradicts itself or the header.
    """
    return _opened(payload)[0]


def _opened(payload: Payload) -> tuple[list[Payload], int]:
    reader = Reader(payload.body)
    reports, workers = _unbundled(reader, payload.n)
    if len(reader.rest):
        raise Corrupted(f"{len(reader.rest)} bytes of a frame's body were not read")
    return reports, workers


def _spoken(reports: Sequence[Payload]) -> list[Payload]:
    return [report for report in reports if report.kind is not Kind.SKIP]


def _unbundled(reader: Reader, n: int) -> tuple[list[Payload], int]:
    workers, count = reader.varint(), reader.varint()
    if workers < max(1, count):
        raise Corrupted(f"a frame holds the reports of {count} of {workers} workers")
    reports = []
    for _ in range(count):
        codec, size = reader.u8(), reader.varint()
        if codec in (0, REPORTS):
            raise Corrupted(f"a frame holds a report in codec {codec}, which no worker writes")
        reports.append(Payload.build([reader.take(size)], codec=codec, n=n))
    return reports, workers


@body_reader(REPORTS)
def _read(reader: Reader, n: int, start: int, dtype: np.dtype[Any]) -> Iterator[Piece]:
    if reader.depth:
        raise Corrupted("a frame holds reports within a stretch of its coordinates")
    reports, workers = _unbundled(reader, n)
    reader.make(n)
    yield Piece(start, start + n, None, add_up(reports, np.empty(n, dtype), workers))

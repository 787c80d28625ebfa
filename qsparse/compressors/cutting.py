"""Payloads cut into payloads for stretches of the vector, with the same values bit for bit.

What was chosen and rounded for the whole vector stays so: a message that several ranks coordinate, each of
them a stretch, is the message that one coordinator would get. Only the bytes are divided.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np

from qsparse.compressors.base import framed
from qsparse.compressors.blockwise import PIECES, read_table
from qsparse.compressors.body import Reader, Writer, joined
from qsparse.compressors.composed import CODED, COMPOSED, FLOAT32, Quantizer, read_quantizer
from qsparse.compressors.decoding import fitting, read_body
from qsparse.compressors.grids import cut_codes
from qsparse.compressors.positions import ALL, read_indices, write_indices
from qsparse.errors import Corrupted
from qsparse.payload import Kind, Payload, Way
from qsparse.seeds import Seed

#: Coordinates start … stop − 1 of a vector.
Bounds = tuple[int, int]
#: The bytes before a quantizer section in which all values are sent: coding of the positions, and its code.
_BEFORE: Final = 2


def cut(payload: Payload, bounds: Sequence[Bounds]) -> list[Payload]:
    """One payload for each stretch; they spell what the payload spells there, bit for bit.

    Headers are those of the payload; their paper bits add up to those of the payload if the stretches add up
    to the vector. A SKIP becomes one for each stretch.

    Args:
        payload: of kind DATA or SKIP.
        bounds: pairs (start, stop), ascending.

    Raises:
        Corrupted: the body contradicts itself or the header.

    >>> from qsparse.compressors import Sign, decompress
    >>> whole = Sign().compress(np.array([3, -1, -2, 2], np.float32), Seed(0, use="up"))
    >>> [decompress(part, np.empty(part.n, np.float32)).tolist() for part in cut(whole, [(0, 3), (3, 4)])]
    [[2.0, -2.0, -2.0], [2.0]]
    """
    n = payload.n
    if list(bounds) == [(0, n)]:
        return [payload]
    sizes = [stop - start for start, stop in bounds]
    if payload.kind is not Kind.DATA:
        parts = [
            Payload.build(
                kind=payload.kind, way=payload.way, origin=payload.origin, step=payload.step, n=size
            )
            for size in sizes
        ]
        return [part.asking(payload.asked) for part in parts]
    if payload.codec in (COMPOSED, PIECES):
        reader, codec = Reader(payload.body), payload.codec
        bodies = _bodies(reader, codec, n, bounds)
        if len(reader.rest):
            raise Corrupted(f"{len(reader.rest)} bytes of a frame's body were not read")
    else:
        codec, whole = COMPOSED, np.zeros(n, np.float32)
        for piece in fitting(payload, whole):
            whole[piece.start : piece.stop][... if piece.indices is None else piece.indices] = piece.values
        bodies = [_exactly(whole[start:stop]) for start, stop in bounds]
    made = []
    for (start, stop), body in zip(bounds, bodies, strict=True):
        nbits = payload.nbits * stop // max(n, 1) - payload.nbits * start // max(n, 1)
        seed = Seed(0, rank=payload.origin, step=payload.step, use=_USES[payload.way])
        made.append(framed(body, codec, stop - start, nbits, seed).asking(payload.asked))
    return made


_USES: Final = {Way.UP: "up", Way.DOWN: "down", Way.CONTROL: ""}


def _bodies(reader: Reader, codec: int, n: int, bounds: Sequence[Bounds]) -> list[Writer]:
    """The bodies of the stretches of a body that is read."""
    return (_cut_composed if codec == COMPOSED else _cut_pieces)(reader, n, bounds)


def _exactly(values: np.ndarray) -> Writer:
    out = Writer()
    FLOAT32.write(values, Seed(0), out)
    return out


def _cut_composed(reader: Reader, n: int, bounds: Sequence[Bounds]) -> list[Writer]:
    bodies = [Writer() for _ in bounds]
    if n == 0:
        return bodies
    indices = read_indices(reader, n)
    if indices is None:
        cuts = list(bounds)
    else:
        # Positions lie where those of the next body are read, too.
        edges = np.searchsorted(indices, np.array(bounds).reshape(-1))
        cuts = [(int(lo), int(hi)) for lo, hi in edges.reshape(-1, 2)]
    for (start, stop), (lo, hi), body in zip(bounds, cuts, bodies, strict=True):
        if hi - lo == stop - start:
            if hi > lo:
                body.u8(ALL)
        else:
            assert indices is not None
            write_indices(indices[lo:hi] - start, stop - start, body)
    k = n if indices is None else indices.size
    if k == 0:
        return bodies
    quantizer = read_quantizer(reader)
    some = [(pair, body) for pair, body in zip(cuts, bodies, strict=True) if pair[1] > pair[0]]
    pairs = [pair for pair, _ in some]
    packing = _packing(quantizer, reader)
    if packing is None:
        sections = quantizer.cut(reader, k, pairs)
    else:
        sections = cut_codes(reader, bytes(reader.take(packing[0])), k, packing[1], pairs)
    code = quantizer.code
    if sections is None:
        values = np.empty(k, np.float32)
        quantizer.decode(reader, k)(0, values)
        code = FLOAT32.code
        sections = [FLOAT32.encode(values[lo:hi], Seed(0)) for (lo, hi), _ in some]
    for (_, body), section in zip(some, sections, strict=True):
        body.u8(code | (CODED if section.coded else 0))
        body.sections.extend(section.parts)
    return bodies


class _Table:
    """Collects the pieces of one stretch."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int, int]] = []  # size, number, codec
        self.sections: list[bytes | memoryview] = []

    def add(self, size: int, count: int, codec: int, data: bytes | memoryview) -> None:
        if count:
            self.runs.append((size, count, codec))
            self.sections.append(data)

    def body(self) -> Writer:
        out = Writer()
        merged = [
            (size, codec, sum(count for _, count, _ in same))
            for (size, codec), same in itertools.groupby(self.runs, lambda run: (run[0], run[2]))
        ]
        out.varint(len(merged))
        for size, codec, count in merged:
            out.varint(size)
            out.varint(count)
            out.u8(codec)
        out.sections.extend(self.sections)
        return out


def _cut_pieces(reader: Reader, n: int, bounds: Sequence[Bounds]) -> list[Writer]:
    tables = [_Table() for _ in bounds]
    place = 0
    for size, count, codec in read_table(reader, n):
        together = _stride(reader, size, count) if codec == COMPOSED and count > 1 else None
        if together is not None:
            _cut_run(reader.take(together * count), size, together, place, bounds, tables)
            place += size * count
            continue
        for _ in range(count):
            _cut_piece(reader, size, codec, place, bounds, tables)
            place += size
    reader.depth -= 1
    return [table.body() for table in tables]


def _stride(reader: Reader, size: int, count: int) -> int | None:
    """The bytes of each of so many bodies, where all have the same number of bytes and one quantizer."""
    head = reader.peek(_BEFORE)
    if head.size < _BEFORE or head[0] != ALL:
        return None
    at = Reader(reader.rest[1:])
    quantizer = read_quantizer(at)
    packing = None if at.coded else _packing(quantizer, at)
    if packing is None:
        return None
    stride = _BEFORE + packing[0] + (size * packing[1] + 7) // 8
    rows = reader.peek(stride * count)
    if rows.size < stride * count:
        return None
    rows = rows.reshape(count, stride)
    if np.any(rows[:, :_BEFORE] != head[:_BEFORE]):
        return None
    # All must be packed as the first.
    there = rows[:, _BEFORE : _BEFORE + quantizer.packing_bytes]
    return None if np.any(there != there[0]) else stride


def _packing(quantizer: type[Quantizer], section: Reader) -> tuple[int, int] | None:
    head = section.peek(quantizer.packing_bytes)
    return quantizer.packing(head) if head.size == quantizer.packing_bytes else None


def _cut_run(
    data: memoryview, size: int, stride: int, place: int, bounds: Sequence[Bounds], tables: Sequence[_Table]
) -> None:
    """Hand out bodies of one length, of stretches of one size that begin at ``place``."""
    count = len(data) // stride
    for (start, stop), table in zip(bounds, tables, strict=True):
        first, last = max(start - place, 0), min(stop - place, size * count)
        if first >= last:
            continue
        whole, end = -(-first // size), last // size
        if whole > end:  # within one body
            _part(data, size, stride, end, first, last, table)
            continue
        if first < whole * size:
            _part(data, size, stride, whole - 1, first, whole * size, table)
        table.add(size, end - whole, COMPOSED, data[whole * stride : end * stride])
        if last > end * size:
            _part(data, size, stride, end, end * size, last, table)


def _part(
    data: memoryview, size: int, stride: int, number: int, first: int, last: int, table: _Table
) -> None:
    """Hand out coordinates first … last − 1 of a run, which lie in one body of it."""
    reader = Reader(data[number * stride : (number + 1) * stride])
    (body,) = _cut_composed(reader, size, [(first - number * size, last - number * size)])
    table.add(last - first, 1, COMPOSED, joined(body.sections))


def _cut_piece(
    reader: Reader, size: int, codec: int, place: int, bounds: Sequence[Bounds], tables: Sequence[_Table]
) -> None:
    """Hand out one body of a stretch that begins at ``place``."""
    here = [
        (max(start - place, 0), min(stop - place, size), table)
        for (start, stop), table in zip(bounds, tables, strict=True)
        if max(start, place) < min(stop, place + size)
    ]
    if codec not in (COMPOSED, PIECES):
        whole = np.zeros(size, np.float32)
        for piece in read_body(reader, codec, size, 0, whole.dtype):
            whole[piece.start : piece.stop][... if piece.indices is None else piece.indices] = piece.values
        for first, last, table in here:
            table.add(last - first, 1, COMPOSED, joined(_exactly(whole[first:last]).sections))
        return
    bodies = _bodies(reader, codec, size, [(first, last) for first, last, _ in here])
    for (first, last, table), body in zip(here, bodies, strict=True):
        table.add(last - first, 1, codec, joined(body.sections))

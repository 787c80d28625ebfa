"""How the positions of kept coordinates are written: each message uses the shortest coding."""

from __future__ import annotations

import numpy as np

from qsparse.compressors.body import Reader, Writer, varint_size
from qsparse.compressors.decoding import Indices
from qsparse.errors import Corrupted
from qsparse.kernels import bitstream, pack, random
from qsparse.kernels import indices as gaps
from qsparse.kernels.scratch import scratch

ALL, _FIXED, _BITMAP, _RICE, _SEEDED = range(5)


def index_width(n: int) -> int:
    """The papers' bits for one position among n: ⌈log2 n⌉."""
    return max(n - 1, 0).bit_length()


def write_indices(indices: Indices, n: int, out: Writer) -> None:
    """Append the index section of ascending indices below n, in the shortest coding."""
    k = indices.size
    parameters = np.empty(_blocks(k), np.uint8)
    rice = int(gaps.rice_plan(indices, n, parameters))
    coding = _shortest(n, k, rice)
    out.u8(coding)
    out.varint(k)
    if coding == _FIXED:
        data = np.zeros((k * index_width(n) + 7) // 8, np.uint8)
        pack.pack(indices, 0, index_width(n), data)
    elif coding == _BITMAP:
        data = np.zeros((n + 7) // 8, np.uint8)
        gaps.bitmap_encode(indices, data)
    else:
        out.varint((rice + 7) // 8)
        words = bitstream.zeroed(rice)
        gaps.rice_encode(indices, n, parameters, rice, words)
        data = bitstream.as_bytes(words, rice)
    out.array(data)


def _shortest(n: int, k: int, rice: int) -> int:
    """The coding of k positions that takes the fewest bytes; ``rice`` are the bits of the Rice codes."""
    length = (rice + 7) // 8
    sizes = (k * index_width(n) + 7) // 8, (n + 7) // 8, length + varint_size(length)
    return (_FIXED, _BITMAP, _RICE)[sizes.index(min(sizes))]


def _blocks(k: int) -> int:
    return -(-k // gaps.BLOCK)


def read_indices(reader: Reader, n: int) -> Indices | None:
    """Read an index section; None: all n of them. Indices may be overwritten when the next one is read."""
    coding = reader.u8()
    if coding == ALL:
        return None
    k = reader.varint()
    if k >= n:
        raise Corrupted(f"a frame names {k} of {n} coordinates, which is not fewer than all")
    # Memory for k indices is allocated only when the bytes that spell them are there.
    if coding == _FIXED:
        data = reader.packed(k, index_width(n))
        indices = _places(k)
        pack.unpack(data, 0, index_width(n), indices)
        wrong = k > 0 and (indices[-1] >= n or bool(np.any(np.diff(indices) <= 0)))
        wrong = wrong or _shortest(n, k, _rice_bits(indices, n)) != _FIXED
    elif coding == _BITMAP:
        words = bitstream.as_words(reader.array((n + 7) // 8, "u1"))
        indices = _places(k)
        wrong = gaps.bitmap_decode(words, n, indices) < 0
        wrong = wrong or _shortest(n, k, _rice_bits(indices, n)) != _BITMAP
    elif coding == _RICE:
        data = reader.array(reader.varint(), "u1")
        # Each gap takes at least one bit.
        indices = _places(min(k, 8 * data.size))
        parameters = np.empty(_blocks(indices.size), np.uint8)
        used = int(gaps.rice_decode(bitstream.as_words(data), n, parameters, indices))
        wrong = indices.size < k or (used + 7) // 8 != data.size or _shortest(n, k, used) != _RICE
        wrong = wrong or (used % 8 > 0 and data[-1] >> used % 8 > 0)
    elif coding == _SEEDED:
        reader.make(n)
        indices = _places(k)
        random.sample(*random.halves(reader.u64()), n, indices)
        wrong = k == 0
    else:
        raise Corrupted(f"a frame writes its indices in coding {coding}, which this release does not know")
    if wrong:
        raise Corrupted(f"the {k} indices of a frame do not fit a vector of {n}")
    return indices


def _rice_bits(indices: Indices, n: int) -> int:
    return int(gaps.rice_plan(indices, n, np.empty(_blocks(indices.size), np.uint8)))


def _places(k: int) -> Indices:
    return scratch("piece places", k, np.intp)

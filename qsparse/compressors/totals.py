"""The sum of several payloads, added in their order.

The total is written once and not read before: it is formed in parts that fit the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise, zip_longest
from typing import Final

import numpy as np

from qsparse.compressors.decoding import apply, fitting
from qsparse.compressors.sums import LONG
from qsparse.kernels import accumulate, threads
from qsparse.kernels.scratch import scratch
from qsparse.payload import Payload
from qsparse.types import CACHE_LINE, Vector, aligned

#: Sparse vectors are summed as sparse ones while all their entries are at most one in so many.
_FEW: Final = 4
#: Entries of a sparse sum that are formed at a time: few enough for the fastest cache.
_BLOCK: Final = 1 << 12


def add_up(payloads: Sequence[Payload], out: Vector, parts: float = 1) -> Vector:
    """Write the sum of the vectors that payloads spell, in their order, divided by ``parts``, into ``out``.

    Raises:
        Corrupted, SettingError: as for `unpack`; then the contents of ``out`` are undefined.
    """
    if not (_sum_sparse(payloads, out, parts) or _sum_dense(payloads, out, parts)):
        out[...] = 0
        apply(chain.from_iterable(fitting(each, out) for each in payloads), out, np.add, accumulate.add_at)
        if parts != 1:
            np.divide(out, parts, out=out)
    return out


def _sum_sparse(payloads: Sequence[Payload], out: Vector, parts: float) -> bool:
    """Do `add_up` where all pieces have few, ascending indices; else return False."""
    room, count, ends = out.size // _FEW, 0, [0]
    indices, values = scratch("total places", room, np.intp), scratch("total values", room, out.dtype)
    for payload in payloads:
        for piece in fitting(payload, out):
            if piece.indices is None or count + piece.indices.size > room:
                return False
            here = slice(count, count + piece.indices.size)
            np.add(piece.indices, piece.start, out=indices[here])
            values[here] = piece.values
            count = here.stop
        ends.append(count)
    lead = -out.ctypes.data % CACHE_LINE // out.itemsize if out.size >= LONG else -1

    def share(start: int, stop: int) -> bool:
        cuts = [begin + np.searchsorted(indices[begin:end], (start, stop)) for begin, end in pairwise(ends)]
        at, upto = np.array(cuts, np.int64).reshape(-1, 2).T.copy()
        block, stamps = aligned(np.empty(_BLOCK, out.dtype)), np.zeros(_BLOCK, np.intp)
        return bool(
            accumulate.sum_at(indices, values, at, upto, start, stop, parts, lead, block, stamps, out)
        )

    return all(threads.spread(share, out.size))


def _sum_dense(payloads: Sequence[Payload], out: Vector, parts: float) -> bool:
    """Do `add_up` where all entries of all payloads come in the same parts; else return False."""
    for pieces in zip_longest(*(fitting(payload, out) for payload in payloads)):
        first = pieces[0]
        for piece in pieces:
            if piece is None or piece.indices is not None or piece[:2] != first[:2]:
                return False
        target = out[first.start : first.stop]
        # Added and not copied, because a sum that begins with 0 has no −0.
        np.add(first.values, 0, out=target)
        for piece in pieces[1:]:
            np.add(target, piece.values, out=target)
        if parts != 1:
            np.divide(target, parts, out=target)
    return len(payloads) > 0

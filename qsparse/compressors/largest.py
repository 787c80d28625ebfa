"""The k entries of largest magnitude of a sum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from qsparse.compressors.decoding import Indices
from qsparse.kernels import accumulate, select, threads
from qsparse.kernels.jit import simd
from qsparse.kernels.scratch import scratch
from qsparse.types import Vector

if TYPE_CHECKING:
    from qsparse.compressors.sums import Sum

#: Shorter vectors are looked at as a whole, without a sample.
_LONG: Final = 1 << 16
#: The number of entries from which the bound on the k-th largest is estimated.
_SAMPLE: Final = 1 << 15


def largest(total: Sum, k: int) -> tuple[Indices, Vector]:
    """What `Sum.largest` says, of a sum of the host: found in the pass that adds where that is possible."""
    n = total.size
    found = _among_candidates(total, k) if total.simple and n >= _LONG and 2 * k <= n else None
    if found is not None:
        return found
    x = total.add()
    indices = np.empty(k, np.intp)
    if x.dtype == np.float32:
        select.top_k(x.view(np.int32), 0x7FFF_FFFF, 20, indices)
    else:
        select.top_k(x.view(np.int64), 0x7FFF_FFFF_FFFF_FFFF, 52, indices)
    values = np.empty(k, x.dtype)
    accumulate.gather(x, indices, values)
    return indices, values


def _among_candidates(total: Sum, k: int) -> tuple[Indices, Vector] | None:
    """The k largest of the entries not below a bound; None where the bound was wrong or does not help."""
    n = total.size
    scale, sampled = np.float32(total.scale), scratch("sampled", _SAMPLE, np.float32)
    if total.y is None:
        select.sample(total.x, sampled)
    else:
        select.sample_sum(total.x, scale, total.y, sampled)
    # The number of sampled entries among the k largest deviates by about the root of the expected number. A
    # margin of four roots makes too high a bound rare; four more make room for the entries above it.
    rank = _beyond(k * _SAMPLE / n)
    if rank >= _SAMPLE:
        return None
    bound = np.partition(sampled, _SAMPLE - rank)[_SAMPLE - rank]
    if not 0 < bound < math.inf:
        return None
    room = int(_beyond(rank) * n / _SAMPLE) + 2 * simd.WIDTH
    streamed = total.streamed

    def share(start: int, stop: int) -> tuple[int, Indices, Vector]:
        size = min(room, stop - start + 2 * simd.WIDTH)
        if start == 0:  # these arrays belong to this thread
            positions, values = scratch("candidates", size, np.intp), scratch("values", size, np.float32)
        else:
            positions, values = np.empty(size, np.intp), np.empty(size, np.float32)
        if total.y is None:
            found = select.collect(total.x, start, stop, bound, positions, values)
        else:
            found = select.collect_sum(
                total.x, scale, total.y, start, stop, bound, streamed, total.out, positions, values
            )
        return found, positions[: max(found, 0)], values[: max(found, 0)]

    shares = threads.spread(share, n)
    if any(found < 0 for found, _, _ in shares) or sum(found for found, _, _ in shares) < k:
        return None
    positions, values = (
        parts[0] if len(parts) == 1 else np.concatenate(parts)
        for parts in ([each[1] for each in shares], [each[2] for each in shares])
    )
    # NaN and infinity are not below the bound, so they are among the candidates.
    if not np.all(np.isfinite(values)):
        total.add()
    indices, kept = np.empty(k + 1, np.intp), np.empty(k + 1, np.float32)
    select.narrow(positions, values, values.view(np.int32), k, indices, kept)
    return indices[:k], kept[:k]


def _beyond(expected: float) -> int:
    return int(expected + 4 * math.sqrt(expected)) + 4

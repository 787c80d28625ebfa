"""How many threads of a rank work on one vector. Results do not depend on it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from qsparse.errors import SettingError

T = TypeVar("T")

#: Shares begin at multiples of this: of every width of packed codes, of trits, of blocks of random numbers,
#: and of the entries that `simd` takes at once.
GRAIN: Final = 64 * 5
#: Vectors that are shorter are not worth sharing.
_LEAST: Final = 1 << 18


class _Team:
    """The threads beside the one that asks."""

    def __init__(self) -> None:
        self.count = 1
        self.pool: ThreadPoolExecutor | None = None
        self.process = os.getpid()


_team: Final = _Team()


def use(count: int) -> None:
    """Let kernels of this process run on so many threads, at least 1, for one vector."""
    if not isinstance(count, int) or count < 1:
        raise SettingError(f"a rank has at least one thread, not {count!r}")
    if _team.pool is not None:
        _team.pool.shutdown()
    _team.count, _team.pool = count, None


def count() -> int:
    """How many threads kernels run on."""
    return _team.count


def spread(work: Callable[[int, int], T], n: int, size: int = 1) -> list[T]:
    """work(start, stop) of neighbouring shares of n entries, or of n blocks of a size, in their order."""
    if _team.count == 1 or n * size < _LEAST:
        return [work(0, n)]
    if _team.pool is None or _team.process != os.getpid():
        # Threads do not survive a fork.
        _team.pool, _team.process = ThreadPoolExecutor(_team.count - 1, "qsparse-kernel"), os.getpid()
    grain = GRAIN if size == 1 else 1
    cuts = [n * place // _team.count // grain * grain for place in range(_team.count)] + [n]
    others = [_team.pool.submit(work, *share) for share in itertools.pairwise(cuts[1:])]
    return [work(cuts[0], cuts[1]), *(each.result() for each in others)]

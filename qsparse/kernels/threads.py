"""How many threads of a rank work on one vector. Results do not depend on it."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from qsparse.errors import SettingError

T = TypeVar("T")

#: Shares begin at multiples of this: of every width of packed codes, of trits, of blocks of random numbers,
#: and of the entries that `simd` takes at once.
GRAIN: Final = 64 * 5
#: Vectors that are shorter are not worth sharing.
_LEAST: Final = 1 << 18


class _Team(NamedTuple):
    """How many threads there are, and those beside the one that asks, of one process."""

    threads: int
    pool: ThreadPoolExecutor | None
    process: int


_teams: Final = [_Team(1, None, os.getpid())]
_lock: Final = threading.Lock()


def use(count: int) -> None:
    """Let kernels of this process run on so many threads, at least 1, for one vector."""
    if not isinstance(count, int) or count < 1:
        raise SettingError(f"a rank has at least one thread, not {count!r}")
    with _lock:
        if count != _teams[0].threads:
            # Who is at work with the threads of before goes on with them; they end when nobody has them.
            _teams[0] = _Team(count, None, os.getpid())


def count() -> int:
    """How many threads kernels run on."""
    return _teams[0].threads


def spread(work: Callable[[int, int], T], n: int, size: int = 1) -> list[T]:
    """work(start, stop) of neighbouring shares of n entries, or of n blocks of a size, in their order."""
    if _teams[0].threads == 1 or n * size < _LEAST:
        return [work(0, n)]
    with _lock:
        team = _teams[0]
        if team.pool is None or team.process != os.getpid():
            # Threads do not survive a fork.
            pool = ThreadPoolExecutor(max(1, team.threads - 1), "qsparse-kernel")
            team = _teams[0] = _Team(team.threads, pool, os.getpid())
    grain = GRAIN if size == 1 else 1
    cuts = [n * place // team.threads // grain * grain for place in range(team.threads)] + [n]
    assert team.pool is not None
    others = [team.pool.submit(work, *share) for share in itertools.pairwise(cuts[1:])]
    return [work(cuts[0], cuts[1]), *(each.result() for each in others)]

"""The links between ranks as ``qsparse doctor --links`` has measured them, for a plan."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from qsparse.errors import DataError
from qsparse.files import named_path
from qsparse.planning.costs import Links

#: A link is slow that has less than this part of the median rate, or more than its inverse of the latency.
SLOW: Final = 0.6


class Pair(NamedTuple):
    """The link between two ranks.

    Attributes:
        one, other: the ranks.
        latency: seconds, one way.
        rate: bytes per second, one way.
        message: seconds for each of many short messages.
    """

    one: int
    other: int
    latency: float
    rate: float
    message: float


def slow(pairs: Sequence[Pair]) -> list[str]:
    """A sentence for each link that is much slower than the others.

    >>> usual = [Pair(0, 1, 1e-4, 100.0, 0.0), Pair(1, 2, 1e-4, 100.0, 0.0)]
    >>> slow([*usual, Pair(0, 2, 5e-4, 31.0, 0.0)])
    ['rank 2 <-> rank 0: 0.31 of the median rate', 'rank 2 <-> rank 0: 5.0 times the median latency']
    """
    rate = statistics.median_high(pair.rate for pair in pairs)
    latency = statistics.median_low(pair.latency for pair in pairs)
    found = []
    for pair in pairs:
        name = f"rank {max(pair.one, pair.other)} <-> rank {min(pair.one, pair.other)}"
        if pair.rate < SLOW * rate:
            found.append(f"{name}: {pair.rate / rate:.2f} of the median rate")
        if pair.latency * SLOW > latency:
            times = f"{pair.latency / latency:.1f} times the median latency" if latency else "a latency"
            found.append(f"{name}: {times}")
    return found


def links_file(pairs: Sequence[Pair], ranks: int) -> dict[str, Any]:
    """What is written as JSON.

    Args:
        pairs: that were measured.
        ranks: how many there were.
    """
    return {"ranks": ranks, "pairs": [pair._asdict() for pair in pairs], "slow": slow(pairs)}


def links_from(path: str) -> Links:
    """The links of a file: those of the slowest pair, because a round waits for it.

    Args:
        path: of what ``qsparse doctor --links --json`` wrote.

    Raises:
        DataError: the file cannot be read, or is another one.
    """
    try:
        text = Path(named_path(path)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read --links {path}: {reason}") from None
    try:
        pairs = [Pair(**each) for each in json.loads(text)["pairs"]]
        found = Links(
            rate=min(float(pair.rate) for pair in pairs),
            latency=max(float(pair.latency) for pair in pairs),
            message=statistics.median(float(pair.message) for pair in pairs),
        )
    except (ValueError, TypeError, LookupError):
        found = None
    if found is None or not (found.rate > 0 and found.latency >= 0 and found.message >= 0):
        raise DataError(
            f"--links {path} is no table of links: write one by qsparse doctor --links --json FILE"
        )
    return found

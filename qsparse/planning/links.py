"""The links between ranks, as given or as measured, for a plan and for the choice of an exchange."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from qsparse import units
from qsparse.errors import DataError, SettingError
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


def links_for(
    rate: str | None = None,
    latency: str | float | None = None,
    known: tuple[float, float] | None = None,
) -> Links:
    """The links by which an exchange is chosen: what is given, else what the wire knows, else the usual.

    Args:
        rate: of each rank's link, each way, with the unit of bits: ``"100mbit"``.
        latency: of a message: ``"50us"``, ``"2ms"``, or a number of seconds.
        known: bytes per second and seconds, as of `qsparse.wire.base.Wire.links`.

    Raises:
        SettingError: a text that is no rate, or no time.

    >>> links_for("100mbit", "2ms").rate, links_for("100mbit").latency, links_for(known=(1e6, 0.5)).rate
    (12500000.0, 5e-05, 1000000.0)
    """
    usual = Links() if known is None else Links(*known)
    return Links(
        usual.rate if rate is None else _rate(rate), usual.latency if latency is None else _latency(latency)
    )


def _rate(rate: Any) -> float:
    bits = units.bits_per_second(rate) if isinstance(rate, str) else None
    if not bits:
        raise SettingError(
            f"link rate {rate}: write a number with its unit, such as 1gbit, 200mbit or 500kbit"
        )
    return bits / 8


def _latency(latency: Any) -> float:
    number = not isinstance(latency, bool) and isinstance(latency, str | int | float)
    found = units.seconds(str(latency)) if number else None
    if found is None:
        raise SettingError(
            f"link latency {latency}: write a time with its unit, such as 50us or 2ms, or seconds"
        )
    return found


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


def slowest(pairs: Sequence[Pair]) -> Links:
    """The lowest rate and the highest latency, because a round waits for them, and the median message."""
    return Links(
        rate=min(pair.rate for pair in pairs),
        latency=max(pair.latency for pair in pairs),
        message=statistics.median(pair.message for pair in pairs),
    )


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
        found = slowest([Pair(*each[:2], *map(float, each[2:])) for each in pairs])
    except (ValueError, TypeError, LookupError):
        found = None
    if found is None or not (found.rate > 0 and found.latency >= 0 and found.message >= 0):
        raise DataError(
            f"--links {path} is no table of links: write one by qsparse doctor --links --json FILE"
        )
    return found

"""The links of a simulated network: one for each rank, to a switch that is never busy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from qsparse import units
from qsparse.errors import SettingError
from qsparse.files import named_path, read_toml

_NAMES: Final = ("rate", "latency", "compute")


class Link(NamedTuple):
    """A rank's link, and the rank's pace.

    Attributes:
        rate: bytes per second, each way.
        latency: seconds from rank to rank, half of which passes on each rank's link.
        compute: how many times as long as said the rank's work takes.
    """

    rate: float
    latency: float
    compute: float = 1.0


def bytes_per_second(rate: float | str, whose: str) -> float:
    """The bytes per second of a rate: a number of them, or a text with the unit of bits.

    Raises:
        SettingError: it is neither, or not positive and finite.

    >>> bytes_per_second("1gbit", "the wire")
    125000000.0
    """
    value: float | None = None
    if isinstance(rate, str):
        bits = units.bits_per_second(rate)
        value = None if bits is None else bits / 8
    elif isinstance(rate, int | float) and not isinstance(rate, bool):
        value = float(rate)
    if value is None or not 0 < value < math.inf:
        raise SettingError(
            f"the rate of {whose} is {rate!r}: write bytes per second, or e.g. '1gbit', '200mbit', '500kbit'"
        )
    return value


def seconds(value: Any, what: str) -> float:
    """A number that is 0 or more, and finite.

    Raises:
        SettingError: it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise SettingError(f"{what} is {value!r}: it must be a number, 0 or more")
    return float(value)


def links_of(path: str, usual: Link, size: int) -> list[Link]:
    """The links of all ranks: those that a file gives, and the usual one elsewhere.

    The file is TOML. A table is named after a rank or a stretch of ranks, and has any of ``rate``,
    ``latency`` and ``compute``::

        [3]
        compute = 4.0

        [8-15]
        rate = "100mbit"
        latency = 0.02

    Args:
        path: of the file; empty: there is none.
        usual: the link of a rank of which the file says nothing.
        size: number of ranks.

    Raises:
        DataError, SettingError: the file cannot be read, or names something that there is not.
    """
    links = [usual] * size
    if not path:
        return links
    called = f"the file of links {path}"
    for name, table in read_toml(named_path(path), called, SettingError).items():
        for rank in _ranks(name, size, called):
            links[rank] = _link(table, links[rank], f"rank {name} in {called}")
    return links


def _ranks(name: str, size: int, called: str) -> range:
    first, dash, last = name.partition("-")
    if not first.isdecimal() or not (last.isdecimal() or not dash):
        raise SettingError(f"{called} has a table {name!r}: name it after a rank, or after ranks as in 8-15")
    ranks = range(int(first), int(last if dash else first) + 1)
    if not ranks or ranks.stop > size:
        raise SettingError(f"{called} has a table {name!r}, and there are {size} ranks: 0 to {size - 1}")
    return ranks


def _link(table: Any, usual: Link, whose: str) -> Link:
    if not isinstance(table, Mapping):
        raise SettingError(f"{whose} is {table!r}: it must be a table with {', '.join(_NAMES)}")
    for name in table:
        if name not in _NAMES:
            raise SettingError(f"{whose} has no setting {name!r}: it has {', '.join(_NAMES)}")
    rate = bytes_per_second(table["rate"], whose) if "rate" in table else usual.rate
    latency = seconds(table.get("latency", usual.latency), f"the latency of {whose}")
    return Link(rate, latency, seconds(table.get("compute", usual.compute), f"compute of {whose}"))

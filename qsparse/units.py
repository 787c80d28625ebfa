"""Rates as text, as ``tc`` and the command line have them."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def bits_per_second(rate: str) -> float | None:
    """The bits per second of a rate; None where it is not spelled as one.

    >>> bits_per_second("200mbit"), bits_per_second("2.5Gbit"), bits_per_second("fast")
    (200000000.0, 2500000000.0, None)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate.lower())
    return float(match[1]) * _UNITS[match[2]] if match else None

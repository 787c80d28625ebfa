"""Rates and times as text, as ``tc`` and the command line have them."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
#: The micro sign and the Greek letter look alike, and keyboards have either.
_TIMES: Final = {"us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}


def bits_per_second(rate: str) -> float | None:
    """The bits per second of a rate; None where it is not spelled as one.

    >>> bits_per_second("200mbit"), bits_per_second("2.5Gbit"), bits_per_second("fast")
    (200000000.0, 2500000000.0, None)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate.lower())
    return float(match[1]) * _UNITS[match[2]] if match else None


def seconds(time: str) -> float | None:
    """The seconds of a time; a bare number is seconds. None where it is not spelled as one.

    >>> seconds("50us"), seconds("1.5ms"), seconds("0.01"), seconds("5e-05"), seconds("soon")
    (5e-05, 0.0015, 0.01, 5e-05, None)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([^\d.]*)", time.lower())
    if match is None or match[2] not in _TIMES:
        return None
    # Divided, because 50 · 1e-6 is not the float that is nearest to 50 µs.
    return float(match[1]) / round(1 / _TIMES[match[2]])


def rate_text(bits: float) -> str:
    """A rate in bits per second as text, to four digits.

    >>> rate_text(1e9), rate_text(941.26e6), rate_text(500), rate_text(123456e9)
    ('1gbit', '941.3mbit', '0.5kbit', '123500gbit')
    """
    unit = next((unit for unit in ("gbit", "mbit") if bits >= _UNITS[unit]), "kbit")
    return f"{_short(bits / _UNITS[unit])}{unit}"


def time_text(seconds: float) -> str:
    """A time in seconds as text, to four digits.

    >>> time_text(5e-5), time_text(0.0123), time_text(2), time_text(0)
    ('50us', '12.3ms', '2s', '0us')
    """
    unit = next((unit for unit in ("s", "ms") if seconds >= _TIMES[unit]), "us")
    return f"{_short(seconds / _TIMES[unit])}{unit}"


def _short(number: float) -> str:
    return f"{float(f'{number:.4g}'):g}"

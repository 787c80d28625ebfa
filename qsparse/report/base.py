"""What pictures and tables share: numbers as text, tables, figures, and distinct line styles."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tabulate import tabulate

from qsparse.errors import SettingError, installing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours that colour-blind people can tell apart too (Okabe and Ito, 2008), without yellow, which is hard
#: to see on white.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7A5C3A")
_LINES: Final = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (8, 3)), (0, (3, 1)), (0, (1, 1)))
_MARKS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")


class Table(NamedTuple):
    """A table that compares qsparse with others; ``note`` says what the columns do not."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        body = tabulate(self.rows, self.head, tablefmt="simple", disable_numparse=True, stralign="right")
        return "\n\n".join(filter(None, [f"{self.title}\n\n{body}", self.note]))


def number(value: float) -> str:
    """A number as short text: whole below a million, else four figures.

    >>> [number(x) for x in (2663, 1.94e7, 0.9082, 2541.25)]
    ['2,663', '1.94e+07', '0.9082', '2,541.2']
    >>> [number(x) for x in (math.inf, -math.inf, math.nan)]  # the loss of a run that went astray
    ['inf', '-inf', 'nan']
    """
    if abs(value) >= 1e6 or not math.isfinite(value):
        return f"{value:.4g}"
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def spread(values: Sequence[float]) -> str:
    """The range of values as text; empty where there is only one value.

    >>> spread([3, 1, 2]), spread([5])
    ('1 … 3', '')
    """
    return f"{number(min(values))} … {number(max(values))}" if len(values) > 1 else ""


def mean(values: Sequence[float]) -> float:
    """The mean of the values."""
    return sum(values) / len(values)


def legible(label: str, width: int) -> str:
    """A label in lines of a width, shown as written: to matplotlib $ begins mathematics, _ hides an entry.

    >>> legible("_US$ and more", 8)
    ' _US\\\\$ and\\nmore'
    """
    text = textwrap.fill(label, width).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def new_figure(command: str, width: float, height: float) -> Figure:
    """An empty figure of a size in inches; without pyplot, which would look for a display.

    Raises:
        SettingError: matplotlib is not installed; callers check this before long computations.
    """
    try:
        figure = import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise SettingError(f"{command} draws and lacks a library ({error}): {installing('train')}") from None
    made: Figure = figure.Figure(figsize=(width, height), layout="constrained")
    return made


def look(place: int) -> dict[str, Any]:
    """Colour, line and marker of the method with a number; the first 64 are all different."""
    turn, place = divmod(place, len(COLOURS))
    return {
        "color": COLOURS[place],
        "linestyle": _LINES[(place + turn) % len(_LINES)],
        "marker": _MARKS[(place + turn) % len(_MARKS)],
    }

"""Seconds of a synchronization against the number of ranks, as a picture that needs no other library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 40, 50
#: Colours that are told apart by most eyes (Okabe and Ito).
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#e69f00")


def svg(title: str, ranks: Sequence[int], curves: Mapping[str, Sequence[float]]) -> str:
    """Draw curves over both axes by their logarithms.

    Args:
        title: of the picture.
        ranks: along the lower axis, rising.
        curves: by name, seconds for each number of ranks; above 0.
    """
    every = [seconds for curve in curves.values() for seconds in curve]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    high = max(high, low + 1)
    first, last = math.log2(ranks[0]), max(math.log2(ranks[-1]), math.log2(ranks[0]) + 1)

    def across(size: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log2(size) - first) / (last - first)

    def down(seconds: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (math.log10(seconds) - low) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        y = down(10.0**power)
        lines.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for size in ranks:
        lines.append(
            f'<text x="{across(size):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle" '
            f'font-size="10">{size:,}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">ranks</text>')
    below = 0.0
    for number, (name, curve) in enumerate(
        sorted(curves.items(), key=lambda each: each[1][-1], reverse=True)
    ):
        colour = _COLOURS[number % len(_COLOURS)]
        places = " ".join(f"{across(size):.1f},{down(y):.1f}" for size, y in zip(ranks, curve, strict=True))
        lines.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        # Names of curves that end near each other stand one below the other.
        below = max(down(curve[-1]) + 4, below + 15)
        lines.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{below:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])

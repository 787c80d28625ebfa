"""What a run costs, before there is one: bytes, seconds and memory, and the exchange that takes the fewest.

Everything here is a function of the settings and of figures that are given, so all ranks come to the same;
only `qsparse.planning.speeds` measures, and only when it is asked to.
"""

from qsparse.planning.choice import best, candidates, exchange_for
from qsparse.planning.costs import (
    Estimate,
    Links,
    Messages,
    Speeds,
    dense_seconds,
    estimate,
    in_parts,
    messages,
)
from qsparse.planning.links import links_for
from qsparse.planning.whole import Whole, whole

__all__ = [
    "Estimate",
    "Links",
    "Messages",
    "Speeds",
    "Whole",
    "best",
    "candidates",
    "dense_seconds",
    "estimate",
    "exchange_for",
    "in_parts",
    "links_for",
    "messages",
    "whole",
]

"""What a law is, and what laws share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from qsparse.compressors import Compressor, decompress
from qsparse.errors import SettingError
from qsparse.payload import Payload
from qsparse.seeds import Seed
from qsparse.types import Layer, Layout, Vector

SEED: Final = Seed(2019, rank=1, step=5, use="up")
#: Refusing a vector because a value would leave float32 is only right for values beyond this.
HUGE: Final = 1e30


class Broken(Exception):
    """A law does not hold; says why."""


Law: TypeAlias = Callable[[Compressor, str, Vector], bool]
LAWS: Final[dict[str, Law]] = {}


def law(name: str) -> Callable[[Law], Law]:
    """Decorator: add a law to the table."""

    def add(function: Law) -> Law:
        LAWS[name] = function
        return function

    return add


def hold(condition: bool | np.bool_, reason: str) -> None:
    """Raise `Broken` with the reason unless the condition holds."""
    if not condition:
        raise Broken(reason)


def same(got: npt.NDArray[Any], wanted: npt.NDArray[Any], what: str) -> None:
    """Hold two arrays equal, entry by entry."""
    wrong = np.flatnonzero(got != wanted)
    if wrong.size:
        at = int(wrong[0])
        raise Broken(
            f"{what}: element {at} is {got[at]!r}, not {wanted[at]!r}, and {wrong.size - 1} more differ"
        )


def decoded(payload: Payload) -> npt.NDArray[np.float32]:
    """The vector that a payload spells, from its bytes alone, float32."""
    values = np.full(payload.n, np.nan, np.float32)
    decompress(payload, values)
    return values


def layout(n: int) -> Layout:
    """A model of n parameters in three layers; fewer where n is small."""
    cuts = (0, n // 2, n // 2 + n // 8, n)
    names = ("conv.weight", "conv.bias", "head.weight")
    layers = (Layer(name, cuts[i], cuts[i + 1]) for i, name in enumerate(names))
    return tuple(layer for layer in layers if layer.size)


def is_random(part: Compressor) -> bool:
    """Whether the body for some fixed vector depends on the seed."""
    n = 64
    probe = np.cos(np.arange(n)).astype(np.float32)
    for candidate in (part, part.bind(layout(n)).limited(n)):
        try:
            bodies = {bytes(candidate.compress(probe, SEED.at(step=step)).body) for step in range(4)}
        except SettingError:
            continue
        return len(bodies) > 1
    return True

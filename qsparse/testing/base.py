"""What a law is, and what laws share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from qsparse.compressors import Compressor, decompress
from qsparse.errors import SettingError
from qsparse.payload import Payload
from qsparse.registry import kinds
from qsparse.seeds import Seed
from qsparse.types import Layer, Layout, State, Vector

SEED: Final = Seed(2019, rank=1, step=5, use="up")
#: Refusing a vector because a value would leave float32 is only right for values beyond this.
HUGE: Final = 1e30


class Broken(Exception):
    """A law does not hold; says why."""


#: (part, name of the vector, vector) → does it apply?
Law: TypeAlias = Callable[[Any, str, Vector], bool]


class Rule(NamedTuple):
    """A law, and whether it is tried on every vector or, having nothing to do with them, once."""

    holds: Law
    once: bool


#: The laws of each kind of part by their names.
LAWS: Final[dict[str, dict[str, Rule]]] = {kind: {} for kind in kinds()}


def law(name: str, *of: str, once: bool = False) -> Callable[[Law], Law]:
    """Decorator: add a law to the tables of the kinds that it is for, compressors if none is said."""

    def add(function: Law) -> Law:
        for kind in of or ("compressor",):
            LAWS[kind][name] = Rule(function, once)
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


def is_random(part: Compressor, n: int = 64) -> bool:
    """Whether the body for some vector of n coordinates depends on the seed; yes where none fits."""
    probe = np.cos(np.arange(n)).astype(np.float32)
    for candidate in (part, part.bind(layout(n)).limited(n)):
        try:
            bodies = {bytes(candidate.compress(probe, SEED.at(step=step)).body) for step in range(4)}
        except SettingError:
            continue
        return len(bodies) > 1
    return True


def is_moderate(x: Vector) -> bool:
    """Whether sums and multiples of a few such values stay far inside float32."""
    return not x.size or float(np.max(np.abs(x))) <= HUGE


def bits_of(state: State) -> dict[str, object]:
    """What a state holds, bit by bit, for comparing."""

    def bits(value: Any) -> object:
        if isinstance(value, dict):
            return bits_of(value)
        array = isinstance(value, np.ndarray)
        return (value.dtype.str, value.shape, value.tobytes()) if array else repr(value)

    return {name: bits(value) for name, value in state.items()}


def same_state(got: State, wanted: State, what: str) -> None:
    """Hold two states equal, bit by bit."""
    ours, theirs = bits_of(got), bits_of(wanted)
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    hold(not wrong, f"{what}: {', '.join(map(repr, wrong))} of the state is different")


def saved(state: State) -> State:
    """A state that was written down and read again; what cannot be saved by itself breaks the law."""
    hold(type(state) is dict, f"the state is a {type(state).__name__}, not a dict")
    for name, value in state.items():
        if isinstance(value, dict):
            saved(value)
            continue
        array = isinstance(value, np.ndarray)
        plain = value.dtype.kind in "fiub" if array else isinstance(value, int | float | str | None)
        hold(isinstance(name, str) and plain, f"{name!r} of the state is a {type(value).__name__}: {value!r}")
    return copy.deepcopy(state)


def apart(one: State, other: State, what: str) -> None:
    """Hold that two states share no memory."""
    theirs = [array for _, array in _arrays(other)]
    for name, value in _arrays(one):
        shared = any(np.shares_memory(value, array) for array in theirs)
        hold(not shared, f"{what}: {name!r} of the state is shared")


def _arrays(state: State) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """All arrays of a state, those of states inside it too."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _arrays(value)
        elif isinstance(value, np.ndarray):
            yield name, value

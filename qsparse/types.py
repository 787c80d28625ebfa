"""The few types that every room shares."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

#: A contiguous one-dimensional array of float32 or float64.
Vector: TypeAlias = npt.NDArray[np.floating[Any]]

#: Where vectors begin in memory that are filled past the caches, in bytes.
CACHE_LINE: Final = 64


def aligned(like: Vector) -> Vector:
    """Zeros of the size and type of ``like``, beginning where a line of the caches begins."""
    spare = np.zeros(like.size + CACHE_LINE // like.itemsize, like.dtype)
    first = -spare.ctypes.data % CACHE_LINE // like.itemsize
    return spare[first : first + like.size]


#: What a part remembers: plain arrays and numbers by name, and the states of parts inside it, owned by
#: the caller, so that it can be saved, compared and copied without knowing the part.
State: TypeAlias = dict[str, Any]


class Layer(NamedTuple):
    """A named stretch of the flat vector: coordinates ``start`` to ``stop - 1``.

    Attributes:
        dims: how many dimensions the parameter has, where that is known.
    """

    name: str
    start: int
    stop: int
    dims: int | None = None

    @property
    def size(self) -> int:
        """How many coordinates the layer has."""
        return self.stop - self.start


#: The layers of a model in the order of the flat vector, without gaps.
Layout: TypeAlias = tuple[Layer, ...]


def layers_within(layout: Layout, start: int, stop: int) -> Layout:
    """The layers of coordinates start … stop − 1, counted from there; layers at the edges are cut.

    >>> layers_within((Layer("weight", 0, 6, 2), Layer("bias", 6, 8, 1)), 4, 7)
    (Layer(name='weight', start=0, stop=2, dims=2), Layer(name='bias', start=2, stop=3, dims=1))
    """
    return tuple(
        layer._replace(start=max(layer.start, start) - start, stop=min(layer.stop, stop) - start)
        for layer in layout
        if layer.start < stop and layer.stop > start
    )


def layer_at(layout: Layout, index: int) -> str:
    """Name the layer that holds a coordinate, for messages.

    >>> layer_at((Layer("weight", 0, 6), Layer("bias", 6, 8)), 6)
    "parameter 'bias', element 0"
    """
    for layer in layout:
        if layer.start <= index < layer.stop:
            return f"parameter {layer.name!r}, element {index - layer.start}"
    return f"element {index}"

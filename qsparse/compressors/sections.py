"""What selectors and quantizers hand on: kept coordinates, sections of a body, and their claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qsparse.compressors.decoding import Indices
from qsparse.compressors.sums import LARGEST, max_abs
from qsparse.errors import Corrupted
from qsparse.payload import Bytes, Floats
from qsparse.types import Vector


class Kept(NamedTuple):
    """The coordinates that are sent.

    Attributes:
        indices: ascending, (k,), or None for all n.
        values: their values, (k,) or (n,).
        key: the key that draws the indices again, where they need not be sent.
    """

    indices: Indices | None
    values: Vector
    key: int | None = None


#: A function that writes the values, or codes, from number ``start`` on into an array.
Fill = Callable[[int, npt.NDArray[Any]], object]


def copy_of(values: npt.NDArray[Any]) -> Fill:
    """A `Fill` that copies the given values."""
    return lambda start, out: np.copyto(out, values[start : start + out.size], casting="same_kind")


def finite_floats(values: npt.NDArray[Any]) -> Fill:
    """A `Fill` that copies the given values; Corrupted where one is not finite, which no sender writes."""

    def fill(start: int, out: npt.NDArray[Any]) -> None:
        with np.errstate(invalid="ignore"):
            np.copyto(out, values[start : start + out.size], casting="same_kind")
        if not max_abs(out) <= LARGEST:
            raise Corrupted("a frame has a value that is not finite")

    return fill


class Section(NamedTuple):
    """A quantizer's part of a body.

    Attributes:
        parts: its bytes.
        nbits: its paper bits.
        coded: whether its codes are entropy-coded.
        subtracted: whether `Quantizer.encode_sum` has left in ``total.out`` what the message does not say.
    """

    parts: list[Bytes | Floats]
    nbits: int
    coded: bool = False
    subtracted: bool = False


@dataclass(frozen=True)
class SelectorClaims:
    """What a selector promises of S(x), the kept values without a quantizer.

    ``kept`` is k, or None where it depends on x; ``index_bits`` are the papers' bits for the positions.
    ``largest``: the k entries of largest magnitude are kept as they are, among equals those of lowest index.
    The other fields are those of `Claims`.
    """

    unbiased: bool
    gamma: float | None
    omega: float | None
    kept: int | None
    index_bits: int | None
    largest: bool = False


@dataclass(frozen=True)
class QuantizerClaims:
    """What a quantizer promises of Q(v), for v with k values; see `Claims`."""

    unbiased: bool
    homogeneous: bool
    gamma: float | None
    omega: float | None
    bits: int | None
    gamma_max: float | None = None
    lossless: bool = False
    any_precision: bool = False
    checks_precision: bool = False

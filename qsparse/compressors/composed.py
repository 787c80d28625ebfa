"""Selector >> quantizer: the only place where the two are put together.

Body: index section, quantizer code (u8; plus 64 where its codes are entropy-coded), quantizer section. The
index section says how the kept positions are written; each message uses the shortest coding:

====  ========  ====================================================================
code  name      what follows
====  ========  ====================================================================
0     ALL       nothing: every coordinate is sent
1     FIXED     k (varint), positions of ⌈log2 n⌉ bits each
2     BITMAP    k (varint), n bits
3     RICE      k (varint), bytes (varint), Golomb–Rice codes of the gaps, a parameter per block
4     SEEDED    k (varint), key (u64): positions drawn again by `kernels.random.sample`
====  ========  ====================================================================
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import Claims, Compressor, cannot_join
from qsparse.compressors.body import Reader, Writer, joined
from qsparse.compressors.decoding import Indices, Piece, body_reader, subtract
from qsparse.compressors.positions import _SEEDED, ALL, index_width, read_indices, write_indices

# Whoever writes a part of this kind finds here what it hands on.
from qsparse.compressors.sections import Fill as Fill
from qsparse.compressors.sections import Kept as Kept
from qsparse.compressors.sections import QuantizerClaims as QuantizerClaims
from qsparse.compressors.sections import Section as Section
from qsparse.compressors.sections import SelectorClaims as SelectorClaims
from qsparse.compressors.sections import copy_of as copy_of
from qsparse.compressors.sections import finite_floats as finite_floats
from qsparse.compressors.sums import Sum
from qsparse.errors import CompositionError, Corrupted
from qsparse.kernels import threads, vector
from qsparse.kernels.scratch import scratch
from qsparse.payload import Floats, raw
from qsparse.registry import register, spell
from qsparse.seeds import Seed
from qsparse.types import Vector

COMPOSED: Final = 1
#: Added to a quantizer's code where its codes are entropy-coded.
CODED: Final = 64
#: How many values are decoded at a time: a multiple of what any quantizer needs, few enough for caches.
_PART: Final = 512 * threads.GRAIN
#: A length that is larger than every k.
_LONG: Final = 1 << 48
#: The bits of infinity; those of NaN, without the sign, are a larger number.
_INFINITE: Final = 0x7F80_0000

#: The name of `copy_of` in earlier releases.
stored = copy_of


class Selector(Compressor):
    """Chooses which coordinates are sent. Alone it sends their values as float32."""

    codec: ClassVar[int] = COMPOSED
    shortcuts: ClassVar[dict[str, tuple[str, ...]]] = {**Compressor.shortcuts, "select_sum": ("select",)}

    @abstractmethod
    def select(self, x: Vector, seed: Seed) -> Kept:
        """Choose among the coordinates of x, which is finite and not empty."""

    def select_sum(self, total: Sum, seed: Seed) -> Kept:
        """Choose among the coordinates of a sum; selectors that can add on the way override this."""
        return self.select(total.add(), seed)

    @abstractmethod
    def claims_for(self, n: int) -> SelectorClaims:
        """The claims for vectors of n ≥ 1 coordinates."""

    def __rshift__(self, quantizer: Quantizer) -> Composed:
        if not isinstance(quantizer, Quantizer):
            return NotImplemented
        return Composed(self, quantizer)

    @property
    def claims(self) -> Claims:
        """The claims of the selector with exact values."""
        return _join(self, FLOAT32)

    @property
    def sparse(self) -> bool:
        """True, because a selector leaves coordinates out."""
        return True

    def write(self, x: Vector, seed: Seed, out: Writer) -> int:
        """Append the body of ``self >> float32`` for x."""
        return _write(self, FLOAT32, Sum(x), seed, out)

    def write_sum(self, total: Sum, seed: Seed, out: Writer) -> int:
        """Append the body of ``self >> float32`` for a sum."""
        return _write(self, FLOAT32, total, seed, out)


class Quantizer(Compressor):
    """Turns values into few bits. Alone it spells every coordinate.

    Attributes:
        code: the quantizer's number on the wire; 128 to 255 are free for plug-ins.
        packing_bytes: how many bytes of a section say how its codes are packed.
    """

    codec: ClassVar[int] = COMPOSED
    shortcuts: ClassVar[dict[str, tuple[str, ...]]] = {
        **Compressor.shortcuts,
        "encode_sum": ("encode",),
        "encode_blocks": ("encode", "encode_sum", "write", "write_sum"),
        "decode_blocks": ("decode",),
        "packing": ("encode", "decode"),
        "cut": ("encode", "decode"),
    }
    code: ClassVar[int]
    packing_bytes: ClassVar[int] = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            other = _quantizers.setdefault(cls.code, cls)
            # dataclass(slots=True) makes a class twice under one name; two names with one code collide.
            if other.__qualname__ != cls.__qualname__:
                raise CompositionError(
                    f"quantizers {other.__name__} and {cls.__name__} both have wire code {cls.code}"
                )
            _quantizers[cls.code] = cls

    @abstractmethod
    def encode(self, values: Vector, seed: Seed) -> Section:
        """Spell finite values, (k,) with k ≥ 1."""

    def encode_sum(self, total: Sum, seed: Seed) -> Section:
        """Spell the values of a sum; quantizers that can add on the way override this."""
        return self.encode(total.add(), seed)

    @staticmethod
    @abstractmethod
    def decode(section: Reader, k: int) -> Fill:
        """Read the section of k values that `encode` wrote; it holds everything that decoding needs.

        The result writes values start … start + out.size − 1 into ``out``, for a start that is a multiple
        of 320, in any order, because long vectors are decoded in parts.
        """

    def encode_blocks(self, total: Sum, size: int, seed_of: Callable[[int], Seed], out: Writer) -> int | None:
        """Append the bodies of equal blocks, and return their paper bits; None if it cannot.

        For quantizers that spell many blocks faster together; `decode_blocks` reads them. ``seed_of`` gives
        the seed of a block.
        """
        return None

    @classmethod
    def decode_blocks(cls, section: Reader, size: int, count: int, out: Vector) -> bool:
        """Read bodies of equal blocks into ``out``, (count·size,); False, with nothing read, if it cannot."""
        return False

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """How many bytes of a section come before its codes, and how many bits a code has.

        So packed codes are cut by their bytes (`qsparse.compressors.cutting`). None: codes are written
        otherwise; see `cut`.

        Args:
            head: the first `packing_bytes` bytes of the section.
        """
        return None

    @staticmethod
    def cut(section: Reader, k: int, cuts: Sequence[tuple[int, int]]) -> list[Section] | None:
        """The sections of values lo … hi − 1, hi > lo, of a section of k values; the values are equal.

        Asked where `packing` says nothing. None, with nothing read, if it cannot: then the values are spelled
        as float32.

        Args:
            section: as of `decode`.
            k: as of `decode`.
            cuts: pairs (lo, hi), ascending.
        """
        return None

    @abstractmethod
    def claims_for(self, k: int) -> QuantizerClaims:
        """The claims for vectors of k ≥ 1 values."""

    @property
    def claims(self) -> Claims:
        """Those of the quantizer on the whole vector."""
        alone = self.claims_for(1)
        joined = _join(EVERYTHING, self)
        return replace(
            joined,
            lossless=alone.lossless,
            any_precision=alone.any_precision,
            checks_precision=alone.checks_precision,
        )

    def write(self, x: Vector, seed: Seed, out: Writer) -> int:
        """Append the body of ``everything >> self`` for x."""
        return _write(EVERYTHING, self, Sum(x), seed, out)

    def write_sum(self, total: Sum, seed: Seed, out: Writer) -> int:
        """Append the body of ``everything >> self`` for a sum."""
        return _write(EVERYTHING, self, total, seed, out)


_quantizers: dict[int, type[Quantizer]] = {}


@dataclass(frozen=True)
class Composed(Compressor):
    """First the selector, then the quantizer on the kept values.

    Contraction (Basu et al., 2019, Lemmas 1–3): ‖x − Q(S(x))‖² ≤ (1 − γ_Q(k)·γ_S(n))‖x‖², because
    what S drops is orthogonal to what it keeps. The variance of two unbiased parts is
    1 + ω = (1 + ω_S)(1 + ω_Q).
    """

    selector: Selector
    quantizer: Quantizer
    codec: ClassVar[int] = COMPOSED

    def __rshift__(self, other: object) -> Composed:
        raise cannot_join(self, other, "values are already quantized; one quantizer is enough")

    def spelling(self) -> str:
        """The text ``selector >> quantizer``."""
        return f"{spell(self.selector)} >> {spell(self.quantizer)}"

    @property
    def claims(self) -> Claims:
        """The claims of both together."""
        return _join(self.selector, self.quantizer)

    @property
    def sparse(self) -> bool:
        """Whether the selector is sparse."""
        return self.selector.sparse

    def check(self, n: int) -> None:
        """Refuse a vector length that does not fit the selector."""
        self.selector.check(n)

    def limited(self, n: int) -> Compressor:
        """The same compressor with the selector limited to n coordinates."""
        selector = self.selector.limited(n)
        assert isinstance(selector, Selector)
        return Composed(selector, self.quantizer)

    def write(self, x: Vector, seed: Seed, out: Writer) -> int:
        """Append index section and quantizer section for x."""
        return _write(self.selector, self.quantizer, Sum(x), seed, out)

    def write_sum(self, total: Sum, seed: Seed, out: Writer) -> int:
        """Append index section and quantizer section for a sum."""
        return _write(self.selector, self.quantizer, total, seed, out)


@register("everything")
@dataclass(frozen=True)
class Everything(Selector):
    """Keep every coordinate; this is the selector of a quantizer without a selector."""

    def select(self, x: Vector, seed: Seed) -> Kept:
        """Keep all of x."""
        return Kept(None, x)

    def claims_for(self, n: int) -> SelectorClaims:
        """Exact: nothing is left out."""
        return SelectorClaims(unbiased=True, gamma=1.0, omega=0.0, kept=n, index_bits=0)

    @property
    def sparse(self) -> bool:
        """False: no coordinate is left out."""
        return False


@register("float32")
@dataclass(frozen=True)
class Float32(Quantizer):
    """Values as they are, 32 bits each; this is the quantizer of a selector without a quantizer."""

    code: ClassVar[int] = 0

    def encode(self, values: Vector, seed: Seed) -> Section:
        """The bytes of the values."""
        return Section([raw(values.astype("<f4", copy=False))], 32 * values.size)

    def encode_sum(self, total: Sum, seed: Seed) -> Section:
        """The bytes of the sum; where nothing is added, the copy also checks that all values are finite."""
        if total.y is None and total.x.dtype == np.float32:
            return Section([total.x.view(Floats)], 32 * total.size)
        return self.encode(total.add_max_abs()[0], seed)

    @staticmethod
    def decode(section: Reader, k: int) -> Fill:
        """Read the values back."""
        data = section.array(4 * k, "u1")
        others = finite_floats(data.view("<f4"))

        def fill(start: int, out: npt.NDArray[Any]) -> None:
            if out.dtype != np.float32:
                others(start, out)
            elif not vector.copy_largest(data[4 * start : 4 * (start + out.size)], out) < _INFINITE:
                raise Corrupted("a frame has a value that is not finite")

        return fill

    @staticmethod
    def packing(head: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
        """Nothing before the values."""
        return 0, 32

    def within(self, x: Vector, tolerance: float) -> Compressor:
        """This compressor itself, because it is exact."""
        return self

    def claims_for(self, k: int) -> QuantizerClaims:
        """Exact for float32 vectors."""
        return QuantizerClaims(
            unbiased=True,
            homogeneous=True,
            gamma=1.0,
            omega=0.0,
            bits=32 * k,
            lossless=True,
            any_precision=True,
        )


EVERYTHING: Final = Everything()
FLOAT32: Final = Float32()


def _join(selector: Selector, quantizer: Quantizer) -> Claims:
    def gamma(n: int) -> float | None:
        s = selector.claims_for(n)
        if s.gamma is None or s.kept is None:
            return None
        q = quantizer.claims_for(s.kept).gamma
        return None if q is None else q * s.gamma

    def omega(n: int) -> float | None:
        s = selector.claims_for(n)
        # The number of kept values may be random. ω_Q grows with it, so the value at n is a bound.
        q = quantizer.claims_for(n if s.kept is None else s.kept)
        if not (s.unbiased and q.unbiased) or s.omega is None or q.omega is None:
            return None
        return (1 + s.omega) * (1 + q.omega) - 1

    def bits(n: int) -> int | None:
        if n == 0:
            return 0
        s = selector.claims_for(n)
        if s.kept is None or s.index_bits is None:
            return None
        q = quantizer.claims_for(s.kept).bits
        return None if q is None else q + s.index_bits

    q = quantizer.claims_for(1)
    return Claims(
        # Computed for a vector that no k keeps whole, because keeping everything is always unbiased.
        unbiased=selector.claims_for(_LONG).unbiased and q.unbiased,
        homogeneous=q.homogeneous,
        gamma=gamma,
        omega=omega,
        bits=bits,
        # Coordinates that are not kept are lost completely.
        gamma_max=lambda n: (
            quantizer.claims_for(n).gamma_max if isinstance(selector, Everything) and n else None
        ),
    )


def _write(selector: Selector, quantizer: Quantizer, total: Sum, seed: Seed, out: Writer) -> int:
    n = total.size
    if n == 0:
        return 0
    indices, k, nbits = None, n, 0
    if isinstance(selector, Everything):
        section = quantizer.encode_sum(total, seed.child(1))
        out.u8(ALL)
    else:
        indices, values, key = selector.select_sum(total, seed)
        k = values.size
        if indices is None or k == n:
            out.u8(ALL)
        elif key is not None and k > 0:
            out.u8(_SEEDED)
            out.varint(k)
            out.u64(key)
            nbits = 64
        else:
            write_indices(indices, n, out)
            nbits = k * index_width(n)
        if k == 0:
            return nbits
        section = quantizer.encode(values, seed.child(1))
    out.u8(quantizer.code | (CODED if section.coded else 0))
    if total.rest and total.out is not None and not section.subtracted:
        # Copied first, because the body may be a view of the numbers that are subtracted from.
        body = joined(section.parts)
        reader = Reader(memoryview(body), section.coded)
        subtract(_pieces(quantizer.decode(reader, k), indices, k, n, 0, total.out.dtype), total.out)
        out.sections.append(body)
    else:
        out.sections.extend(section.parts)
    return nbits + section.nbits


@body_reader(COMPOSED)
def _read(reader: Reader, n: int, start: int, dtype: np.dtype[Any]) -> Iterator[Piece]:
    if n == 0:
        return
    indices = read_indices(reader, n)
    k = n if indices is None else indices.size
    if k == 0:
        yield Piece(start, start + n, indices, np.empty(0, dtype))
        return
    quantizer = read_quantizer(reader)
    yield from _pieces(quantizer.decode(reader, k), indices, k, n, start, dtype)


def read_quantizer(reader: Reader) -> type[Quantizer]:
    """Read the code before a quantizer section; the reader then knows whether its codes are entropy-coded."""
    code = reader.u8()
    quantizer = _quantizers.get(code)
    reader.coded = quantizer is None and code & CODED > 0
    if reader.coded:
        quantizer = _quantizers.get(code ^ CODED)
    if quantizer is None or (reader.coded and not hasattr(quantizer, "coder")):
        raise Corrupted(f"a frame is spelled by quantizer {code}, which this release does not know")
    return quantizer


def _pieces(
    fill: Fill, indices: Indices | None, k: int, n: int, start: int, dtype: np.dtype[Any]
) -> Iterator[Piece]:
    if indices is not None:
        values = scratch("piece values", k, dtype)
        fill(0, values)
        yield Piece(start, start + n, indices, values)
        return
    part = np.empty(min(n, _PART), dtype)
    for first in range(0, n, _PART):
        values = part[: min(_PART, n - first)]
        fill(first, values)
        yield Piece(start + first, start + first + values.size, None, values)


def read_blocks(reader: Reader, size: int, count: int, dtype: np.dtype[Any]) -> Vector | None:
    """The values of equal blocks in which all coordinates are sent; None if it cannot read them together."""
    head = reader.peek(2)
    if head.size < 2 or head[0] != ALL or int(head[1]) not in _quantizers:
        return None
    out = np.empty(size * count, dtype)
    return out if _quantizers[int(head[1])].decode_blocks(reader, size, count, out) else None

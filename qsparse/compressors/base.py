"""What every compressor is: settings, claims, and two verbs.

A compressor is a frozen dataclass without memory; randomness comes from the seed it is handed. A
*selector* says which coordinates speak, a *quantizer* says how a value is spelled, and
``selector >> quantizer`` is the compressor of both (`qsparse.compressors.composed`).

The body of a payload says by itself how it is read (``docs/wire-format.md``): `unpack` needs no
compressor, so a receiver cannot decode with settings of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qsparse.compressors.body import Reader, Writer, joined
from qsparse.errors import CompositionError, Corrupted, NotFinite, SettingError
from qsparse.kernels import accumulate, vector
from qsparse.payload import Kind, Payload, Way
from qsparse.registry import spell
from qsparse.seeds import Seed
from qsparse.types import CACHE_LINE, Layout, Vector

Indices = npt.NDArray[np.intp]

#: Scales travel as float32, so this is the largest magnitude that can be sent.
LARGEST: Final = float(np.finfo(np.float32).max)
#: Vectors of so many entries are larger than the caches of a core.
LONG: Final = 1 << 20
#: No vector has more entries: kernels count bits of positions in 64 bits.
_LONGEST: Final = 1 << 48
#: How many values are made of next to no bytes where nobody has said how many to expect, and of each byte.
_MADE: Final = 1 << 26
_MADE_OF_A_BYTE: Final = 64


@dataclass(frozen=True)
class Claims:
    """What a compressor promises; held by the laws (`qsparse.testing.laws`), not believed.

    Attributes:
        unbiased: E C(x) = x.
        homogeneous: C(a·x) = a·C(x) for a > 0, so that a step size may stand inside or outside.
        gamma: n → γ with E‖x − C(x)‖² ≤ (1 − γ)‖x‖², or None where no γ > 0 holds for all x.
        omega: n → ω with E‖C(x) − x‖² ≤ ω‖x‖² for an unbiased C, or None.
        bits: n → paper bits of one message, or None where they depend on x.
        gamma_max: n → γ with ‖x − C(x)‖∞ ≤ (1 − γ)‖x‖∞, or None where no γ > 0 holds for all x.
    """

    unbiased: bool
    homogeneous: bool
    gamma: Callable[[int], float | None]
    omega: Callable[[int], float | None]
    bits: Callable[[int], int | None]
    gamma_max: Callable[[int], float | None] = lambda n: None


class Piece(NamedTuple):
    """Decoded values: those of ``indices`` within start … stop − 1, or all of them where None.

    Values and indices may be overwritten when the next piece, of any payload, is read by the same thread.
    """

    start: int
    stop: int
    indices: Indices | None
    values: Vector


class Sum(NamedTuple):
    """x + scale·y, which need not have been added: who compresses it may do that in a pass of its own.

    Attributes:
        x: (n,), float32 or float64, contiguous.
        scale, y: what is added, y like x; nothing where y is None.
        out: (n,) like x, neither x nor y; where the sum is left, or
        rest: if true, what the message does not say of it.
    """

    x: Vector
    scale: float = 0.0
    y: Vector | None = None
    out: Vector | None = None
    rest: bool = False

    @property
    def size(self) -> int:
        """n."""
        return self.x.size

    @property
    def simple(self) -> bool:
        """Whether kernels of float32 can add it, rounding as `add` does."""
        if self.y is None or self.out is None:
            return self.x.dtype == np.float32
        return abs(self.scale) == 1 and self.x.dtype == self.y.dtype == self.out.dtype == np.float32

    @property
    def streamed(self) -> bool:
        """Whether to write ``out`` past the caches: it is longer than they are, and begins at a line."""
        return self.out is not None and self.out.size >= LONG and self.out.ctypes.data % CACHE_LINE == 0

    def part(self, start: int, stop: int) -> Sum:
        """The entries start … stop − 1."""
        if self.y is None or self.out is None:
            return Sum(self.x[start:stop])
        return Sum(self.x[start:stop], self.scale, self.y[start:stop], self.out[start:stop], self.rest)

    def add(self) -> Vector:
        """The sum, in ``out`` where something is added; NotFinite where float32 cannot hold it."""
        return finite(self._added())

    def add_reach(self) -> tuple[Vector, float]:
        """What `add` returns, and its largest magnitude."""
        if self.y is None or self.out is None or not self.simple:
            total = self._added()
            most = reach(total)
        else:
            total = self.out
            bits = vector.add_reach(self.x, np.float32(self.scale), self.y, self.streamed, total)
            most = float(np.int32(bits).view(np.float32))
        if not most <= LARGEST:
            finite(total)
        return total, most

    def _added(self) -> Vector:
        if self.y is None or self.out is None:
            return self.x
        vector.add_scaled(self.x, self.scale, self.y, self.out)
        return self.out


_WAYS: Final = {"up": Way.UP, "down": Way.DOWN}

#: How a body of a codec is read: (reader, n, start of the piece, dtype of the values) → pieces.
BodyReader = Callable[[Reader, int, int, np.dtype[Any]], Iterator[Piece]]
_bodies: dict[int, BodyReader] = {}


def body_reader(codec: int) -> Callable[[BodyReader], BodyReader]:
    """Decorator: the function that reads bodies of a codec."""

    def add(function: BodyReader) -> BodyReader:
        _bodies[codec] = function
        return function

    return add


def read_body(reader: Reader, codec: int, n: int, start: int, dtype: np.dtype[Any]) -> Iterator[Piece]:
    """The pieces of a body of n coordinates that begin at ``start`` of the vector."""
    if codec not in _bodies:
        raise Corrupted(f"a frame is written in codec {codec}, which this release does not know")
    return _bodies[codec](reader, n, start, dtype)


class Compressor(ABC):
    """Turns a vector into a payload, and a payload into a vector."""

    kind: ClassVar[str] = "compressor"
    registered_name: ClassVar[str]
    #: The grammar of this compressor's bodies.
    codec: ClassVar[int]
    #: Shorter ways, and the methods they pass by: who overrides one of these has no use for the shortcut.
    shortcuts: ClassVar[dict[str, tuple[str, ...]]] = {"write_sum": ("write",)}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for short, plain in cls.shortcuts.items():
            if short not in cls.__dict__ and any(name in cls.__dict__ for name in plain):
                owner = next(base for base in reversed(cls.__mro__) if short in base.__dict__)
                setattr(cls, short, owner.__dict__[short])

    @property
    @abstractmethod
    def claims(self) -> Claims:
        """What this compressor promises."""

    @property
    def sparse(self) -> bool:
        """Whether messages leave out coordinates, so that they move only a part of a model."""
        return False

    @abstractmethod
    def write(self, x: Vector, seed: Seed, out: Writer) -> int:
        """Append the body for x, all finite, to ``out``; returns its paper bits."""

    def write_sum(self, total: Sum, seed: Seed, out: Writer) -> int:
        """As `write` for a sum, which is added on the way; for compressors that know a shorter one."""
        if not total.rest or total.out is None:
            return self.write(total.add(), seed, out)
        mine = Writer()
        nbits = self.write(total.add(), seed, mine)
        # Copied first, as it may be the very numbers that are subtracted from.
        body = joined(mine.sections)
        reader = Reader(memoryview(body))
        subtract(read_body(reader, self.codec, total.size, 0, total.out.dtype), total.out)
        out.sections.append(body)
        return nbits

    def bind(self, layout: Layout) -> Compressor:
        """The compressor for a model of this layout; those that go by layers look theirs up."""
        return self

    def limited(self, n: int) -> Compressor:
        """The compressor for a part of n coordinates: k_t = min(k, n), as the papers have it."""
        return self

    def check(self, n: int) -> None:
        """Refuse, with SettingError, a vector length that the settings do not fit."""

    def within(self, x: Vector, tolerance: float) -> Compressor:
        """The cheapest setting of this compressor with E‖C(x) − x‖² ≤ tolerance for this x.

        Condition (2) of Yu et al. (2019), whose tolerance is μ‖x − x̃‖².

        Args:
            x: (n,) as for `compress`.
            tolerance: 0 or more, in the square of the units of x; infinity allows everything.

        Raises:
            CompositionError: this compressor has one precision.
            SettingError: the tolerance is negative or NaN, or x is nothing that `compress` takes.
            NotFinite: as for `compress`.
        """
        raise CompositionError(
            f"{spell(self)}: this compressor has one precision, whatever the tolerance; use lowprecision"
        )

    def compress(self, x: Vector, seed: Seed) -> Payload:
        """Spell x as a payload; changes nothing.

        Args:
            x: (n,) float32 or float64, contiguous.
            seed: names the stream of random numbers; its rank, step and use (``up`` or ``down``) go
                into the header.

        Raises:
            NotFinite: x holds NaN, infinity or what float32 cannot hold.
            SettingError: x has another type or shape, or does not fit the settings.
        """
        return self.compress_sum(Sum(x), seed)

    def compress_sum(self, total: Sum, seed: Seed) -> Payload:
        """`compress` of x + scale·y; ``total.out`` is left as `Sum` says. Errors as there."""
        total = total._replace(x=as_vector(total.x))
        if total.y is not None and (total.out is None or not total.size == total.y.size == total.out.size):
            raise SettingError(
                f"a vector of {total.size} values needs one like it to be added and one for the sum"
            )
        self.check(total.size)
        out = Writer()
        try:
            nbits = self.write_sum(total, seed, out)
            return framed(out, self.codec, total.size, nbits, seed)
        except NotFinite as error:
            if error.index < 0:
                total.add()  # raises where it is an entry that is not finite
            if total.out is None or error.index < 0 or abs(total.out[error.index]) <= LARGEST:
                raise
            # Found in a part, it was counted from there.
            raise unsendable(total.out, error.index) from None

    def decompress(self, payload: Payload, out: Vector) -> Vector:
        """Write the vector that a payload spells into ``out``; see `decompress`."""
        return decompress(payload, out)


def framed(body: Writer, codec: int, n: int, nbits: int, seed: Seed) -> Payload:
    """The payload of a body for n coordinates; rank, step and use (``up`` or ``down``) are the seed's."""
    return Payload.build(
        body.sections,
        way=_WAYS.get(seed.use, Way.BESIDE),
        codec=codec,
        origin=seed.rank,
        step=seed.step,
        n=n,
        nbits=nbits,
    )


def as_vector(x: Vector) -> Vector:
    """Refuse what is no contiguous float vector; a read-only one is copied.

    Kernels are compiled for writable arrays only, so that there is one version of each.
    """
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64) or x.ndim != 1:
        what = f"{x.dtype} array of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise SettingError(f"a compressor takes a float32 or float64 vector, not a {what}")
    if not x.flags.c_contiguous:
        raise SettingError("a compressor takes a contiguous vector: pass numpy.ascontiguousarray(x)")
    return x if x.flags.writeable else x.copy()


def as_sendable(x: Vector) -> Vector:
    """Refuse what is no `as_vector`, and values that float32 cannot hold."""
    return finite(as_vector(x))


def finite(x: Vector) -> Vector:
    """x; NotFinite where it holds what float32 cannot."""
    if not reach(x) <= LARGEST:
        raise unsendable(x, vector.first_beyond(x, LARGEST))
    return x


def reach(x: Vector) -> float:
    """max |x_i|, 0 where there are none; NaN or infinity where one is."""
    if x.dtype == np.float32:
        return float(np.int32(vector.largest(x.view(np.int32), np.int32(0x7FFF_FFFF))).view(np.float32))
    bits = vector.largest(x.view(np.int64), np.int64(0x7FFF_FFFF_FFFF_FFFF))
    return float(np.int64(bits).view(np.float64))


def unsendable(x: Vector, index: int) -> NotFinite:
    """The error that names an entry which float32 cannot hold."""
    return NotFinite(f"element {index} is {x[index]}, which cannot be sent", index)


def unpack(
    payload: Payload, dtype: np.dtype[Any] | type = np.float32, n: int | None = None
) -> Iterator[Piece]:
    """The values that a payload spells, from the payload alone.

    Args:
        payload: of kind DATA.
        dtype: float32 or float64, of the values.
        n: how many values are expected. A few bytes may stand for any number of them: without it, a payload
            is refused that would make many more than its bytes let expect.

    Raises:
        Corrupted: the body contradicts itself or the header, or is none that a sender can write.
        SettingError: the payload has another length.
    """
    if n is not None and payload.n != n:
        raise SettingError(f"a payload of {payload.n} values does not fit a vector of {n}")
    if payload.kind is not Kind.DATA:
        raise Corrupted(f"a frame of kind {payload.kind.name} spells no vector")
    if payload.n > _LONGEST:
        raise Corrupted(f"a frame says that it spells {payload.n} values, more than any vector has")
    reader = Reader(payload.body)
    if n is None:
        reader.most = max(_MADE, _MADE_OF_A_BYTE * len(payload.body))
    return _pieces(reader, payload, np.dtype(dtype))


def _pieces(reader: Reader, payload: Payload, dtype: np.dtype[Any]) -> Iterator[Piece]:
    yield from read_body(reader, payload.codec, payload.n, 0, dtype)
    if len(reader.rest):
        raise Corrupted(f"{len(reader.rest)} bytes of a frame's body were not read")


def accumulate_into(payload: Payload, out: Vector) -> Vector:
    """out += the vector that a payload spells, without a dense temporary."""
    return apply(fitting(payload, out), out, np.add, accumulate.add_at)


def subtract_from(payload: Payload, out: Vector) -> Vector:
    """out −= the vector that a payload spells, without a dense temporary."""
    return subtract(fitting(payload, out), out)


def fitting(payload: Payload, out: Vector) -> Iterator[Piece]:
    """What `unpack` gives for a vector of this length and type."""
    return unpack(payload, out.dtype, out.size)


def subtract(pieces: Iterable[Piece], out: Vector) -> Vector:
    """out −= pieces."""
    return apply(pieces, out, np.subtract, accumulate.subtract_at)


def apply(
    pieces: Iterable[Piece], out: Vector, dense: np.ufunc, sparse: Callable[[Indices, Vector, Vector], None]
) -> Vector:
    """out = ``dense`` of it and pieces of all entries, ``sparse`` for those of some."""
    for piece in pieces:
        target = out[piece.start : piece.stop]
        if piece.indices is None:
            dense(target, piece.values, out=target)
        else:
            sparse(piece.indices, piece.values, target)
    return out


def decompress(payload: Payload, out: Vector) -> Vector:
    """Write the vector that a payload spells into ``out``, (n,).

    Raises:
        Corrupted: the body contradicts itself or the header.
        SettingError: ``out`` has another length.
    """
    pieces = fitting(payload, out)
    out[...] = 0
    return apply(pieces, out, np.add, accumulate.add_at)


def refuse(part: object, reason: str) -> SettingError:
    """A SettingError that names the part as it was spelled."""
    return SettingError(f"{spell(part)}: {reason}")


def cannot_join(left: object, right: object, reason: str) -> CompositionError:
    """A CompositionError that names both parts."""
    return CompositionError(f"{spell(left)} >> {spell(right)}: {reason}")

"""The base of every compressor: settings, claims, and the methods compress and decompress.

A compressor is a frozen dataclass without memory; randomness comes from the seed that it is given. A
*selector* chooses which coordinates are sent, a *quantizer* turns values into few bits, and
``selector >> quantizer`` is the compressor of both (`qsparse.compressors.composed`).

The body of a payload says itself how it is read (``docs/wire-format.md``): `unpack` needs no
compressor, so a receiver cannot decode with settings of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from qsparse.compressors.body import Reader, Writer, joined
from qsparse.compressors.decoding import decompress, read_body, subtract
from qsparse.compressors.sums import Sum
from qsparse.errors import CompositionError, NotFinite, SettingError
from qsparse.payload import Payload, Way
from qsparse.registry import spell
from qsparse.seeds import Seed
from qsparse.types import Layout, Vector


@dataclass(frozen=True)
class Claims:
    """What a compressor promises; the laws check it (`qsparse.testing.laws`).

    Attributes:
        unbiased: E C(x) = x.
        homogeneous: C(a·x) = a·C(x) for a > 0, so that a step size may be applied before or after C.
        gamma: n → γ with E‖x − C(x)‖² ≤ (1 − γ)‖x‖², or None where no γ > 0 holds for all x.
        omega: n → ω with E‖C(x) − x‖² ≤ ω‖x‖² for an unbiased C, or None.
        bits: n → paper bits of one message, or None where they depend on x.
        gamma_max: n → γ with ‖x − C(x)‖∞ ≤ (1 − γ)‖x‖∞, or None where no γ > 0 holds for all x.
        lossless: every float32 arrives as it is, whatever the vector.
        any_precision: `within` finds a setting for every tolerance.
        checks_precision: `within` finds a setting where there is one; where not, it raises `Imprecise`.
    """

    unbiased: bool
    homogeneous: bool
    gamma: Callable[[int], float | None]
    omega: Callable[[int], float | None]
    bits: Callable[[int], int | None]
    gamma_max: Callable[[int], float | None] = lambda n: None
    lossless: bool = False
    any_precision: bool = False
    checks_precision: bool = False


_WAYS: Final = {"up": Way.UP, "down": Way.DOWN}


class Compressor(ABC):
    """Turns a vector into a payload, and a payload into a vector."""

    kind: ClassVar[str] = "compressor"
    registered_name: ClassVar[str]
    #: The number of the format of this compressor's bodies.
    codec: ClassVar[int]
    #: Shortcuts, and the methods they replace: a class that overrides one of these cannot use the shortcut.
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
        """Append the body for x, whose entries are finite, to ``out``; return its paper bits."""

    def write_sum(self, total: Sum, seed: Seed, out: Writer) -> int:
        """Append the body for a sum; compressors that can add while they compress override this."""
        if not total.rest or total.out is None:
            return self.write(total.add(), seed, out)
        mine = Writer()
        nbits = self.write(total.add(), seed, mine)
        # Copied first, because the body may be a view of the numbers that are subtracted from.
        body = joined(mine.sections)
        reader = Reader(memoryview(body))
        subtract(read_body(reader, self.codec, total.size, 0, total.out.dtype), total.out)
        out.sections.append(body)
        return nbits

    def bind(self, layout: Layout) -> Compressor:
        """The compressor for a model of this layout; compressors that use layers look them up."""
        return self

    def limited(self, n: int) -> Compressor:
        """The compressor for a part of n coordinates: k_t = min(k, n), as in the papers."""
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
            SettingError: the tolerance is negative or NaN, or x is not what `compress` takes.
            NotFinite: as for `compress`.
            Imprecise: no setting keeps to it, as may be where `checks_precision` is claimed.
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
        """Spell x + scale·y; ``total.out`` then holds what `Sum` says. The errors are those of `compress`."""
        total = total.checked()
        self.check(total.size)
        out = Writer()
        try:
            nbits = self.write_sum(total, seed, out)
            return framed(out, self.codec, total.size, nbits, seed)
        except NotFinite:
            try:
                total.add()
            except NotFinite as entry:
                # Of entries that cannot be sent the first is named, by its place in the whole.
                raise entry from None
            raise

    def decompress(self, payload: Payload, out: Vector) -> Vector:
        """Write the vector that a payload spells into ``out``; see `decompress`."""
        return decompress(payload, out)


def framed(body: Writer, codec: int, n: int, nbits: int, seed: Seed) -> Payload:
    """The payload of a body for n coordinates; rank, step and use (``up`` or ``down``) are the seed's."""
    return Payload.build(
        body.sections,
        way=_WAYS.get(seed.use, Way.CONTROL),
        codec=codec,
        origin=seed.rank,
        step=seed.step,
        n=n,
        nbits=nbits,
    )


def refuse(part: object, reason: str) -> SettingError:
    """A SettingError that names the part by its spelling."""
    return SettingError(f"{spell(part)}: {reason}")


def cannot_join(left: object, right: object, reason: str) -> CompositionError:
    """A CompositionError that names both parts."""
    return CompositionError(f"{spell(left)} >> {spell(right)}: {reason}")

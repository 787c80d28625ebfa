"""Compressors of parts: per block, per layer, by the size of a layer, by its name.

All of them cut the vector into stretches and give each stretch a compressor of its own
("piecewise" in Basu et al., 2019; blocks in Zheng et al., 2019). γ is the smallest of the parts.

Body: the number of runs of stretches (varint); for each run the length of a stretch (varint), the
number of stretches (varint) and the codec of their bodies (u8); then the bodies in order. Stretches
without coordinates are left out, and stretches within stretches nest at most eight deep.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from qsparse.compressors.base import Claims, Compressor, refuse
from qsparse.compressors.body import Reader, Writer
from qsparse.compressors.composed import COMPOSED, Quantizer, read_blocks
from qsparse.compressors.decoding import Piece, body_reader, read_body
from qsparse.compressors.sums import Sum
from qsparse.errors import CompositionError, Corrupted, NotFinite
from qsparse.registry import register, spell
from qsparse.seeds import Seed
from qsparse.types import Layout, Vector

PIECES: Final = 2
#: How deep stretches may nest in a frame; a forged one must not exhaust the stack.
_DEEPEST: Final = 8
#: How many values of equal blocks are decoded at a time: so many fit the caches.
_TOGETHER: Final = 1 << 17


class Piecewise(Compressor):
    """A vector cut into stretches, each with a compressor of its own."""

    codec: ClassVar[int] = PIECES

    def parts(self, n: int) -> list[tuple[int, Compressor]]:
        """The lengths and compressors of the stretches of a vector of n coordinates."""
        raise NotImplementedError

    @property
    def sparse(self) -> bool:
        """Whether at least one part is sparse."""
        return any(part.sparse for _, part in self.parts(0))

    def check(self, n: int) -> None:
        """Refuse parts that do not fit their stretches, or that nest deeper than a receiver can read."""
        _check_depth(self)
        for size, part, _ in self.runs(n):
            part.check(size)

    def runs(self, n: int) -> list[tuple[int, Compressor, int]]:
        """Runs of equal neighbours: length, compressor and number; empty stretches are left out."""
        parts = [part for part in self.parts(n) if part[0]]
        return [(*part, len(list(same))) for part, same in itertools.groupby(parts)]

    def write(self, x: Vector, seed: Seed, out: Writer) -> int:
        """Append the table of stretches and their bodies."""
        return self.write_sum(Sum(x), seed, out)

    def write_sum(self, total: Sum, seed: Seed, out: Writer) -> int:
        """Append the body of a sum; each compressor adds its own stretch, or equal neighbours together."""
        runs = self.runs(total.size)
        table = [
            (*run, sum(count for _, _, count in same))
            for run, same in itertools.groupby(runs, lambda run: (run[0], run[1].codec))
        ]
        out.varint(len(table))
        for size, codec, count in table:
            out.varint(size)
            out.varint(count)
            out.u8(codec)
        nbits = start = number = 0
        for size, part, count in runs:
            stop = start + size * count
            try:
                nbits += _write_run(part, total.part(start, stop), size, seed, number, out)
            except NotFinite as error:
                raise NotFinite(str(error), start + max(error.index, 0)) from None
            start = stop
            number += count
        return nbits

    @property
    def claims(self) -> Claims:
        """The smallest γ and the largest ω of the parts, and the sum of their bits."""
        # Whether it is unbiased or homogeneous does not depend on n, only on the parts.
        kinds = [part.claims for _, part in self.parts(0)]

        def over(n: int) -> list[tuple[Claims, int]]:
            return [(part.claims, size) for size, part in self.parts(n) if size]

        def gamma(n: int) -> float | None:
            values = [claims.gamma(size) for claims, size in over(n)]
            return None if None in values else min((v for v in values if v is not None), default=1.0)

        def gamma_max(n: int) -> float | None:
            values = [claims.gamma_max(size) for claims, size in over(n)]
            return None if None in values else min((v for v in values if v is not None), default=1.0)

        def omega(n: int) -> float | None:
            values = [claims.omega(size) for claims, size in over(n)]
            return None if None in values else max((v for v in values if v is not None), default=0.0)

        def bits(n: int) -> int | None:
            values = [claims.bits(size) for claims, size in over(n)]
            return None if None in values else sum(v for v in values if v is not None)

        return Claims(
            unbiased=all(claims.unbiased for claims in kinds),
            homogeneous=all(claims.homogeneous for claims in kinds),
            gamma=gamma,
            omega=omega,
            bits=bits,
            gamma_max=gamma_max,
        )


def _write_run(part: Compressor, total: Sum, size: int, seed: Seed, number: int, out: Writer) -> int:
    """Append bodies of neighbouring stretches of one size and compressor; the first has number ``number``."""
    if isinstance(part, Quantizer) and total.size > size:
        nbits = part.encode_blocks(total, size, lambda place: seed.child(number + place).child(1), out)
        if nbits is not None:
            return nbits
    nbits = 0
    for place, each in enumerate(total.parts(size)):
        try:
            nbits += part.write_sum(each, seed.child(number + place), out)
        except NotFinite as error:
            raise NotFinite(str(error), place * size + max(error.index, 0)) from None
    return nbits


def _are_sizes(layers: object) -> bool:
    return isinstance(layers, tuple) and all(isinstance(size, int) and size >= 0 for size in layers)


def _filled(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The sizes with neighbours added together as long as their sum is at most ``most``.

    >>> _filled((3, 4, 1, 9, 2, 0), 8)
    (8, 9, 2)
    """
    buckets: list[int] = []
    for size in sizes:
        if buckets and buckets[-1] + size <= most:
            buckets[-1] += size
        else:
            buckets.append(size)
    return tuple(buckets)


def _depth(part: Compressor) -> int:
    """How deep the stretches of a part nest; 0 where it has none."""
    if not isinstance(part, Piecewise):
        return 0
    return 1 + max((_depth(inner) for _, inner in part.parts(0)), default=0)


def _check_depth(part: Piecewise) -> None:
    depth = _depth(part)
    if depth > _DEEPEST:
        raise refuse(
            part,
            f"stretches lie {depth} deep within each other, and receivers read {_DEEPEST}: leave some out",
        )


def _check_inner(outer: Piecewise, *parts: object) -> None:
    for part in parts:
        if not isinstance(part, Compressor):
            raise refuse(outer, f"{part!r} is no compressor")
        # A policy is spelled with colons, which are not allowed within another part's text.
        if isinstance(part, Policy):
            raise CompositionError(f"{spell(outer)}: a policy stands alone; write one policy with all rules")
    _check_depth(outer)


@register("blockwise")
@dataclass(frozen=True)
class Blockwise(Piecewise):
    """The same compressor on every block.

    Args:
        inner: the compressor of one block; a k beyond a block's size is lowered to it.
        size: blocks of this many coordinates, the last one shorter; or
        layers: true for one block for each layer of the model (known once the model is), or the
            blocks' sizes; or
        bucket: one block for as many neighbouring layers as have at most this many coordinates
            together; a larger layer is a block of its own. 13107200 is 50 MiB of float32, as in the
            authors' ImageNet code of Zheng et al., 2019.
    """

    #: Settings of which one is given.
    one_of: ClassVar[frozenset[str]] = frozenset({"size", "layers", "bucket"})
    inner: Compressor
    size: int | None = None
    layers: bool | tuple[int, ...] = False
    bucket: int | None = None

    def __post_init__(self) -> None:
        if (self.size is not None) + (self.layers is not False) + (self.bucket is not None) != 1:
            raise refuse(self, "give one of size, layers and bucket")
        for name, value in (("size", self.size), ("bucket", self.bucket)):
            if value is not None and (type(value) is not int or value < 1):
                raise refuse(self, f"{name} must be a whole number of at least 1")
        if not isinstance(self.layers, bool) and not _are_sizes(self.layers):
            raise refuse(self, "layers must be true or a list of sizes")
        _check_inner(self, self.inner)

    def bind(self, layout: Layout) -> Compressor:
        """Look the layers' sizes up, and fill the buckets."""
        sizes = tuple(layer.size for layer in layout)
        if self.layers is True:
            return Blockwise(self.inner, layers=sizes)
        if self.bucket is not None:
            return Blockwise(self.inner, layers=_filled(sizes, self.bucket))
        return self

    def runs(self, n: int) -> list[tuple[int, Compressor, int]]:
        """Runs of equal blocks, counted and not listed, because there may be very many."""
        if self.size is None:
            return super().runs(n)
        whole, rest = divmod(n, self.size)
        runs = [(self.size, self.inner.limited(self.size), whole), (rest, self.inner.limited(rest), 1)]
        return [run for run in runs if run[0] * run[2]]

    def parts(self, n: int) -> list[tuple[int, Compressor]]:
        """Equal blocks and a shorter last one, or the layers, or buckets of layers."""
        if self.size is not None:
            whole, rest = divmod(n, self.size)
            sizes = [self.size] * whole + ([rest] if rest else [])
        elif isinstance(self.layers, tuple):
            sizes = list(self.layers)
            if n and sum(sizes) != n:
                raise refuse(self, f"the layers have {sum(sizes)} coordinates together, the vector {n}")
        else:
            # Without a model the whole vector is one layer.
            sizes = [n]
        if n == 0:
            return [(0, self.inner)]
        limited = {size: self.inner.limited(size) for size in set(sizes)}
        return [(size, limited[size]) for size in sizes]


@register("bysize")
@dataclass(frozen=True)
class BySize(Piecewise):
    """One compressor for layers of at most ``limit`` coordinates, another for larger ones."""

    small: Compressor
    large: Compressor
    limit: int
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.limit, int) or self.limit < 0:
            raise refuse(self, "limit must be a whole number of at least 0")
        if self.layers is not None and not _are_sizes(self.layers):
            raise refuse(self, "layers must be a list of sizes")
        _check_inner(self, self.small, self.large)

    def bind(self, layout: Layout) -> Compressor:
        """Look the layers' sizes up."""
        return BySize(self.small, self.large, self.limit, tuple(layer.size for layer in layout))

    def parts(self, n: int) -> list[tuple[int, Compressor]]:
        """The layers, or the whole vector as one where no model is bound."""
        if n == 0:
            return [(0, self.small), (0, self.large)]
        sizes = self.layers or (n,)
        if sum(sizes) != n:
            raise refuse(self, f"the layers have {sum(sizes)} coordinates together, the vector {n}")
        return [(size, (self.small if size <= self.limit else self.large).limited(size)) for size in sizes]


@register("policy")
@dataclass(frozen=True)
class Policy(Piecewise):
    """A compressor for each layer by its name: the first pattern that matches is used.

    Spelled ``"conv*: topk(ratio=0.01) >> sign; *: float32"``, patterns as in `fnmatch`.

    Args:
        rules: pairs (pattern, compressor) in order.
        layers: pairs (size, number of the rule), one for each layer, once a model is bound.
    """

    rules: tuple[tuple[str, Compressor], ...]
    layers: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if not self.rules:
            raise refuse(self, "a policy needs at least one rule, PATTERN: COMPRESSOR")
        _check_inner(self, *(part for _, part in self.rules))

    def spelling(self) -> str:
        """The text ``pattern: compressor; …``; the layers belong to the model and are not spelled."""
        return "; ".join(f"{pattern}: {spell(part)}" for pattern, part in self.rules)

    def bind(self, layout: Layout) -> Compressor:
        """Find the rule of each layer; a layer without a rule is refused by name."""
        found = []
        for layer in layout:
            matches = (i for i, (p, _) in enumerate(self.rules) if fnmatch.fnmatchcase(layer.name, p))
            rule = next(matches, None)
            if rule is None:
                raise CompositionError(
                    f"no rule of the policy {self.spelling()!r} matches layer {layer.name!r}: "
                    "add '*: float32' at its end"
                )
            found.append((layer.size, rule))
        return Policy(self.rules, tuple(found))

    def parts(self, n: int) -> list[tuple[int, Compressor]]:
        """The layers; without a model, the whole vector under the last rule."""
        if n == 0:
            return [(0, part) for _, part in self.rules]
        if self.layers is None:
            return [(n, self.rules[-1][1].limited(n))]
        if sum(size for size, _ in self.layers) != n:
            raise refuse(self, f"the policy was bound to another model than one of {n} coordinates")
        return [(size, self.rules[rule][1].limited(size)) for size, rule in self.layers]


def read_table(reader: Reader, n: int) -> list[tuple[int, int, int]]:
    """Read the table before the bodies of stretches: size, number and codec of each run; one level deeper.

    Raises:
        Corrupted: it is not the table of n coordinates, or no sender writes it.
    """
    before = len(reader.rest)
    runs = [(reader.varint(), reader.varint(), reader.u8()) for _ in range(reader.varint())]
    reader.tables += before - len(reader.rest)
    if any(size * count == 0 for size, count, _ in runs):
        raise Corrupted("a frame has stretches without coordinates")
    if sum(size * count for size, count, _ in runs) != n:
        raise Corrupted(f"the stretches of a frame do not add up to its {n} coordinates")
    if any(run[::2] == following[::2] for run, following in itertools.pairwise(runs)):
        raise Corrupted("a frame counts neighbouring stretches of one size apart")
    reader.depth += 1
    if reader.depth > _DEEPEST:
        raise Corrupted(f"a frame nests stretches more than {_DEEPEST} deep")
    return runs


@body_reader(PIECES)
def _read(reader: Reader, n: int, start: int, dtype: np.dtype[Any]) -> Iterator[Piece]:
    for size, count, codec in read_table(reader, n):
        most = max(1, _TOGETHER // size)
        while count > 0:
            some = min(most, count)
            values = read_blocks(reader, size, some, dtype) if codec == COMPOSED and some > 1 else None
            if values is not None:
                yield Piece(start, start + values.size, None, values)
            else:
                # The blocks differ. To try again at each block would take longer than to read them.
                most = some = 1
                yield from read_body(reader, codec, size, start, dtype)
            start += size * some
            count -= some
    reader.depth -= 1

"""Sixty-four float32 entries at a time, where plain loops do not vectorize.

LLVM instructions on four vectors of 16 lanes, whatever the processor has. `simd_plain` says what each
function does and is its twin where the JIT is off, with the same bits: every operation is rounded once, and
sums keep the order of `vector`. A compare gives a mask of 64 bits, entry i in bit i; set bits are walked
with `lowest` and ``mask & (mask − 1)``.

*Streamed* results are stored past the caches, which spares reading their lines first. They must begin at a
multiple of 64 bytes (`qsparse.types.aligned`).
"""

from __future__ import annotations

from typing import Any

import numba.core.config
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from qsparse.kernels.simd_plain import fold_factors

WIDTH = 64
_LANES = 16
#: How many entries ahead memory is asked for; what lies past an array's end is not touched by that.
_AHEAD = 1024
_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), 8)
_INTS = ir.VectorType(_I32, _LANES)


def _multiplied() -> int:
    """Bits that the processor multiplies without carries at a time; 0 where it cannot."""
    asked: str | None = numba.core.config.CPU_FEATURES  # type: ignore[attr-defined]
    features = set((get_host_cpu_features() if asked is None else asked).split(","))
    return 256 if features >= {"+vpclmulqdq", "+avx"} else 128 if "+pclmul" in features else 0


_WIDE = _multiplied()
#: Bytes that are folded at a time, in four vectors; 0 where the processor has no instruction for it.
FOLDED = 4 * _WIDE // 8


class _Coder:
    """One call of an intrinsic: its arguments by position, and the instructions they need."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.builder = builder
        self.args = args
        self._context = context
        self._kinds = signature.args

    def address(self, array: int, index: Any) -> Any:
        """Of an element of the array that is argument number ``array``."""
        kind = self._kinds[array]
        return self.builder.gep(
            self._context.make_array(kind)(self._context, self.builder, self.args[array]).data, [index]
        )

    def load(self, pointer: Any, place: int, kind: Any = _FLOATS, align: int = 4) -> Any:
        """Sixteen entries, or those of another kind, from number ``place`` behind the pointer."""
        value = self.builder.load(self._as(pointer, place, kind))
        value.align = align
        return value

    def store(self, value: Any, pointer: Any, place: int, streamed: bool = False, align: int = 4) -> None:
        """Where `load` reads."""
        instruction = self.builder.store(value, self._as(pointer, place, value.type))
        instruction.align = 64 if streamed else align
        if streamed:
            mark = self.builder.module.add_metadata([ir.Constant(_I32, 1)])
            instruction.set_metadata("nontemporal", mark)

    def _as(self, pointer: Any, place: int, kind: Any) -> Any:
        there = self.builder.gep(pointer, [ir.Constant(_I64, place)])
        return self.builder.bitcast(there, kind.as_pointer())

    def everywhere(self, scalar: Any) -> Any:
        """A scalar in all lanes."""
        empty = ir.Constant(ir.VectorType(scalar.type, _LANES), ir.Undefined)
        first = self.builder.insert_element(empty, scalar, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(
            first, empty, ir.Constant(ir.VectorType(_I32, _LANES), [0] * _LANES)
        )

    def magnitude(self, value: Any) -> Any:
        """|value|."""
        kind = value.type
        name = f"llvm.fabs.v{kind.count}{'f32' if kind is _FLOATS else 'f64'}"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(kind, [kind]), name)
        return self.builder.call(function, [value])

    def joined(self, masks: list[Any]) -> Any:
        """Masks of 16 lanes as one number."""
        bits: Any = ir.Constant(_I64, 0)
        for place, mask in enumerate(masks):
            wide = self.builder.zext(self.builder.bitcast(mask, _I16), _I64)
            bits = self.builder.or_(bits, self.builder.shl(wide, ir.Constant(_I64, _LANES * place)))
        return bits

    def summed(self, x: int, scale: int, y: int, i: int) -> list[Any]:
        """x + scale·y from entry i on. The arguments are named by position."""
        factor = self.everywhere(self.args[scale])
        pairs = zip(self.loaded(x, i), self.loaded(y, i), strict=True)
        return [self.builder.fadd(left, self.builder.fmul(right, factor)) for left, right in pairs]

    def put(self, vectors: list[Any], out: int, i: int, streamed: bool = False) -> None:
        """Write them from out[i] on."""
        there = self.address(out, self.args[i])
        for place, each in enumerate(vectors):
            self.store(each, there, _LANES * place, streamed)

    def loaded(self, x: int, i: int) -> list[Any]:
        """The four vectors from x[i]; those that are wanted some time later are asked for."""
        there = self.address(x, self.args[i])
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        how = [ir.Constant(_I32, flag) for flag in (0, 3, 1)]
        for place in range(_AHEAD, _AHEAD + WIDTH, _LANES):
            later = self.builder.gep(there, [ir.Constant(_I64, place)])
            self.builder.call(fetch, [self.builder.bitcast(later, _I8.as_pointer()), *how])
        return [self.load(there, place) for place in range(0, WIDTH, _LANES)]

    def above(self, vectors: list[Any], threshold: int) -> Any:
        """Where they are not below the threshold in magnitude."""
        limit = self.everywhere(self.args[threshold])
        return self.joined(
            [self.builder.fcmp_unordered(">=", self.magnitude(each), limit) for each in vectors]
        )

    def halves(self, vectors: list[Any]) -> list[Any]:
        """As float64, eight lanes each."""
        places = [ir.Constant(ir.VectorType(_I32, 8), list(some)) for some in (range(8), range(8, 16))]
        return [
            self.builder.fpext(self.builder.shuffle_vector(each, each, some), _DOUBLES)
            for each in vectors
            for some in places
        ]

    def add_to(self, sums: int, terms: list[Any]) -> None:
        """Add eight vectors in pairs, and the result to eight sums."""
        while len(terms) > 1:
            terms = [self.builder.fadd(*terms[i : i + 2]) for i in range(0, len(terms), 2)]
        there = self.address(sums, ir.Constant(_I64, 0))
        self.store(self.builder.fadd(self.load(there, 0, _DOUBLES), terms[0]), there, 0)

    def negative(self, vectors: list[Any], sums: int) -> Any:
        """Where they are below 0; magnitudes go into eight sums."""
        self.add_to(sums, [self.magnitude(each) for each in self.halves(vectors)])
        zero = ir.Constant(_FLOATS, [0.0] * _LANES)
        return self.joined([self.builder.fcmp_ordered("<", each, zero) for each in vectors])

    def signed(self, mask: Any, value: Any) -> list[Any]:
        """−value where the mask is set, value elsewhere."""
        plus, minus = self.everywhere(value), self.everywhere(self.builder.fneg(value))
        vectors = []
        for place in range(0, WIDTH, _LANES):
            some = self.builder.trunc(self.builder.lshr(mask, ir.Constant(_I64, place)), _I16)
            lanes = self.builder.bitcast(some, ir.VectorType(_I1, _LANES))
            vectors.append(self.builder.select(lanes, minus, plus))
        return vectors

    def folded(self, data: int, i: int, state: int) -> list[Any]:
        """Four vectors of data from a byte on, which were added to the state."""
        kind = ir.VectorType(_I64, _WIDE // 64)
        name = "llvm.x86.pclmulqdq" + ("" if _WIDE == 128 else f".{_WIDE}")
        times = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind, kind, _I8]), name
        )
        factors = ir.Constant(kind, [*fold_factors(FOLDED)] * (kind.count // 2))
        there, kept = self.address(data, self.args[i]), self.address(state, ir.Constant(_I64, 0))
        vectors = []
        for place in range(0, FOLDED, _WIDE // 8):
            new, old = self.load(there, place, kind, 1), self.load(kept, place, kind, 1)
            low, high = (
                self.builder.call(times, [old, factors, ir.Constant(_I8, half)]) for half in (0x00, 0x11)
            )
            self.store(self.builder.xor(self.builder.xor(low, high), new), kept, place, align=1)
            vectors.append(new)
        return vectors

    def raised(self, largest: Any, value: Any) -> Any:
        """The larger of each integer and the bits of a float without its sign."""
        bits = ir.Constant(largest.type, [0x7FFF_FFFF] * largest.type.count)
        magnitude = self.builder.and_(self.builder.bitcast(value, largest.type), bits)
        return self.builder.select(self.builder.icmp_signed(">", magnitude, largest), magnitude, largest)


@intrinsic
def fold(typing, data, i, state):
    def code(context, builder, signature, args):
        _Coder(context, builder, signature, args).folded(0, 1, 2)
        return context.get_dummy_value()

    return types.void(data, types.intp, state), code


@intrinsic
def fold_copy(typing, data, i, state, most, out):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        kind = ir.VectorType(_I32, _WIDE // 32)
        there, largest = coder.address(4, args[1]), coder.address(3, ir.Constant(_I64, 0))
        for number, each in enumerate(coder.folded(0, 1, 2)):
            coder.store(each, there, number * _WIDE // 8, align=1)
            before = coder.load(largest, number * kind.count, kind)
            coder.store(coder.raised(before, each), largest, number * kind.count)
        return context.get_dummy_value()

    return types.void(data, types.intp, state, most, out), code


@intrinsic
def lowest(typing, mask):
    def code(context, builder, signature, args):
        kind = ir.FunctionType(_I64, [_I64, _I1])
        count = cgutils.get_or_insert_function(builder.module, kind, "llvm.cttz.i64")
        return builder.call(count, [args[0], ir.Constant(_I1, 1)])

    return types.int64(types.uint64), code


@intrinsic
def put_mask(typing, out, at, mask):
    def code(context, builder, signature, args):
        there = _Coder(context, builder, signature, args).address(0, args[1])
        builder.store(args[2], builder.bitcast(there, _I64.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(out, types.intp, types.uint64), code


@intrinsic
def get_mask(typing, data, at):
    def code(context, builder, signature, args):
        there = _Coder(context, builder, signature, args).address(0, args[1])
        value = builder.load(builder.bitcast(there, _I64.as_pointer()))
        value.align = 1
        return value

    return types.uint64(data, types.intp), code


@intrinsic
def stream(typing, x, i, j, out):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        there = coder.address(0, args[1])
        coder.put([coder.load(there, place) for place in range(0, WIDTH, _LANES)], 3, 2, True)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, out), code


@intrinsic
def copy_largest(typing, data, i, most, out):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        there = coder.address(0, builder.shl(args[1], ir.Constant(_I64, 2)))
        vectors = [coder.load(there, 4 * place, align=1) for place in range(0, WIDTH, _LANES)]
        coder.put(vectors, 3, 1)
        maxima = coder.address(2, ir.Constant(_I64, 0))
        largest = coder.load(maxima, 0, _INTS)
        for each in vectors:
            largest = coder.raised(largest, each)
        coder.store(largest, maxima, 0)
        return context.get_dummy_value()

    return types.void(data, types.intp, most, out), code


@intrinsic
def above(typing, x, i, threshold):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        return coder.above(coder.loaded(0, 1), 2)

    return types.uint64(x, types.intp, types.float32), code


@intrinsic
def negative(typing, x, i, sums):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        return coder.negative(coder.loaded(0, 1), 2)

    return types.uint64(x, types.intp, sums), code


@intrinsic
def squares(typing, x, i, sums):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        halves = coder.halves(coder.loaded(0, 1))
        coder.add_to(2, [builder.fmul(each, each) for each in halves])
        return context.get_dummy_value()

    return types.void(x, types.intp, sums), code


@intrinsic
def put_signed(typing, mask, value, i, out):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        coder.put(coder.signed(args[0], args[1]), 3, 2)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, types.intp, out), code


@intrinsic
def sum_negative(typing, x, scale, y, i, sums):
    def code(context, builder, signature, args):
        coder = _Coder(context, builder, signature, args)
        return coder.negative(coder.summed(0, 1, 2, 3), 4)

    return types.uint64(x, types.float32, y, types.intp, sums), code


def _add_largest(streamed: bool) -> Any:
    @intrinsic
    def made(typing, x, scale, y, i, most, out):
        def code(context, builder, signature, args):
            coder = _Coder(context, builder, signature, args)
            vectors = coder.summed(0, 1, 2, 3)
            coder.put(vectors, 5, 3, streamed)
            there = coder.address(4, ir.Constant(_I64, 0))
            largest = coder.load(there, 0, _INTS)
            for each in vectors:
                largest = coder.raised(largest, each)
            coder.store(largest, there, 0)
            return context.get_dummy_value()

        return types.void(x, types.float32, y, types.intp, most, out), code

    return made


def _add_above(streamed: bool) -> Any:
    @intrinsic
    def made(typing, x, scale, y, i, threshold, out):
        def code(context, builder, signature, args):
            coder = _Coder(context, builder, signature, args)
            vectors = coder.summed(0, 1, 2, 3)
            coder.put(vectors, 5, 3, streamed)
            return coder.above(vectors, 4)

        return types.uint64(x, types.float32, y, types.intp, types.float32, out), code

    return made


def _add_negative(streamed: bool) -> Any:
    @intrinsic
    def made(typing, x, scale, y, i, sums, out):
        def code(context, builder, signature, args):
            coder = _Coder(context, builder, signature, args)
            vectors = coder.summed(0, 1, 2, 3)
            coder.put(vectors, 5, 3, streamed)
            return coder.negative(vectors, 4)

        return types.uint64(x, types.float32, y, types.intp, sums, out), code

    return made


def _add_rest(streamed: bool) -> Any:
    @intrinsic
    def made(typing, x, scale, y, i, mask, value, out):
        def code(context, builder, signature, args):
            coder = _Coder(context, builder, signature, args)
            said = coder.signed(args[4], args[5])
            pairs = zip(coder.summed(0, 1, 2, 3), said, strict=True)
            coder.put([builder.fsub(left, right) for left, right in pairs], 6, 3, streamed)
            return context.get_dummy_value()

        kinds = (x, types.float32, y, types.intp, types.uint64, types.float32, out)
        return types.void(*kinds), code

    return made


add_above, stream_above = _add_above(False), _add_above(True)
add_negative, stream_negative = _add_negative(False), _add_negative(True)
add_rest, stream_rest = _add_rest(False), _add_rest(True)
add_largest, stream_largest = _add_largest(False), _add_largest(True)

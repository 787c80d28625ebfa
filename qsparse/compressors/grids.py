"""What quantizers on a grid share: codes of b bits after a short header, packed or entropy-coded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qsparse.compressors.base import refuse
from qsparse.compressors.body import Reader, varint, varint_size
from qsparse.compressors.composed import Fill, Section, copy_of
from qsparse.compressors.sums import LARGEST, max_abs
from qsparse.errors import Corrupted
from qsparse.kernels import ans, bitstream, pack, quantize, threads
from qsparse.kernels.scratch import scratch
from qsparse.kernels.threads import GRAIN
from qsparse.payload import Bytes, raw
from qsparse.types import Vector

Codes = npt.NDArray[Any]

#: How many codes are made or read at a time.
_PART: Final = 160 * GRAIN
#: The number of bits of the widest code that a quantizer writes.
WIDEST: Final = 16
#: The number of bits before the table of coded values.
_HEAD: Final = 28


def code_width(levels: int) -> int:
    """The bits for a level of 0 … s: ⌈log2(s + 1)⌉."""
    return levels.bit_length()


def read_width(section: Reader, least: int) -> int:
    """Read the width of codes (u8) of a section; Corrupted where no quantizer writes such codes."""
    bits = section.u8()
    if not least <= bits <= WIDEST:
        raise Corrupted(f"a frame has codes of {bits} bits, which no quantizer writes")
    return bits


def are_scales(values: npt.NDArray[np.float32]) -> bool:
    """Whether `Reader.scale` accepts all of these values."""
    # As integers, infinity, NaN and negative numbers, also −0, are larger.
    return bool(np.all(values.view(np.uint32) < 0x7F80_0000))


def are_filled(rows: npt.NDArray[np.uint8], bits: int) -> bool:
    """Whether the last byte of each row, of which ``bits`` bits are used, is filled up with zeros."""
    return bits % 8 == 0 or not np.any(rows[:, -1] >> bits % 8)


def check_coder(part: object, coder: str) -> None:
    """Refuse the name of a coder that does not exist."""
    if coder not in ("packed", "ans"):
        raise refuse(part, "coder must be 'packed' or 'ans'")


class Grid(NamedTuple):
    """A grid on which a code stands for origin + step·(code − zero)."""

    zero: int
    origin: float
    step: float


def encode_codes(
    head: Bytes,
    codes: Fill | None,
    count: int,
    bits: int,
    nbits: int,
    coder: str,
    grid: Grid | None = None,
    rest: Vector | None = None,
) -> Section:
    """A section of codes after a head: in ``bits`` each, or by ``coder`` where that is shorter.

    ``codes`` writes the codes from a given number on into an array; all codes are zero where it is None.
    Where ``rest`` is given, the values of the codes on the grid are subtracted from it; it may be the vector
    that the codes are made of.
    """
    subtracted = codes is not None and grid is not None and rest is not None
    if codes is not None and grid is not None and rest is not None:
        codes = _leaving(codes, grid, rest)
    if coder == "ans":
        whole = np.zeros(count, np.int32)
        if codes is not None:
            codes(0, whole)
        short = ans_encode(whole, 1 << bits, (count * bits + 7) // 8)
        if short is not None:
            return Section([head, short], nbits, True, subtracted)
        if codes is not None:
            codes = copy_of(whole.astype(_kind(bits)))  # made once only
    return Section([head, packed(codes, count, bits)], nbits, False, subtracted)


def _leaving(codes: Fill, grid: Grid, rest: Vector) -> Fill:
    """The same codes; writing them subtracts their values from ``rest``."""

    def fill(start: int, out: Codes) -> None:
        codes(start, out)
        for first in range(0, out.size, _PART):
            some = out[first : first + _PART]
            quantize.subtract_values(some, *grid, rest[start + first : start + first + some.size])

    return fill


def _kind(bits: int) -> type[np.uint8 | np.uint16]:
    """The type of codes before they are packed."""
    return np.uint8 if bits <= 8 else np.uint16


def packed(codes: Fill | None, count: int, bits: int) -> Bytes:
    """Codes in ``bits`` bits each, made in parts that fit the caches."""
    size = (count * bits + 7) // 8
    if codes is None:
        return bytes(size)
    data = np.empty(size, np.uint8)

    def share(start: int, stop: int) -> None:
        part: Codes = np.empty(min(_PART, stop - start), _kind(bits))
        for first in range(start, stop, _PART):
            some = part[: min(_PART, stop - first)]
            codes(first, some)
            there = data[first * bits // 8 : (min(first + _PART, stop) * bits + 7) // 8]
            (pack.pack_bytes if bits <= 8 else pack.pack_words)(some, bits, there)

    threads.spread(share, count)
    return raw(data)


def decode_grid(section: Reader, count: int, bits: int, grid: Grid, low: int, high: int) -> Fill:
    """The values of the codes that `encode_codes` wrote, which lie in ``low`` to ``high``."""
    if section.coded:
        coded = ans_decode(section, count, 1 << bits, (count * bits + 7) // 8)
        return dequantize(copy_of(coded), np.int32, grid, low, high, 1 << 31)
    return dequantize(unpacked(section, count, bits), _kind(bits), grid, low, high, 1 << bits)


def dequantize(codes: Fill, kind: type, grid: Grid, low: int, high: int, end: int) -> Fill:
    """The values of codes below ``end`` in arrays of a kind; Corrupted where one is not within low … high.

    Values beyond float32 are Corrupted, too: some codes of a grid may reach so far.
    """

    def beyond(*some: int) -> bool:
        return not max(abs(grid.origin + grid.step * (code - grid.zero)) for code in some) <= LARGEST

    far, loud = beyond(low, high), beyond(0, end - 1)

    def fill(start: int, out: Vector) -> None:
        some: Codes = scratch("codes", out.size, kind)
        codes(start, some)
        if (low > 0 and some.min() < low) or (high < end - 1 and some.max() > high):
            raise Corrupted("a frame has codes that its quantizer does not write")
        with np.errstate(over="ignore") if loud else nullcontext():  # without the JIT NumPy would warn of it
            quantize.grid_values(some, *grid, end, out)
        if far and not max_abs(out) <= LARGEST:
            raise Corrupted("a frame has values beyond float32")

    return fill


def cut_codes(
    section: Reader, head: Bytes, count: int, bits: int, cuts: Sequence[tuple[int, int]]
) -> list[Section]:
    """The sections of codes lo … hi − 1 for each pair (lo, hi) of ``cuts``, each after the same head.

    The section is one of `encode_codes`, read up to its codes. Entropy-coded codes are coded again.
    """
    if section.coded:
        whole = ans_decode(section, count, 1 << bits, (count * bits + 7) // 8).astype(_kind(bits))
        return [encode_codes(head, copy_of(whole[lo:hi]), hi - lo, bits, 0, "ans") for lo, hi in cuts]
    data = section.packed(count, bits)
    return [Section([head, _cut_packed(data, lo, hi, bits)], 0) for lo, hi in cuts]


def _cut_packed(data: npt.NDArray[np.uint8], lo: int, hi: int, bits: int) -> Bytes:
    """Codes lo … hi − 1 of packed ones, packed."""
    first = lo - lo % 8  # where a byte begins, whatever the width
    stop = (hi * bits + 7) // 8
    if lo * bits % 8 == 0:
        part = data[lo * bits // 8 : stop]
        if hi * bits % 8:
            part = part.copy()
            part[-1] &= (1 << hi * bits % 8) - 1
        return raw(part)
    codes: Codes = np.empty(hi - first, _kind(bits))
    (pack.unpack_bytes if bits <= 8 else pack.unpack_words)(data[first * bits // 8 : stop], bits, codes)
    return packed(copy_of(codes[lo - first :]), hi - lo, bits)


def unpacked(section: Reader, count: int, bits: int) -> Fill:
    """The codes that `packed` wrote."""
    data = section.packed(count, bits)

    def fill(start: int, out: Codes) -> None:
        here = data[start * bits // 8 : ((start + out.size) * bits + 7) // 8]
        (pack.unpack_bytes if bits <= 8 else pack.unpack_words)(here, bits, out)

    return fill


def ans_encode(codes: Codes, symbols: int, limit: int) -> Bytes | None:
    """Codes < ``symbols`` as `kernels.ans` writes them, or None where that takes ``limit`` bytes or more.

    Length (varint); scale (4 bits), least code (12), greatest minus least code (12) and table, filled up to
    a multiple of two bytes; two states (u32); stream.
    """
    if symbols > 1 << ans.SCALE:
        return None
    histogram = np.zeros((symbols, 2), np.int64)
    ans.count(codes, histogram)
    counts = histogram.sum(axis=1)
    present = np.flatnonzero(counts)
    first, last = int(present[0]), int(present[-1])
    scale = _scale(codes.size, counts)
    frequencies = np.empty(last + 1 - first, np.int32)
    ans.scaled(counts[first : last + 1], scale, frequencies)
    words = bitstream.zeroed(_HEAD + 2 * ans.SCALE * frequencies.size)
    words[0] = scale | first << 4 | last - first << 16
    table = ans.table_encode(frequencies, _HEAD, words)
    head = bytes(bitstream.as_bytes(words, 16 * -(-table // 16)))
    # The stream may take the rest of the limit; the coder looks at some places after the one it writes.
    halves = np.empty(max(limit - len(head) - 8, 0) // 2 + ans.AHEAD, np.uint16)
    states = np.empty(2, np.int64)
    begin = ans.encode(codes, first, frequencies, scale, halves, states)
    if begin < 0:
        return None
    stream = halves[begin:].astype("<u2", copy=False)
    length = len(head) + 8 + stream.nbytes
    if varint_size(length) + length >= limit:
        return None
    return b"".join((varint(length), head, states.astype("<u4").tobytes(), stream.tobytes()))


def ans_decode(section: Reader, count: int, symbols: int, limit: int | None = None) -> Codes:
    """The codes that `ans_encode` wrote."""
    length = section.varint()
    if limit is not None and varint_size(length) + length >= limit:
        raise Corrupted(f"a frame has coded values in no fewer than the {limit} bytes of packed ones")
    section.make(count)
    data = section.array(length, "u1")
    words = bitstream.as_words(data)
    head = int(words[0])
    scale, first, span = head & 15, head >> 4 & 0xFFF, (head >> 16 & 0xFFF) + 1
    frequencies = np.empty(span, np.int32)
    table = -1
    if scale <= ans.SCALE and first + span <= symbols:
        table = ans.table_decode(words, _HEAD, scale, frequencies)
    rest = data[2 * -(-table // 16) :]
    filled = table % 16 and bitstream.get(words, table, 16 - table % 16)
    if table < 0 or rest.size < 8 or rest.size % 2 or filled:
        raise Corrupted("a frame has coded values with a table that does not fit")
    states = np.frombuffer(rest[:8].tobytes(), "<u4").astype(np.int64)
    halves = np.zeros(rest.size // 2 - 4 + ans.AHEAD, np.uint16)
    halves[: -ans.AHEAD] = np.frombuffer(rest[8:].tobytes(), "<u2")
    codes = np.empty(count, np.int32)
    fine = states.min() >= ans.LOWEST and states.max() < 1 << 31
    if not fine or ans.decode(halves, states, frequencies, scale, first, codes) < 0:
        raise Corrupted(f"a frame has coded values that are not {count}")
    histogram = np.zeros((first + span, 2), np.int64)
    ans.count(codes, histogram)
    wanted = np.empty(span, np.int32)
    counts = histogram.sum(axis=1)[first:]
    ans.scaled(counts, scale, wanted)
    missing = counts[0] == 0 or counts[-1] == 0
    if missing or scale != _scale(count, counts) or not np.array_equal(frequencies, wanted):
        raise Corrupted("a frame has coded values with the table of others")
    return codes


def _scale(count: int, counts: npt.NDArray[np.int64]) -> int:
    """The number of binary digits of the sum of frequencies; a short message needs no finer ones."""
    return min(ans.SCALE, max(count.bit_length(), (int(np.count_nonzero(counts)) - 1).bit_length()))


def contraction(omega: float) -> float | None:
    """The γ of an unbiased quantizer: ‖v − Q(v)‖² ≤ ω‖v‖² in expectation, so 1 − ω where that is positive."""
    return 1 - omega if omega < 1 else None


def flat_variance(k: int) -> float:
    """The supremum of (‖v‖₁‖v‖∞ − ‖v‖₂²)/‖v‖₂² over v of k values, which is (√k − 1)/2."""
    return (math.sqrt(k) - 1) / 2

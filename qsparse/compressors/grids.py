"""What quantizers on a grid share: codes of b bits behind a short header, packed or by their entropy."""

from __future__ import annotations

import math
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
#: Bits of the widest code that a quantizer writes.
WIDEST: Final = 16
#: Bits before the table of coded values.
_HEAD: Final = 28


def code_width(levels: int) -> int:
    """⌈log2(s + 1)⌉: bits for a level of 0 … s."""
    return levels.bit_length()


def read_width(section: Reader, least: int) -> int:
    """The width of codes (u8) as a section states it; Corrupted where no quantizer writes such codes."""
    bits = section.u8()
    if not least <= bits <= WIDEST:
        raise Corrupted(f"a frame has codes of {bits} bits, which no quantizer writes")
    return bits


def are_scales(values: npt.NDArray[np.float32]) -> bool:
    """Whether `Reader.scale` takes all of them."""
    # Infinity, NaN and what is negative, zero too, have the larger bits.
    return bool(np.all(values.view(np.uint32) < 0x7F80_0000))


def are_filled(rows: npt.NDArray[np.uint8], bits: int) -> bool:
    """Whether the last bytes of rows that end with so many bits are filled with zeros."""
    return bits % 8 == 0 or not np.any(rows[:, -1] >> bits % 8)


def check_coder(part: object, coder: str) -> None:
    """Refuse a coder that there is not."""
    if coder not in ("packed", "ans"):
        raise refuse(part, "coder must be 'packed' or 'ans'")


class Grid(NamedTuple):
    """Codes stand for origin + step·(code − zero)."""

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
    """A section of codes behind a head: in ``bits`` each, or by ``coder`` where that is shorter.

    ``codes`` writes those from a number on into an array; all are zero where it is None. What they say on the
    grid is subtracted from ``rest``, which may be what they are made of, where that is given.
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
    """The same codes, which take what they say from ``rest``."""

    def fill(start: int, out: Codes) -> None:
        codes(start, out)
        for first in range(0, out.size, _PART):
            some = out[first : first + _PART]
            quantize.subtract_values(some, *grid, rest[start + first : start + first + some.size])

    return fill


def _kind(bits: int) -> type[np.uint8 | np.uint16]:
    """Of codes that are packed."""
    return np.uint8 if bits <= 8 else np.uint16


def packed(codes: Fill | None, count: int, bits: int) -> Bytes:
    """Codes in b bits each, made in parts that caches hold."""
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
    """The values of the codes that `spelled` wrote, of ``low`` to ``high``."""
    if section.coded:
        coded = ans_decode(section, count, 1 << bits, (count * bits + 7) // 8)
        return dequantize(copy_of(coded), np.int32, grid, low, high, 1 << 31)
    return dequantize(unpacked(section, count, bits), _kind(bits), grid, low, high, 1 << bits)


def dequantize(codes: Fill, kind: type, grid: Grid, low: int, high: int, end: int) -> Fill:
    """The values of codes below ``end`` in arrays of a kind; Corrupted where one is not of low … high.

    So is what leads beyond float32: only some codes of a grid may reach so far.
    """

    def beyond(*some: int) -> bool:
        return not max(abs(grid.origin + grid.step * (code - grid.zero)) for code in some) <= LARGEST

    far, loud = beyond(low, high), beyond(0, end - 1)

    def fill(start: int, out: Vector) -> None:
        some: Codes = scratch("codes", out.size, kind)
        codes(start, some)
        if (low > 0 and some.min() < low) or (high < end - 1 and some.max() > high):
            raise Corrupted("a frame has codes that its quantizer does not write")
        with np.errstate(over="ignore") if loud else nullcontext():  # it is said where the JIT is off
            quantize.grid_values(some, *grid, end, out)
        if far and not max_abs(out) <= LARGEST:
            raise Corrupted("a frame has values beyond float32")

    return fill


def unpacked(section: Reader, count: int, bits: int) -> Fill:
    """The codes that `packed` wrote."""
    data = section.packed(count, bits)

    def fill(start: int, out: Codes) -> None:
        here = data[start * bits // 8 : ((start + out.size) * bits + 7) // 8]
        (pack.unpack_bytes if bits <= 8 else pack.unpack_words)(here, bits, out)

    return fill


def ans_encode(codes: Codes, symbols: int, limit: int) -> Bytes | None:
    """Codes < ``symbols`` by `kernels.ans`, or None where that takes ``limit`` bytes or more.

    Length (varint); scale (4 bits), least code (12), greatest less least (12), table, to a whole
    number of two bytes; two states (u32), stream.
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
    # The stream may take what is left of the limit; the coder looks ahead of what it writes.
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
    """The codes that `squeezed` wrote."""
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
    """The binary digits of the sum of frequencies; a short message has no use for fine ones."""
    return min(ans.SCALE, max(count.bit_length(), (int(np.count_nonzero(counts)) - 1).bit_length()))


def contraction(omega: float) -> float | None:
    """γ of an unbiased quantizer: ‖v − Q(v)‖² ≤ ω‖v‖² in expectation, so 1 − ω where positive."""
    return 1 - omega if omega < 1 else None


def flat_variance(k: int) -> float:
    """sup (‖v‖₁‖v‖∞ − ‖v‖₂²)/‖v‖₂² = (√k − 1)/2 over v of k values."""
    return (math.sqrt(k) - 1) / 2

"""Codes of a few bits, signs and trits, laid end to end, lowest bit first."""

from __future__ import annotations

import numpy as np

from qsparse.kernels.jit import inlined, kernel, simd

_ONE = np.uint64(1)
#: The lower half of every two bytes, four bytes, eight bytes.
_LOW1, _LOW2, _LOW4 = (
    np.uint64(0x00FF_00FF_00FF_00FF),
    np.uint64(0x0000_FFFF_0000_FFFF),
    np.uint64(0xFFFF_FFFF),
)


@kernel
def pack(codes, low, bits, out):
    """Write codes − low, each in ``bits`` ≤ 48 bits, into out of ⌈n·bits/8⌉ bytes."""
    acc = 0
    held = 0
    at = 0
    for i in range(codes.size):
        acc |= (int(codes[i]) - low) << held
        held += bits
        while held >= 8:
            out[at] = acc & 0xFF
            at += 1
            acc >>= 8
            held -= 8
    if held > 0:
        out[at] = acc & 0xFF


@kernel
def unpack(data, low, bits, out):
    """Read codes written by `pack` into ``out``."""
    mask = (1 << bits) - 1
    acc = 0
    held = 0
    at = 0
    for i in range(out.size):
        while held < bits:
            acc |= int(data[at]) << held
            at += 1
            held += 8
        out[i] = (acc & mask) + low
        acc >>= bits
        held -= bits


@kernel
def pack_bytes(codes, bits, out):
    """Write codes of one byte, each in ``bits`` ≤ 8 bits, into out of ⌈n·bits/8⌉ bytes: eight at a time.

    Eight bytes are folded in halves: neighbours become one of twice the bits, three times. Four bits, the
    most common width, need no more than a loop that vectorizes.
    """
    n = codes.size
    if bits == 4:
        for pair in range(n // 2):
            out[pair] = codes[2 * pair] | (codes[2 * pair + 1] << 4)
        if n % 2:
            out[n // 2] = codes[n - 1]
        return
    gap1, gap2, gap4 = np.uint64(8 - bits), np.uint64(2 * (8 - bits)), np.uint64(4 * (8 - bits))
    at = 0
    i = 0
    # Eight bytes are stored, of which bits are meant; the rest is written over.
    while i + 8 <= n and at + 8 <= out.size:
        word = simd.get_mask(codes, i)
        word = (word & _LOW1) | ((word & ~_LOW1) >> gap1)
        word = (word & _LOW2) | ((word & ~_LOW2) >> gap2)
        simd.put_mask(out, at, (word & _LOW4) | ((word & ~_LOW4) >> gap4))
        i += 8
        at += bits
    pack(codes[i:], 0, bits, out[at:])


@kernel
def unpack_bytes(data, bits, out):
    """Read codes written by `pack_bytes` into ``out``."""
    n = out.size
    if bits == 4:
        for pair in range(n // 2):
            out[2 * pair] = data[pair] & 15
            out[2 * pair + 1] = data[pair] >> 4
        if n % 2:
            out[n - 1] = data[n // 2] & 15
        return
    gap1, gap2, gap4 = np.uint64(8 - bits), np.uint64(2 * (8 - bits)), np.uint64(4 * (8 - bits))
    keep1 = (_ONE << np.uint64(bits)) - _ONE
    keep2 = (_ONE << np.uint64(2 * bits)) - _ONE
    keep4 = (_ONE << np.uint64(4 * bits)) - _ONE
    keep2 |= keep2 << np.uint64(32)
    keep1 |= keep1 << np.uint64(16)
    keep1 |= keep1 << np.uint64(32)
    at = 0
    i = 0
    while i + 8 <= n and at + 8 <= data.size:
        word = simd.get_mask(data, at)
        word = (word & keep4) | ((word << gap4) & (keep4 << np.uint64(32)))
        word = (word & keep2) | ((word << gap2) & (keep2 << np.uint64(16)))
        word = (word & keep1) | ((word << gap1) & (keep1 << np.uint64(8)))
        simd.put_mask(out, i, word)
        i += 8
        at += bits
    unpack(data[at:], 0, bits, out[i:])


@inlined
def _folded(word, gap1, gap2):
    """Four codes of two bytes as one number."""
    word = (word & _LOW2) | ((word & ~_LOW2) >> gap1)
    return (word & _LOW4) | ((word & ~_LOW4) >> gap2)


@inlined
def _unfolded(word, keep1, keep2, gap1, gap2):
    """The four codes of a number, whose other bits do not matter."""
    word = (word & keep2) | ((word << gap2) & (keep2 << np.uint64(32)))
    return (word & keep1) | ((word << gap1) & (keep1 << np.uint64(16)))


@kernel
def pack_words(codes, bits, out):
    """Write codes of two bytes, each in 9 to 16 ``bits``, into out of ⌈n·bits/8⌉ bytes: eight at a time.

    Four codes are folded in halves as in `pack_bytes`, and two such words laid end to end.
    """
    n = codes.size
    gap1, gap2 = np.uint64(16 - bits), np.uint64(2 * (16 - bits))
    whole = np.uint64(4 * bits)
    at = 0
    i = 0
    while i + 8 <= n and at + 16 <= out.size:
        first = _folded(simd.get_mask(codes, i), gap1, gap2)
        second = _folded(simd.get_mask(codes, i + 4), gap1, gap2)
        if bits < 16:
            first |= second << whole
            second >>= np.uint64(64) - whole
        simd.put_mask(out, at, first)
        simd.put_mask(out, at + 8, second)
        i += 8
        at += bits
    pack(codes[i:], 0, bits, out[at:])


@kernel
def unpack_words(data, bits, out):
    """Read codes written by `pack_words` into ``out``."""
    n = out.size
    gap1, gap2 = np.uint64(16 - bits), np.uint64(2 * (16 - bits))
    whole = np.uint64(4 * bits)
    keep1 = (_ONE << np.uint64(bits)) - _ONE
    keep2 = (_ONE << np.uint64(2 * bits)) - _ONE
    keep1 |= keep1 << np.uint64(32)
    at = 0
    i = 0
    while i + 8 <= n and at + 16 <= data.size:
        first = simd.get_mask(data, at)
        second = simd.get_mask(data, at + 8)
        if bits < 16:
            second = (second << (np.uint64(64) - whole)) | (first >> whole)
        simd.put_mask(out, i, _unfolded(first, keep1, keep2, gap1, gap2))
        simd.put_mask(out, i + 4, _unfolded(second, keep1, keep2, gap1, gap2))
        i += 8
        at += bits
    unpack(data[at:], 0, bits, out[i:])


@kernel
def pack_trits(codes, out):
    """Codes of 0, 1, 2, five to a byte (3⁵ = 243)."""
    n = codes.size
    for byte in range((n + 4) // 5):
        acc = 0
        for j in range(min(5, n - 5 * byte) - 1, -1, -1):
            acc = 3 * acc + int(codes[5 * byte + j])
        out[byte] = acc


@kernel
def unpack_trits(data, out):
    """Read codes written by `pack_trits` into ``out``."""
    n = out.size
    for byte in range((n + 4) // 5):
        acc = int(data[byte])
        for j in range(min(5, n - 5 * byte)):
            out[5 * byte + j] = acc % 3
            acc //= 3

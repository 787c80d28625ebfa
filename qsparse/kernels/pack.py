"""Codes of a few bits, signs and trits, laid end to end, lowest bit first."""

from __future__ import annotations

from qsparse.kernels.jit import kernel


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
def pack_signs(x, out):
    """One bit a value: 1 where x < 0, so that +0 and −0 both read as +."""
    n = x.size
    for byte in range((n + 7) // 8):
        acc = 0
        for j in range(min(8, n - 8 * byte)):
            if x[8 * byte + j] < 0:
                acc |= 1 << j
        out[byte] = acc


@kernel
def unpack_signs(data, scale, out):
    """out = −scale where the bit is 1, +scale where it is 0."""
    for i in range(out.size):
        out[i] = -scale if (data[i >> 3] >> (i & 7)) & 1 else scale


@kernel
def pack_trits(codes, out):
    """Codes of {−1, 0, 1}, five to a byte (3⁵ = 243)."""
    n = codes.size
    for byte in range((n + 4) // 5):
        acc = 0
        for j in range(min(5, n - 5 * byte) - 1, -1, -1):
            acc = 3 * acc + int(codes[5 * byte + j]) + 1
        out[byte] = acc


@kernel
def unpack_trits(data, out):
    """Read codes written by `pack_trits` into ``out``."""
    n = out.size
    for byte in range((n + 4) // 5):
        acc = int(data[byte])
        for j in range(min(5, n - 5 * byte)):
            out[5 * byte + j] = acc % 3 - 1
            acc //= 3

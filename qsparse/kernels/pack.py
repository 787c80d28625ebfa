"""Codes of a few bits, signs and trits, laid end to end, lowest bit first."""

from __future__ import annotations

import numpy as np

from qsparse.kernels.jit import kernel

_ONE, _BYTE = np.uint64(1), np.uint64(0xFF)


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
    """Write codes of one byte, each in ``bits`` ≤ 8 bits, into out of ⌈n·bits/8⌉ bytes: eight at a time."""
    n = codes.size
    at = 0
    for i in range(0, n - n % 8, 8):
        acc = np.uint64(0)
        for j in range(8):
            acc |= np.uint64(codes[i + j]) << np.uint64(j * bits)
        for j in range(bits):
            out[at + j] = (acc >> np.uint64(8 * j)) & _BYTE
        at += bits
    pack(codes[n - n % 8 :], 0, bits, out[at:])


@kernel
def unpack_bytes(data, bits, out):
    """Read codes written by `pack_bytes` into ``out``."""
    n = out.size
    mask = (_ONE << np.uint64(bits)) - _ONE
    at = 0
    for i in range(0, n - n % 8, 8):
        acc = np.uint64(0)
        for j in range(bits):
            acc |= np.uint64(data[at + j]) << np.uint64(8 * j)
        for j in range(8):
            out[i + j] = (acc >> np.uint64(j * bits)) & mask
        at += bits
    unpack(data[at:], 0, bits, out[n - n % 8 :])


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

"""The twin of `simd_llvm` in plain Python, for where the JIT is off; what each function does stands here."""

from __future__ import annotations

import functools
import operator

import numpy as np

WIDTH = 64
#: Bytes that `fold` takes at a time; 0: zlib is faster.
FOLDED = 0
#: CRC-32's polynomial, without x³².
_POLYNOMIAL = 0x04C1_1DB7


def lowest(mask):
    """Place of the lowest set bit of a mask that is not 0."""
    mask = int(mask)
    return (mask & -mask).bit_length() - 1


def _joined(bits):
    return np.uint64(sum(1 << place for place, bit in enumerate(bits) if bit))


def put_mask(out, at, mask):
    """Write a mask to the eight bytes from out[at] on."""
    out[at : at + 8 // out.itemsize] = np.frombuffer(int(mask).to_bytes(8, "little"), out.dtype)


def get_mask(data, at):
    """Read what `put_mask` wrote."""
    return np.uint64(int.from_bytes(data[at : at + 8 // data.itemsize].tobytes(), "little"))


def stream(x, i, j, out):
    """out[j …] = x[i …]."""
    out[j : j + WIDTH] = x[i : i + WIDTH]


def copy_largest(data, i, most, out):
    """out[i …] = the float32 that lie in bytes; their bits without the sign raise the 16 maxima."""
    some = out[i : i + WIDTH]
    some.view(np.uint8)[:] = data[4 * i : 4 * (i + WIDTH)]
    bits = np.abs(some).view(np.int32).reshape(-1, most.size)
    np.maximum(most, bits.max(axis=0), out=most)


def above(x, i, threshold):
    """Mask of |x| ≥ threshold, or NaN."""
    return _joined(~(np.abs(x[i : i + WIDTH]) < threshold))


def add(x, scale, y, i, out):
    """out = x + scale·y for a scale of ±1."""
    np.add(x[i : i + WIDTH], scale * y[i : i + WIDTH], out=out[i : i + WIDTH])


def add_above(x, scale, y, i, threshold, out):
    """`add`, and the mask of |out| ≥ threshold, or NaN."""
    add(x, scale, y, i, out)
    return above(out, i, threshold)


stream_above = add_above


def _add_to(sums, terms):
    terms = list(np.asarray(terms).reshape(8, 8))
    while len(terms) > 1:
        terms = [terms[i] + terms[i + 1] for i in range(0, len(terms), 2)]
    sums += terms[0]


def negative(x, i, sums):
    """Mask of x < 0; |x_i| is added in pairs of eights, and the eight totals to the eight sums."""
    _add_to(sums, np.abs(x[i : i + WIDTH].astype(np.float64)))
    return _joined(x[i : i + WIDTH] < 0)


def squares(x, i, sums):
    """As `negative` adds magnitudes, squares."""
    _add_to(sums, np.square(x[i : i + WIDTH].astype(np.float64)))


def sum_negative(x, scale, y, i, sums):
    """`negative` of x + scale·y for a scale of ±1."""
    return negative(np.add(x[i : i + WIDTH], scale * y[i : i + WIDTH]), 0, sums)


def add_negative(x, scale, y, i, sums, out):
    """`add`, and what `negative` has of the result."""
    add(x, scale, y, i, out)
    return negative(out, i, sums)


stream_negative = add_negative


def put_signed(mask, value, i, out):
    """out = −value where the mask is set, value elsewhere."""
    for j in range(WIDTH):
        out[i + j] = -value if (int(mask) >> j) & 1 else value


def add_rest(x, scale, y, i, mask, value, out):
    """out = x + scale·y − what `put_signed` writes."""
    said = np.empty(WIDTH, out.dtype)
    put_signed(mask, value, 0, said)
    np.subtract(x[i : i + WIDTH] + scale * y[i : i + WIDTH], said, out=out[i : i + WIDTH])


stream_rest = add_rest


def add_largest(x, scale, y, i, most, out):
    """`add`; the bits of |out|, 16 at a time, raise the 16 maxima."""
    add(x, scale, y, i, out)
    bits = np.abs(out[i : i + WIDTH]).view(np.int32).reshape(-1, most.size)
    np.maximum(most, bits.max(axis=0), out=most)


stream_largest = add_largest


def fold_factors(size):
    """By what the two halves of 16 bytes are multiplied to be moved ``size`` bytes on, modulo the polynomial.

    Bytes have their lowest bit first, so polynomials are reflected: the factors are x^(8·size + 32) and
    x^(8·size − 32), bit i of 33 for the power 32 − i (Gopal et al., 2009).
    """
    factors = []
    for power in (8 * size + 32, 8 * size - 32):
        rest = 1
        for _ in range(power):
            rest <<= 1
            if rest >> 32:
                rest ^= 1 << 32 | _POLYNOMIAL
        factors.append(int(f"{rest:032b}"[::-1], 2) << 1)
    return factors


def _times(a, b):
    """The product without carries."""
    return functools.reduce(operator.xor, (a << i for i in range(b.bit_length()) if b >> i & 1), 0)


def fold(data, i, state):
    """state = the state moved on by its size, plus data[i …]: has the checksum of both, end to end."""
    factors = fold_factors(state.size)
    halves = [int(half) for half in state.view(np.uint64)]
    for place in range(0, len(halves), 2):
        product = _times(halves[place], factors[0]) ^ _times(halves[place + 1], factors[1])
        new = np.frombuffer(product.to_bytes(16, "little"), np.uint8)
        state[8 * place : 8 * place + 16] = new ^ data[i + 8 * place : i + 8 * place + 16]


def fold_copy(data, i, state, most, out):
    """`fold`, and out[i …] = data[i …]; as float32 its entries, without their signs, raise the maxima."""
    fold(data, i, state)
    some = data[i : i + state.size]
    out[i : i + state.size] = some
    np.maximum(most, np.frombuffer(some.tobytes(), np.int32) & 0x7FFF_FFFF, out=most)

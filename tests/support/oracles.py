"""Naive twins of the kernels: plain Python and NumPy, written from the definitions, without qsparse."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

WORD = 0xFFFF_FFFF


def top_k(x, k):
    """Indices of the k largest magnitudes, ascending; among equals the lowest index."""
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))
    return sorted(order[:k])


def top_k_by_argsort(x, k):
    """The same for long vectors."""
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])


def as_bytes(bits):
    """Bits, lowest first, as bytes; the last byte is filled with zeros."""
    bits = list(bits) + [0] * (-len(bits) % 8)
    return bytes(sum(bit << j for j, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))


def low_bits(number, width):
    """The lowest ``width`` bits of a number, lowest first."""
    return [(number >> j) & 1 for j in range(width)]


def rice_parameters(indices, n, block=64):
    """The Rice parameter of each block of ascending indices, from its mean gap."""
    gaps = [int(b) - int(a) - 1 for a, b in zip([-1, *indices], indices, strict=False)]
    blocks = [gaps[start : start + block] for start in range(0, len(gaps), block)]
    return [expected_parameter(sum(mine), len(mine)) for mine in blocks]


def expected_parameter(total, count):
    """The least r ≤ 32 with 2^r ≥ 2·77/320·(mean + 1/2)."""
    right = Fraction(154, 320) * (Fraction(total, max(count, 1)) + Fraction(1, 2))
    return next((r for r in range(32) if 2**r >= right), 32)


def rice(indices, n, parameters, block=64):
    """The bits of the blocked Golomb-Rice code of ascending indices below n: unary parts, then low bits."""
    unary, lows, before = [], [], -1
    last = expected_parameter(n - len(indices), len(indices))
    for number, index in enumerate(indices):
        r = parameters[number // block]
        if number % block == 0:
            step = r - last
            unary += [0] * (2 * step if step >= 0 else -2 * step - 1) + [1]
            last = r
        gap = int(index) - before - 1
        unary += [0] * (gap >> r) + [1]
        lows += low_bits(gap, r)
        before = int(index)
    return unary + lows


def bitmap(indices, n):
    """One bit a position."""
    chosen = set(map(int, indices))
    return [int(i in chosen) for i in range(n)]


def packed(codes, low, width):
    """Codes − low, ``width`` bits each."""
    return [bit for code in codes for bit in low_bits(int(code) - low, width)]


def signs(x):
    """1 where negative."""
    return [int(value < 0) for value in x]


def trits(codes):
    """Five base-3 digits a byte, the first one lowest."""
    digits = [int(code) for code in codes]
    return bytes(
        sum(digit * 3**j for j, digit in enumerate(digits[i : i + 5])) for i in range(0, len(digits), 5)
    )


def ans_frequencies(counts, scale):
    """One for each count that is there, the rest in proportion, what is left to the first of the largest."""
    there = [count for count in counts if count]
    room = 2**scale - len(there)
    f = [1 + count * room // sum(there) if count else 0 for count in counts]
    f[counts.index(max(counts))] += 2**scale - sum(f)
    return f


def ans_stream(symbols, frequencies, scale):
    """The 16-bit words and the two states from which symbols 0, 2, … and 1, 3, … are read."""
    below = [sum(frequencies[:s]) for s in range(len(frequencies))]
    states, words = [2**15, 2**15], []
    for i, s in reversed(list(enumerate(symbols))):
        x, f = states[i % 2], frequencies[s]
        if x >= f << (31 - scale):
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % 2] = (x // f << scale) + below[s] + x % f
    return words[::-1], states


def ans_section(codes):
    """Non-negative codes with their length, table and states, as docs/wire-format.md has it."""
    first, last, k = min(codes), max(codes), len(codes)
    scale = min(12, max(k.bit_length(), (len(set(codes)) - 1).bit_length()))
    counts = [codes.count(code) for code in range(first, last + 1)]
    f = ans_frequencies(counts, scale)
    bits = low_bits(scale, 4) + low_bits(first, 12) + low_bits(last - first, 12)
    for each in f:
        bits += low_bits(each.bit_length(), 4) + low_bits(each, max(each.bit_length() - 1, 0))
    table = as_bytes(bits + [0] * (-len(bits) % 16))
    words, states = ans_stream([code - first for code in codes], f, scale)
    data = table + b"".join(x.to_bytes(4, "little") for x in states)
    data += b"".join(word.to_bytes(2, "little") for word in words)
    length = [len(data)] if len(data) < 128 else [len(data) % 128 + 128, len(data) // 128]
    return bytes(length) + data


def philox(key, counter):
    """Philox4x32-10 (Salmon et al., SC 2011): four words of a 64-bit key and a 128-bit counter."""
    x = [(counter >> 32 * j) & WORD for j in range(4)]
    k = [key & WORD, key >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(q >> 32) ^ x[1] ^ k[0], q & WORD, (p >> 32) ^ x[3] ^ k[1], p & WORD]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return x


def uniforms(key, n):
    """The first n uniforms of a stream: the upper 24 bits of each word."""
    words = [word for block in range((n + 3) // 4) for word in philox(key, block)]
    return [(word >> 8) / 2**24 for word in words[:n]]


def sample(key, n, k):
    """k distinct indices below n, drawn until there are enough; the complement where that is smaller."""
    wanted, chosen, block = min(k, n - k), set(), 0
    while len(chosen) < wanted:
        u = [(word >> 8) / 2**24 for word in philox(key, block)]
        block += 1
        for j in (0, 2):
            if len(chosen) < wanted:
                chosen.add(int((u[j] + u[j + 1] / 2**24) * n))
    return sorted(chosen) if wanted == k else [i for i in range(n) if i not in chosen]


def clip(code, low, high):
    """Code within low … high."""
    return min(max(code, low), high)


def radius_nearest(x, inverse, high):
    """⌊(1 + x·inverse)·high/2 + 1/2⌋, clipped to 0 … high."""
    return [clip(math.floor((1.0 + float(v) * inverse) * (0.5 * high) + 0.5), 0, high) for v in x]


def grid_random(x, origin, inverse, low, high, key, first):
    """⌊(x − origin)·inverse + u⌋, clipped, and counted from low."""
    u = uniforms(key, first + len(x))[first:]
    codes = [math.floor((float(v) - origin) * inverse + u[i]) for i, v in enumerate(x)]
    return [clip(code, low, high) - low for code in codes]


def expected_error(x, step, low, high):
    """Σ over both neighbours of v on the grid, clipped: chance·(neighbour − v)², in exact fractions."""
    total = Fraction(0)
    for v in x:
        v, floor = Fraction(float(v)), math.floor(Fraction(float(v)) / Fraction(step))
        f = v / Fraction(step) - floor
        for code, chance in ((floor, 1 - f), (floor + 1, f)):
            total += chance * (Fraction(step) * clip(code, low, high) - v) ** 2
    return float(total)


def levels_random(x, inverse, high, zero, key, first):
    """zero + sign(x)·min(⌊|x|·inverse + u⌋, high)."""
    u = uniforms(key, first + len(x))[first:]
    levels = [min(math.floor(abs(float(v)) * inverse + u[i]), high) for i, v in enumerate(x)]
    return [zero + int(math.copysign(1, v)) * level for v, level in zip(x, levels, strict=True)]


def crc32(data, start=0):
    """CRC-32 bit by bit: the polynomial 0x04C11DB7 with its lowest power first."""
    rest = start ^ WORD
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = (rest >> 1) ^ (0xEDB88320 if rest & 1 else 0)
    return rest ^ WORD


def norm1(x):
    """Σ|x_i|, rounded once."""
    return math.fsum(abs(float(v)) for v in x)


def squared_norm(x):
    """Σx_i², rounded once after the squares."""
    return math.fsum(float(v) * float(v) for v in x)


def momentum(g, m, beta, nesterov):
    """m' = βm + g; g + βm' or m'."""
    after = beta * m.astype(np.float64) + g
    return (g + beta * after if nesterov else after), after


def adamw(x, g, m, v, t, lr, beta1, beta2, eps, decay):
    """Loshchilov & Hutter (2019), Algorithm 2, lines 6–12, in float64."""
    x, g, m, v = (a.astype(np.float64) for a in (x, g, m, v))
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    hat_m = m / (1 - beta1**t)
    hat_v = v / (1 - beta2**t)
    return x - lr * (hat_m / (np.sqrt(hat_v) + eps) + decay * x), m, v

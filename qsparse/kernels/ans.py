"""Asymmetric numeral systems: codes of an uneven histogram in little more than their entropy.

Range variant (Duda, 2013), static: frequencies f of the symbols sum to 2^scale, c are their cumulative
sums. A symbol s turns a state x into ⌊x/f_s⌋·2^scale + c_s + x mod f_s, and back; states stay within
2^15 … 2^31 − 1 by moving their lower 16 bits to the stream, and from it. Symbols are coded from the last
to the first, so that they are read from the first to the last; two states take turns, so that one need
not wait for the other.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qsparse.kernels.bitstream import GUARD, get, put
from qsparse.kernels.jit import kernel

#: Frequencies sum to at most 2^SCALE, so more symbols than that are not coded.
SCALE: Final = 12
#: The smallest state, and the first one of an encoder.
LOWEST: Final = 1 << 15
#: Bits of a frequency's length in the table.
_LENGTH: Final = 4
#: Halves of words that both ends may look at beyond the stream.
AHEAD: Final = 2


@kernel
def count(codes, histogram):
    """Add 1 to histogram[code] for each code; the histogram has two columns to add to in turn."""
    n = codes.size
    for i in range(0, n - 1, 2):
        histogram[codes[i], 0] += 1
        histogram[codes[i + 1], 1] += 1
    if n % 2 == 1:
        histogram[codes[n - 1], 0] += 1


@kernel
def scaled(counts, scale, frequencies):
    """Frequencies ≥ 1 where a count is, with sum 2^scale; at most 2^scale counts are positive."""
    total = 0
    present = 0
    most = 0
    for s in range(counts.size):
        total += counts[s]
        if counts[s] > 0:
            present += 1
        if counts[s] > counts[most]:
            most = s
    room = (1 << scale) - present
    left = room
    for s in range(counts.size):
        frequencies[s] = 0
        if counts[s] > 0:
            share = counts[s] * room // total
            frequencies[s] = 1 + share
            left -= share
    frequencies[most] += left


@kernel
def table_encode(frequencies, bit, words):
    """Write each frequency as the number of its binary digits, and those but the first; the bit behind."""
    for s in range(frequencies.size):
        f = np.int64(frequencies[s])
        length = 0
        while f >> length > 0:
            length += 1
        put(words, bit, length, _LENGTH)
        bit += _LENGTH
        if length > 1:
            put(words, bit, f - (1 << (length - 1)), length - 1)
            bit += length - 1
    return bit


@kernel
def table_decode(words, bit, scale, frequencies):
    """Read frequencies from a bit on; the bit behind, or −1 where they do not sum to 2^scale."""
    end = 32 * (words.size - GUARD)
    total = 0
    for s in range(frequencies.size):
        if bit > end:
            return -1
        length = get(words, bit, _LENGTH)
        bit += _LENGTH
        f = 0
        if length > 0:
            if bit > end:
                return -1
            f = (1 << (length - 1)) | get(words, bit, length - 1)
            bit += length - 1
        frequencies[s] = f
        total += f
    return bit if total == 1 << scale else -1


@kernel
def encode(codes, low, frequencies, scale, halves, states):
    """Write the stream to the end of ``halves`` and return where it begins, or −1 where it is too long.

    ``low`` is the code of frequencies[0]; the two ``states`` are what the decoder starts from.
    """
    steps = np.empty((frequencies.size, 5), np.int64)
    below = 0
    for s in range(frequencies.size):
        f = np.int64(frequencies[s])
        width = 0
        while 1 << width < f:
            width += 1
        # ⌊x/f⌋ = x·⌈2^(31 + width)/f⌉ >> (31 + width) for x < 2^31 (Granlund & Montgomery, 1994).
        steps[s, 0] = f << (31 - scale)
        steps[s, 1] = ((1 << (31 + width)) + f - 1) // max(f, 1)
        steps[s, 2] = 31 + width
        steps[s, 3] = (1 << scale) - f
        steps[s, 4] = below
        below += f
    at = halves.size
    odd = LOWEST
    even = LOWEST
    n = codes.size
    i = n - 1
    if n % 2 == 1:
        if at < 1:
            return -1
        s = codes[i] - low
        spill = np.int64(even >= steps[s, 0])
        halves[at - 1] = even & 0xFFFF
        at -= spill
        even >>= 16 * spill
        even += ((even * steps[s, 1]) >> steps[s, 2]) * steps[s, 3] + steps[s, 4]
        i -= 1
    while i > 0:
        if at < 2:
            return -1
        s = codes[i] - low
        # No branch, as nobody can guess it.
        spill = np.int64(odd >= steps[s, 0])
        halves[at - 1] = odd & 0xFFFF
        at -= spill
        odd >>= 16 * spill
        odd += ((odd * steps[s, 1]) >> steps[s, 2]) * steps[s, 3] + steps[s, 4]
        s = codes[i - 1] - low
        spill = np.int64(even >= steps[s, 0])
        halves[at - 1] = even & 0xFFFF
        at -= spill
        even >>= 16 * spill
        even += ((even * steps[s, 1]) >> steps[s, 2]) * steps[s, 3] + steps[s, 4]
        i -= 2
    states[0] = even
    states[1] = odd
    return at


@kernel
def decode(halves, states, frequencies, scale, low, out):
    """Read out.size codes and return 0, or −1 where stream and states are not those of an encoder.

    ``halves`` are the stream and `AHEAD` more.
    """
    slots = 1 << scale
    symbols = np.empty(slots, np.int32)
    # Frequency and place within the symbol, as f·2^scale + place: both in one look.
    steps = np.empty(slots, np.int32)
    at = 0
    for s in range(frequencies.size):
        f = np.int64(frequencies[s])
        for place in range(f):
            symbols[at] = low + s
            steps[at] = (f << scale) | place
            at += 1
    mask = slots - 1
    end = halves.size - AHEAD
    at = 0
    even = np.int64(states[0])
    odd = np.int64(states[1])
    n = out.size
    for i in range(0, n - 1, 2):
        slot = even & mask
        out[i] = symbols[slot]
        step = np.int64(steps[slot])
        even = (step >> scale) * (even >> scale) + (step & mask)
        spilt = np.int64(even < LOWEST)
        even = (even << (16 * spilt)) | (np.int64(halves[at]) * spilt)
        at += spilt
        slot = odd & mask
        out[i + 1] = symbols[slot]
        step = np.int64(steps[slot])
        odd = (step >> scale) * (odd >> scale) + (step & mask)
        spilt = np.int64(odd < LOWEST)
        odd = (odd << (16 * spilt)) | (np.int64(halves[at]) * spilt)
        at += spilt
        if at > end:
            return -1
    if n % 2 == 1:
        slot = even & mask
        out[n - 1] = symbols[slot]
        step = np.int64(steps[slot])
        even = (step >> scale) * (even >> scale) + (step & mask)
        if even < LOWEST:
            even = (even << 16) | np.int64(halves[at])
            at += 1
    return 0 if at == end and even == LOWEST and odd == LOWEST else -1

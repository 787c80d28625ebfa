"""Signs, one bit a value: 1 where x < 0, so that +0 and −0 both read as +.

Vectors of one or more equal blocks; the bits of a block begin a byte of their own. Where bytes of something
else lie between the blocks, ``first`` says where the first block's bits begin and ``stride`` how far the next
one's are.
"""

from __future__ import annotations

import numpy as np

from qsparse.kernels.jit import kernel, simd
from qsparse.kernels.vector import total


@kernel
def _tail(x, i, stop, sums, data, at):
    """The last entries of a block, fewer than 64."""
    while i < stop:
        byte = 0
        for j in range(min(8, stop - i)):
            value = x[i + j]
            sums[j] += abs(np.float64(value))
            if value < 0:
                byte |= 1 << j
        data[at] = byte
        at += 1
        i += 8


@kernel
def bits(x, out):
    """The bits of one block of any float type."""
    for byte in range((x.size + 7) // 8):
        acc = 0
        for j in range(min(8, x.size - 8 * byte)):
            if x[8 * byte + j] < 0:
                acc |= 1 << j
        out[byte] = acc


@kernel
def encode(x, size, first, stride, data, norms):
    """Bits of blocks of ``size`` entries into ``data``; Σ|x_i| of each, as `vector.norm1`, into ``norms``."""
    for block in range(norms.size):
        sums = np.zeros(8)
        i = block * size
        stop = i + size
        at = first + block * stride
        while i + simd.WIDTH <= stop:
            simd.put_mask(data, at, simd.negative(x, i, sums))
            i += simd.WIDTH
            at += 8
        _tail(x, i, stop, sums, data, at)
        norms[block] = total(sums)


@kernel
def encode_sum(x, scale, y, streamed, size, first, stride, out, data, norms):
    """out = x + scale·y for a scale of ±1, float32, and `encode` of it in the same pass over memory."""
    for block in range(norms.size):
        sums = np.zeros(8)
        i = block * size
        stop = i + size
        at = first + block * stride
        while i + simd.WIDTH <= stop:
            if streamed:
                mask = simd.stream_negative(x, scale, y, i, sums, out)
            else:
                mask = simd.add_negative(x, scale, y, i, sums, out)
            simd.put_mask(data, at, mask)
            i += simd.WIDTH
            at += 8
        for j in range(i, stop):
            out[j] = x[j] + scale * y[j]
        _tail(out, i, stop, sums, data, at)
        norms[block] = total(sums)


@kernel
def encode_rest(x, scale, y, streamed, scaled, size, first, stride, out, data, norms):
    """As `encode_sum`, but ``out`` is what the message leaves of the sum, made while a block is near.

    The message says ±norm/size where ``scaled``, else ±1.
    """
    for block in range(norms.size):
        sums = np.zeros(8)
        start = block * size
        stop = start + size
        whole = start + size // simd.WIDTH * simd.WIDTH
        at = first + block * stride
        for i in range(start, whole, simd.WIDTH):
            simd.put_mask(data, at + ((i - start) >> 3), simd.sum_negative(x, scale, y, i, sums))
        for j in range(whole, stop):
            out[j] = x[j] + scale * y[j]
        _tail(out, whole, stop, sums, data, at + ((whole - start) >> 3))
        norm = total(sums)
        norms[block] = norm
        said = np.float32(norm / size) if scaled else np.float32(1)
        for i in range(start, whole, simd.WIDTH):
            mask = simd.get_mask(data, at + ((i - start) >> 3))
            if streamed:
                simd.stream_rest(x, scale, y, i, mask, said, out)
            else:
                simd.add_rest(x, scale, y, i, mask, said, out)
        for j in range(whole, stop):
            out[j] -= -said if out[j] < 0 else said


@kernel
def decode(data, scales, size, first, stride, out):
    """out = −scale where the bit is 1, +scale where it is 0, in scales' type."""
    for block in range(scales.size):
        scale = scales[block]
        start = block * size
        at = first + block * stride
        whole = 0
        if out.itemsize == 4:
            whole = size - size % simd.WIDTH
            for i in range(0, whole, simd.WIDTH):
                mask = simd.get_mask(data, at + (i >> 3))
                simd.put_signed(mask, np.float32(scale), start + i, out)
        for i in range(whole, size):
            out[start + i] = -scale if (data[at + (i >> 3)] >> (i & 7)) & 1 else scale

"""Every kernel against its naive twin; run again with the JIT off by test_jit_off."""

from __future__ import annotations

import math
import os
import warnings
import zlib

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsparse.compressors.sums import max_abs
from qsparse.kernels import (
    accumulate,
    bitstream,
    checksum,
    indices,
    pack,
    quantize,
    random,
    select,
    signs,
    simd_plain,
    vector,
)
from qsparse.kernels.bitstream import get, lowest, put
from qsparse.kernels.jit import simd
from qsparse.types import aligned

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
LARGE = 50_000 if JIT else 300

held = settings(derandomize=True, deadline=None, max_examples=60 if JIT else 20, database=None)
keys = st.integers(0, 2**64 - 1)
floats32 = st.floats(-(2.0**100), 2.0**100, width=32)
magnitudes = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45, 3e38, -3e38, 0.1])
subsets = st.integers(1, 300).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=n).map(sorted))
)


def floats(values, kind=np.float32):
    return np.array(values, kind)


def top(x, k):
    out = np.empty(k, np.intp)
    if x.dtype == np.float32:
        select.top_k(x.view(np.int32), 0x7FFF_FFFF, 20, out)
    else:
        select.top_k(x.view(np.int64), 0x7FFF_FFFF_FFFF_FFFF, 52, out)
    return out


# --- select --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@held
@given(data=st.data())
def test_top_k_is_exact_and_prefers_low_indices(kind, data):
    x = floats(data.draw(st.lists(st.one_of(floats32, magnitudes), min_size=1, max_size=80)), kind)
    k = data.draw(st.integers(0, x.size))
    assert top(x, k).tolist() == oracles.top_k(x, k)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_top_k_of_a_long_vector(kind):
    x = np.random.default_rng(1).standard_normal(LARGE).astype(kind)
    x[::7] = x[3]
    for k in (1, 17, LARGE // 100, LARGE // 5, LARGE - 1, LARGE):
        assert np.array_equal(top(x, k), oracles.top_k_by_argsort(x, k))


def test_top_k_tells_neighbouring_float64_apart():
    x = np.nextafter(np.full(9, 1.0), np.arange(9) % 2 * 2.0)
    assert top(x, 4).tolist() == [1, 3, 5, 7]


def drawn(n, seed=3):
    """A sum of two vectors of which some entries are equal, zero, or large."""
    draw = np.random.default_rng(seed)
    x, y = (draw.standard_normal(n).astype(np.float32) for _ in range(2))
    x[::5], y[::5] = 0.5, 0.25
    x[::11], y[::11] = 0, -0.0
    return x, y


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000, LARGE])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("scale", [1, -1])
def test_candidates(n, streamed, scale):
    x, y = drawn(n)
    out = aligned(x)
    total = x + np.float32(scale) * y
    wanted = np.flatnonzero(~(np.abs(total) < 0.75))
    for room in (wanted.size + 64, wanted.size + 200):
        positions, values = np.empty(room, np.intp), np.empty(room, np.float32)
        bound = np.float32(0.75)
        sides = (x, np.float32(scale), y, 0, n, bound, streamed, out, positions, values)
        for found in (select.collect_sum(*sides), select.collect(total, 0, n, bound, positions, values)):
            assert found == wanted.size
            assert np.array_equal(positions[:found], wanted)
            assert np.array_equal(values[:found], total[wanted])
        assert out.tobytes() == total.tobytes()


@pytest.mark.skipif(not JIT, reason="long vectors are for the compiled kernels")
def test_too_little_room_for_candidates_is_told():
    x, y = drawn(LARGE)
    out, one = aligned(x), np.float32(1)
    for room in (64, 200, 1000):
        positions, values = np.empty(room, np.intp), np.empty(room, np.float32)
        assert select.collect(x, 0, x.size, one, positions, values) == -1
        assert select.collect_sum(x, one, y, 0, x.size, one, False, out, positions, values) == -1


def test_not_a_number_is_a_candidate():
    x = np.zeros(200, np.float32)
    x[[3, 70, 199]] = np.nan, np.inf, -np.inf
    positions, values = np.empty(300, np.intp), np.empty(300, np.float32)
    assert select.collect(x, 0, 200, np.float32(1), positions, values) == 3
    assert positions[:3].tolist() == [3, 70, 199]


@pytest.mark.parametrize("n", [2, 100, 5001])
def test_a_sample_is_of_every_part_and_of_the_sum(n):
    x, y = np.arange(1.0, n + 1, dtype=np.float32), np.full(n, -2.0 * n, np.float32)
    for pairs in {1, (n + 2) // 4, n // 2}:
        out, both = np.empty(2 * pairs, np.float32), np.empty(2 * pairs, np.float32)
        select.sample(x, out)
        places = out.astype(int) - 1
        assert np.array_equal(places[1::2], places[::2] + 1)
        assert np.array_equal(places[::2] // 2 * pairs // (n // 2), np.arange(pairs)) or n // 2 % pairs
        assert np.all(np.diff(places) > 0)
        select.sample_sum(x, np.float32(1), y, both)
        assert np.array_equal(both, np.abs(x[places] + y[places]))


@held
@given(values=st.lists(st.one_of(floats32, magnitudes), min_size=1, max_size=80), data=st.data())
def test_the_largest_of_the_candidates(values, data):
    x = floats(values)
    k = data.draw(st.integers(1, x.size))
    positions = np.arange(x.size) * 3 + 1
    found, kept = np.empty(k + 1, np.intp), np.empty(k + 1, np.float32)
    select.narrow(positions, x, x.view(np.int32), k, found, kept)
    wanted = oracles.top_k(x, k)
    assert found[:k].tolist() == [3 * i + 1 for i in wanted]
    assert kept[:k].tobytes() == x[wanted].tobytes()


# --- vector code ---------------------------------------------------------------------------------


@pytest.mark.skipif(not JIT, reason="without the JIT there is only the twin")
@pytest.mark.parametrize("name", ["add_above", "stream_above", "add_negative", "stream_negative"])
@pytest.mark.parametrize("scale", [1, -1])
def test_vector_code_agrees_with_its_twin(name, scale):
    import numba

    x, y = drawn(192)
    x[70], x[71], y[72] = np.nan, np.inf, -np.inf
    if name.endswith("above"):
        ours, third = getattr(simd, name), np.float32(0.75)

        @numba.njit
        def call(x, scale, y, third, out):
            return ours(x, scale, y, 64, third, out)
    else:
        ours, third = getattr(simd, name), np.arange(8.0)

        @numba.njit
        def call(x, scale, y, third, out):
            return ours(x, scale, y, 64, third, out)

    out, twin = aligned(x), aligned(x)
    sums = third.copy() if isinstance(third, np.ndarray) else third
    with np.errstate(invalid="ignore"):
        wanted = getattr(simd_plain, name)(x, np.float32(scale), y, 64, sums, twin)
    assert int(call(x, np.float32(scale), y, third, out)) == int(wanted)
    assert out.tobytes() == twin.tobytes()
    np.testing.assert_array_equal(third, sums)


# --- checksums -----------------------------------------------------------------------------------


def frozen(data):
    array = np.frombuffer(data, np.uint8)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("first", [0, 1, 50])
@pytest.mark.parametrize("folded", [True, False])
def test_checksums_are_those_of_zlib(monkeypatch, first, folded):
    if not folded:
        monkeypatch.setattr(simd, "FOLDED", 0)
    data = np.random.default_rng(1).bytes(200_000)
    for size in (0, 1, 3, 100, 16_383, 16_384, 16_385, 20_003, 131_072, 199_900):
        some = frozen(data)[first : first + size]
        for start in (0, 1, 0xFFFF_FFFF):
            wanted, out = zlib.crc32(some, start), np.zeros(size + 2, np.uint8)
            assert checksum.crc32(some, start) == wanted
            assert checksum.copy(some, start, out[1:-1])[0] == wanted
            assert out[1:-1].tobytes() == some.tobytes()
            assert out[0] == out[-1] == 0
    assert oracles.crc32(data[:20_003], 7) == zlib.crc32(data[:20_003], 7)


@pytest.mark.parametrize("size", [1, 5, 100, 4096, 5000, 40_000])
def test_the_largest_shows_while_floats_are_copied(size):
    x = np.random.default_rng(2).standard_normal(size).astype(np.float32)
    out = np.empty(4 * size, np.uint8)
    for place in {0, size // 2, size - 1}:
        for value in (-7.5, np.inf, -np.inf, np.nan):
            marked = x.copy()
            marked[place] = value
            largest = checksum.copy(frozen(marked), 0, out)[1]
            assert largest == abs(value) or (np.isnan(value) and np.isnan(largest))
            assert out.tobytes() == marked.tobytes()


@pytest.mark.parametrize("first", [0, 2, 50])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_floats_are_copied_from_anywhere_and_the_largest_shows(first, n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    for value in (None, -np.inf, np.nan):
        if value is not None and n:
            x[n // 2] = value
        out = np.empty(n, np.float32)
        most = vector.copy_largest(frozen(bytes(first) + x.tobytes())[first:], out)
        assert out.tobytes() == x.tobytes()
        assert int(most) == vector.max_abs(x.view(np.int32), np.int32(0x7FFF_FFFF))


@pytest.mark.parametrize("size", [64, 128])
def test_folding_keeps_the_checksum(size):
    data = np.random.default_rng(3).bytes(5 * size)
    state, most, out = frozen(data)[:size].copy(), np.zeros(size // 4, np.int32), bytearray(5 * size)
    for i in range(size, 5 * size, size):
        simd_plain.fold_copy(frozen(data), i, state, most, np.frombuffer(out, np.uint8))
    # One that begins and ends with zeros: linear, so that what is folded has the checksum of the whole.
    assert oracles.crc32(state.tobytes(), 0xFFFF_FFFF) == oracles.crc32(data, 0xFFFF_FFFF)
    assert bytes(out[size:]) == data[size:]
    magnitudes = np.frombuffer(data[size:], np.int32).reshape(4, -1) & 0x7FFF_FFFF
    assert np.array_equal(most, magnitudes.max(axis=0))


@pytest.mark.skipif(not JIT or not simd.FOLDED, reason="nothing folds but the twin")
def test_vector_code_folds_as_its_twin_does():
    import numba

    @numba.njit
    def call(data, i, state, most, out):
        simd.fold(data, i, state)
        simd.fold_copy(data, i + 3, state, most, out)

    size = simd.FOLDED
    data = frozen(np.random.default_rng(4).bytes(3 * size))
    states = [data[-size:].copy() for _ in range(2)]
    maxima, outs = np.zeros((2, size // 4), np.int32), np.zeros((2, data.size), np.uint8)
    call(data, 5, states[0], maxima[0], outs[0])
    simd_plain.fold(data, 5, states[1])
    simd_plain.fold_copy(data, 8, states[1], maxima[1], outs[1])
    for pair in (states, maxima, outs):
        assert np.array_equal(*pair)


# --- positions -----------------------------------------------------------------------------------


def planned(chosen, n):
    parameters = np.empty(-(-chosen.size // indices.BLOCK), np.uint8)
    return parameters, indices.rice_plan(chosen, n, parameters)


def coded(chosen, n):
    parameters, bits = planned(chosen, n)
    words = bitstream.zeroed(bits)
    indices.rice_encode(chosen, n, parameters, bits, words)
    return bitstream.as_bytes(words, bits)


def decoded(data, n, k):
    again, parameters = np.empty(k, np.intp), np.empty(-(-k // indices.BLOCK), np.uint8)
    used = indices.rice_decode(bitstream.as_words(np.frombuffer(data, np.uint8)), n, parameters, again)
    return used, again


def uneven(n, k):
    """Positions of which the first tenth of n holds half, and the last one."""
    draw = np.random.default_rng(k)
    crowd, rest = draw.choice(n // 10, k // 2, replace=False), draw.choice(n, k - k // 2, replace=False)
    return np.unique(np.concatenate([crowd, rest, [n - 1]])).astype(np.intp)


@held
@given(subset=subsets)
def test_rice_codes(subset):
    n, chosen = subset
    chosen = np.array(chosen, np.intp)
    _rice_is_its_twin(n, chosen)


@pytest.mark.parametrize(("n", "k"), [(4000, 130), (2_000_000, 500), (2**40, 70), (2**50, 3), (900, 170)])
def test_rice_codes_of_several_blocks(n, k):
    chosen = uneven(n, k) if n < 10**7 else np.arange(k, dtype=np.intp) ** 2 * (n // k**2)
    _rice_is_its_twin(n, chosen)


def _rice_is_its_twin(n, chosen):
    parameters, bits = planned(chosen, n)
    assert parameters.tolist() == oracles.rice_parameters(chosen, n)
    expected = oracles.rice(chosen, n, parameters.tolist())
    assert bits == len(expected)
    data = coded(chosen, n)
    assert data.tobytes() == oracles.as_bytes(expected)
    used, again = decoded(data, n, chosen.size)
    assert used == bits
    assert np.array_equal(again, chosen)


@held
@given(data=st.binary(max_size=60), n=st.integers(1, 200) | st.integers(1, 2**45), k=st.integers(0, 150))
def test_rice_decode_of_any_bytes_stays_in_range(data, n, k):
    used, found = decoded(data, n, min(k, n))
    if used >= 0:
        assert used <= 8 * len(data) + 31
        assert not found.size or (found[0] >= 0 and found[-1] < n)
        assert np.all(np.diff(found) > 0)


@held
@given(subset=subsets, place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_rice_decode_of_an_altered_code_stays_in_range(subset, place, value):
    n, chosen = subset
    data = bytearray(coded(np.array(chosen, np.intp), n).tobytes())
    if data:
        data[place % len(data)] = value
    used, found = decoded(bytes(data), n, len(chosen))
    if used >= 0 and found.size:
        assert found[0] >= 0
        assert found[-1] < n
        assert np.all(np.diff(found) > 0)


def test_rice_decode_refuses_what_does_not_fit():
    n, chosen = 1000, np.array([3, 999], np.intp)
    data = coded(chosen, n).tobytes()
    assert decoded(data, n, 2)[0] > 0
    assert decoded(data, n - 1, 2)[0] == -1  # an index beyond the end
    assert decoded(data[:-1], n, 2)[0] > 8 * len(data[:-1])  # zeros of the guard were read
    assert oracles.expected_parameter(2**36 - 2, 2) == 32
    assert decoded(b"\7", 2**36, 2)[0] == -1  # 64 low bits in a word
    assert decoded(b"", n, 2)[0] == -1
    assert decoded(bytes(8), n, 2)[0] == -1  # a parameter without end
    start = oracles.expected_parameter(n - 2, 2)
    for parameter in (-1, 33):
        step = parameter - start
        unary = [0] * (2 * step if step >= 0 else -2 * step - 1) + [1, 1, 1]
        assert decoded(oracles.as_bytes(unary + [0] * 70), n, 2)[0] == -1
    # A gap of 100·2^32, whose parameter is in order.
    unary = [0] * (2 * (32 - start)) + [1] + [0] * 100 + [1, 1]
    assert decoded(oracles.as_bytes(unary + [0] * 64), n, 2)[0] == -1


@pytest.mark.skipif(not JIT, reason="reads 67 million words")
def test_rice_decode_refuses_a_gap_that_overflows():
    # 2^31 zeros before the one, and 32 low bits: 2^63 is negative in 64 bits.
    words = np.zeros(2**26 + 2 + bitstream.GUARD, np.uint32)
    words[0], words[2**26] = 1, 2
    assert oracles.expected_parameter(2**36 - 1, 1) == 32
    assert indices.rice_decode(words, 2**36, np.empty(1, np.uint8), np.empty(1, np.intp)) == -1


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_positions_cost_what_information_theory_asks(share):
    # log2 C(n, k) bits are needed on the average; random positions are the worst case.
    n = 100 * LARGE
    chosen = np.flatnonzero(np.random.default_rng(3).random(n) < share)
    k = chosen.size
    needed = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert planned(chosen, n)[1] <= 1.04 * needed
    if k > 10 * indices.BLOCK:
        assert planned(uneven(n, k), n)[1] <= 0.97 * needed


@held
@given(subset=subsets)
def test_bitmaps(subset):
    n, chosen = subset
    chosen = np.array(chosen, np.intp)
    out = np.zeros((n + 7) // 8, np.uint8)
    indices.bitmap_encode(chosen, out)
    assert out.tobytes() == oracles.as_bytes(oracles.bitmap(chosen, n))
    words = bitstream.as_words(out)
    again = np.empty(chosen.size, np.intp)
    assert indices.bitmap_decode(words, n, again) == 0
    assert np.array_equal(again, chosen)
    assert indices.bitmap_decode(words, n, np.empty(chosen.size + 1, np.intp)) == -1
    if chosen.size:
        assert indices.bitmap_decode(words, n, np.empty(chosen.size - 1, np.intp)) == -1
        assert indices.bitmap_decode(words, chosen[-1], again) == -1


@held
@given(fields=st.lists(st.integers(0, 32).flatmap(lambda w: st.tuples(st.integers(0, 2**w - 1), st.just(w)))))
def test_fields_of_a_stream(fields):
    bits = [bit for value, width in fields for bit in oracles.low_bits(value, width)]
    words, at = bitstream.zeroed(len(bits)), 0
    for value, width in fields:
        put(words, at, value, width)
        at += width
    data = bitstream.as_bytes(words, at)
    assert data.tobytes() == oracles.as_bytes(bits)
    words, at = bitstream.as_words(data), 0
    for value, width in fields:
        assert get(words, at, width) == value
        at += width


def test_the_lowest_one_of_a_word():
    for place in range(32):
        for above in (0, 1, 0xFFFF_FFFF):
            assert lowest((above << (place + 1) | 1 << place) & bitstream.MASK) == place


# --- packing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int32, np.intp])
@held
@given(data=st.data())
def test_packed_codes(kind, data):
    width = data.draw(st.integers(1, 16 if kind is np.int32 else 40))
    low = data.draw(st.sampled_from([0, -(1 << (width - 1))]))
    codes = data.draw(st.lists(st.integers(low, low + (1 << width) - 1), max_size=60))
    out = np.empty((len(codes) * width + 7) // 8, np.uint8)
    pack.pack(np.array(codes, kind), low, width, out)
    assert out.tobytes() == oracles.as_bytes(oracles.packed(codes, low, width))
    again = np.empty(len(codes), kind)
    pack.unpack(out, low, width, again)
    assert again.tolist() == codes


@held
@given(values=st.lists(st.one_of(floats32, magnitudes), max_size=50))
def test_packed_signs(values):
    x = floats(values)
    out = np.empty((x.size + 7) // 8, np.uint8)
    signs.bits(x, out)
    assert out.tobytes() == oracles.as_bytes(oracles.signs(x))
    again = np.empty(x.size, np.float32)
    signs.decode(out, np.full(1, 0.5, np.float32), x.size, 0, 0, again)
    assert np.array_equal(again, np.where(x < 0, np.float32(-0.5), np.float32(0.5)))


@pytest.mark.parametrize("size", [1, 7, 8, 63, 64, 65, 200, 1000])
@pytest.mark.parametrize("streamed", [False, True])
def test_signs_of_blocks(size, streamed):
    x, y = drawn(3 * size)
    total, out = x - y, aligned(x)
    first, stride = 2, (size + 7) // 8 + 5
    got, both = np.zeros(3 * stride, np.uint8), np.zeros(3 * stride, np.uint8)
    norms, sums = np.empty(3), np.empty(3)
    signs.encode(total, size, first, stride, got, norms)
    # Only blocks of whole lines may be streamed.
    past = streamed and size % 64 == 0
    signs.encode_sum(x, np.float32(-1), y, past, size, first, stride, out, both, sums)
    assert out.tobytes() == total.tobytes()
    assert got.tobytes() == both.tobytes()
    blocks = total.reshape(3, size)
    for row, block in zip(got.reshape(3, stride), blocks, strict=True):
        assert row[first : first + (size + 7) // 8].tobytes() == oracles.as_bytes(oracles.signs(block))
    assert norms.tolist() == sums.tolist() == [vector.norm1(block) for block in blocks]
    for scaled in (True, False):
        signs.encode_rest(x, np.float32(-1), y, past, scaled, size, first, stride, out, both, sums)
        said = np.float32(norms / size) if scaled else np.ones(3, np.float32)
        wanted = blocks - np.where(blocks < 0, -said[:, None], said[:, None])
        assert out.tobytes() == wanted.tobytes()
        assert both.tobytes() == got.tobytes()
        assert sums.tolist() == norms.tolist()
    for kind in (np.float32, np.float64):
        scales, again = np.array([0.5, 2, 3], kind), np.empty(3 * size, kind)
        signs.decode(got, scales, size, first, stride, again)
        assert np.array_equal(again.reshape(3, size), np.where(blocks < 0, -scales[:, None], scales[:, None]))


@held
@given(data=st.data(), bits=st.integers(1, 16))
def test_codes_of_one_or_two_bytes_are_packed_as_others_are(data, bits):
    kind = np.uint8 if bits <= 8 else np.uint16
    codes = np.array(data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=60)), kind)
    out, wanted = (np.full((codes.size * bits + 7) // 8, 0xAA, np.uint8) for _ in range(2))
    (pack.pack_bytes if bits <= 8 else pack.pack_words)(codes, bits, out)
    pack.pack(codes, 0, bits, wanted)
    assert np.array_equal(out, wanted)
    again = np.empty_like(codes)
    (pack.unpack_bytes if bits <= 8 else pack.unpack_words)(out, bits, again)
    assert np.array_equal(again, codes)


@held
@given(
    rows=st.lists(st.dictionaries(st.integers(0, 299), st.integers(-3, 3), max_size=40), max_size=4),
    shape=st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(-1, 15)),
    parts=st.integers(1, 5),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_sparse_vectors_are_summed_in_blocks(rows, shape, parts, kind):
    *ends, lead = shape
    start, stop = sorted(ends)
    entries = [(i, row[i]) for row in rows for i in sorted(row)]
    indices, values = np.array([i for i, _ in entries], np.intp), np.array([v for _, v in entries], kind)
    at = [sum(map(len, rows[:r])) + sum(i < start for i in row) for r, row in enumerate(rows)]
    upto = [sum(map(len, rows[:r])) + sum(i < stop for i in row) for r, row in enumerate(rows)]
    whole = aligned(np.empty(400, kind))
    # From ``lead`` on lines of the caches begin, where it says so.
    out = whole[(16 - lead if lead >= 0 else 1) :][:300]
    out[...] = np.nan
    block, stamps = aligned(np.empty(64, kind)), np.zeros(64, np.intp)
    where = np.array(at, np.int64), np.array(upto, np.int64)
    assert accumulate.sum_at(indices, values, *where, start, stop, parts, lead, block, stamps, out)
    wanted = [sum(row.get(i, 0) for row in rows) / parts for i in range(start, stop)]
    np.testing.assert_array_equal(out[start:stop], np.array(wanted, kind))
    assert np.isnan(np.delete(out, slice(start, stop))).all()
    assert not block.any()


def test_sparse_vectors_out_of_order_are_refused():
    indices, values = np.array([70, 3], np.intp), np.ones(2, np.float32)
    at, upto, out = np.zeros(1, np.int64), np.full(1, 2, np.int64), np.zeros(100, np.float32)
    block, stamps = np.zeros(64, np.float32), np.zeros(64, np.intp)
    assert not accumulate.sum_at(indices, values, at, upto, 0, 100, 1, -1, block, stamps, out)


@held
@given(codes=st.lists(st.integers(0, 2), max_size=40))
def test_packed_trits(codes):
    out = np.empty((len(codes) + 4) // 5, np.uint8)
    pack.pack_trits(np.array(codes, np.int32), out)
    assert out.tobytes() == oracles.trits(codes)
    again = np.empty(len(codes), np.int32)
    pack.unpack_trits(out, again)
    assert again.tolist() == codes


# --- random --------------------------------------------------------------------------------------


def test_the_twin_of_philox_gives_the_published_answers():
    # Random123, kat_vectors: philox4x32, 10 rounds.
    assert oracles.philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = oracles.philox(2**64 - 1, 2**128 - 1)
    assert ones == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_philox_gives_the_published_answer():
    zero = np.uint64(0)
    words = [int(w) for w in random.philox(zero, zero, zero, zero)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@held
@given(key=keys, counter=keys)
def test_philox(key, counter):
    words = random.philox(*random.halves(key), *random.halves(counter))
    assert [int(w) for w in words] == oracles.philox(key, counter)


@held
@given(key=keys, n=st.integers(0, 40))
def test_uniforms(key, n):
    for kind in (np.float32, np.float64):
        out = np.empty(n, kind)
        random.uniforms(*random.halves(key), 0, out)
        assert out.tolist() == oracles.uniforms(key, n)
        later = np.empty(max(n - 8, 0), kind)
        random.uniforms(*random.halves(key), 8, later)
        assert np.array_equal(later, out[8:])


@held
@given(key=keys, data=st.data())
def test_samples(key, data):
    n = data.draw(st.integers(1, 120))
    k = data.draw(st.integers(0, n))
    out = np.empty(k, np.intp)
    random.sample(*random.halves(key), n, out)
    assert out.tolist() == oracles.sample(key, n, k)


def test_every_subset_is_drawn_equally_often():
    draws = 6000 if JIT else 600
    counts = {}
    out = np.empty(2, np.intp)
    for key in range(draws):
        random.sample(*random.halves(key * 0x9E3779B97F4A7C15 % 2**64), 5, out)
        counts[tuple(out.tolist())] = counts.get(tuple(out.tolist()), 0) + 1
    assert len(counts) == 10
    # χ² with 9 degrees of freedom exceeds 40 with probability 1e-5.
    assert sum((c - draws / 10) ** 2 / (draws / 10) for c in counts.values()) < 40


# --- quantize ------------------------------------------------------------------------------------

steps = st.floats(1e-3, 1e3)


@held
@given(values=st.lists(floats32, max_size=30), radius=steps, bits=st.integers(1, 16))
def test_rounding_to_the_nearest_point(values, radius, bits):
    x, out = floats(values), np.empty(len(values), np.int32)
    quantize.radius_nearest(x, 1 / radius, 2**bits - 1, out)
    assert out.tolist() == oracles.radius_nearest(x, 1 / radius, 2**bits - 1)


@held
@given(radius=steps, bits=st.integers(1, 16))
def test_zero_lies_between_two_codes_and_gets_the_upper_one(radius, bits):
    out = np.empty(3, np.int32)
    quantize.radius_nearest(np.array([0.0, radius, -radius]), 1 / radius, 2**bits - 1, out)
    assert out.tolist() == [2 ** (bits - 1), 2**bits - 1, 0]


@held
@given(values=st.lists(floats32, max_size=30), origin=st.floats(-10, 10), step=steps, key=keys)
def test_rounding_at_random(values, origin, step, key):
    x, out = floats(values), np.empty(len(values), np.int32)
    for first in (0, 4):
        quantize.grid_random(x, origin, 1 / step, -8, 7, *random.halves(key), first, out)
        assert out.tolist() == oracles.grid_random(x, origin, 1 / step, -8, 7, key, first)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@held
@given(values=st.lists(st.one_of(floats32, st.floats(-9, 9)), max_size=30), step=steps)
def test_the_expected_error_of_rounding_at_random(kind, values, step):
    x = floats(values, kind)
    wanted = oracles.expected_error(x, step, -8, 7)
    got = quantize.expected_error(x, step, -8, 7, np.inf)
    assert got == pytest.approx(wanted, rel=1e-12, abs=1e-13 * step**2)
    # A limit that is kept to changes nothing.
    assert quantize.expected_error(x, step, -8, 7, got) == got


def test_the_expected_error_of_what_lies_on_the_grid_is_nothing():
    x = 0.375 * np.arange(-8.0, 8.0)
    assert quantize.expected_error(x, 0.375, -8, 7, np.inf) == 0
    assert quantize.expected_error(np.empty(0), 0.375, -8, 7, np.inf) == 0


def test_the_expected_error_of_a_long_vector_is_known_to_be_too_large_early():
    x = np.random.default_rng(2).standard_normal(20_003).astype(np.float32)
    t = x.astype(np.float64)
    inside = np.clip(t, -8, 7)
    wanted = np.sum((inside % 1) * (1 - inside % 1) + (t - inside) ** 2)
    whole = quantize.expected_error(x, 1.0, -8, 7, np.inf)
    assert whole == pytest.approx(wanted, rel=1e-12)
    early = quantize.expected_error(x, 1.0, -8, 7, whole / 1000)
    assert whole / 1000 < early < whole / 3
    assert quantize.expected_error(x, 1.0, -8, 7, whole * (1 - 1e-9)) == whole


@held
@given(values=st.lists(floats32, max_size=30), step=steps, key=keys)
def test_rounding_magnitudes_at_random(values, step, key):
    x, out = floats(values), np.empty(len(values), np.int32)
    for first in (0, 4):
        quantize.levels_random(x, 1 / step, 15, 16, *random.halves(key), first, out)
        assert out.tolist() == oracles.levels_random(x, 1 / step, 15, 16, key, first)


def test_values_far_outside_a_grid_are_clipped_to_its_near_end():
    x, out = floats([1e30, -1e30]), np.empty(2, np.int32)
    quantize.grid_random(x, 0.0, 1e3, -8, 7, *random.halves(1), 0, out)
    assert out.tolist() == [15, 0]


@held
@given(codes=st.lists(st.integers(-(2**15), 2**15), max_size=30), origin=st.floats(-10, 10), step=steps)
def test_values_of_codes(codes, origin, step):
    for kind in (np.float32, np.float64):
        out = np.empty(len(codes), kind)
        quantize.grid_values(np.array(codes, np.int32), 3, origin, step, 2**16, out)
        assert out.tolist() == floats([origin + step * (code - 3) for code in codes], kind).tolist()
        # Few codes of many values are looked up.
        few, many = np.array([abs(code) % 7 for code in codes] * 9, np.uint8), np.empty(9 * len(codes), kind)
        quantize.grid_values(few, 3, origin, step, 7, many)
        assert many.tolist() == floats([origin + step * (code - 3) for code in few.tolist()], kind).tolist()


# --- whole vectors -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 100, LARGE])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_norms(kind, n, scale):
    x = (np.random.default_rng(n).standard_normal(n) * scale).astype(kind)
    assert vector.norm1(x) == pytest.approx(oracles.norm1(x), rel=1e-13, abs=0)
    assert vector.squared_norm(x) == pytest.approx(oracles.squared_norm(x), rel=1e-13, abs=0)
    if n:
        assert vector.min_max(x) == (x.min(), x.max())


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_first_value_beyond_a_limit(kind):
    for bad in (np.nan, np.inf, -np.inf, 4.0, -4.0):
        x = np.ones(9, kind)
        x[3] = x[6] = bad
        assert vector.first_beyond(x, 3.0) == 3
    assert vector.first_beyond(np.full(9, 3, kind), 3.0) == -1
    assert vector.first_beyond(np.empty(0, kind), 3.0) == -1


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_sums_and_steps(kind):
    draw = np.random.default_rng(5)
    x, y = (draw.standard_normal(33).astype(kind) for _ in range(2))
    out = np.empty(33, kind)
    vector.add_scaled(x, 0.3, y, out)
    assert np.array_equal(out, (x.astype(np.float64) + 0.3 * y.astype(np.float64)).astype(kind))
    y[::5] = 0
    stepped = x.copy()
    vector.sign_step(stepped, 0.1, y)
    assert np.array_equal(stepped, (x.astype(np.float64) - 0.1 * np.sign(y.astype(np.float64))).astype(kind))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(kind, nesterov):
    draw = np.random.default_rng(6)
    g, m = (draw.standard_normal(21).astype(kind) for _ in range(2))
    direction, velocity = oracles.momentum(g.astype(np.float64), m, 0.9, nesterov)
    vector.momentum(g, m, 0.9, nesterov, g)
    assert np.array_equal(m, velocity.astype(kind))
    assert np.array_equal(g, direction.astype(kind))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 63, 64, 65, 5000])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_largest_magnitude(kind, n, streamed):
    x, y = (each.astype(kind) for each in drawn(n))
    assert max_abs(x) == np.max(np.abs(x), initial=0)
    if kind is np.float32:
        out = aligned(x)
        bits = np.int32(vector.add_max_abs(x, np.float32(-1), y, streamed, out))
        assert out.tobytes() == (x - y).tobytes()
        assert bits.view(np.float32) == np.max(np.abs(x - y), initial=0)
        if n:
            x[n // 2] = np.nan
            bits = np.int32(vector.add_max_abs(x, np.float32(-1), y, streamed, out))
            assert not bits.view(np.float32) <= np.finfo(np.float32).max


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_adamw(kind):
    draw = np.random.default_rng(7)
    x, g = (draw.standard_normal(21).astype(kind) for _ in range(2))
    m, v = np.zeros(21, kind), np.zeros(21, kind)
    for t in range(1, 6):
        rates = (t, 1e-2, 0.9, 0.999, 1e-8, 0.1)
        expected = oracles.adamw(x, g, m, v, *rates)
        vector.adamw_step(x, g, m, v, *rates)
        for got, wanted in zip((x, m, v), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6 if kind is np.float32 else 1e-14, atol=1e-300)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_sparse_into_dense(kind):
    draw = np.random.default_rng(8)
    dense = draw.standard_normal(50).astype(kind)
    where = np.sort(draw.choice(50, 20, replace=False))
    values = draw.standard_normal(20).astype(kind)
    out = np.empty(20, kind)
    accumulate.gather(dense, where, out)
    assert np.array_equal(out, dense[where])
    for kernel, sign in ((accumulate.add_at, 1), (accumulate.subtract_at, -1)):
        expected, got = dense.copy(), dense.copy()
        expected[where] += sign * values
        kernel(where, values, got)
        assert np.array_equal(got, expected)


def test_kernels_take_nan_without_warnings():
    x = floats([np.nan, 1, -np.inf])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vector.first_beyond(x, 1.0) == 0
        signs.bits(x, np.empty(1, np.uint8))

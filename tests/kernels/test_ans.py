"""Entropy-coded values: against their twin, at the edges, and forged; run again with the JIT off."""

from __future__ import annotations

import math
import os

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsparse.compressors import decompress
from qsparse.compressors.body import Reader
from qsparse.compressors.grids import ans_decode, ans_encode
from qsparse.errors import Corrupted, SettingError
from qsparse.kernels import ans, bitstream
from qsparse.payload import Payload
from qsparse.registry import build
from qsparse.seeds import Seed

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
LONG = 40_000 if JIT else 2_000
held = settings(derandomize=True, deadline=None, max_examples=60 if JIT else 20, database=None)

#: Codes with few symbols, often one much more frequent than others.
uneven = st.integers(0, 60).flatmap(
    lambda top: st.lists(st.one_of(st.just(top), st.just(top), st.integers(0, top)), min_size=1, max_size=200)
)
ENDLESS = 10**6


def int32(codes):
    return np.array(codes, np.int32)


def read(data, count, symbols=4096):
    reader = Reader(memoryview(bytes(data)))
    codes = ans_decode(reader, count, symbols)
    assert not len(reader.rest)
    return codes


@held
@given(codes=uneven)
def test_a_section_is_its_twin(codes):
    symbols = max(codes) + 1
    section = ans_encode(int32(codes), symbols, ENDLESS)
    assert section == oracles.ans_section(codes)
    assert read(section, len(codes), symbols).tolist() == codes
    # It is written where it is shorter than the limit, and only there.
    assert ans_encode(int32(codes), symbols, len(section) + 1) == section
    for limit in (0, 3, len(section) - 1, len(section)):
        assert ans_encode(int32(codes), symbols, limit) is None


@pytest.mark.parametrize(
    "codes",
    [
        [0],
        [4095],
        [7] * LONG,
        [*[3] * LONG, 4],
        [0, *[4095] * LONG],
        [*range(4096)],
        [*range(16)] * (LONG // 100),
        [0, 1] * 7,
    ],
    ids=["one", "the last", "equal", "a rare end", "far apart", "all", "flat", "two"],
)
def test_edges(codes):
    section = ans_encode(int32(codes), 4096, ENDLESS)
    assert read(section, len(codes)).tolist() == codes
    if len(set(codes)) == 1:
        assert len(section) <= 15


def test_more_symbols_than_there_are_slots_are_not_coded():
    assert ans_encode(np.zeros(LONG, np.int32), 4096, ENDLESS) is not None
    assert ans_encode(np.zeros(LONG, np.int32), 4097, ENDLESS) is None


@pytest.mark.parametrize("width", [0.3, 1.0, 3.0, 20.0])
def test_codes_take_their_entropy(width):
    x = np.random.default_rng(4).standard_normal(LONG) * width
    codes = np.rint(x).astype(np.int32)
    codes -= codes.min()
    counts = np.bincount(codes)
    share = counts[counts > 0] / codes.size
    entropy = -float(share @ np.log2(share)) * codes.size
    section = ans_encode(codes, counts.size, ENDLESS)
    table = 12 + 2 * counts.size
    assert entropy / 8 < len(section) < 1.01 * entropy / 8 + table
    assert math.isclose(sum(oracles.ans_frequencies(counts.tolist(), 12)), 4096)
    assert np.array_equal(read(section, codes.size, counts.size), codes)


# --- forged --------------------------------------------------------------------------------------


def try_reading(data, count, symbols):
    try:
        codes = ans_decode(Reader(memoryview(bytes(data))), count, symbols)
    except Corrupted:
        return
    assert codes.size == count
    assert codes.min(initial=0) >= 0
    assert codes.max(initial=0) < symbols


@held
@given(data=st.binary(max_size=80), count=st.integers(1, 100), symbols=st.integers(1, 4096))
def test_any_bytes_are_codes_or_corrupted(data, count, symbols):
    try_reading(bytes([len(data)]) + data, count, symbols)


@held
@given(codes=uneven, place=st.integers(0, 10**6), value=st.integers(0, 255), more=st.integers(-3, 50))
def test_altered_bytes_are_codes_or_corrupted(codes, place, value, more):
    section = bytearray(ans_encode(int32(codes), 61, ENDLESS))
    section[place % len(section)] = value
    try_reading(section, max(len(codes) + more, 1), 61)


def test_what_contradicts_itself_is_corrupted():
    codes = [1, 2, 2, 2, 2, 2, 2, 2, 9] * 5
    section = ans_encode(int32(codes), 16, ENDLESS)
    assert read(section, 45, symbols=16).tolist() == codes
    body = section[1:]

    def refused(data, count=45, symbols=16):
        with pytest.raises(Corrupted):
            read(bytes([len(data)]) + data, count, symbols=symbols)

    for count in (43, 44, 46, 47, 10**6):
        refused(body, count)  # more or fewer codes than the stream has
    refused(body, symbols=9)  # a code beyond the quantizer's
    refused(body + b"\0")
    refused(body + b"\0\0")  # words that no code has asked for
    refused(body[:-2])  # and a word too few
    for length in (0, 1, 3, 4, 11):
        refused(body[:length])
    refused(bytes([body[0] + 1]) + body[1:])  # a table for another scale
    refused(bytes([body[0] | 13]) + body[1:])  # a scale beyond the largest
    frequencies = oracles.ans_frequencies([5, 35, 0, 0, 0, 0, 0, 0, 5], 6)
    words, _ = oracles.ans_stream([code - 1 for code in codes], frequencies, 6)
    states = len(body) - 2 * len(words) - 8
    for state in (0, 2**15 - 1, 2**31, 2**32 - 1):
        refused(body[:states] + state.to_bytes(4, "little") + body[states + 4 :])
    # Zeros, which are a table of nothing, and frequencies that are too many.
    refused(bytes(64))
    refused(b"\x04\0\0\xf0" + b"\xff" * 60)


@pytest.mark.parametrize("frequencies", [[3, 4, 8], [4, 4, 8], [5, 4, 8], [4, 12, 0], [0, 0, 15]])
def test_a_table_adds_up(frequencies):
    words = bitstream.zeroed(64)
    end = ans.table_encode(int32(frequencies), 5, words)
    found = np.empty(3, np.int32)
    assert ans.table_decode(words, 5, 4, found) == (end if sum(frequencies) == 16 else -1)
    assert found.tolist() == frequencies


# --- in frames -----------------------------------------------------------------------------------

PARTS = {
    "uniform": ["bits=3"],
    "qsgd": ["levels=4"],
    "minmax": ["levels=5"],
    "lowprecision": ["bits=4"],
    "ternary": [],
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("n", [1, 2, 3, 31, LONG])
def test_a_coder_changes_bytes_and_nothing_else(name, n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32) ** 3
    plain, coded = (
        build(f"{name}({', '.join(PARTS[name] + more)})", "compressor") for more in ([], ["coder='ans'"])
    )
    a, b = plain.compress(x, Seed(1)), coded.compress(x, Seed(1))
    assert a.nbits == b.nbits == coded.claims.bits(n)
    assert len(b) <= len(a)
    if n == LONG:
        assert len(b) < 0.9 * len(a)
        assert b.body[1] == a.body[1] | 64
    assert np.array_equal(decompress(a, np.empty(n)), decompress(b, np.empty(n)))


def test_only_quantizers_with_codes_are_coded():
    body = bytearray(
        build("uniform(coder='ans')", "compressor").compress(np.zeros(64, np.float32), Seed(1)).body
    )
    assert body[:2] == b"\0\x46"
    for code in (0x40, 0x43, 0x49, 0xC6):
        body[1] = code
        with pytest.raises(Corrupted, match=f"spelled by quantizer {code}"):
            decompress(Payload.build([bytes(body)], codec=1, n=64), np.empty(64))


@pytest.mark.parametrize("part", ["uniform", "qsgd", "minmax", "lowprecision", "ternary"])
def test_an_unknown_coder_is_refused(part):
    with pytest.raises(SettingError, match="coder must be 'packed' or 'ans'"):
        build(f"{part}(coder='zip')", "compressor")

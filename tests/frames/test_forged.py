"""Bodies under a right checksum that no sender can write: refused, never decoded to something else.

What is decoded is held against `rewritten`, which spells it again from the words of docs/wire-format.md.
"""

from __future__ import annotations

import itertools
import struct
import time
import zlib

import numpy as np
import oracles
import pytest
from varints import varint

from qsparse.compressors import composed, decompress, unpack
from qsparse.compressors.body import Reader
from qsparse.compressors.grids import ans_decode
from qsparse.errors import Corrupted, SettingError, WireError
from qsparse.payload import Payload
from qsparse.registry import build
from qsparse.seeds import Seed
from qsparse.testing.laws import EXAMPLES
from qsparse.types import Layer

N = 60
LAYERS = (Layer("conv.weight", 0, 30), Layer("conv.bias", 30, 38), Layer("head.weight", 38, N))
MUTANTS = 150
LARGEST = float(np.finfo(np.float32).max)


# --- a reader and writer of its own --------------------------------------------------------------


def read_varint(body, at):
    value = shift = 0
    while body[at] >= 0x80:
        value |= (body[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | body[at] << shift, at + 1


def written_indices(indices, n):
    """The shortest coding of positions."""
    k = len(indices)
    fixed = oracles.as_bytes(oracles.packed(indices, 0, (n - 1).bit_length()))
    bitmap = oracles.as_bytes(oracles.bitmap(indices, n))
    rice = oracles.as_bytes(oracles.rice(indices, n, oracles.rice_parameters(indices, n)))
    rice = varint(len(rice)) + rice
    coding, data = min(((1, fixed), (2, bitmap), (3, rice)), key=lambda pair: len(pair[1]))
    return bytes([coding]) + varint(k) + data


def scale_of(data):
    (value,) = struct.unpack("<f", data)
    assert 0 <= value <= LARGEST
    assert not data[3] & 0x80
    return value


def written_codes(body, at, k, width, coded, low, high):
    """The codes that stand there, and those bytes again."""
    size = (k * width + 7) // 8
    if coded:
        reader = Reader(memoryview(body)[at:])
        codes = ans_decode(reader, k, 1 << width).tolist()
        again = oracles.ans_section(codes)
        assert len(again) < size
    else:
        number = int.from_bytes(body[at : at + size], "little")
        codes = [number >> width * i & ((1 << width) - 1) for i in range(k)]
        again = oracles.as_bytes(oracles.packed(codes, 0, width))
    assert low <= min(codes)
    assert max(codes) <= high
    return again


def written_values(body, at, k):
    """A quantizer section, from its code on."""
    code, coded = (body[at] & ~64, True) if body[at] & 64 else (body[at], False)
    head = body[at : at + 1]
    at += 1
    assert not coded or code >= 4
    if code < 3:
        size = 4 * k if code == 0 else 2 * k
        return head + body[at : at + size]
    if code == 3:
        scale_of(body[at : at + 4])
        return head + body[at : at + 4] + written_codes(body, at + 4, k, 1, False, 0, 1)
    if code == 5:
        levels, least, most = struct.unpack_from("<Hff", body, at)
        assert levels >= 1
        assert -LARGEST <= least <= most <= LARGEST
        width = levels.bit_length()
        codes = written_codes(body, at + 10, k, width, coded, 0, levels if least < most else 0)
        return head + body[at : at + 10] + codes
    if code == 8:
        scale = scale_of(body[at : at + 4])
        some = body[at + 4 : at + 4 + (k + 4) // 5]
        if coded:
            codes = ans_decode(Reader(memoryview(body)[at + 4 :]), k, 3).tolist()
            again = oracles.ans_section(codes)
            assert len(again) < len(some)
        else:
            assert max(some) <= 242
            codes = [byte // 3**j % 3 for byte in some for j in range(5)][:k]
            again = oracles.trits(codes)
        assert scale > 0 or set(codes) == {1}
        return head + body[at : at + 4] + again
    width, scale = body[at], scale_of(body[at + 1 : at + 5])
    assert code in (4, 6, 7)
    assert (1 if code == 6 else 2) <= width <= 16
    low, high = 1 if code == 4 else 0, (1 << width) - 1
    if scale == 0 and code != 4:
        low = high = 0 if code == 6 else 1 << (width - 1)
    return head + body[at : at + 5] + written_codes(body, at + 5, k, width, coded, low, high)


def rewritten(body, codec, n, pieces):
    """A body of n coordinates, spelled again; ``pieces`` are what was decoded."""
    if codec == 2:
        count, at = read_varint(body, 0)
        runs = []
        for _ in range(count):
            size, at = read_varint(body, at)
            times, at = read_varint(body, at)
            runs.append((size, times, body[at]))
            at += 1
        assert sum(size * times for size, times, _ in runs) == n
        assert all(a[::2] != b[::2] for a, b in itertools.pairwise(runs))
        again = varint(count) + b"".join(varint(s) + varint(t) + bytes([c]) for s, t, c in runs)
        for size, times, inner in runs:
            for _ in range(times):
                again += rewritten(body[len(again) :], inner, size, pieces)
        return again
    if n == 0:
        return b""
    again, k = body[:1], n
    if body[0]:
        k, at = read_varint(body, 1)
        assert k < n
        if body[0] == 4:
            assert k > 0
            again += varint(k) + body[at : at + 8]
        else:
            indices = next(pieces)
            assert len(indices) == k
            again = written_indices(indices, n)
    return again + (written_values(body, len(again), k) if k else b"")


def positions(payload):
    """Those of each stretch whose positions are spelled one by one."""
    body = bytes(payload.body)
    found = [None if piece.indices is None else piece.indices.tolist() for piece in unpack(payload)]
    # Drawn positions are not spelled; no example has both kinds.
    return iter([] if body[:1] == b"\4" else [each for each in found if each is not None])


# --- mutants -------------------------------------------------------------------------------------

FLOATS = [struct.pack("<f", x) for x in (np.nan, np.inf, -np.inf, -1.0, -0.0, 0.0, 1e-45, LARGEST)]


def mutants(body, draw):
    """A few bytes changed, floats put in their place, numbers made longer, bits flipped, cut off, added."""
    for number in range(MUTANTS):
        mutant = bytearray(body)
        place = int(draw.integers(min(len(mutant), 12) if draw.random() < 0.5 else len(mutant)))
        kind = number % 6
        if kind == 0:
            mutant[place] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            mutant[place] = int(draw.choice(np.array([0, 1, 2, 3, 4, 242, 243, 255, draw.integers(256)])))
        elif kind == 2:
            mutant[place : place + 4] = FLOATS[int(draw.integers(len(FLOATS)))]
        elif kind == 3:
            mutant[place : place + 1] = bytes([mutant[place] | 0x80, 0])
        elif kind == 4:
            mutant[-1] ^= 1 << int(draw.integers(8))
        else:
            del mutant[place]
            mutant += draw.bytes(int(draw.integers(3)))
        yield bytes(mutant)


@pytest.mark.parametrize("text", EXAMPLES)
def test_what_is_decoded_is_what_a_sender_writes(text, monkeypatch):
    # What other tests have registered is none of ours.
    ours = {code: quantizer for code, quantizer in composed._quantizers.items() if code < 128}
    monkeypatch.setattr(composed, "_quantizers", ours)
    draw = np.random.default_rng(zlib.crc32(text.encode()))
    part, decoded = build(text, "compressor").bind(LAYERS).limited(N), 0
    for scale in (1.0, 0.0, 1e37):
        x = (scale * draw.standard_normal(N)).astype(np.float32)
        x[draw.integers(N, size=N // 2)] = 0
        sent = part.compress(x, Seed(3))
        assert rewritten(bytes(sent.body), sent.codec, N, positions(sent)) == sent.body
        for body in mutants(bytes(sent.body), draw):
            forged = Payload.parse(Payload.build([body], codec=sent.codec, n=N, nbits=sent.nbits).frame)
            values = np.empty(N, np.float32)
            try:
                decompress(forged, values)
            except WireError:
                continue
            decoded += 1
            assert np.all(np.isfinite(values)), body.hex()
            assert rewritten(body, forged.codec, N, positions(forged)) == body, body.hex()
    assert decoded > 0


def f32(value):
    return struct.pack("<f", value)


ONE = f32(1)
ANS = bytes(build("uniform(bits=2, coder='ans')", "compressor").compress(np.eye(1, 100, dtype=np.float32)[0],
                                                                     Seed(0)).body)  # fmt: skip
#: Codec, n and the body: what only a checksum would let through.
UNWRITABLE = {
    "a number in more bytes than it takes": (1, 4, b"\1\x81\0" + b"\0" + b"\0" + ONE),
    "a number beyond 64 bits": (2, 4, b"\1" + b"\xff" * 9 + b"\x7f" + b"\1\1"),
    "all coordinates by name": (1, 4, b"\2\4\x0f\0" + 4 * ONE),
    "positions in a longer coding": (1, 64, b"\2\1" + b"\1" + bytes(7) + b"\0" + ONE),
    "positions that are filled up": (1, 4, b"\1\1\xc0\0" + ONE),
    "a Rice code that is filled up": (1, 1000, None),
    "a Rice parameter of another": (1, 1000, None),
    "no positions from a key": (1, 4, b"\4\0" + bytes(8)),
    "a sign scale of -0": (1, 4, b"\0\3" + f32(-0.0) + b"\0"),
    "a sign scale of infinity": (1, 4, b"\0\3" + f32(np.inf) + b"\0"),
    "signs beyond the last": (1, 4, b"\0\3" + ONE + b"\x10"),
    "float16 of infinity": (1, 1, b"\0\1\0\x7c"),
    "bfloat16 of NaN": (1, 1, b"\0\2\xc0\x7f"),
    "a level below the lowest": (1, 2, b"\0\4\3" + ONE + b"\x01"),
    "levels of one bit": (1, 8, b"\0\4\1" + ONE + b"\xff"),
    "no levels": (1, 4, b"\0\5" + struct.pack("<Hff", 0, 0, 1)),
    "levels between equals": (1, 4, b"\0\5" + struct.pack("<Hff", 3, 1, 1) + b"\1"),
    "codes of no radius": (1, 2, b"\0\6\4" + f32(0) + b"\1"),
    "codes of no grid": (1, 4, b"\0\7\2" + f32(0) + b"\xab"),
    "codes beyond the last": (1, 1, b"\0\6\4" + ONE + b"\x1f"),
    "trits beyond the last": (1, 4, b"\0\x08" + ONE + b"\xf2"),
    "trits of no scale": (1, 5, b"\0\x08" + f32(0) + b"\0"),
    "coded values where packed ones are shorter": (1, 4, b"\0\x46\1" + ONE + b"\1\0"),
    "equal stretches counted apart": (2, 2, b"\2" + b"\1\1\1" * 2 + b"\0\0" + ONE + b"\0\0" + ONE),
    "equal blocks with a scale of NaN": (2, 16, b"\1\x08\2\1" + (b"\0\3" + f32(np.nan) + b"\0") * 2),
    "equal blocks that are filled up": (2, 8, b"\1\4\2\1" + (b"\0\3" + ONE + b"\x10") * 2),
    "equal blocks with a level below the lowest": (2, 8, b"\1\4\2\1" + (b"\0\4\2" + ONE + b"\0") * 2),
    "equal blocks beyond float32": (2, 8, b"\1\4\2\1" + (b"\0\4\4" + f32(1e38) + b"\xff\xff") * 2),
}


def test_one_bit_of_coded_values_altered_is_another_message_or_none():
    assert ANS[1] == 70
    read = 0
    for place, bit in itertools.product(range(7, len(ANS)), range(8)):
        altered = bytearray(ANS)
        altered[place] ^= 1 << bit
        payload = Payload.build([bytes(altered)], codec=1, n=100)
        try:
            decompress(payload, np.empty(100))
        except Corrupted:
            continue
        read += 1
        assert rewritten(bytes(altered), 1, 100, iter(())) == altered
    assert read < len(ANS)


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_no_sender_can_write_is_corrupted(name):
    codec, n, body = UNWRITABLE[name]
    if body is None:
        indices, parameters = [3, 500, 999], oracles.rice_parameters([3, 500, 999], n)
        filled = name.endswith("filled up")
        bits = oracles.rice(indices, n, [p + (not filled) for p in parameters])
        bits += [0] * (-len(bits) % 8)
        assert bits[-1] == 0
        bits[-1] = int(filled)
        data = oracles.as_bytes(bits)
        body = b"\3\3" + varint(len(data)) + data + b"\0" + 3 * ONE
    for kind in (np.float32, np.float64):
        with pytest.raises(Corrupted):
            decompress(Payload.parse(Payload.build([body], codec=codec, n=n).frame), np.empty(n, kind))


# --- lengths that are not believed ---------------------------------------------------------------


def coded_zeros(n):
    """A body of a few bytes that spells n zeros."""
    few = build("uniform(bits=2, coder='ans')", "compressor").compress(np.zeros(4096, np.float32), Seed(0))
    return bytes(few.body), n


@pytest.mark.parametrize("n", [2**31, 2**40, 2**48, 2**60, 2**64 - 1])
@pytest.mark.parametrize(
    "body",
    [coded_zeros(0)[0], b"\4\1" + bytes(8) + b"\0" + ONE, b"\4" + varint(2**30) + bytes(8) + b"\0"],
    ids=["coded", "drawn", "many drawn"],
)
def test_a_small_frame_that_claims_to_be_huge_is_refused_at_once(n, body):
    payload = Payload.parse(Payload.build([body], codec=1, n=n).frame)
    begin = time.process_time()
    with pytest.raises(Corrupted, match="values"):
        list(unpack(payload))
    for verb in (lambda: list(unpack(payload, n=10)), lambda: decompress(payload, np.ones(10))):
        with pytest.raises(SettingError, match=f"{n} values does not fit a vector of 10"):
            verb()
    assert time.process_time() - begin < 5


def test_a_few_bytes_may_spell_a_long_vector_for_those_who_expect_it():
    n = 1 << 20
    part = build("randk(k=3)", "compressor")
    x = np.arange(n, dtype=np.float32)
    payload = part.compress(x, Seed(1))
    assert len(payload) < 100
    (piece,) = unpack(payload, n=n)
    assert np.array_equal(piece.values, piece.indices)
    with pytest.raises(SettingError):
        unpack(payload, n=n - 1)
    zeros = build("uniform(bits=2, coder='ans')", "compressor").compress(np.zeros(n, np.float32), Seed(0))
    assert len(zeros) < 100
    assert sum(piece.values.size for piece in unpack(zeros)) == n


def test_a_vector_that_does_not_fit_stays_as_it_is():
    payload = build("sign", "compressor").compress(np.ones(8, np.float32), Seed(0))
    out = np.full(9, 7.0)
    with pytest.raises(SettingError):
        decompress(payload, out)
    assert set(out) == {7}

"""Frames: what was built is read, and what was not is refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varints import varint

from qsparse.compressors import Float32, accumulate_into, decompress, subtract_from
from qsparse.errors import Corrupted, ForeignFrame, NotFinite, SettingError, Truncated, WireError
from qsparse.payload import HEADER_BYTES, MAGIC, VERSION, Floats, Kind, Payload, Way
from qsparse.seeds import COORDINATOR, Seed

held = settings(derandomize=True, deadline=None, database=None)
FIELDS = ("kind", "way", "codec", "origin", "step", "n", "nbits")


@held
@given(
    body=st.lists(st.binary(max_size=20), max_size=4),
    kind=st.sampled_from(Kind),
    way=st.sampled_from(Way),
    codec=st.integers(0, 2**32 - 1),
    origin=st.integers(0, COORDINATOR),
    step=st.integers(0, 2**32 - 1),
    n=st.integers(0, 2**64 - 1),
    nbits=st.integers(0, 2**64 - 1),
)
def test_a_frame_is_read_as_it_was_built(body, **fields):
    if fields["kind"] is not Kind.DATA:
        fields |= {"codec": 0, "nbits": 0}
        body = body if fields["kind"] is Kind.ERROR else []
    built = Payload.build(body, **fields)
    read = Payload.parse(bytes(built.frame))
    assert {name: getattr(read, name) for name in FIELDS} == fields
    assert read.body == b"".join(body)
    assert len(read) == len(built) == HEADER_BYTES + sum(map(len, body))


def test_the_header_lies_where_the_documentation_says():
    frame = bytes(
        Payload.build([b"abc"], way=Way.DOWN, codec=1, origin=COORDINATOR, step=5, n=9, nbits=77).frame
    )
    assert HEADER_BYTES == 48
    assert frame[:8] == MAGIC + bytes([VERSION, 0, 1, 0])
    assert struct.unpack_from("<III", frame, 8) == (1, 0xFFFF_FFFF, 5)
    assert struct.unpack_from("<QQQ", frame, 24) == (9, 77, 3)
    assert frame[48:] == b"abc"


def test_sections_may_be_any_contiguous_bytes():
    array = np.arange(3, dtype="<u2")
    payload = Payload.build([b"", bytearray(b"x"), memoryview(array).cast("B"), memoryview(array)])
    assert payload.body == b"x" + 2 * array.tobytes()


def test_a_frame_does_not_follow_the_arrays_it_was_built_from():
    array = np.zeros(4, np.float32)
    payload = Payload.build([memoryview(array).cast("B")])
    array[:] = 1
    assert payload.body == bytes(16)


def test_the_checksum_of_a_long_frame_is_that_of_zlib():
    sections = [np.random.default_rng(0).bytes(size) for size in (1, 70_001, 3, 2_000_000)]
    frame = bytes(Payload.build(sections, step=7).frame)
    body = b"".join(sections)
    assert frame[HEADER_BYTES:] == body
    header = frame[:20] + bytes(4) + frame[24:HEADER_BYTES]
    assert int.from_bytes(frame[20:24], "little") == zlib.crc32(header, zlib.crc32(body))
    assert Payload.parse(frame).step == 7
    for place in (HEADER_BYTES, HEADER_BYTES + 70_000, len(frame) - 1):
        altered = bytearray(frame)
        altered[place] ^= 1
        with pytest.raises(Corrupted, match="checksum"):
            Payload.parse(altered)


def test_a_long_frame_stays_while_anybody_has_a_part_of_it():
    def made(byte):
        return Payload.build([bytes([byte]) * 2_000_000])

    kept = [made(1), made(2).frame, made(3).body[5:], np.frombuffer(made(4).body, np.uint8)]
    for byte in range(5, 12):
        made(byte)
    for byte, part in enumerate((kept[0].body, kept[1][HEADER_BYTES:], kept[2], kept[3]), 1):
        assert set(bytes(part)) == {byte}
    where = {np.frombuffer(made(byte).frame, np.uint8).ctypes.data for byte in range(5)}
    assert len(where) == 1, "each frame is gone when the next is made, so one place is enough"


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_values_that_are_not_finite_make_no_frame(size):
    x = np.ones(size, np.float32)
    assert Payload.build([b"ab", x.view(Floats)]).body == b"ab" + x.tobytes()
    for value in (np.nan, np.inf, -np.inf):
        x[size // 2] = value
        with pytest.raises(NotFinite):
            Payload.build([x.view(Floats)])
        with pytest.raises(NotFinite, match=f"element {size // 2} is {value}, which") as caught:
            Float32().compress(x, Seed(0))
        assert caught.value.index == size // 2


def test_frames_laid_end_to_end_are_split():
    bodies = {Kind.DATA: [b"data"], Kind.ERROR: [b"what went wrong"]}
    frames = [Payload.build(bodies.get(kind, []), kind=kind, step=i) for i, kind in enumerate(Kind)]
    message = b"".join(bytes(payload.frame) for payload in frames)
    again = Payload.split(message)
    assert [bytes(p.frame) for p in again] == [bytes(p.frame) for p in frames]
    assert [p.kind for p in again] == list(Kind)
    assert Payload.split(b"") == []
    with pytest.raises(Truncated):
        Payload.split(message[:-1])
    with pytest.raises(Corrupted, match="bytes follow"):
        Payload.parse(message)


def test_text_reads_back():
    assert Payload.build(["Fünf".encode()], kind=Kind.ERROR).text == "Fünf"
    assert Payload.build([b"\xff"], kind=Kind.ERROR).text == "\N{REPLACEMENT CHARACTER}"


def test_a_step_beyond_32_bits_wraps():
    assert Payload.parse(Payload.build(step=2**32 + 3).frame).step == 3


@held
@given(place=st.integers(0, HEADER_BYTES + 11), bit=st.integers(0, 7))
def test_one_flipped_bit_is_seen(place, bit):
    frame = bytearray(Payload.build([b"twelve bytes"], n=3, nbits=96).frame)
    frame[place] ^= 1 << bit
    with pytest.raises((Corrupted, ForeignFrame, Truncated)):
        Payload.parse(frame)


@held
@given(length=st.integers(0, HEADER_BYTES + 11))
def test_a_frame_cut_short_is_truncated(length):
    frame = bytes(Payload.build([b"twelve bytes"]).frame)
    with pytest.raises(Truncated):
        Payload.parse(frame[:length])


@held
@given(data=st.binary(max_size=100))
def test_other_bytes_are_refused(data):
    with pytest.raises(WireError):
        Payload.parse(data)


def test_the_error_says_which():
    frame = bytearray(Payload.build([b"body"], origin=3, step=9).frame)
    with pytest.raises(Truncated, match="rank 3, step 9, announces 4 bytes of body and has 2"):
        Payload.parse(frame[:-2])
    frame[4] = VERSION + 1
    with pytest.raises(ForeignFrame, match=f"version {VERSION + 1}"):
        Payload.parse(frame)
    with pytest.raises(ForeignFrame, match="not sent by qsparse"):
        Payload.parse(b"HTTP/1.1 200 OK")


def test_whoever_was_asked_to_stop_marks_a_frame():
    """In the header, before it is sent; the rest of it, and frames of others, stay as they were."""
    plain, marked = (Payload.build([b"abc"], origin=3, step=7, n=9, nbits=24) for _ in range(2))
    assert plain.asking(0) is plain
    assert marked.asking(15) is marked
    assert [Payload.parse(bytes(each.frame)).asked for each in (plain, marked, marked.skip())] == [
        0,
        15,
        15,
    ]
    differ = [i for i, (a, b) in enumerate(zip(plain.frame, marked.frame, strict=True)) if a != b]
    assert set(differ) <= {7, *range(20, 24)}
    assert marked.asking(0).frame == plain.frame
    with pytest.raises(ForeignFrame, match="speaks of signal 32, which version 1 does not know"):
        Payload.parse(bytes(marked.asking(32).frame))


def test_a_kind_of_a_later_release_is_foreign():
    from qsparse import payload as module

    frame = bytearray(Payload.build().frame)
    frame[5] = 77
    frame[20:24] = module._checksum(memoryview(frame)).to_bytes(4, "little")
    with pytest.raises(ForeignFrame, match="kind 77"):
        Payload.parse(frame)


@pytest.mark.parametrize("kind", [Kind.SKIP, Kind.STOP, Kind.ERROR])
def test_only_data_has_a_body_that_is_read(kind):
    for more in ({"codec": 1}, {"nbits": 1}) + (({"sections": [b"a"]},) if kind is not Kind.ERROR else ()):
        with pytest.raises(Corrupted, match=f"kind {kind.name}"):
            Payload.parse(Payload.build(**{"kind": kind, "n": 4} | more).frame)
    with pytest.raises(Corrupted, match="spells no vector"):
        decompress(Payload.build([WHOLE + b"\0" + bytes(16)], kind=kind, codec=1, n=4), np.empty(4))


def test_a_payload_shows_what_it_is():
    shown = repr(Payload.build([b"abc"], step=5, n=9, nbits=77))
    assert shown == "<Payload DATA UP origin=0 step=5 n=9 nbits=77 bytes=51>"


# --- forged bodies under valid checksums ---------------------------------------------------------


WHOLE = b"\0"
FORGED = {
    "ends too early": (1, WHOLE + b"\0" + bytes(15)),
    "bytes behind the end": (1, WHOLE + b"\0" + bytes(17)),
    "an unknown codec": (77, b""),
    "an unknown coding": (1, b"\5"),
    "an unknown quantizer": (1, WHOLE + b"\x7f"),
    "more kept than there are": (1, b"\1" + varint(5) + bytes(30)),
    "an enormous k": (1, b"\2" + varint(2**62) + bytes(30)),
    "a number without end": (1, b"\1" + b"\xff" * 30),
    "fixed positions that do not rise": (1, b"\1\2" + bytes([0b0101]) + b"\0" + bytes(8)),
    "a bitmap with too many bits": (1, b"\2\1" + b"\7" + b"\0" + bytes(4)),
    "a bitmap with bits beyond n": (1, b"\2\1" + b"\x80" + b"\0" + bytes(4)),
    "a Rice parameter without end": (1, b"\3\1\4" + bytes(4) + b"\0" + bytes(4)),
    "a Rice code that ends early": (1, b"\3\3\1" + b"\x0c" + b"\0" + bytes(12)),
    "a Rice code with a byte behind it": (1, b"\3\1\2" + b"\x03\0" + b"\0" + bytes(4)),
    "a Rice code of more than its bits": (1, b"\3\4\0" + b"\0" + bytes(16)),
    "codes of no bits": (1, WHOLE + b"\4\0" + bytes(20)),
    "codes of 200 bits": (1, WHOLE + b"\6\xc8" + bytes(120)),
    "stretches that do not add up": (2, b"\1" + b"\3\1\1" + WHOLE + b"\0" + bytes(12)),
    "stretches without coordinates": (
        2,
        b"\2" + b"\0" + varint(2**62) + b"\1" + b"\4\1\1" + WHOLE + b"\0" + bytes(16),
    ),
    "no stretches": (2, b"\0"),
    "stretches without end": (2, b"\1\4\1\2" * 5000),
    "runs without end": (2, varint(2**60)),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_body_that_contradicts_itself_is_corrupted(name):
    codec, body = FORGED[name]
    payload = Payload.parse(Payload.build([body], codec=codec, n=4).frame)
    with pytest.raises(Corrupted):
        decompress(payload, np.empty(4, np.float32))


def test_a_vector_of_another_length_is_refused():
    payload = Payload.build([WHOLE + b"\0" + bytes(16)], codec=1, n=4)
    assert not decompress(payload, np.empty(4)).any()
    for verb in (decompress, accumulate_into, subtract_from):
        with pytest.raises(SettingError, match="4 values does not fit a vector of 5"):
            verb(payload, np.empty(5, np.float32))

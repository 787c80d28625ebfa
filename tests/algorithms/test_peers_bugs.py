"""Faults that were found in other compression libraries, and must not be found here."""

from __future__ import annotations

import random

import numpy as np
import pytest

from qsparse.compressors import (
    QSGD,
    Blockwise,
    RandK,
    RandSparse,
    Sign,
    Ternary,
    TopK,
    Uniform,
    accumulate_into,
    decompress,
    unpack,
)
from qsparse.payload import HEADER_BYTES, Payload
from qsparse.registry import build
from qsparse.seeds import Seed
from qsparse.testing.laws import EXAMPLES, examples

SEED = Seed(3, rank=2, step=4, use="up")


def gaussian(n, kind=np.float32):
    return np.random.default_rng(n).standard_normal(n).astype(kind)


def decoded(payload, kind=np.float32):
    return decompress(payload, np.empty(payload.n, kind))


def test_decoding_uses_the_frame_not_the_receivers_settings():
    x = gaussian(50)
    senders = [QSGD(levels=3), QSGD(levels=200), Uniform(bits=2), TopK(k=7) >> Uniform(bits=9)]
    receivers = [QSGD(levels=15), Uniform(bits=5), RandK(k=2), Blockwise(Sign(), size=3)]
    for sender in senders:
        frame = bytes(sender.compress(x, SEED).frame)
        wanted = decoded(Payload.parse(frame))
        assert np.linalg.norm(wanted - x) < 3 * np.linalg.norm(x)
        for receiver in receivers:
            got = receiver.decompress(Payload.parse(frame), np.empty(50, np.float32))
            assert np.array_equal(got, wanted)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_one_bit_signs_decode_to_the_signs(n):
    x = gaussian(n)
    got = decoded(Sign(norm=None).compress(x, SEED))
    assert np.array_equal(got, np.where(x < 0, -1, 1).astype(np.float32))
    scaled = decoded(Sign().compress(x, SEED))
    assert np.linalg.norm(x - scaled) <= np.linalg.norm(x)
    assert scaled == pytest.approx(np.sign(x) * np.abs(x).mean(), rel=1e-6)


def test_global_random_state_is_neither_touched_nor_read():
    x = gaussian(100)
    frames = []
    for start in (1, 2):
        random.seed(start)
        np.random.seed(start)
        before = (random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2])
        frames.append([bytes(part.limited(100).compress(x, SEED).frame) for part in examples()])
        for frame in frames[-1]:
            decoded(Payload.parse(frame))
        assert random.getstate() == before[0]
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert np.random.get_state()[2] == before[2]
    assert frames[0] == frames[1]


def test_indices_beyond_2_to_the_24_are_exact():
    n = 2**24 + 1000
    x = np.zeros(n, np.float32)
    where = np.array([5, 2**24 - 1, 2**24 + 1, 2**24 + 2, 2**24 + 3, n - 2, n - 1])
    x[where] = [1, -2, 3, -4, 5, -6, 7]
    payload = TopK(k=7).compress(x, SEED)
    (piece,) = unpack(payload)
    assert piece.indices.dtype == np.intp
    assert np.array_equal(piece.indices, where)
    total = accumulate_into(payload, np.zeros(n, np.float32))
    assert np.array_equal(np.flatnonzero(total), where)
    assert np.array_equal(total[where], x[where])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_and_indices_do_not_widen_each_other(kind):
    n, k = 4000, 40
    payload = TopK(k=k).compress(gaussian(n, kind), SEED)
    # 4 bytes a value and at most 12 bits a position, whatever the vector's type.
    assert len(payload.body) <= 4 * k + 12 * k / 8 + 8
    assert decoded(payload, kind).dtype == kind
    for piece in unpack(payload, kind):
        assert piece.values.dtype == kind


@pytest.mark.parametrize("selector", [TopK, RandK])
@pytest.mark.parametrize(
    ("n", "ratio", "k"), [(1000, 0.01, 10), (1000, 0.5, 500), (999, 1.0, 999), (7, 0.01, 1)]
)
def test_ratio_is_the_share_that_is_kept(selector, n, ratio, k):
    assert np.count_nonzero(decoded(selector(ratio=ratio).compress(gaussian(n), SEED))) == k


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_zero_block_is_no_division_by_zero(text):
    part = build(text, "compressor").limited(64)
    x = gaussian(64)
    x[:32] = 0
    for vector in (np.zeros(64, np.float32), x):
        assert np.all(np.isfinite(decoded(part.compress(vector, SEED))))


def test_zero_stays_zero():
    for part in (QSGD(), Uniform(), Ternary(), RandSparse(), TopK(k=3) >> QSGD(), Sign()):
        assert not np.any(decoded(part.compress(np.zeros(30, np.float32), SEED)))


def test_bytes_are_measured_and_close_to_the_papers_bits():
    n = 100_000
    x = gaussian(n)
    expected = {
        "float32": 32 * n,
        "float16": 16 * n,
        "sign": 32 + n,
        "qsgd(levels=7)": 32 + 4 * n,
        "uniform(bits=2)": 32 + 2 * n,
        "ternary": 32 + 158_497,
        "topk(ratio=0.01)": 1000 * (32 + 17),
        "topk(ratio=0.01) >> sign": 1000 * (1 + 17) + 32,
    }
    for text, nbits in expected.items():
        payload = build(text, "compressor").compress(x, SEED)
        assert payload.nbits == nbits
        assert len(payload) == len(bytes(payload.frame)) == HEADER_BYTES + len(payload.body)
        assert 8 * len(payload.body) <= 1.011 * nbits + 8 * 24, text


def test_positions_take_little_more_than_their_entropy():
    n = 1_000_000
    payload = (TopK(ratio=0.01) >> Sign()).compress(gaussian(n), SEED)
    index_bits = 8 * len(payload.body) - n // 100
    # log2 of the number of subsets is 8.08 bits an index at 1 %.
    assert index_bits / (n // 100) < 1.02 * 8.08
    assert payload.nbits == n // 100 * (1 + 20) + 32


def test_every_setting_does_something():
    x = gaussian(200)
    pairs = [
        ("topk(k=3)", "topk(k=4)"),
        ("topk(ratio=0.1)", "topk(ratio=0.2)"),
        ("randk(k=3)", "randk(k=4)"),
        ("randsparse", "randsparse(budget=3)"),
        ("sign", "sign(norm=2)"),
        ("sign", "sign(norm=none)"),
        ("qsgd", "qsgd(levels=16)"),
        ("qsgd", "qsgd(scaled=true)"),
        ("minmax", "minmax(levels=16)"),
        ("uniform", "uniform(bits=5)"),
        ("lowprecision", "lowprecision(bits=7)"),
        ("lowprecision", "lowprecision(delta=0.5)"),
        ("lowprecision", "lowprecision(clip=0.9)"),
        ("blockwise(sign, size=8)", "blockwise(sign, size=9)"),
        ("blockwise(sign, layers=[50, 150])", "blockwise(sign, layers=[150, 50])"),
        ("bysize(sign, float32, limit=199)", "bysize(sign, float32, limit=200)"),
    ]
    for one, other in pairs:
        bodies = {bytes(build(text, "compressor").compress(x, SEED).body) for text in (one, other)}
        assert len(bodies) == 2, (one, other)

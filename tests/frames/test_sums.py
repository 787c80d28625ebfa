"""Long vectors that are added, selected and spelled in one pass have the bytes of several passes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from qsparse.compressors import (
    QSGD,
    Blockwise,
    Compressor,
    LowPrecision,
    MinMax,
    Sign,
    Ternary,
    TopK,
    Uniform,
)
from qsparse.compressors.composed import Kept
from qsparse.compressors.decoding import accumulate_into, decompress, subtract_from, unpack
from qsparse.compressors.sums import Sum
from qsparse.compressors.totals import add_up
from qsparse.errors import NotFinite, SettingError
from qsparse.kernels import select, threads, vector
from qsparse.link import Link, Sender
from qsparse.memory import ErrorFeedback, Innovation, Stateless
from qsparse.seeds import Seed
from qsparse.types import aligned

SEED = Seed(3, rank=1, step=5, use="up")
#: Long enough for candidates, for threads and, the second, to be written past the caches.
LENGTHS = (300_007, (1 << 20) + 77)
PARTS: tuple[Compressor, ...] = (
    TopK(ratio=0.001) >> Sign(),
    TopK(ratio=0.01),
    TopK(ratio=0.3) >> Uniform(2),
    TopK(k=1),
    Sign(),
    Sign(norm=2),
    Sign(norm=None),
    Blockwise(Sign(), size=4096),
    Blockwise(Sign(), size=1000),
    Blockwise(TopK(k=3) >> Sign(), size=50_000),
    Blockwise(QSGD(7), size=512),
    Uniform(4),
    QSGD(15),
    QSGD(400),
    MinMax(7),
    LowPrecision(9),
    Ternary(),
)


#: Numbers of threads.
TEAMS = (1, 2, 3)


@pytest.fixture(params=TEAMS)
def team(request):
    """So many threads for the time of a test."""
    threads.use(request.param)
    yield request.param
    threads.use(1)


def vectors(n, kind):
    """Layers of very different size, some of them zero, with ties."""
    draw = np.random.default_rng(n)
    x, y = aligned(np.empty(n, np.float32)), aligned(np.empty(n, np.float32))
    for start, scale in ((0, 1.0), (n // 5, 1e-3), (n // 2, 30.0), (2 * n // 3, 0.0), (3 * n // 4, 0.1)):
        x[start:] = scale * draw.standard_normal(n - start)
        y[start:] = 0.3 * scale * draw.standard_normal(n - start)
    x[n // 2 : n // 2 + 4000], y[n // 2 : n // 2 + 4000] = 20.0, 1.0
    if kind == "ties":
        np.round(x, 0, out=x)
        np.round(y, 0, out=y)
    if kind == "few":
        x[x.size // 50 :], y[: -x.size // 60] = 0, 0
    return x, y


@pytest.mark.parametrize("kind", ["layers", "ties", "few"])
@pytest.mark.parametrize("n", LENGTHS)
def test_one_pass_gives_the_bytes_of_several(n, kind):
    x, y = vectors(n, kind)
    for scale in (1.0, -1.0):
        total, out = aligned(x), aligned(x)
        vector.add_scaled(x, scale, y, total)
        for part in PARTS:
            wanted = slowly(part, total)
            for count in TEAMS:
                threads.use(count)
                try:
                    assert bytes(part.compress(total, SEED).frame) == wanted, (part, count)
                    payload = part.compress_sum(Sum(x, scale, y, out), SEED)
                    assert bytes(payload.frame) == wanted, (part, count)
                    assert out.tobytes() == total.tobytes(), (part, count)
                    payload = part.compress_sum(Sum(x, scale, y, out, rest=True), SEED)
                    assert bytes(payload.frame) == wanted, (part, count)
                    assert out.tobytes() == subtract_from(payload, total.copy()).tobytes(), (part, count)
                finally:
                    threads.use(1)


def slowly(part, x):
    """The frame by one thread; where it selects, by looking at all entries."""
    before = threads.count()
    threads.use(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qsparse.compressors.largest._LONG", x.size + 1)
            return bytes(part.compress(x, SEED).frame)
    finally:
        threads.use(before)


@pytest.mark.parametrize("inner", [Sign(), QSGD(7), QSGD(7, scaled=True), QSGD(63)], ids=str)
@pytest.mark.parametrize("size", [1, 63, 64, 512])
def test_blocks_together_are_blocks_one_at_a_time(inner, size, monkeypatch):
    # One at a time is slow, so there are not more of the smallest ones than tell.
    n = 4_000 if size == 1 else 40_000
    x, y = (each[:n].copy() for each in vectors(LENGTHS[0], "layers"))
    x[size : 2 * size], y[size : 2 * size] = 0, 0
    part, out = Blockwise(inner, size=size), np.empty_like(x)

    def told():
        payload = part.compress_sum(Sum(x, 1.0, y, out, rest=True), SEED)
        return bytes(payload.frame), out.tobytes(), decompress(payload, np.empty(x.size)).tobytes()

    together = told()
    monkeypatch.setattr(type(inner), "encode_blocks", lambda *sides: None)
    monkeypatch.setattr(type(inner), "decode_blocks", lambda *sides: False)
    assert told() == together


def test_most_selections_need_one_pass(monkeypatch):
    # Otherwise the test above would compare the long way with itself.
    looks = []
    whole = select.top_k
    monkeypatch.setattr(select, "top_k", lambda *sides: looks.append(1) or whole(*sides))
    x, y = vectors(LENGTHS[1], "layers")
    for ratio in (0.001, 0.01, 0.1):
        TopK(ratio=ratio).compress_sum(Sum(x, 1.0, y, aligned(x)), SEED)
    assert not looks
    TopK(ratio=0.7).compress_sum(Sum(x, 1.0, y, aligned(x)), SEED)
    assert looks


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_what_is_not_finite_is_found_on_the_way(part, bad):
    x, y = vectors(LENGTHS[0], "layers")
    y[123_456] = bad
    with pytest.raises(NotFinite, match="element 123456 is") as error:
        part.compress_sum(Sum(x, 1.0, y, aligned(x)), SEED)
    assert error.value.index == 123_456
    with pytest.raises(NotFinite, match="element 123456 is"):
        part.compress(y, SEED)


def test_a_sum_beyond_float32_is_found_on_the_way():
    x = np.full(200_000, 1.0, np.float32)
    x[77_777] = 3e38
    for part in PARTS:
        with pytest.raises(NotFinite, match="element 77777 is inf"):
            part.compress_sum(Sum(x, 1.0, x.copy(), aligned(x)), SEED)


@pytest.mark.parametrize("memory", [ErrorFeedback(), ErrorFeedback(decay=0.5), Innovation()], ids=str)
def test_nothing_is_lost_over_many_rounds(memory, team):
    """What was said and what is kept are what was to be said."""
    n = LENGTHS[0]
    for part in (TopK(ratio=0.01) >> Sign(), Blockwise(Sign(), size=4096), Uniform(4)):
        sender, heard = Sender(Link(part, memory), np.zeros(n, np.float32)), np.zeros(n)
        said = np.zeros(n)
        for t in range(1, 5):
            v = vectors(n, "layers")[0] * np.float32(t)
            if memory == ErrorFeedback(decay=0.5):
                said -= 0.5 * sender.state["residual"]
            said = v.astype(float) if memory == Innovation() else said + v
            draft = sender.draft(v, SEED.at(step=t))
            kept = sender.draft(v, SEED.at(step=t))
            assert bytes(kept.payload.frame) == bytes(draft.payload.frame)
            sender.commit(kept)
            accumulate_into(kept.payload, heard)
        if memory == Innovation():
            np.testing.assert_allclose(sender.state["known"], heard, rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_allclose(heard + sender.state["residual"], said, rtol=1e-4, atol=1e-3)


def test_long_vectors_are_decoded_in_parts():
    x, _ = vectors(LENGTHS[1], "layers")
    for part in (Uniform(4), QSGD(15), Ternary(), Sign(), Blockwise(Sign(), size=4096)):
        payload = part.compress(x, SEED)
        pieces = [(piece.start, piece.stop, piece.values.copy()) for piece in unpack(payload)]
        assert len(pieces) > 3
        assert max(stop - start for start, stop, _ in pieces) < x.size // 3
        assert [start for start, _, _ in pieces[1:]] == [stop for _, stop, _ in pieces[:-1]]
        whole = np.zeros_like(x)
        accumulate_into(payload, whole)
        assert np.concatenate([values for _, _, values in pieces]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_a_mean_divides_what_was_added_to_once(parts, kind):
    n = 5000
    draw = np.random.default_rng(5)
    sparse = (TopK(k=100), Blockwise(TopK(k=2), size=90), TopK(ratio=0.01) >> QSGD(3))
    for some in (sparse, (*sparse, TopK(k=4000)), (*sparse, Uniform(4)), ()):
        payloads = [part.compress(draw.standard_normal(n).astype(np.float32), SEED) for part in some]
        wanted, total = np.zeros(n, kind), np.full(n, np.nan, kind)
        for payload in payloads:
            accumulate_into(payload, wanted)
        wanted /= parts
        add_up(payloads, total, parts)
        assert total.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 3])
def test_long_totals_are_written_once(kind, offset, team):
    n = LENGTHS[1]
    sparse = [TopK(ratio=0.01) >> Sign(), Blockwise(TopK(k=3), size=50_000), TopK(k=1)]
    for some in (sparse, [Uniform(4), QSGD(400)], [*sparse, Uniform(4)], [Blockwise(Sign(), size=1000)], []):
        payloads = [part.compress(vectors(n, "layers")[0], SEED.at(step=t)) for t, part in enumerate(some)]
        wanted, total = np.zeros(n, kind), np.full(n + 16, np.nan, kind)[offset : offset + n]
        for payload in payloads:
            accumulate_into(payload, wanted)
        wanted /= 3
        add_up(payloads, total, 3)
        assert total.tobytes() == wanted.tobytes()


@dataclass(frozen=True)
class Clipped(Uniform):
    """Overrides what it inherits a shortcut of."""

    code: ClassVar[int] = 231

    def encode(self, values, seed):
        return super().encode(np.clip(values, -1, 1), seed)


@dataclass(frozen=True)
class First(TopK):
    def select(self, x, seed):
        return Kept(np.zeros(1, np.intp), x[:1].copy())


@dataclass(frozen=True)
class Nothing(Sign):
    code: ClassVar[int] = 232

    def write(self, x, seed, out):
        return super().write(np.zeros_like(x), seed, out)


@pytest.mark.parametrize(
    ("part", "wanted"),
    [(Clipped(1), [1, -1, 1, 1]), (First(k=1), [1, 0, 0, 0]), (Nothing(), [0, 0, 0, 0])],
    ids=str,
)
def test_what_is_overridden_is_not_passed_by(part, wanted):
    x = np.array([1, -2, 30, 4], np.float32)
    zero, out = np.zeros_like(x), np.empty_like(x)
    for payload in (part.compress(x, SEED), part.compress_sum(Sum(x, 1.0, zero, out), SEED)):
        assert decompress(payload, out.copy()).tolist() == wanted
    for inner in (Clipped(1), Nothing()):
        blocks = Blockwise(inner, size=2).compress_sum(Sum(x, 1.0, zero, out), SEED)
        assert np.all(np.abs(decompress(blocks, out.copy())) <= 1)


def test_vectors_of_two_types_are_added_exactly():
    for part in (TopK(k=3), Sign(), Uniform(4), Blockwise(Sign(), size=64)):
        sender, heard, said = Sender(Link(part, ErrorFeedback()), np.zeros(70_000)), np.zeros(70_000), 0
        for t in range(1, 4):
            v = np.random.default_rng(t).standard_normal(70_000).astype(np.float32)
            draft = sender.draft(v, SEED.at(step=t))
            sender.commit(draft)
            accumulate_into(draft.payload, heard)
            said = said + v.astype(float)
        np.testing.assert_allclose(heard + sender.state["residual"], said, atol=1e-6)


def test_vectors_that_do_not_fit_and_drafts_that_are_over_are_refused():
    x = np.ones(8, np.float32)
    for total in (
        Sum(x, 1.0, np.ones(9, np.float32), x.copy()),
        Sum(x, 1.0, x, np.ones(7, np.float32)),
        Sum(x, 1.0, x),
    ):
        with pytest.raises(SettingError, match="a vector of 8 values needs one like it"):
            Sign().compress_sum(total, SEED)
    for memory in (ErrorFeedback(), Stateless()):
        sender = Sender(Link(TopK(k=1), memory), np.zeros(8, np.float32))
        first, draft = sender.draft(x, SEED), sender.draft(x, SEED)
        with pytest.raises(SettingError, match="another one has been made since"):
            sender.commit(first)
        sender.commit(draft)
        with pytest.raises(SettingError, match="committed before"):
            sender.commit(draft)
        draft = sender.draft(x, SEED)
        with pytest.raises(NotFinite):
            sender.draft(x * np.float32(np.inf), SEED)
        with pytest.raises(SettingError, match="another one has been made since"):
            sender.commit(draft)


def test_a_block_that_is_too_large_is_named():
    x = np.array([0.5, 0.25, 0, 0, 0.1, 3e38, 3e38, 3e38], np.float32)
    for part in (Blockwise(QSGD(15), size=4), Blockwise(QSGD(400), size=4)):
        for total in (Sum(x), Sum(x, 1.0, np.zeros_like(x), np.empty_like(x))):
            with pytest.raises(NotFinite, match=r"the Euclidean norm 5\.2e\+38 is beyond float32") as error:
                part.compress_sum(total, SEED)
            assert error.value.index == 4


def test_the_number_of_threads_may_change_while_others_compress():
    x, failures, over = vectors(LENGTHS[0], "layers")[0], [], threading.Event()
    wanted = bytes(Uniform(3).compress(x, SEED).frame)

    def compress():
        while not over.is_set():
            try:
                assert bytes(Uniform(3).compress(x, SEED).frame) == wanted
            except Exception as error:
                failures.append(error)
                return

    at_work = [threading.Thread(target=compress) for _ in range(2)]
    for each in at_work:
        each.start()
    for turn in range(200):
        threads.use(2 + turn % 3)
    over.set()
    for each in at_work:
        each.join()
    threads.use(1)
    assert not failures

"""Memories and links: what is said, what is kept, and that only a sent message moves anything."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from qsparse.compressors import QSGD, Blockwise, Float32, Sign, TopK
from qsparse.compressors.base import Compressor
from qsparse.errors import DisagreementError, NotFinite, SettingError
from qsparse.link import Link, Receiver, Sender
from qsparse.memory import ErrorFeedback, Innovation, Memory, Stateless
from qsparse.payload import Kind, Payload
from qsparse.seeds import Seed
from qsparse.types import Layer, State, Vector

N = 40
LAYOUT = (Layer("weight", 0, 24), Layer("bias", 24, 30), Layer("out.weight", 30, N))
COMPRESSORS = [
    Float32(),
    TopK(k=4),
    TopK(k=4) >> Sign(),
    TopK(k=8) >> QSGD(3),
    Blockwise(Sign(), layers=True),
]
MEMORIES = [Stateless(), ErrorFeedback(), ErrorFeedback(decay=0.5), Innovation()]


def vectors(count: int, n: int = N, dtype: type = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, n)).astype(dtype)


def zeros(dtype: type = np.float64) -> Vector:
    return np.zeros(N, dtype)


def decoded(compressor: Compressor, payload: Payload, dtype: type = np.float64) -> Vector:
    return compressor.decompress(payload, np.empty(payload.n, dtype))


def bits(state: State) -> dict[str, bytes]:
    return {name: np.asarray(value).tobytes() for name, value in state.items()}


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_a_draft_changes_nothing(memory: Memory, compressor: Compressor) -> None:
    sender = Sender(Link(compressor, memory), zeros(np.float32), LAYOUT)
    news = vectors(4, dtype=np.float32)
    for t, v in enumerate(news[:2]):
        sender.commit(sender.draft(v, Seed(1, step=t, use="up")))
    before, said = bits(sender.state), news.copy()
    drafts = [bytes(sender.draft(v, Seed(1, step=7, use="up")).payload.frame) for v in news]
    assert bits(sender.state) == before
    assert np.array_equal(news, said), "the update itself belongs to the caller"
    again = [bytes(sender.draft(v, Seed(1, step=7, use="up")).payload.frame) for v in news]
    assert drafts == again
    sender.commit(sender.draft(news[3], Seed(1, step=7, use="up")))
    after = bits(sender.state) | ({"since": before["since"]} if "since" in before else {})
    moves = not isinstance(memory, Stateless) and after != before
    exact = isinstance(memory, ErrorFeedback) and compressor == Float32()
    assert moves == (not isinstance(memory, Stateless) and not exact)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_error_feedback_loses_nothing(compressor: Compressor) -> None:
    """Σ sent + residual = Σ v after every message."""
    sender = Sender(Link(compressor, ErrorFeedback()), zeros(), LAYOUT)
    said, wanted = zeros(), zeros()
    for t, v in enumerate(vectors(100)):
        draft = sender.draft(v, Seed(1, step=t, use="up"))
        sender.commit(draft)
        said += decoded(sender.compressor, draft.payload)
        wanted += v
        scale = max(1.0, np.abs(sender.state["residual"]).max())
        np.testing.assert_allclose(said + sender.state["residual"], wanted, rtol=0, atol=1e-12 * scale)


def test_error_feedback_step_by_step() -> None:
    """m = (v + m) − Top_1(v + m), by hand."""
    sender = Sender(Link(TopK(k=1), ErrorFeedback()), np.zeros(3))
    for v, said, kept in (
        ([3.0, 2.0, -1.0], [3, 0, 0], [0, 2, -1]),
        ([0.0, -1.0, -1.0], [0, 0, -2], [0, 1, 0]),
        ([0.5, 0.0, 0.0], [0, 1, 0], [0.5, 0, 0]),
    ):
        draft = sender.draft(np.array(v), Seed(0, use="up"))
        sender.commit(draft)
        assert decoded(sender.compressor, draft.payload).tolist() == said
        assert sender.state["residual"].tolist() == kept


def test_decay_forgets() -> None:
    """m ← (v + βm) − C(v + βm)."""
    sender = Sender(Link(TopK(k=3), ErrorFeedback(decay=0.7)), zeros())
    m = zeros()
    for t, v in enumerate(vectors(50)):
        target = v + 0.7 * m
        draft = sender.draft(v, Seed(0, step=t, use="up"))
        np.testing.assert_allclose(draft.target, target, rtol=0, atol=1e-13)
        sender.commit(draft)
        m = target - decoded(sender.compressor, draft.payload)
        np.testing.assert_allclose(sender.state["residual"], m, rtol=0, atol=1e-13)
    for decay in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(SettingError, match="decay"):
            ErrorFeedback(decay)


def test_error_memory_is_reset() -> None:
    """What was kept up to the reset is not said after it, also where nobody spoke just then."""
    sender = Sender(Link(TopK(k=3), ErrorFeedback(reset=(4, 6, 7))), zeros())
    m, said = zeros(), {1, 2, 4, 5, 9, 10}
    for t, v in enumerate(vectors(11)):
        if t not in said:
            continue
        if t in (5, 9):
            assert m.any()
            m = zeros()
        draft = sender.draft(v, Seed(0, step=t, use="up"))
        np.testing.assert_allclose(draft.target, v + m, rtol=0, atol=1e-13)
        sender.commit(draft)
        m = v + m - decoded(sender.compressor, draft.payload)
    for wrong in (4, (4.5,)):
        with pytest.raises(SettingError, match="reset must be a list of steps"):
            ErrorFeedback(reset=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_virtual_iterate(compressor: Compressor) -> None:
    """x̃_t = x_t − mean_r m_r moves by the mean of the uncompressed updates, for 100 rounds (Basu et al.)."""
    link, R = Link(compressor, ErrorFeedback()), 4
    senders = [Sender(link, zeros(), LAYOUT) for _ in range(R)]
    receiver = Receiver(link, zeros(), senders=R)
    x = vectors(1, seed=8)[0]
    virtual = x.copy()
    for t in range(100):
        updates = 0.1 * vectors(R, seed=100 + t)
        payloads = []
        for r, (sender, v) in enumerate(zip(senders, updates, strict=True)):
            draft = sender.draft(v, Seed(0, rank=r, step=t, use="up"))
            sender.commit(draft)
            payloads.append(draft.payload)
        x = x - receiver.merge(payloads)
        virtual = virtual - updates.mean(axis=0)
        residuals = [sender.state["residual"] for sender in senders]
        scale = max(1.0, np.abs(residuals).max())
        np.testing.assert_allclose(x - np.mean(residuals, axis=0), virtual, rtol=0, atol=1e-12 * scale)


def test_error_feedback_is_innovation_of_the_running_sum() -> None:
    link = Link(TopK(k=4) >> Sign(), ErrorFeedback()), Link(TopK(k=4) >> Sign(), Innovation())
    feedback, innovation = (Sender(one, zeros()) for one in link)
    receiver = Receiver(link[1], zeros())
    heard, total = zeros(), zeros()
    for t, v in enumerate(vectors(100)):
        total += v
        seed = Seed(0, step=t, use="up")
        one, other = feedback.draft(v, seed), innovation.draft(total, seed)
        np.testing.assert_allclose(one.target, other.target, rtol=0, atol=1e-11)
        feedback.commit(one)
        innovation.commit(other)
        heard += decoded(feedback.compressor, one.payload)
        np.testing.assert_allclose(receiver.merge([other.payload]), heard, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_both_ends_of_an_innovation_agree(compressor: Compressor, dtype: type) -> None:
    """Bit for bit after 100 messages, a third of them skipped."""
    start = vectors(1, dtype=dtype, seed=5)[0]
    link = Link(compressor, Innovation())
    sender, receiver = Sender(link, start, LAYOUT), Receiver(link, start)
    assert bits(sender.state) == bits(receiver.state) == {"known": start.tobytes()}
    for t, v in enumerate(vectors(100, dtype=dtype)):
        draft = sender.draft(v, Seed(0, step=t, use="down"))
        if t % 3 == 1:
            known = receiver.state["known"].copy()
            assert np.array_equal(receiver.merge([draft.payload.skip()]), known)
        else:
            sender.commit(draft)
            model = receiver.merge([draft.payload])
            assert model.tobytes() == sender.state["known"].tobytes()
        assert bits(sender.state) == bits(receiver.state)
    assert bits(sender.state) != {"known": start.tobytes()}


def test_innovation_arrives() -> None:
    """A vector that stands still is known exactly after ⌈n/k⌉ messages of top-k."""
    link = Link(TopK(k=7), Innovation())
    sender, receiver = Sender(link, zeros(np.float32)), Receiver(link, zeros(np.float32))
    v = vectors(1, dtype=np.float32)[0]
    for t in range(6):
        draft = sender.draft(v, Seed(0, step=t, use="up"))
        sender.commit(draft)
        known = receiver.merge([draft.payload])
        assert np.array_equal(known, v) == (t == 5)


def test_two_way_compression_is_the_servers_error_memory() -> None:
    """dist-EF-SGD's server (Zheng et al., 2019) with step sizes inside, blocks of 8, scaled signs.

    p̃ = u + ẽ;  D = C(p̃);  ẽ = p̃ − D;  the workers' x ← x − D. Here the coordinator's own x moves by
    u and the link down says the difference to what the workers know.
    """
    start = vectors(1, seed=1)[0]
    link = Link(Blockwise(Sign(), size=8), Innovation())
    sender, receiver = Sender(link, start), Receiver(link, start)
    x, workers, error = start.copy(), start.copy(), zeros()
    for t, u in enumerate(0.1 * vectors(100)):
        x = x - u
        draft = sender.draft(x, Seed(0, step=t, use="down"))
        sender.commit(draft)
        model = receiver.merge([draft.payload])

        p = u + error
        blocks = [p[i : i + 8] for i in range(0, N, 8)]
        D = np.concatenate([np.float32(np.abs(b).mean()) * np.where(b < 0, -1.0, 1.0) for b in blocks])
        error = p - D
        workers = workers - D
        np.testing.assert_allclose(model, workers, rtol=0, atol=1e-11)
        np.testing.assert_allclose(model - x, error, rtol=0, atol=1e-11)
    assert np.abs(error).max() > 0.05, "an error memory that is empty proves nothing"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_not_finite_says_where(value: float, memory: Memory) -> None:
    sender = Sender(Link(TopK(k=4), memory), zeros(), LAYOUT)
    good, bad = vectors(2)
    sender.commit(sender.draft(good, Seed(0, use="up")))
    before = bits(sender.state)
    bad[27] = value
    with pytest.raises(NotFinite, match=r"rank 2, step 117, in parameter 'bias', element 3") as caught:
        sender.draft(bad, Seed(0, rank=2, step=117, use="up"))
    assert caught.value.index == 27
    assert bits(sender.state) == before
    sender.commit(sender.draft(good, Seed(0, use="up")))


def test_not_finite_within_a_block_says_where() -> None:
    """The scale of one block is beyond float32, although every value is not."""
    sender = Sender(Link(Blockwise(Sign(norm=2), layers=True)), zeros(), LAYOUT)
    v = zeros()
    v[30:] = 3e38
    Sender(Link(Blockwise(Sign(), layers=True)), zeros(), LAYOUT).draft(v, Seed(0, use="up"))
    sender.draft(v, Seed(0, use="up"))  # ‖v‖₂/k is smaller than the largest value
    qsgd = Sender(Link(Blockwise(QSGD(), layers=True)), zeros(), LAYOUT)
    with pytest.raises(NotFinite, match=r"rank 1, step 5, in parameter 'out.weight'"):
        qsgd.draft(v, Seed(0, rank=1, step=5, use="up"))


def _spoken(compressor: Compressor, news: np.ndarray) -> list[Payload]:
    return [compressor.compress(v, Seed(0, rank=r, step=3, use="up")) for r, v in enumerate(news)]


def test_merge_is_the_mean_over_all_speakers() -> None:
    """Added in rank order; who is silent counts as zero."""
    news = vectors(5, dtype=np.float32)
    receiver = Receiver(Link(), zeros(np.float32), senders=5)
    payloads = _spoken(Float32(), news)
    in_order = np.zeros(N, np.float32)
    for v in news:
        in_order += v
    assert np.array_equal(receiver.merge(payloads), in_order / np.float32(5))

    silent = [
        *payloads[:2],
        payloads[2].skip(),
        payloads[3],
        payloads[4].skip(),
    ]
    expected = ((news[0] + news[1]) + news[3]) / np.float32(5)
    assert np.array_equal(receiver.merge(silent), expected)
    skips = [payload.skip() for payload in payloads]
    assert not receiver.merge(skips).any()
    assert not receiver.merge([]).any()
    assert np.array_equal(receiver.merge(payloads), in_order / np.float32(5)), "nothing is left over"


def test_lazy_aggregation_is_the_receiving_end() -> None:
    """Who skips stands with what it said last: mean_r known_r, in one vector."""
    link, R = Link(TopK(k=6), Innovation()), 3
    senders = [Sender(link, zeros()) for _ in range(R)]
    receiver = Receiver(link, zeros(), senders=R)
    rng = np.random.default_rng(2)
    for t in range(60):
        payloads = []
        for r, sender in enumerate(senders):
            draft = sender.draft(rng.normal(size=N), Seed(0, rank=r, step=t, use="up"))
            if rng.random() < 0.5:
                sender.commit(draft)
                payloads.append(draft.payload)
            else:
                payloads.append(draft.payload.skip())
        known = np.mean([sender.state["known"] for sender in senders], axis=0)
        np.testing.assert_allclose(receiver.merge(payloads), known, rtol=0, atol=1e-12)


def test_skip_says_who_and_when_and_nothing_else() -> None:
    (payload,) = _spoken(TopK(k=2), vectors(1))
    silent = payload.skip()
    assert (silent.kind, silent.origin, silent.step, silent.n) == (Kind.SKIP, payload.origin, 3, N)
    assert silent.nbits == 0
    assert len(silent.body) == 0


def test_another_length_is_a_disagreement() -> None:
    receiver = Receiver(Link(), zeros(np.float32), senders=2)
    payloads = [
        Float32().compress(np.ones(n, np.float32), Seed(0, rank=r, step=9, use="up"))
        for r, n in enumerate((N, N - 1))
    ]
    with pytest.raises(DisagreementError, match="rank 1 sent 39 values at step 9 where 40 were expected"):
        receiver.merge(payloads)


def test_links_do_not_share_state() -> None:
    """One link makes as many ends as are wanted, and the start stays the caller's."""
    start = vectors(1)[0]
    kept = start.copy()
    link = Link(TopK(k=5), Innovation())
    ends = [Sender(link, start), Sender(link, start), Receiver(link, start)]
    states = [copy.deepcopy(end.state) for end in ends]
    ends[0].commit(ends[0].draft(vectors(1, seed=9)[0], Seed(0, use="up")))
    assert np.array_equal(start, kept)
    assert [bits(end.state) for end in ends[1:]] == [bits(state) for state in states[1:]]
    assert bits(ends[0].state) != bits(states[0])


def test_a_link_refuses_a_vector_it_does_not_fit() -> None:
    with pytest.raises(SettingError, match="cannot keep 50 of 40"):
        Sender(Link(TopK(k=50)), zeros())
    link = Link(TopK(k=5) >> Sign(), ErrorFeedback(0.5))
    assert link.spelling() == "topk(k=5) >> sign | errorfeedback(decay=0.5)"

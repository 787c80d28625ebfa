"""Answers to sparse reports: the same models as dense answers make, bit for bit, in far fewer bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from answering import ALGORITHMS, STEPS, N, dense, patterns, trained, waiting_for_nobody
from hypothesis import given, settings
from hypothesis import strategies as some
from mpirun import mpi_run

from qsparse.algorithm import Algorithm
from qsparse.compressors import Float32, Sign, decompress
from qsparse.compressors.body import varint
from qsparse.compressors.changes import compress_changes, put_changes
from qsparse.compressors.decoding import unpack
from qsparse.compressors.reports import REPORTS, bundle, bundle_size, merged, vote
from qsparse.compressors.totals import add_up
from qsparse.errors import CompositionError, Corrupted, NotFinite
from qsparse.exchange import AllGather, Exchange, ParameterServer, Sharded, TreeBroadcast
from qsparse.ledger import Ledger, combine, gains
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import Changes, ErrorFeedback, Stateless
from qsparse.payload import HEADER_BYTES, Payload
from qsparse.registry import build
from qsparse.rounds.asynchronous import Order
from qsparse.rules import check
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

SEED = Seed(7, rank=2, step=5, use="down")

# --- what has changed ------------------------------------------------------------------------------

values = some.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=60)
@given(
    pairs=some.lists(some.tuples(values, values | some.none()), max_size=300), kind=some.sampled_from("fd")
)
def test_changes_are_exact_and_never_longer(pairs: list[tuple[float, float | None]], kind: str) -> None:
    """The receiver has x in float32, but for signs of zeros; no frame is longer than that of all of x."""
    known = np.array([before for before, _ in pairs], "f").astype(kind) + 0
    x = np.array([before if after is None else after for before, after in pairs], "f").astype(kind)
    before = x.tobytes(), known.tobytes()
    payload = compress_changes(x, known, SEED)
    assert (x.tobytes(), known.tobytes()) == before
    whole = Float32().compress(x, SEED)
    assert len(payload) <= len(whole) + 6  # how many there are, and in which coding
    assert payload.nbits <= whole.nbits
    assert (payload.origin, payload.step, payload.n, payload.way.name) == (2, 5, x.size, "DOWN")
    assert np.array_equal(put_changes(payload, known), x)


def test_only_what_has_changed_is_said() -> None:
    """Places and values of three entries, and not the sign of a zero; nothing where nothing has changed."""
    known = np.zeros(100_000, np.float32)
    x = known.copy()
    x[[5, 70_000, 99_999]], x[8] = (1.5, -2, 1e-45), -0.0
    payload = compress_changes(x, known, SEED)
    (piece,) = unpack(payload)
    assert piece.indices is not None
    assert piece.indices.tolist() == [5, 70_000, 99_999]
    assert piece.values.tobytes() == x[piece.indices].tobytes()
    assert payload.nbits == 3 * (32 + 17)
    assert len(payload) < HEADER_BYTES + 3 * 4 + 12
    nothing = compress_changes(x, x.copy(), SEED)
    assert (nothing.nbits, len(nothing)) == (0, HEADER_BYTES + 2)


def test_all_of_it_is_said_where_that_is_shorter() -> None:
    """From 31 of 32 entries on: the frame is that of float32."""
    x = np.arange(1, 321, dtype=np.float32)
    known = x.copy()
    known[:310] = 0
    assert bytes(compress_changes(x, known, SEED).frame) == bytes(Float32().compress(x, SEED).frame)
    known[0] = x[0]
    assert compress_changes(x, known, SEED).nbits == 32 * 309 + 320


def test_float64_is_said_as_float32() -> None:
    """A receiver of float64 has x as float32 rounds it, and what is rounded to the same has not changed."""
    x = np.linspace(0, 1, 50) / 3
    known = x.copy()
    put_changes(compress_changes(x, known, SEED), known)
    assert known.tobytes() == x.astype(np.float32).astype(np.float64).tobytes()
    x[3] += 1e-12
    assert compress_changes(x, known, SEED).nbits == 0


@pytest.mark.parametrize(("kind", "value"), [("f", np.nan), ("f", np.inf), ("d", 1e39), ("d", -np.inf)])
@pytest.mark.parametrize("many", [False, True])
def test_what_cannot_be_sent_is_named(kind: str, value: float, many: bool) -> None:
    """With its place in the vector, whether little has changed or everything."""
    known = np.zeros(70_000, kind)
    x = known + (1 if many else 0)
    x[65_000] = value
    with pytest.raises(NotFinite, match="element 65000 is") as caught:
        compress_changes(x, known, SEED)
    assert caught.value.index == 65_000
    assert not known.any()


# --- reports, told on --------------------------------------------------------------------------------


def said(text: str, count: int) -> list[Payload]:
    """Reports of some workers, the second of whom skips."""
    part = build(text, "compressor")
    vectors = np.random.default_rng(1).normal(size=(count, N)).astype(np.float32)
    payloads = [part.compress(v, Seed(1, rank=r, step=5, use="up")) for r, v in enumerate(vectors)]
    return [each.skip() if rank == 1 else each for rank, each in enumerate(payloads)]


@pytest.mark.parametrize(
    "text",
    ["topk(k=9) >> sign", "randk(k=40)", "blockwise(topk(k=2) >> qsgd(levels=3), size=100)", "float32"],
)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_bundle_spells_the_mean_of_its_reports(text: str, count: int) -> None:
    """As the coordinator forms it, in the same bits; its size is known before, and its bits are theirs."""
    reports = said(text, count)
    wanted = add_up([each for each in reports if each.nbits], np.empty(N, np.float32), count)
    payload = Payload.parse(bytes(bundle(reports, N, SEED).frame))
    assert merged(payload, np.empty(N, np.float32)).tobytes() == wanted.tobytes()
    assert decompress(payload, np.empty(N, np.float32)).tobytes() == wanted.tobytes()
    assert len(payload.body) == bundle_size(reports)
    assert payload.nbits == sum(each.nbits for each in reports)


def test_a_bundle_that_contradicts_itself_is_refused() -> None:
    """More reports than workers, none at all, other codecs, bodies that end early or late, bundles within."""
    (report,) = said("topk(k=3) >> sign", 1)
    body = bytes(report.body)
    one = bytes([report.codec]) + varint(len(body)) + body
    for wrong in (
        varint(0) + varint(0),
        varint(1) + varint(2) + one + one,
        varint(2) + varint(1) + one + b"\0",
        varint(2) + varint(2) + one,
        varint(1) + varint(1) + one[:-1],
        varint(1) + varint(1) + bytes([0]) + one[1:],
        varint(1) + varint(1) + bytes([REPORTS]) + one[1:],
        varint(1) + varint(1) + bytes([report.codec]) + varint(len(body) + 1) + body + b"\0",
    ):
        forged = Payload.build([wrong], codec=REPORTS, n=N)
        with pytest.raises(Corrupted):
            merged(forged, np.empty(N, np.float32))
        with pytest.raises(Corrupted):
            decompress(forged, np.empty(N, np.float32))


#: The largest and the smallest numbers of ranks, with the three ways in which an answer is coded.
SMALL_AND_LARGE = [(name, size) for size in (2, 16) for name in ("topk", "signtopk", "much")]

# --- whole runs --------------------------------------------------------------------------------------


def on_threads(
    size: int, algorithm: Algorithm, exchange: Exchange, kind: type = np.float32
) -> tuple[set[bytes], int]:
    """The models of all ranks, and the bytes that went down together."""

    def body(wire: Wire) -> tuple[bytes, int]:
        return trained(wire, algorithm, exchange, kind), wire.ledger.wire_bytes["down"]

    models, down = zip(*run_threads(size, body, timeout=60), strict=True)
    return set(models), sum(down)


@pytest.mark.parametrize(
    ("workers", "per_value"), [(1, 1), (2, math.log2(3)), (3, 1), (4, math.log2(3)), (5, 1)]
)
@pytest.mark.parametrize("exchange", [ParameterServer(), TreeBroadcast(), Sharded()])
def test_a_majority_goes_down_in_as_many_bits_as_it_has(
    exchange: Exchange, workers: int, per_value: float
) -> None:
    """One where there are no ties, else log2 3; in paper bits and on the wire; each rank has the model."""
    algorithm = ALGORITHMS["votes"]

    def body(wire: Wire) -> tuple[bytes, Ledger]:
        return trained(wire, algorithm, exchange), wire.ledger

    models, ledgers = zip(*run_threads(workers, body, timeout=60), strict=True)
    assert set(models) == on_threads(workers, dense(algorithm), exchange)[0]
    counted = combine([ledger.snapshot() for ledger in ledgers])
    # Every stretch begins with a scale, and with a header of its own.
    spent = len(exchange.stretches(N, workers)) * workers * STEPS
    assert counted["paper_bits"]["up"] == workers * STEPS * N
    least = workers * STEPS * N * per_value
    assert least <= counted["paper_bits"]["down"] <= least + 40 * spent
    told = (workers - 1) / workers * least / 8 * (1 if per_value == 1 else 1.6 / per_value)
    assert told <= counted["wire_bytes"]["down"] <= told + (HEADER_BYTES + 24) * spent


def test_a_vote_spells_the_signs_of_the_mean_report() -> None:
    """Of any vector, with zeros and without them; a zero has no sign."""
    u = np.random.default_rng(3).normal(size=N).astype(np.float32)
    for zeros in (slice(0), slice(0, N, 3), slice(5, 6), slice(None)):
        u[zeros] = -0.0
        payload = Payload.parse(bytes(vote(u, SEED).frame))
        assert np.array_equal(merged(payload, np.empty(N, np.float32)), np.sign(u))
        assert (payload.origin, payload.step, payload.n, payload.way.name) == (2, 5, N, "DOWN")


@pytest.mark.parametrize(("name", "size"), [*((name, 3) for name in ALGORITHMS), *SMALL_AND_LARGE])
def test_models_are_those_of_dense_answers(name: str, size: int) -> None:
    """On all ranks and over all patterns; where reports are sparse, in fewer bytes."""
    algorithm = ALGORITHMS[name]
    for exchange in patterns(size):
        check(algorithm, exchange, size)
        found, down = on_threads(size, algorithm, exchange)
        wanted, whole = on_threads(size, dense(algorithm), exchange)
        assert len(found) == 1
        if (
            not algorithm.local.claims.decoupled_decay
        ):  # with innovation a model goes down as a difference, and is rounded
            assert found == wanted
        spoken = min(1.0, size * 0.02)
        assert down <= whole * (1.2 * spoken + 0.05 if "much" not in name and name != "dense" else 1.0)
    if name != "dense":
        assert found == on_threads(size, algorithm, patterns(size)[-1])[0]


def test_signs_of_a_model_that_moves_everywhere_go_down_as_reports() -> None:
    """What all changed is as long as the model; what all said of it is shorter by far."""
    down = {
        name: on_threads(4, ALGORITHMS[name], ParameterServer())[1] for name in ("much", "much, in signs")
    }
    whole = on_threads(4, dense(ALGORITHMS["much"]), ParameterServer())[1]
    assert down["much"] > 0.6 * whole
    assert down["much, in signs"] < 0.3 * whole


@pytest.mark.parametrize("name", ["topk", "signtopk", "policy"])
def test_models_of_float64_are_those_of_dense_answers(name: str) -> None:
    """Which go down as float32: the first answer tells the whole of what was not rounded before."""
    algorithm = ALGORITHMS[name]
    found, down = on_threads(3, algorithm, ParameterServer(), np.float64)
    wanted, whole = on_threads(3, dense(algorithm), ParameterServer(), np.float64)
    assert found == wanted
    assert down < 0.4 * whole


@pytest.mark.parametrize("up", ["topk(k=6)", "topk(k=6) >> sign"])
def test_workers_that_do_not_wait_are_told_what_has_changed_for_them(up: str) -> None:
    """In the order in which one run's reports came, the other ends with the same models."""
    algorithm, exchange = waiting_for_nobody(up), ParameterServer(works=False)
    arrivals: list[int] = []

    def run(chosen: Algorithm, order: Sequence[int] | None) -> tuple[list[bytes], int]:
        def body(wire: Wire) -> tuple[bytes, int]:
            if order is None:
                wire.ledger.on_arrival = lambda rank, step, about, staleness: arrivals.append(rank)
            given = Order(None if order is None else tuple(order))
            return trained(wire, chosen, exchange, order=given), wire.ledger.wire_bytes["down"]

        models, bytes_down = zip(*run_threads(4, body, timeout=60), strict=True)
        return list(models), sum(bytes_down)

    found, down = run(algorithm, None)
    wanted, whole = run(dense(algorithm), arrivals)
    assert found == wanted
    assert len(set(found)) == 1
    assert down < 0.3 * whole


def test_processes_make_the_same_models() -> None:
    """Real ranks, server and tree: the bits of the threads."""
    pytest.importorskip("mpi4py")
    program = """
        import hashlib
        from answering import ALGORITHMS, patterns, trained
        from qsparse.wire.mpi import MpiWire

        wire = MpiWire()
        for name, algorithm in ALGORITHMS.items():
            models = [trained(wire, algorithm, exchange) for exchange in patterns(wire.size)]
            seen = [hashlib.sha256(model).hexdigest() for model in models]
            if wire.rank in (0, wire.size - 1):
                print("|".join([name, str(wire.rank), *seen]) + "\\n", end="", flush=True)
        wire.close()
    """
    lines = sorted(mpi_run(3, program, timeout=100).stdout.splitlines())
    wanted = []
    for name, algorithm in ALGORITHMS.items():
        digests = []
        for exchange in patterns(3):
            (model,) = on_threads(3, algorithm, exchange)[0]
            digests.append(hashlib.sha256(model).hexdigest())
        wanted += [f"{name}|{rank}|{'|'.join(digests)}" for rank in (0, 2)]
    assert lines == sorted(wanted)


# --- what goes with what -------------------------------------------------------------------------------


def test_what_is_answered_unless_it_is_said() -> None:
    """Changes where reports are sparse and move what they speak of; else whole models."""
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.answer == Link(memory=Stateless() if name == "dense" else Changes())
    sparse = ALGORITHMS["topk"]
    assert replace(sparse, up=Link()).answer.memory == Stateless()
    assert replace(sparse, up=replace(sparse.up, memory=build("innovation", "memory"))).answer == Link()
    own = Link(Sign(), build("innovation", "memory"))
    assert replace(sparse, down=own).answer == own
    assert build("sparse-asylpg", "algorithm").answer.memory != Changes()


def test_changes_belong_on_the_down_link_with_float32() -> None:
    """Each in a sentence."""
    one = Algorithm(SGD(0.1), up=Link(memory=Changes()))
    with pytest.raises(CompositionError, match="belongs on the down link"):
        check(one, ParameterServer(), 2)
    two = Algorithm(SGD(0.1), down=Link(Sign(), Changes()))
    with pytest.raises(CompositionError, match="says models exactly, not in the words of sign"):
        check(two, ParameterServer(), 2)
    assert (
        "changes"
        in Algorithm(SGD(0.1), up=Link(build("topk(k=1)", "compressor"), ErrorFeedback())).spelling()
    )


# --- what crosses a link --------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [ParameterServer(), ParameterServer(works=False), AllGather()])
def test_the_busiest_link_is_that_of_the_rank_with_most_traffic(exchange: Exchange) -> None:
    """What it sends and what it receives, each way by itself; for plain SGD that is what gains are over."""
    size, frame = 4, len(Float32().compress(np.zeros(N, np.float32), SEED))

    def body(wire: Wire) -> Ledger:
        trained(wire, Algorithm(SGD(0.1)), exchange)
        return wire.ledger

    ledgers = run_threads(size, body, timeout=60)
    links = [ledger.link_bytes for ledger in ledgers]
    frames = dict.fromkeys(("up", "down"), STEPS * (size - 1) * frame)
    if isinstance(exchange, AllGather):
        assert links == [{"up": 2 * frames["up"], "down": 0}] * size
    else:
        assert links[0] == frames
        assert links[1:] == [{"up": STEPS * frame, "down": STEPS * frame}] * (size - 1)
    counted = combine([ledger.snapshot() for ledger in ledgers])
    assert counted["link_bytes"] == links[0]
    assert gains(frames, counted["link_bytes"])["all"] == 1


def test_a_rank_goes_on_counting_its_link() -> None:
    """After a checkpoint, also one from before links were counted."""
    ledger = Ledger()
    ledger.count_bytes(Payload.build([b"abc"]))
    ledger.received(Payload.build([b"abcd"]))
    again = Ledger()
    again.resume(ledger.snapshot())
    assert again.link_bytes == {"up": 51 + 52, "down": 0}
    old = ledger.snapshot()
    del old["link_bytes"]
    again.resume(old)
    assert again.link_bytes == {"up": 51 + 52, "down": 0}

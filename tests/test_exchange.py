"""What every exchange must do, as bodies for any wire; over threads for 1 to 9 ranks and over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mpirun import mpi_run

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Blockwise, Sign, TopK
from qsparse.errors import DisagreementError, RankError
from qsparse.exchange import AllGather, Exchange, ParameterServer, TreeBroadcast
from qsparse.exchange.tree import children
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.payload import HEADER_BYTES, Kind, Payload, Way
from qsparse.registry import names
from qsparse.rounds.synchronous import Station, rounds
from qsparse.seeds import Seed
from qsparse.types import Layer
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

SIZES = range(1, 10)


def exchanges(size: int) -> Iterator[Exchange]:
    """All patterns with all roots that fit."""
    yield AllGather()
    for root in range(size):
        yield ParameterServer(root)
        yield TreeBroadcast(root)
        if size > 1:
            yield ParameterServer(root, works=False)


def on_threads(size: int, body: Callable[[Wire], Any]) -> list[Any]:
    return run_threads(size, body, timeout=30)


def news_of(rank: int, step: int) -> Payload:
    return Payload.build([bytes([rank]) * (5 * rank + step)], origin=rank, step=step, n=rank, nbits=8 * rank)


# --- laws: bodies for any wire -------------------------------------------------------------------


def keeps_the_order_of_ranks(wire: Wire, exchange: Exchange) -> None:
    """Rank order where this rank coordinates, nothing elsewhere; the same answer everywhere; ten rounds."""
    workers = exchange.workers(wire.size)
    root = getattr(exchange, "root", wire.rank)
    for step in range(10):
        news = news_of(wire.rank, step) if wire.rank in workers else None
        payloads = exchange.gather(wire, news)
        assert (payloads is None) == (wire.rank != root)
        reply = None
        if payloads is not None:
            assert [bytes(p.frame) for p in payloads] == [bytes(news_of(r, step).frame) for r in workers]
            text = f"answer {step}".encode()
            reply = Payload.build([text], way=Way.DOWN, origin=root if exchange.answers else 0, step=step)
        answer = exchange.broadcast(wire, reply)
        assert (answer.text, answer.step) == (f"answer {step}", step)


def counts_what_it_sends(wire: Wire, exchange: Exchange) -> dict[str, int]:
    """One round of frames of known sizes; returns this rank's wire bytes of it."""
    before = dict(wire.ledger.wire_bytes)
    workers = exchange.workers(wire.size)
    news = Payload.build([bytes(100 + wire.rank)], origin=wire.rank) if wire.rank in workers else None
    payloads = exchange.gather(wire, news)
    reply = None if payloads is None else Payload.build([bytes(1000)], way=Way.DOWN)
    exchange.broadcast(wire, reply)
    return {way: count - before[way] for way, count in wire.ledger.wire_bytes.items()}


def bytes_of_all(exchange: Exchange, size: int) -> dict[str, int]:
    """The sum over the frames of one such round, from the definition of the pattern."""
    up = {rank: HEADER_BYTES + 100 + rank for rank in exchange.workers(size)}
    if isinstance(exchange, AllGather):
        return {"up": sum(up.values()) * (size - 1), "down": 0, "beside": 0}
    up.pop(exchange.root, None)  # type: ignore[attr-defined]
    return {"up": sum(up.values()), "down": (HEADER_BYTES + 1000) * (size - 1), "beside": 0}


def brings_an_error_to_every_rank(wire: Wire, exchange: Exchange, failing: int, at: str) -> None:
    """As `run` and `attach` do it: who fails tells, and then raises; the others raise RankError."""
    reason = f"ValueError: no luck on rank {failing}"
    step, raised = 0, None
    try:
        for step in (1, 2, 3):
            if (wire.rank, step, at) == (failing, 2, "before"):
                raise ValueError(f"no luck on rank {failing}")
            works = wire.rank in exchange.workers(wire.size)
            payloads = exchange.gather(wire, news_of(wire.rank, step) if works else None)
            reply = None
            if payloads is not None:
                if (wire.rank, step, at) == (failing, 2, "between"):
                    raise ValueError(f"no luck on rank {failing}")
                reply = Payload.build(way=Way.DOWN, step=step)
            exchange.broadcast(wire, reply)
    except (RankError, ValueError) as error:
        exchange.tell(wire, error, step)
        raised = error
    if wire.rank == failing:
        assert type(raised) is ValueError
    else:
        assert isinstance(raised, RankError), f"rank {wire.rank} has heard {raised!r} of the error"
        assert (raised.rank, raised.step, raised.reason) == (failing, 2, reason)
        assert str(raised) == f"rank {failing}, step 2: {reason}"


def finds_ranks_at_different_steps(wire: Wire, exchange: Exchange) -> None:
    """The last rank is a step ahead: the coordinator finds out, and every rank is told."""
    if len(exchange.workers(wire.size)) < 2:
        return
    ahead = max(exchange.workers(wire.size))
    root = getattr(exchange, "root", wire.rank)
    works = wire.rank in exchange.workers(wire.size)
    raised = None
    try:
        payloads = exchange.gather(wire, news_of(wire.rank, 4 + (wire.rank == ahead)) if works else None)
        exchange.broadcast(wire, payloads and payloads[0])
    except (DisagreementError, RankError) as error:
        exchange.tell(wire, error, 4)
        raised = error
    assert isinstance(raised, DisagreementError if wire.rank == root else RankError)
    assert "different steps (rank: step) {" in str(raised)
    assert f"{ahead}: 5" in str(raised)


def leaves_other_messages_alone(wire: Wire, exchange: Exchange) -> None:
    """A rank that has its answer may say something else to one that still waits for its own."""
    works = wire.rank in exchange.workers(wire.size)
    for step in range(5):
        payloads = exchange.gather(wire, news_of(wire.rank, step) if works else None)
        exchange.broadcast(wire, None if payloads is None else Payload.build(way=Way.DOWN, step=step))
        note = Payload.build([b"beside"], way=Way.BESIDE, origin=wire.rank, step=step)
        others = [rank for rank in range(wire.size) if rank != wire.rank]
        for rank in others:
            wire.send([note], rank)
        for rank in others:
            ((payload,),) = wire.receive(rank)[1:]
            assert (payload.text, payload.origin, payload.step) == ("beside", rank, step)
    wire.flush()


LAWS = (keeps_the_order_of_ranks, leaves_other_messages_alone, finds_ranks_at_different_steps)


# --- over threads --------------------------------------------------------------------------------


def test_all_exchanges_are_here() -> None:
    assert {exchange.registered_name for exchange in exchanges(3)} == set(names("exchange"))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
def test_threads_obey(law: Callable[[Wire, Exchange], None], size: int) -> None:
    for exchange in exchanges(size):
        on_threads(size, lambda wire, exchange=exchange: law(wire, exchange))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
def test_an_error_reaches_every_rank(size: int) -> None:
    """From every rank, before it hands anything in and, where it coordinates, before it answers."""
    for exchange in exchanges(size):
        if isinstance(exchange, AllGather) or getattr(exchange, "root", 0) in (0, size - 1):
            for failing in range(size):
                body = lambda wire, e=exchange, f=failing: brings_an_error_to_every_rank(wire, e, f, "before")  # noqa: E731
                on_threads(size, body)
            root = getattr(exchange, "root", None)
            if root is not None:
                body = lambda wire, e=exchange, f=root: brings_an_error_to_every_rank(wire, e, f, "between")  # noqa: E731
                on_threads(size, body)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_those_of_the_frames(size: int) -> None:
    for exchange in exchanges(size):
        counted = on_threads(size, lambda wire, exchange=exchange: counts_what_it_sends(wire, exchange))
        total = {way: sum(one[way] for one in counted) for way in ("up", "down", "beside")}
        assert total == bytes_of_all(exchange, size), exchange


def test_allgather_goes_on_after_an_error() -> None:
    """An error is raised only when all have spoken, so the next round starts clean."""

    def body(wire: Wire) -> None:
        for step in range(1, 13):
            failing = step % 4 if step % 2 else None
            news = news_of(wire.rank, step)
            if wire.rank == failing:
                news = Payload.build([b"no"], kind=Kind.ERROR, way=Way.BESIDE, origin=wire.rank, step=step)
            if failing is None:
                payloads = AllGather().gather(wire, news)
                assert payloads is not None
                assert [payload.step for payload in payloads] == [step] * wire.size
            else:
                with pytest.raises(RankError, match=f"rank {failing}, step {step}: no"):
                    AllGather().gather(wire, news)

    on_threads(4, body)


# --- the tree ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*range(1, 40), 64, 65, 100, 1000])
def test_binomial_tree(size: int) -> None:
    """Every position is reached once, after at most ⌈log2 P⌉ hops, with at most ⌈log2 P⌉ sends each."""
    most = math.ceil(math.log2(size))
    depth = {0: 0}
    front = [0]
    while front:
        position = front.pop()
        below = children(position, size)
        assert len(below) <= most
        assert below == sorted(below, reverse=True), "the largest subtree first"
        for child in below:
            assert child not in depth
            depth[child] = depth[position] + 1
            front.append(child)
    assert sorted(depth) == list(range(size))
    assert max(depth.values()) <= most


@pytest.mark.parametrize("size", SIZES)
def test_tree_sends_and_hops(size: int) -> None:
    """The same of what travels, for every root: an answer counts its hops on the way."""

    class Hopping(Wire):
        """Adds one to the step of what it hands on; sees what is sent."""

        def __init__(self, wire: Wire) -> None:
            self.inner, self.rank, self.size, self.ledger = wire, wire.rank, wire.size, wire.ledger
            self.sends = self.hops = 0

        def send(self, payloads: Any, dest: int) -> None:
            self.sends += 1
            self.inner.send([Payload.build(way=Way.DOWN, step=self.hops + 1)], dest)

        def receive(self, source: int = -1) -> tuple[int, list[Payload]]:
            rank, payloads = self.inner.receive(source)
            self.hops = payloads[0].step
            return rank, payloads

        def flush(self) -> None:
            self.inner.flush()

        close = abort = flush  # type: ignore[assignment]

    for root in range(size):

        def body(wire: Wire, root: int = root) -> tuple[int, int]:
            hopping = Hopping(wire)
            TreeBroadcast(root).broadcast(hopping, Payload.build(way=Way.DOWN) if wire.rank == root else None)
            return hopping.sends, hopping.hops

        seen = on_threads(size, body)
        most = math.ceil(math.log2(size))
        assert sum(sends for sends, _ in seen) == size - 1
        assert max(sends for sends, _ in seen) <= most
        assert max(hops for _, hops in seen) <= most
        assert [hops for _, hops in seen].count(0) == 1


# --- models --------------------------------------------------------------------------------------

N = 30
LAYOUT = (Layer("a", 0, 17), Layer("b", 17, N))
ALGORITHMS = {
    "one way": Algorithm(SGD(0.1), up=Link(TopK(k=5) >> QSGD(3), ErrorFeedback())),
    "two ways": Algorithm(
        SGD(0.1, momentum=0.5),
        up=Link(Blockwise(Sign(), layers=True), ErrorFeedback()),
        down=Link(TopK(k=6) >> QSGD(3), Innovation()),
    ),
    "dense": Algorithm(SGD(0.1)),
}


def model(wire: Wire, algorithm: Algorithm, exchange: Exchange) -> np.ndarray:
    """The model after twelve steps on data of one's own."""
    share = exchange.workers(wire.size).index(wire.rank) if wire.rank in exchange.workers(wire.size) else 0
    x = np.linspace(-1, 1, N).astype(np.float32)
    station = Station(algorithm, exchange, wire, x, Seed(3), LAYOUT, Ledger())

    def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
        out[...] = x - np.random.default_rng((share, t)).normal(size=N)
        return 0.0

    for _ in rounds(algorithm, station, x, 12, oracle, lambda t: t):
        pass
    return x


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_star_tree_and_allgather_make_the_same_bits(size: int, name: str) -> None:
    """On all ranks, whatever the root; the coordinator's random numbers are its role's, not its rank's."""
    algorithm = ALGORITHMS[name]
    seen = set()
    for exchange in exchanges(size):
        if exchange.workers(size) == list(range(size)):
            body = lambda wire, exchange=exchange: model(wire, algorithm, exchange).tobytes()  # noqa: E731
            seen.update(on_threads(size, body))
    assert len(seen) == 1
    start = np.linspace(-1, 1, N).astype(np.float32)
    assert seen != {start.tobytes()}


def test_a_root_that_only_serves_has_the_workers_model() -> None:
    """Three workers behind a fourth rank make what three make among themselves (nothing is drawn)."""
    algorithm = replace(ALGORITHMS["dense"], up=Link(TopK(k=5) >> Sign(), ErrorFeedback()))
    alone = on_threads(3, lambda wire: model(wire, algorithm, AllGather()).tobytes())
    for root in range(4):
        server = ParameterServer(root, works=False)
        served = on_threads(4, lambda wire, server=server: model(wire, algorithm, server).tobytes())
        assert set(served) == set(alone)


# --- over processes ------------------------------------------------------------------------------


def test_processes_obey() -> None:
    pytest.importorskip("mpi4py")
    program = """
        from qsparse.exchange import AllGather
        from qsparse.payload import Payload, Way
        from qsparse.wire.mpi import MpiWire
        import test_exchange as t

        bits = {name: set() for name in t.ALGORITHMS}
        for exchange in t.exchanges(4):
            wire = MpiWire()
            t.keeps_the_order_of_ranks(wire, exchange)
            for name, algorithm in t.ALGORITHMS.items():
                if len(exchange.workers(4)) == 4:
                    bits[name].add(t.model(wire, algorithm, exchange).tobytes())
            t.leaves_other_messages_alone(wire, exchange)
            mine = t.counts_what_it_sends(wire, exchange)
            # Each rank's counters to all others, by hand.
            counted = []
            for rank in range(wire.size):
                note = Payload.build([repr(mine).encode()], way=Way.BESIDE, origin=rank)
                for dest in range(wire.size):
                    if rank == wire.rank:
                        wire.send([note], dest)
                counted.append(eval(wire.receive(rank)[1][0].text))
            wire.flush()
            total = {way: sum(one[way] for one in counted) for way in mine}
            assert total == t.bytes_of_all(exchange, 4), (exchange, total)
            wire.close()
            for failing in range(4):
                for at in ("before", "between"):
                    if at == "before" or getattr(exchange, "root", None) == failing:
                        # A wire of its own: what was sent to a rank that had given up stays on it.
                        wire = MpiWire()
                        t.brings_an_error_to_every_rank(wire, exchange, failing, at)
                        wire.flush()
        assert all(len(seen) == 1 for seen in bits.values())
        if wire.rank == 0:
            print(*sorted(seen.pop().hex() for seen in bits.values()))
    """
    printed = mpi_run(4, program, timeout=80).stdout.split()
    bits = []
    for one in ALGORITHMS.values():
        bits += set(on_threads(4, lambda wire, one=one: model(wire, one, AllGather()).tobytes().hex()))
    assert printed == sorted(bits), "threads and processes make the same bits"

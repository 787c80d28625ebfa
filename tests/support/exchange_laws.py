"""What every exchange keeps, over threads and over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Blockwise, Sign, TopK
from qsparse.errors import DisagreementError, RankError
from qsparse.exchange import AllGather, Exchange, Nodes, ParameterServer, Sharded, TreeBroadcast
from qsparse.exchange.base import Peers
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.payload import HEADER_BYTES, Payload, Way
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.seeds import Seed
from qsparse.types import Layer
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads


def exchanges(size: int) -> Iterator[Exchange]:
    """All patterns with all roots that fit."""
    yield AllGather()
    yield Sharded()
    for root in range(size):
        yield ParameterServer(root)
        yield TreeBroadcast(root)
        if size > 1:
            yield ParameterServer(root, works=False)
    # Machines of one rank, of two, and of one more than the last has.
    yield Nodes(TreeBroadcast(), ranks=1)
    yield Nodes(Sharded(), ranks=1)
    yield Nodes(ParameterServer(), ranks=2)
    yield Nodes(AllGather(), ranks=3)
    if size > 1:
        yield Nodes(TreeBroadcast(root=1), ranks=(size - 1, 1))
        yield Nodes(Sharded(), ranks=(1, size - 1))


def pools(exchange: Exchange, size: int) -> bool:
    """Does one rank say the mean of several, so that the model is another one?"""
    return isinstance(exchange, Nodes) and len(exchange.machines(size)) < size


def on_threads(size: int, body: Callable[[Wire], Any]) -> list[Any]:
    return run_threads(size, body, timeout=30)


def news_of(rank: int, step: int) -> Payload:
    return Payload.build([bytes([rank]) * (5 * rank + step)], origin=rank, step=step, n=rank, nbits=8 * rank)


def keeps_the_order_of_ranks(wire: Wire, exchange: Exchange) -> None:
    """Rank order where this rank coordinates, nothing elsewhere; the same answer everywhere; ten rounds."""
    workers = exchange.workers(wire.size)
    root = getattr(exchange, "root", 0)
    for step in range(10):
        news = news_of(wire.rank, step) if wire.rank in workers else None
        payloads = exchange.gather(wire, news)
        assert (payloads is not None) == exchange.coordinates(wire.rank)
        reply = None
        if payloads is not None:
            assert [bytes(p.frame) for p in payloads] == [bytes(news_of(r, step).frame) for r in workers]
            text = f"answer {step}".encode()
            reply = Payload.build([text], way=Way.DOWN, origin=root, step=step)
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
    if isinstance(exchange, Nodes):
        machines = exchange.machines(size)
        exchange, size = exchange.outer, len(machines)
        # What ranks of a machine tell each other is counted apart; the payloads of several are in one frame.
        up = {
            number: sum(up[rank] for rank in ranks) + (HEADER_BYTES if len(ranks) > 1 else 0)
            for number, ranks in enumerate(machines)
        }
    if isinstance(exchange, Peers):
        return {"up": sum(up.values()) * (size - 1), "down": 0, "control": 0}
    root: int = exchange.root  # type: ignore[attr-defined]
    if isinstance(exchange, TreeBroadcast):
        # A report crosses a link for every level that its rank is below the root.
        up = {rank: ((rank - root) % size).bit_count() * frame for rank, frame in up.items()}
    up.pop(root, None)
    return {"up": sum(up.values()), "down": (HEADER_BYTES + 1000) * (size - 1), "control": 0}


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
            if (wire.rank, step, at) == (failing, 2, "between"):
                raise ValueError(f"no luck on rank {failing}")
            exchange.broadcast(wire, None if payloads is None else Payload.build(way=Way.DOWN, step=step))
    except (RankError, ValueError) as error:
        exchange.notify(wire, error, step)
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
    works = wire.rank in exchange.workers(wire.size)
    raised = None
    try:
        payloads = exchange.gather(wire, news_of(wire.rank, 4 + (wire.rank == ahead)) if works else None)
        exchange.broadcast(wire, payloads and payloads[0])
    except (DisagreementError, RankError) as error:
        exchange.notify(wire, error, 4)
        raised = error
    assert isinstance(raised, DisagreementError if exchange.coordinates(wire.rank) else RankError)
    assert "different steps (rank: step) {" in str(raised)
    assert f"{ahead}: 5" in str(raised)


def leaves_other_messages_alone(wire: Wire, exchange: Exchange) -> None:
    """A rank that has its answer may say something else to one that still waits for its own."""
    works = wire.rank in exchange.workers(wire.size)
    for step in range(5):
        payloads = exchange.gather(wire, news_of(wire.rank, step) if works else None)
        exchange.broadcast(wire, None if payloads is None else Payload.build(way=Way.DOWN, step=step))
        note = Payload.build([b"beside"], way=Way.CONTROL, origin=wire.rank, step=step)
        others = [rank for rank in range(wire.size) if rank != wire.rank]
        for rank in others:
            wire.send([note], rank)
        for rank in others:
            ((payload,),) = wire.receive(rank)[1:]
            assert (payload.text, payload.origin, payload.step) == ("beside", rank, step)
    wire.flush()


LAWS = (keeps_the_order_of_ranks, leaves_other_messages_alone, finds_ranks_at_different_steps)


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


def divides(algorithm: Algorithm, exchange: Exchange) -> bool:
    """Are answers rounded for each stretch by itself, so that the model is another one?"""
    return exchange.claims.divides and not algorithm.answer.exact


def model(wire: Wire, algorithm: Algorithm, exchange: Exchange) -> np.ndarray:
    """The model after six steps on data of one's own."""
    share = exchange.workers(wire.size).index(wire.rank) if wire.rank in exchange.workers(wire.size) else 0
    x = np.linspace(-1, 1, N).astype(np.float32)
    node = Node(algorithm, exchange, wire, x, Seed(3), LAYOUT, Ledger())

    def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
        out[...] = x - np.random.default_rng((share, t)).normal(size=N)
        return 0.0

    for _ in rounds(node, x, 6, oracle, lambda t: t):
        pass
    return x

"""The binomial tree: what goes up and down it, in how many messages, and who is told of an error."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from exchange_laws import LAYOUT, N, brings_an_error_to_every_rank, news_of, on_threads

from qsparse.errors import Corrupted, DisagreementError, QsparseError, RankError, WaitTimeout, WireError
from qsparse.exchange import AllGather, Exchange, ParameterServer, TreeBroadcast
from qsparse.exchange.base import receive_one
from qsparse.exchange.notes import note, same_call
from qsparse.exchange.tree import children
from qsparse.payload import Payload, Way
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.rules import check
from qsparse.seeds import Seed
from qsparse.wire.base import Wire

SIZES = range(1, 10)

#: Ranks that had given up are sent what they do not receive.
LEFTOVERS = pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")


def levels(size: int) -> int:
    return math.ceil(math.log2(size))


class Counting(Wire):
    """Notes what is sent and received, by rank and number of frames, and when all of it has left.

    An answer counts its hops: each hop adds one to its step.
    """

    def __init__(self, wire: Wire) -> None:
        self.inner, self.rank, self.size, self.ledger = wire, wire.rank, wire.size, wire.ledger
        self.events: list[tuple[str, int, int]] = []
        self.hops = 0

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        self.events.append(("send", dest, len(payloads)))
        if payloads[0].way is Way.DOWN:
            payloads = [Payload.build([payloads[0].body], way=Way.DOWN, step=self.hops + 1)]
        self.inner.send(payloads, dest)

    def receive(self, source: int = -1) -> tuple[int, list[Payload]]:
        rank, payloads = self.inner.receive(source)
        self.events.append(("receive", rank, len(payloads)))
        if payloads[0].way is Way.DOWN:
            self.hops = payloads[0].step
        return rank, payloads

    def flush(self) -> None:
        self.events.append(("flush", -1, 0))
        self.inner.flush()

    def numbers(self, what: str) -> list[int]:
        """The frames of each message that was sent or received."""
        return [frames for event, _, frames in self.events if event == what]

    close = abort = flush  # type: ignore[assignment]


# --- the shape -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*range(1, 40), 64, 65, 100, 1000])
def test_binomial_tree(size: int) -> None:
    """Every position is reached once, after at most ⌈log2 R⌉ hops, with at most ⌈log2 R⌉ sends each."""
    depth = {0: 0}
    front = [0]
    while front:
        position = front.pop()
        below = children(position, size)
        assert len(below) <= levels(size)
        assert below == sorted(below, reverse=True), "the largest subtree first"
        for child in below:
            assert child not in depth
            depth[child] = depth[position] + 1
            front.append(child)
    assert sorted(depth) == list(range(size))
    assert max(depth.values()) == size.bit_length() - 1 <= levels(size)


@pytest.mark.parametrize("size", SIZES)
def test_messages_and_hops(size: int) -> None:
    """For every root: ⌈log2 R⌉ messages at the root each way, and one up from each other rank."""
    for root in range(size):
        tree = TreeBroadcast(root)

        def body(wire: Wire, tree: TreeBroadcast = tree) -> tuple[list[int], list[int], list[int], int]:
            up, down = Counting(wire), Counting(wire)
            payloads = tree.gather(up, news_of(wire.rank, 3))
            if payloads is not None:
                assert [bytes(each.frame) for each in payloads] == [
                    bytes(news_of(rank, 3).frame) for rank in range(size)
                ]
            tree.broadcast(down, None if payloads is None else Payload.build(way=Way.DOWN))
            return up.numbers("receive"), up.numbers("send"), down.numbers("send"), down.hops

        seen = on_threads(size, body)
        taken, sent, copies, hops = seen[root]
        assert len(taken) == len(copies) == levels(size)
        assert (sum(taken), sent, hops) == (size - 1, [], 0)
        for rank, (taken, sent, copies, hops) in enumerate(seen):
            assert rank == root or sent == [1 + sum(taken)], "its subtree's reports in one message"
            assert len(taken) == len(copies) <= levels(size)
            assert hops <= levels(size)
        assert sum(len(copies) for _, _, copies, _ in seen) == size - 1


def test_a_large_answer_leaves_copy_by_copy() -> None:
    """To the largest subtree first; a small one is handed to the wire at once, for all."""

    def body(wire: Wire) -> list[list[tuple[str, int]]]:
        found = []
        for size in (100, 1 << 20):
            counting = Counting(wire)
            answer = Payload.build([bytes(size)], way=Way.DOWN) if wire.rank == 3 else None
            TreeBroadcast(3).broadcast(counting, answer)
            found.append([(event, rank) for event, rank, _ in counting.events])
        return found

    small, large = on_threads(8, body)[3]
    sends = [("send", 7), ("send", 5), ("send", 4)]
    end = ("flush", -1)
    assert small == [*sends, end]
    assert large == [sends[0], end, sends[1], end, sends[2], end, end]


# --- what is said, and what is counted -------------------------------------------------------------


def test_bytes_are_counted_at_the_links_that_carry_them() -> None:
    """Rank 4 of 8 hands on those of 5, 6 and 7, 6 that of 7; the root's link has the bytes of a server."""
    frames = [len(news_of(rank, 0)) for rank in range(8)]
    answer = len(Payload.build([bytes(1000)], way=Way.DOWN))

    def body(wire: Wire) -> tuple[dict[str, int], dict[str, int]]:
        tree = TreeBroadcast()
        payloads = tree.gather(wire, news_of(wire.rank, 0))
        tree.broadcast(wire, None if payloads is None else Payload.build([bytes(1000)], way=Way.DOWN))
        return wire.ledger.wire_bytes, wire.ledger.link_bytes

    seen = on_threads(8, body)
    below = {0: [2, 4, 1, 3, 5, 6, 7], 2: [3], 4: [5, 6, 7], 6: [7]}
    copies = {0: 3, 2: 1, 4: 2, 6: 1}
    for rank, (wire_bytes, link_bytes) in enumerate(seen):
        came = sum(frames[other] for other in below.get(rank, []))
        left = came + frames[rank] if rank else 0
        assert wire_bytes == {"up": left, "down": copies.get(rank, 0) * answer, "control": 0}
        assert link_bytes == {"up": came + left, "down": (copies.get(rank, 0) + (rank > 0)) * answer}


@pytest.mark.parametrize("size", [4, 7])
def test_a_lazy_model_and_its_paper_bits_are_those_of_a_server(size: int) -> None:
    """Bit for bit, with rounds in which only some ranks have something to say."""
    algorithm = build("laq(lr=0.05)", "algorithm").closed()

    def body(wire: Wire, exchange: Exchange) -> tuple[bytes, Any, Any, int]:
        check(algorithm, exchange, wire.size)
        x = np.linspace(-1, 1, N).astype(np.float32)
        node = Node(algorithm.over(12), exchange, wire, x, Seed(3), LAYOUT, wire.ledger)

        def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
            out[...] = x - np.random.default_rng(wire.rank).normal(size=N)
            return 0.0

        for _ in rounds(node, x, 12, oracle, lambda t: t):
            pass
        ledger = wire.ledger
        return x.tobytes(), ledger.paper_bits, ledger.messages, ledger.skips

    wanted = on_threads(size, lambda wire: body(wire, ParameterServer()))
    assert 0 < sum(skips for *_, skips in wanted) < 12 * size
    for root in (0, size - 2):
        assert on_threads(size, lambda wire, root=root: body(wire, TreeBroadcast(root))) == wanted


# --- errors ----------------------------------------------------------------------------------------


@LEFTOVERS
@pytest.mark.parametrize("at", ["before", "between"])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_an_error_of_each_rank_reaches_every_rank(size: int, at: str) -> None:
    """Before its report, and with its report on the way: leaves, inner ranks and root."""
    for root in {0, size // 2}:
        for failing in range(size):
            on_threads(
                size,
                lambda wire, r=root, f=failing: brings_an_error_to_every_rank(wire, TreeBroadcast(r), f, at),
            )


def all_told(size: int, root: int, body: Any) -> list[Exception]:
    """What each rank raises; the ranks tell the others as `run` does."""

    def guarded(wire: Wire) -> Exception:
        try:
            body(wire)
        except (QsparseError, ValueError) as error:
            TreeBroadcast(root).notify(wire, error, 2)
            return error
        raise AssertionError(f"rank {wire.rank} has heard of no error")

    return on_threads(size, guarded)


@LEFTOVERS
@pytest.mark.parametrize("root", [0, 3])
def test_a_report_that_is_refused_reaches_every_rank(root: int) -> None:
    """The parent cannot read it, and is the rank whose error it is."""
    tree, size = TreeBroadcast(root), 8

    def body(wire: Wire, garbled: int) -> None:
        for step in (1, 2):
            news = news_of(wire.rank, step)
            if (wire.rank, step) == (garbled, 2):
                news.frame[-1] ^= 1
            payloads = tree.gather(wire, news)
            tree.broadcast(wire, payloads and Payload.build(way=Way.DOWN, step=step))

    for garbled in set(range(size)) - {root}:
        position = (garbled - root) % size
        parent = ((position & (position - 1)) + root) % size
        found = all_told(size, root, lambda wire, garbled=garbled: body(wire, garbled))
        for rank, error in enumerate(found):
            if rank == parent:
                assert isinstance(error, Corrupted)
                assert f"rank {parent} refuses a message of rank {garbled}" in str(error)
            else:
                assert isinstance(error, RankError)
                assert (error.rank, error.step) == (parent, 2)


@LEFTOVERS
@pytest.mark.parametrize("root", [0, 3])
def test_an_error_beside_a_round_reaches_every_rank(root: int) -> None:
    """The root waits for something of each rank itself, such as scores; the others go on."""
    tree, size = TreeBroadcast(root), 8

    def body(wire: Wire, failing: int) -> None:
        for step in (1, 2):
            if wire.rank == failing and step == 2:
                raise ValueError("no score")
            if wire.rank != root:
                wire.send([note(wire, "the scores", step)], root)
            else:
                for rank in set(range(size)) - {root}:
                    receive_one(wire, rank)
            payloads = tree.gather(wire, news_of(wire.rank, step))
            tree.broadcast(wire, payloads and Payload.build(way=Way.DOWN, step=step))

    for failing in range(size):
        found = all_told(size, root, lambda wire, failing=failing: body(wire, failing))
        for rank, error in enumerate(found):
            assert type(error) is ValueError if rank == failing else isinstance(error, RankError)
            assert "no score" in str(error)
            assert rank == failing or (error.rank, error.step) == (failing, 2)  # type: ignore[attr-defined]


@LEFTOVERS
@pytest.mark.parametrize("over", [TreeBroadcast(), AllGather()], ids=str)
@pytest.mark.parametrize("stray", [0, 4, 7])
@pytest.mark.parametrize("reports", [True, False], ids=["reports", "notes"])
def test_a_rank_in_another_call_is_named(stray: int, over: Exchange, reports: bool) -> None:
    """On every rank that can know, whether that call goes over the tree or from rank to rank."""

    def body(wire: Wire) -> None:
        exchange: Exchange = over if wire.rank == stray else TreeBroadcast()
        said = news_of(wire.rank, 0) if reports else note(wire, "finish()")
        if wire.rank == stray:
            said = note(wire, "resume()")
        heard = exchange.gather(wire, said)
        answer = exchange.broadcast(wire, None if heard is None else same_call(heard)[0])
        same_call([said, answer])

    found = all_told(8, 0, body)
    for rank, error in enumerate(found):
        if rank == stray != 0 and over != TreeBroadcast():
            continue  # it waits for ranks that do not speak to it, and sees them leave
        assert isinstance(error, DisagreementError | RankError)
        assert "the ranks are in different calls" in str(error)
        assert "resume() at step 0" in str(error)
        assert ("in an exchange of updates" if reports else "in finish()") in str(error)


def test_reports_of_too_few_ranks_are_refused() -> None:
    """A rank that speaks for itself alone, at the same step, in the same words."""
    tree = TreeBroadcast()

    def body(wire: Wire) -> None:
        if wire.rank == 2:
            wire.send([news_of(2, 1)], 0)
            receive_one(wire, 3)
            return
        tree.gather(wire, news_of(wire.rank, 1))

    with pytest.raises(
        WireError, match="rank 0 got 3 payloads of 4 ranks: every rank must make the same calls"
    ):
        on_threads(4, body)


# --- waiting ---------------------------------------------------------------------------------------


def test_a_long_wait_names_the_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 7 of 8 says nothing: parents wait for children, the others for the parent's answer."""
    monkeypatch.setenv("QSPARSE_WAIT_END", "0.2")
    tree, speaking, all_ranks = TreeBroadcast(), threading.Barrier(7), threading.Barrier(8)

    def body(wire: Wire) -> str:
        if wire.rank == 7:
            all_ranks.wait(30)
            return ""
        try:
            # What is not awaited here is there before the waits begin, however slow this machine is.
            for turn in ((1, 3, 5), (2,), (0, 4, 6)):
                if wire.rank in turn:
                    payloads = tree.gather(wire, news_of(wire.rank, 1))
                if turn != (0, 4, 6):
                    speaking.wait(30)
            tree.broadcast(wire, payloads and payloads[0])
        except WaitTimeout as error:
            return str(error)
        finally:
            all_ranks.wait(30)
        return "nothing"

    awaited = {0: 4, 1: 0, 2: 0, 3: 2, 4: 6, 5: 4, 6: 7}
    texts = on_threads(8, body)
    for rank, other in awaited.items():
        assert f"for a message of rank {other}:" in texts[rank]

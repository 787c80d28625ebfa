"""Workers that do not wait for each other; real processes of such runs are in `test_train`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bowl import Bowl

from qsparse.algorithm import Algorithm
from qsparse.compressors import Float32, decompress
from qsparse.errors import CompositionError, DisagreementError, RankError, SettingError
from qsparse.exchange import AllGather, ParameterServer
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.meeting import Async, Sync
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.payload import Kind
from qsparse.registry import build
from qsparse.rounds.asynchronous import Answered, Order, leave, serve
from qsparse.rounds.node import Node, Pace
from qsparse.rounds.synchronous import rounds
from qsparse.rules import check
from qsparse.run import Settings, run
from qsparse.seeds import Seed
from qsparse.server import Descend
from qsparse.triggers import Every, RandomGap
from qsparse.types import Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

N = 40
SERVER = ParameterServer(works=False)
START = np.linspace(-1, 1, N, dtype=np.float32)


def algorithm(**parts: Any) -> Algorithm:
    """Plain parts unless given."""
    return replace(Algorithm(local=SGD(0.1), meeting=Async()), **parts)


class Reports:
    """Oracle of a quadratic whose minimum depends on the rank; collects what a rank reports."""

    def __init__(self, rank: int) -> None:
        self.target = np.full(N, rank, np.float32)

    def __call__(self, x: np.ndarray, batch: Any, out: np.ndarray) -> float:
        np.subtract(x, self.target, out=out)
        return float(np.sum(out * out) / 2)


def job(chosen: Algorithm, steps: int, begin: Any = None, order: Any = None) -> Any:
    """A body for `run_threads`: the arrivals and the model at the coordinator, the model elsewhere."""

    def body(wire: Wire) -> tuple[list[Answered], np.ndarray]:
        x = START.copy()
        node = Node(chosen, SERVER, wire, x, Seed(3), (), Ledger())
        workers = SERVER.workers(wire.size)
        if (coordinator := node.coordinator) is not None:
            ahead = chosen.meeting.claims.ahead
            return list(
                serve([coordinator], ahead, wire, workers, steps, Pace(), Order(order))
            ), coordinator.model
        hook = None if begin is None else lambda t: begin(wire.rank, t)
        try:
            for _ in rounds(node, x, steps, Reports(wire.rank), lambda t: None, begin=hook):
                pass
        except Exception as error:
            SERVER.notify(wire, error, 1)
            raise
        (final,) = leave(wire, 0, [node])
        return [], final.copy()

    return body


def test_one_worker_is_synchronous_bit_for_bit() -> None:
    """With nobody to wait for, waiting makes no difference."""
    chosen = algorithm(
        trigger=RandomGap(4), up=Link(build("topk(k=5) >> sign", "compressor"), ErrorFeedback())
    )
    ((arrivals, at_server), (_, at_worker)) = run_threads(2, job(chosen, 60), timeout=60)
    steps = arrivals[-1].report.step
    assert steps == 60

    def synchronous(wire: Wire) -> np.ndarray:
        x = START.copy()
        # The same stream of gaps: an asynchronous worker draws its own, here rank 1's.
        own = replace(chosen, meeting=Sync())
        node = Node(own, SERVER, wire, x, Seed(3), (), Ledger())
        node.worker.trigger_state = own.trigger.init(Seed(3, rank=1, use="trigger"))
        for _ in rounds(node, x, steps, Reports(wire.rank), lambda t: None):
            pass
        return x

    together = run_threads(2, synchronous, timeout=60)
    assert at_server.tobytes() == at_worker.tobytes() == together[1].tobytes()


@pytest.mark.parametrize("slow", [8, 16])
@pytest.mark.parametrize("text", ["lag-wk(lr=0.1)", "lag-wk(lr=0.3)", "laq(lr=0.3, bits=8)"])
def test_a_slow_worker_that_is_lazy_is_heard(text: str, slow: int) -> None:
    """Rank 4 reports once while the others report ``slow`` times; the minimum, 2.5, needs what it says.

    Were what it sees as one move counted as one, its first gradient would stand for it nearly for good: the
    others would go to 7/6 more than the minimum.
    """
    steps = 60
    turns = [(1, 2, 3) if turn % slow else (1, 2, 3, 4) for turn in range(1, 4 * steps)]
    order = [rank for turn in turns for rank in turn][: 4 * steps]
    order += sorted({1, 2, 3, 4} - {order[-1]})  # the last word of everybody
    chosen = replace(build(text, "algorithm"), meeting=Async()).over(steps)
    (arrivals, model), *_ = run_threads(5, job(chosen, steps, order=order), timeout=60)
    assert np.abs(model - 2.5).max() < 0.25
    spoken = Counter(arrival.rank for arrival in arrivals if arrival.report.kind is Kind.DATA)
    heard = Counter(arrival.rank for arrival in arrivals)
    assert 2 <= spoken[4] <= heard[4]
    assert all(spoken[rank] < heard[rank] / 2 for rank in (1, 2, 3))


@pytest.mark.parametrize("down", [Link(), Link(build("blockwise(sign, size=8)", "compressor"), Innovation())])
def test_every_report_counts_once_with_one_over_r(down: Link) -> None:
    """The final model is the start minus a third of all reports, and every rank ends with it."""
    chosen = algorithm(trigger=RandomGap(5), down=down)
    (arrivals, model), *others = run_threads(4, job(chosen, 50), timeout=60)
    reports = np.zeros(N)
    for arrival in arrivals:
        reports += decompress(arrival.report, np.empty(N, np.float32))
    np.testing.assert_allclose(model, START - reports / 3, rtol=1e-4, atol=1e-5)
    assert all(x.tobytes() == model.tobytes() for _, x in others)
    # Together they took the steps of the run, each at steps of its own.
    steps = {rank: [a.report.step for a in arrivals if a.rank == rank] for rank in (1, 2, 3)}
    assert all(max(np.diff([0, *found])) <= 5 for found in steps.values())
    assert 150 <= sum(found[-1] for found in steps.values()) < 150 + 3 * 2 * 5
    assert len({tuple(found) for found in steps.values()}) == 3
    # Staleness is what others said since the answer before.
    last: dict[int, int] = {}
    for number, arrival in enumerate(arrivals):
        if arrival.rank in last:
            assert 0 <= arrival.staleness <= number - last[arrival.rank] - 1
        last[arrival.rank] = number


def test_a_down_link_remembers_each_worker_by_itself() -> None:
    """With innovations down, each worker is answered with the model, whatever others were told."""
    chosen = algorithm(down=Link(Float32(), Innovation()))

    def body(wire: Wire) -> list[np.ndarray]:
        node = Node(chosen, SERVER, wire, START, Seed(3), (), Ledger())
        if (coordinator := node.coordinator) is not None:
            models: dict[int, list[np.ndarray]] = {1: [], 2: []}
            for arrival in serve([coordinator], None, wire, (1, 2), 19, Pace(), Order()):
                models[arrival.rank].append(coordinator.model.copy())
            return models[1][:-1] + models[2][:-1]
        v = np.random.default_rng(wire.rank).standard_normal(N).astype(np.float32)
        heard: list[np.ndarray] = []
        while not node.stopped:
            model = node.meet(v, len(heard) + 1)
            heard += [] if model is None else [model.copy()]
        leave(wire, 0, [node])
        return heard

    said, *heard = run_threads(3, body, timeout=60)
    np.testing.assert_allclose(said, heard[0] + heard[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ahead", [0, 2])
def test_nobody_runs_further_ahead_than_allowed(ahead: int) -> None:
    """While rank 1 stands still at its fourth step, the others get as far as the bound, and no further."""
    moved_on = threading.Event()
    too_far: list[int] = []

    def begin(rank: int, t: int) -> None:
        if rank == 1 and t == 4:
            time.sleep(0.5)
            moved_on.set()
        elif rank != 1 and t > 4 + ahead and not moved_on.is_set():
            too_far.append(t)

    (arrivals, _), *_ = run_threads(4, job(algorithm(meeting=Async(ahead)), 12, begin), timeout=60)
    assert moved_on.is_set()
    assert not too_far
    count = dict.fromkeys((1, 2, 3), 0)
    for arrival in arrivals[:-3]:
        # Who reports was answered before, when the bound held; since then it has moved on by one.
        assert count[arrival.rank] - min(count.values()) <= ahead
        count[arrival.rank] += 1
    assert sum(count.values()) + 3 >= 3 * 12


def test_who_waited_is_told_the_model_of_the_moment() -> None:
    """Held back until the slowest has caught up, an answer has in it what came meanwhile."""
    chosen = algorithm(meeting=Async(ahead=0))
    order: list[int] = []

    def body(wire: Wire) -> Any:
        node = Node(chosen, SERVER, wire, np.zeros(1, np.float32), Seed(0), (), Ledger())
        if (coordinator := node.coordinator) is not None:
            answered = []
            for each in serve([coordinator], 0, wire, (1, 2), 2, Pace(), Order()):
                order.append(each.rank)
                answered.append((each.rank, each.staleness))
            return answered
        heard = []
        for t in (1, 2):
            if wire.rank == 2:
                time.sleep(0.3)  # rank 1 reports first each time, and must wait
            model = node.meet(np.full(1, 10.0**wire.rank, np.float32), t)
            if t == 1:
                assert model is not None
                heard.append(float(model[0]))
        while not node.stopped:
            node.meet(np.zeros(1, np.float32), 3)
        leave(wire, 0, [node])
        return heard

    answered, one, _ = run_threads(3, body, timeout=30)
    assert one[0] == -(10 + 100) / 2, "its own report, and rank 2's"
    assert answered[:2] == [(1, 0), (2, 1)], "rank 2 was last told nothing, rank 1's report came since"
    assert answered[2] == (1, 0), "what came while it waited was in its answer"


def test_without_a_bound_nobody_waits() -> None:
    """The others take their steps, and its, while rank 1 stands at its second; then it is stopped too."""
    done = threading.Barrier(3)

    def begin(rank: int, t: int) -> None:
        if (rank == 1 and t == 2) or (rank != 1 and t == 42):
            done.wait(30)  # breaks, and fails the test, if the others cannot get there

    (arrivals, _), *_ = run_threads(4, job(algorithm(), 30, begin), timeout=60)
    steps = {rank: max(a.report.step for a in arrivals if a.rank == rank) for rank in (1, 2, 3)}
    assert steps[1] < 30 < min(steps[2], steps[3])
    assert sum(steps.values()) >= 90


def test_a_failing_worker_ends_the_job() -> None:
    """Everybody learns which rank failed."""

    def begin(rank: int, t: int) -> None:
        if rank == 2 and t == 5:
            raise ArithmeticError("out of luck")

    told: dict[int, str] = {}

    def body(wire: Wire) -> Any:
        try:
            return job(algorithm(), 1000, begin)(wire)
        except RankError as error:
            told[wire.rank] = str(error)
            SERVER.notify(wire, error, 0)
            raise

    with pytest.raises(ArithmeticError, match="out of luck"):
        run_threads(4, body, timeout=60)
    assert told == dict.fromkeys((0, 1, 3), "rank 2, step 1: ArithmeticError: out of luck")


def test_two_stations_take_turns() -> None:
    """A worker meets about the model and about what is averaged beside it."""

    def body(wire: Wire) -> tuple[np.ndarray, list[int]]:
        chosen = algorithm(trigger=Every(1))
        x, beside = START.copy(), np.full(3, wire.rank, np.float32)
        zero = np.zeros(3, np.float32)
        nodes = [
            Node(chosen, SERVER, wire, start, Seed(0), (), Ledger()) for start in (x, zero)
        ]  # fmt: skip
        coordinators = [node.coordinator for node in nodes if node.coordinator is not None]
        if coordinators:
            taken = list(serve(coordinators, None, wire, SERVER.workers(wire.size), 3, Pace(), Order()))
            return coordinators[1].model, [each.rank for each in taken if each.about == 1]
        t = 0
        while not nodes[1].stopped:
            t += 1
            nodes[0].meet(np.zeros(N, np.float32), t)
            assert not nodes[0].stopped, "only the last meeting of a step may be the end"
            nodes[1].meet(-beside, t)
        return leave(wire, 0, nodes)[1], []

    (values, ranks), *others = run_threads(3, body, timeout=60)
    np.testing.assert_allclose(values, sum(ranks) / 2)
    assert 6 <= len(ranks) <= 8
    assert all(np.array_equal(other, values) for other, _ in others)


def arrived(order: list[int]) -> Any:
    """Collects the ranks of arrivals."""
    return lambda rank, step, about, staleness: order.append(rank)


def test_a_run_is_repeated_from_its_order_of_arrivals() -> None:
    """Slow ranks come late the first time; whoever is slow the second time, the bits are the same."""
    chosen = algorithm(
        local=SGD(build("cosine(0.1, steps=40)", "schedule")),
        trigger=RandomGap(3),
        up=Link(build("topk(k=5) >> qsgd(levels=3)", "compressor"), ErrorFeedback()),
        down=Link(build("lowprecision(bits=6)", "compressor"), Innovation()),
        meeting=Async(ahead=4),
    )

    def run(slow: int, order: list[int] | None) -> tuple[list[int], bytes, list[tuple[int, int]]]:
        ranks: list[int] = []

        def body(wire: Wire) -> Any:
            wire.ledger.on_arrival = arrived(ranks)
            begin = (lambda rank, t: time.sleep(0.01 * (rank == slow))) if slow else None
            return job(chosen, 40, begin, order)(wire)

        (answers, model), *_ = run_threads(4, body, timeout=60)
        return ranks, model.tobytes(), [(each.rank, each.staleness) for each in answers]

    first = run(1, None)
    assert run(3, first[0]) == first
    assert run(3, None)[0] != first[0], "another order, were it not given"
    with pytest.raises(DisagreementError, match="recorded order of arrivals ends after 9 reports"):
        run(0, first[0][:9])
    with pytest.raises(
        DisagreementError, match=rf"has {len(first[0]) + 1} reports and the run {len(first[0])}:"
    ):
        run(0, [*first[0], 1])
    # Rank 1 waits for an answer, or has its last one: it cannot report.
    with pytest.raises(DisagreementError, match=r"has rank 1 after [0-9]+ reports, which is not to report"):
        run(0, [1] * len(first[0]))


def test_the_clock_is_at_the_step_of_who_reports() -> None:
    """A schedule of the server rule begins at step 1, and is over at step T, whoever comes first."""
    asked: list[int] = []

    class Noted(Descend):
        def absorb(self, state: Any, u: np.ndarray, t: int) -> None:
            asked.append(t)
            super().absorb(state, u, t)

    chosen = algorithm(
        local=build("gradient", "local"), server=Noted(build("cosine(0.1, steps=20)", "schedule"))
    )
    run_threads(4, job(chosen, 20), timeout=60)
    assert asked[0] == 1
    assert asked[-1] == 20
    assert asked == sorted(asked)
    assert set(asked) == set(range(1, 21))


class Counting(Bowl):
    """Its loss is the step."""

    def gradient(self, x: Vector, batch: int | None, out: Vector) -> float:
        super().gradient(x, batch, out)
        return float(batch or 0)


@pytest.mark.parametrize(("steps", "loss"), [(20, 15.5), (25, 15.5), (7, 4.0)])
def test_the_loss_is_that_of_the_last_whole_epoch(steps: int, loss: float) -> None:
    """Of ten steps; a run without one has the loss of what there is."""
    settings = Settings(build("qsparse-local-sgd-async(H=1)", "algorithm"), SERVER, steps=steps)
    summary, _ = run_threads(2, lambda wire: run(lambda: settings, lambda _: Counting(wire.rank), wire))
    assert summary["train_loss"] == loss


def test_refusals() -> None:
    """A coordinator that works, or none at all, and a bound below 0."""
    for exchange in (ParameterServer(), AllGather(), ParameterServer(root=1, works=False)):
        with pytest.raises(CompositionError, match=r"server\(works=false\)"):
            check(algorithm(), exchange, 3)
    check(algorithm(up=Link(Float32())), SERVER, 3)
    with pytest.raises(SettingError, match="ahead"):
        Async(ahead=-1)
    with pytest.raises(CompositionError, match="asynchronous"):
        check(algorithm(meeting=build("asynchronous(ahead=2)", "meeting")), ParameterServer(), 3)

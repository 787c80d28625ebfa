"""Triggers at work: gaps of a worker's own, skips of net updates, questions, and triggers of two."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from qsparse.algorithm import Algorithm
from qsparse.compressors import Float32, TopK
from qsparse.compressors.sums import Sum
from qsparse.errors import CompositionError
from qsparse.exchange import AllGather, Exchange, ParameterServer, TreeBroadcast
from qsparse.ledger import Ledger
from qsparse.link import Link, Sender
from qsparse.local import SGD, Gradient
from qsparse.meeting import Async
from qsparse.memory import Draft, ErrorFeedback, Innovation
from qsparse.participation import Ask
from qsparse.payload import Kind, Payload
from qsparse.registry import build, spell
from qsparse.rounds.asynchronous import Answered
from qsparse.rounds.phases import Stepped, Walk
from qsparse.rounds.worker import WorkerEnd
from qsparse.rules import check
from qsparse.schedules import Cosine, Steps, over
from qsparse.seeds import Seed
from qsparse.server import Descend
from qsparse.triggers import Drift, Every, Lazy, RandomGap, Trigger
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

N, T, R = 12, 40, 3
START = np.linspace(-1, 1, N)
EF = Link(TopK(k=4), ErrorFeedback())
LAG = Link(memory=Innovation())


def slope(r: int, x: np.ndarray, t: int) -> np.ndarray:
    """Worker r's noisy pull towards a point of its own."""
    noise = np.random.default_rng((r, t)).normal(size=N)
    pull: np.ndarray = x - np.roll(START, r) + 0.3 * noise
    return pull


def walked(
    algorithm: Algorithm,
    exchange: Exchange,
    size: int,
    buffers: Callable[[int], np.ndarray] | None = None,
    steps: int = T,
) -> list[tuple[Walk, list[Stepped | Answered], Wire]]:
    """A run of all ranks; what happened on each."""
    check(algorithm, exchange, size)

    def body(wire: Wire) -> tuple[Walk, list[Stepped | Answered], Wire]:
        workers = exchange.workers(wire.size)
        averaged = np.zeros(0) if buffers is None else np.zeros(2)
        walk = Walk(algorithm.over(steps), exchange, wire, START.copy(), Seed(5), buffers=averaged)

        def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
            out[...] = slope(workers.index(wire.rank), x, t)
            if buffers is not None:
                averaged[:] += buffers(wire.rank)
            return 0.0

        return walk, list(walk.steps(steps, oracle, lambda t: t)), wire

    return run_threads(size, body, timeout=60)


def due(trigger: Trigger, rank: int = 0, first: int = 1, last: int = 20) -> list[int]:
    state = trigger.init(Seed(0, rank=rank, use="trigger"))
    return [t for t in range(first, last + 1) if trigger.due(state, t)]


# --- gaps ----------------------------------------------------------------------------------------


def test_a_list_has_a_gap_for_each_worker() -> None:
    trigger = Every((2, 5, Steps(1.0, after=(3,), factor=4.0)))
    assert due(trigger, 1) == list(range(2, 21, 2))
    assert due(trigger, 2) == [5, 10, 15, 20]
    assert due(trigger, 3) == [1, 2, 3, 7, 11, 15, 19]
    drawn = due(RandomGap((1, 6)), 2, last=300)
    assert set(np.diff([0, *drawn])) == {1, 2, 3, 4, 5, 6}


def test_a_gap_goes_by_the_schedule_where_it_begins() -> None:
    grows = Every(Steps(2.0, after=(4, 11), factor=2.0))
    assert due(grows) == [2, 4, 8, 12, 20]
    assert due(Every(Steps(0.2, ()))) == list(range(1, 21)), "no gap is shorter than 1"
    with_length = over(Every((3, Cosine(6.0))), 100)
    assert with_length == Every((3, Cosine(6.0, steps=100)))
    assert over(Every(2) & Drift(Cosine(1.0)), 100) == Every(2) & Drift(Cosine(1.0, steps=100))


def test_a_gap_begins_with_a_phase() -> None:
    assert due(Every(4), first=103, last=112) == [106, 110]
    state = Every(4).init(Seed(0))
    assert [t for t in range(1, 7) if Every(4).due(state, t)] == [4]
    assert [t for t in range(16, 26) if Every(4).due(state, t)] == [19, 23]


def test_workers_that_do_not_wait_meet_after_gaps_of_their_own() -> None:
    """H = 2 and 5, as the coordinator sees it."""
    algorithm = Algorithm(SGD(0.1), Every((2, 5)), EF, meeting=Async())
    (_, answers, _), *_ = walked(algorithm, ParameterServer(works=False), 3)
    met: dict[int, list[int]] = {1: [0], 2: [0]}
    for answered in answers:
        assert isinstance(answered, Answered)
        met[answered.rank].append(answered.report.step)
    for rank, H in ((1, 2), (2, 5)):
        gaps = np.diff(sorted(set(met[rank]))).tolist()
        while gaps[-1] < H:
            gaps.pop()  # at the end of the run, by the clock that it was told, a worker meets at every step
        assert len(gaps) > 2
        assert set(gaps) == {H}


# --- skips of net updates ------------------------------------------------------------------------


def dynamic_averaging(H: int, delta: float) -> tuple[dict[int, np.ndarray], int]:
    """Kamp et al. (2018) with a mean of what is said; x_r goes on from the new model with what it kept."""
    x, anchor = START.copy(), START.copy()
    local = [START.copy() for _ in range(R)]
    models, spoken = {}, 0
    for t in range(1, T + 1):
        local = [x_r - 0.1 * slope(r, x_r, t) for r, x_r in enumerate(local)]
        if t % H and t != T:
            continue
        news = [anchor - x_r for x_r in local]
        says = [bool(v @ v > delta) or t == T for v in news]
        x = x - sum((v for v, says_so in zip(news, says, strict=True) if says_so), np.zeros(N)) / R
        local = [x.copy() if one else x - v for one, v in zip(says, news, strict=True)]
        anchor = x.copy()
        models[t] = local[0].copy()
        spoken += sum(says)
    return models, spoken


@pytest.mark.parametrize("exchange", [ParameterServer(), AllGather(), TreeBroadcast()], ids=repr)
def test_what_was_not_said_of_a_net_update_is_said_later(exchange: Exchange) -> None:
    wanted, spoken = dynamic_averaging(2, 0.2)
    assert R < spoken < 0.7 * R * T / 2
    algorithm = build("every(H=2) & drift(delta=0.2)", "trigger")
    ranks = walked(Algorithm(SGD(0.1), algorithm), exchange, R)
    for walk, _, _ in ranks:
        np.testing.assert_allclose(walk.x, wanted[T], rtol=0, atol=1e-6)
    assert sum(wire.ledger.messages["up"] for _, _, wire in ranks) == spoken
    assert sum(wire.ledger.skips for _, _, wire in ranks) == R * T // 2 - spoken


def test_with_an_error_memory_nothing_is_lost() -> None:
    """x − mean_r(m_r) is what everybody's steps add up to, whoever skipped, since the last meeting spoke."""
    algorithm = Algorithm(SGD(0.1), Every(2) & Drift(0.3), EF)

    def body(wire: Wire) -> np.ndarray:
        walk = Walk(algorithm, ParameterServer(), wire, START.copy(), Seed(5))
        moved = np.zeros(N)

        def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
            out[...] = slope(wire.rank, x, t)
            moved[:] -= 0.1 * out
            return 0.0

        for _ in walk.steps(T, oracle, lambda t: t):
            pass
        sender = walk.node.worker.sender
        assert sender is not None
        assert 3 < wire.ledger.skips < T // 2 - 3
        return np.stack([walk.x, moved, sender.state["residual"]])

    ends = run_threads(R, body, timeout=60)
    total = sum(end[1] for end in ends) / R
    kept = sum(end[2] for end in ends) / R
    assert np.abs(kept).max() > 0.01
    np.testing.assert_allclose(ends[0][0] - kept, START + total, rtol=0, atol=1e-6)


def test_the_last_meeting_speaks() -> None:
    """Nobody finds it worth while, and still all ranks end with one model, which has moved."""
    ranks = walked(Algorithm(SGD(0.1), Drift(1e9)), ParameterServer(), R)
    for walk, _, wire in ranks:
        assert (wire.ledger.messages["up"], wire.ledger.skips) == (1, T - 1)
        assert np.array_equal(walk.x, ranks[0][0].x)
    assert np.abs(ranks[0][0].x - START).max() > 0.1


def test_statistics_meet_whether_the_model_is_said_or_not() -> None:
    """And neither weight decay nor skipping touches them: their mean over the ranks, exactly."""
    shrinking = SGD(0.1, weight_decay=0.5, decoupled=True)
    for algorithm, exchange, size in (
        (Algorithm(SGD(0.1), Drift(1e9)), ParameterServer(), R),
        (Algorithm(shrinking, up=EF, down=Link(TopK(k=4), Innovation())), ParameterServer(), R),
        (
            Algorithm(Gradient(), Every(1), LAG, Descend(0.1), participation=Ask()),
            ParameterServer(works=False),
            R + 1,
        ),
    ):
        ranks = walked(algorithm, exchange, size, buffers=lambda rank: np.array([1.0, rank]))
        asked = [
            sum(isinstance(one, Stepped) and one.loss is not None for one in happened)
            for _, happened, _ in ranks
        ]
        workers = exchange.workers(size)
        wanted = sum(asked[rank] * np.array([1.0, rank]) for rank in workers) / R
        for walk, _, _ in ranks:
            np.testing.assert_allclose(walk.buffers, wanted, rtol=1e-5)


def test_decoupled_decay_is_that_of_a_model_alone() -> None:
    """One worker, nothing lost: x ← x − η(g + λx), and with momentum the sum of two momenta."""
    for momentum, nesterov in ((0.0, False), (0.5, False), (0.5, True)):
        local = SGD(0.1, momentum, nesterov, 0.2, decoupled=True)
        coupled = SGD(0.1, momentum, nesterov, 0.2)
        models = [walked(Algorithm(one, down=LAG), ParameterServer(), 1)[0][0].x for one in (local, coupled)]
        # A momentum of sums is the sum of momenta.
        np.testing.assert_allclose(models[0], models[1], rtol=0, atol=1e-5)
        assert np.abs(models[0] - START).max() > 0.1


# --- the coordinator asks ------------------------------------------------------------------------


def test_who_is_not_asked_is_silent_and_told_nothing() -> None:
    """Each answer brings one report; in the end everybody is told; SKIPs are no messages."""
    algorithm = Algorithm(Gradient(), Every(1), LAG, Descend(0.1), participation=Ask(D=3))
    ranks = walked(algorithm, ParameterServer(works=False), R + 1)
    (server, _, served), *others = ranks
    assert served.ledger.messages == {"up": 0, "down": 0}
    rested = 0
    for walk, happened, wire in others:
        losses = [one.loss is not None for one in happened if isinstance(one, Stepped)]
        assert losses[:2] == [True, True], "everybody is asked twice at the beginning"
        assert wire.ledger.messages["up"] == sum(losses)
        assert wire.ledger.skips == T - sum(losses)
        # Told before every step but the first, and once at the end.
        assert wire.ledger.messages["down"] == sum(losses)
        rested += T - sum(losses)
        assert np.array_equal(walk.x, server.x)
    assert 0 < rested < R * T - 2 * R


def test_only_a_star_answers_some() -> None:
    """Refused by `check` before the first message, and by the exchange itself."""
    payload = Payload.build(kind=Kind.SKIP)
    for exchange in (TreeBroadcast(), AllGather()):
        with pytest.raises(CompositionError, match="answers all ranks alike: use exchange server"):
            exchange.broadcast_to(None, payload, [True])  # type: ignore[arg-type]


def test_a_phase_that_asks_knows_where_it_begins() -> None:
    """All are asked first, and asked there, though the model has moved since the phase last ended."""
    asking = Algorithm(
        Gradient(),
        Every(1),
        LAG,
        Descend(0.1),
        prelude=Algorithm(SGD(0.1), length=4),
        length=5,
        participation=Ask(D=2, patience=3),
    )
    exchange = ParameterServer(works=False)
    check(asking, exchange, R + 1)

    def body(wire: Wire) -> tuple[dict[int, np.ndarray], np.ndarray | None]:
        walk = Walk(asking, exchange, wire, START.copy(), Seed(5))

        def oracle(x: np.ndarray, batch: int, out: np.ndarray) -> float:
            out[...] = slope(wire.rank - 1, x, batch)
            return 0.0

        models = {}
        # Twice through both phases but for the last four steps.
        for happened in walk.steps(14, oracle, lambda t: t):
            assert isinstance(happened, Stepped)
            models[happened.t] = walk.x.copy()
        return models, walk.node.coordinator and walk.node.coordinator.asking["at"]

    (models, at), *others = run_threads(R + 1, body, timeout=60)
    assert at is not None
    for where in at:
        np.testing.assert_allclose(where, models[13], rtol=0, atol=1e-6)
    assert np.abs(models[13] - models[9]).max() > 0.01
    assert all(np.array_equal(models[14], other[14]) for other, _ in others)


# --- triggers of two -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted(Trigger):
    """Due and worth it at the given steps; remembers what it was told."""

    when: tuple[int, ...]
    worthy: tuple[int, ...]

    def init(self, seed: Seed) -> dict[str, Any]:
        return {"told": 0, "heard": 0}

    def due(self, state: dict[str, Any], t: int) -> bool:
        return t in self.when

    def worth(self, state: dict[str, Any], draft: Draft) -> bool:
        return draft.payload.step in self.worthy

    def settled(self, state: dict[str, Any], sent: bool) -> None:
        state["told"] += sent

    def heard(self, state: dict[str, Any], model: np.ndarray) -> None:
        state["heard"] += 1


def test_both_and_either() -> None:
    """Due and worth it: by both, or by one of which both are true."""
    steps = [(a, b, c, d) for a, b, c, d in itertools.product((0, 1), repeat=4)]
    one = Scripted(*(tuple(t for t, s in enumerate(steps) if s[i]) for i in (0, 1)))
    two = Scripted(*(tuple(t for t, s in enumerate(steps) if s[i]) for i in (2, 3)))
    for trigger, joins in ((one & two, all), (one | two, any)):
        state = trigger.init(Seed(0))
        for t, (due_one, worth_one, due_two, worth_two) in enumerate(steps):
            is_due = trigger.due(state, t)
            assert is_due == joins((due_one, due_two))
            draft = Draft(Float32().compress(np.zeros(1), Seed(0, step=t)), Sum(np.zeros(1)))
            worth = trigger.worth(state, draft)
            if is_due:
                assert worth == joins((due_one and worth_one, due_two and worth_two))
            else:
                assert worth == joins((worth_one, worth_two)), "the last meeting, due by neither"
            trigger.settled(state, worth)
            trigger.heard(state, np.zeros(1))
        assert state["left"]["told"] == state["right"]["told"] > 0
        assert state["left"]["heard"] == state["right"]["heard"] == 16


def test_every_fourth_step_or_what_is_worth_it() -> None:
    """`every(4) | drift`: at multiples of 4 in any case, between them where drift says so."""
    algorithm = Algorithm(SGD(0.1), Every(4) | Drift(0.05))
    ranks = walked(algorithm, ParameterServer(), R)
    spoken = Counter(wire.ledger.messages["up"] for _, _, wire in ranks)
    assert all(T // 4 < count < T for count in spoken)
    never = walked(Algorithm(SGD(0.1), Every(4) | Drift(1e9)), ParameterServer(), R)
    assert {wire.ledger.messages["up"] for _, _, wire in never} == {T // 4}
    assert {wire.ledger.skips for _, _, wire in never} == {T - T // 4}


@pytest.mark.parametrize(
    "text",
    [
        "every(H=2) & lazy", "lazy | drift(delta=0.5)", "(every & lazy) | drift(delta=1.0)",
        "every(H=[1, 2]) & (lazy(D=2) | drift(delta=cosine(peak=1.0)))",
    ],
)  # fmt: skip
def test_text_of_two(text: str) -> None:
    trigger = build(text, "trigger")
    assert spell(trigger) == text
    assert build(spell(trigger), "trigger") == trigger


def test_what_cannot_be_joined() -> None:
    for text in ("ask & every", "lazy | (every & ask)"):  # ask is a participation
        with pytest.raises(CompositionError, match="cannot be joined that way"):
            build(text, "trigger")
    with pytest.raises(CompositionError, match="cannot be joined that way"):
        build("every >> lazy", "trigger")


def bar(trigger: Lazy, moves: int) -> list[int]:
    """Of the moves 1 … so many of the model, those that the trigger sums: move i has squared length 4^i.

    ξ, ᾱ and the weight of a move are such that each adds 4^i to the smallest news that is said.
    """
    state = trigger.init(Seed(0))
    place = 0.0
    for i in range(moves + 1):
        place += 2.0**i if i else 0.0
        trigger.heard(state, np.array([place]))
    sender = Sender(Link(), np.zeros(1), ())

    def said(news: float) -> bool:
        return trigger.worth(state, sender.draft(np.ones(1), Seed(0), news, 1))

    low, high = 0, 4 ** (moves + 1)  # the smallest whole number that is said lies from low to high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if said(middle) else (middle + 1, high)
    assert low < 4 ** (moves + 1)
    return [i for i in range(1, moves + 1) if low >> 2 * i & 1]


@pytest.mark.parametrize(
    ("moves", "all_of_them", "rolling"),
    [
        (0, [], []), (1, [1], []), (2, [1, 2], []), (3, [1, 2, 3], [1]), (4, [1, 2, 3, 4], [1, 2, 3]),
        (5, [1, 2, 3, 4, 5], [2, 3, 4, 5]), (6, [2, 3, 4, 5, 6], [3, 4, 5, 6]),
        (12, [8, 9, 10, 11, 12], [9, 10, 11, 12]),
    ],
)  # fmt: skip
def test_which_moves_are_summed(moves: int, all_of_them: list[int], rolling: list[int]) -> None:
    """D = 5: a rolling buffer leaves out the oldest of five, and the newest before it is full."""
    rule = Lazy(D=5, xi=min(max(moves, 1), 5) / 5, rate=1.0)
    assert bar(rule, moves) == all_of_them
    assert bar(replace(rule, rolling=True), moves) == rolling


@pytest.mark.parametrize(("clock", "lag"), [(1, 1), (2, 1), (4, 1), (12, 3), (20, 5)])
def test_a_move_of_several_steps_counts_as_one_of_them(clock: int, lag: float) -> None:
    """Four steps of the worker's own: of the run they are ``clock``, and the way of each counts 1/lag²."""
    trigger = Lazy(D=5, xi=1.0, rate=1.0, patience=30)
    state = trigger.init(Seed(0))
    sender = Sender(Link(), np.zeros(1), ())
    trigger.heard(state, np.zeros(1))
    trigger.heard(state, np.full(1, 3.0))

    def said(news: float) -> bool:
        kept = {**state, "moves": state["moves"].copy()}
        return trigger.worth(kept, sender.draft(np.ones(1), Seed(0, step=4), news, clock))

    wanted = 5 * 9 / lag**2  # the whole weight D·ξ on the only move
    assert said(wanted * 1.0001)
    assert not said(wanted * 0.9999)
    # A skip counts as many steps as it took.
    trigger.worth(state, sender.draft(np.ones(1), Seed(0, step=4), 0.0, clock))
    trigger.settled(state, False)
    assert state["skipped"] == lag


def test_a_skip_moves_no_memory_and_the_rule_remembers_it() -> None:
    """A worker end whose lazy trigger skips: the residual stays, patience runs out after two skips."""
    algorithm = Algorithm(SGD(0.1), Lazy(patience=2, floor=1e9), EF)
    worker = WorkerEnd(algorithm, np.zeros(N), Seed(0), (), Ledger(), True)
    kinds = []
    for t in range(1, 7):
        assert worker.sender is not None
        before = worker.sender.state["residual"].copy()
        kinds.append(worker.message(START, t, t).kind)
        assert np.array_equal(worker.sender.state["residual"], before) == (kinds[-1] is Kind.SKIP)
    assert kinds == [Kind.SKIP, Kind.SKIP, Kind.DATA] * 2
    assert worker.message(START, 7, 7).kind is Kind.SKIP
    assert worker.message(START, 8, 8, last=True).kind is Kind.DATA

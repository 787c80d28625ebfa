"""Triggers, schedules, local steps, server rules, and what may not be composed of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_runs import Still

from qsparse.algorithm import Algorithm
from qsparse.compressors import BFloat16, Blockwise, Float16, Float32, LowPrecision, Sign, TopK
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import AllGather, Exchange, ParameterServer, TreeBroadcast
from qsparse.link import Link
from qsparse.local import SGD, AdamW, Gradient, Local
from qsparse.meeting import Async
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.participation import Ask, Sample
from qsparse.registry import build, spell
from qsparse.rules import check
from qsparse.schedules import Cosine, Rate, Steps, over, rate_at
from qsparse.seeds import Seed
from qsparse.server import Descend, Majority, ServerRule
from qsparse.triggers import Drift, Every, Lazy, RandomGap, Trigger
from qsparse.types import Vector

N = 37


def meetings(trigger: Trigger, seed: int, steps: int) -> list[int]:
    """The synchronisation set, asked for as the loop asks: once a step."""
    state = trigger.init(Seed(seed, use="trigger"))
    return [t for t in range(1, steps + 1) if trigger.due(state, t)]


# --- triggers ------------------------------------------------------------------------------------


@given(H=st.integers(1, 40), steps=st.integers(1, 200))
def test_every(H: int, steps: int) -> None:
    assert meetings(Every(H), 0, steps) == list(range(H, steps + 1, H))


@settings(max_examples=40, deadline=None)
@given(H=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_random_gap(H: int, seed: int) -> None:
    """gap(I_T) ≤ H, and the same set for the same seed."""
    found = meetings(RandomGap(H), seed, 300)
    gaps = np.diff([0, *found])
    assert gaps.min() >= 1
    assert gaps.max() <= H
    assert found[-1] > 300 - H
    assert found == meetings(RandomGap(H), seed, 300)
    assert found[:5] == meetings(RandomGap(H), seed, found[4])


def test_random_gap_draws_every_gap_alike() -> None:
    gaps = np.diff([0, *meetings(RandomGap(4), 7, 5000)])
    shares = np.bincount(gaps, minlength=5)[1:] / len(gaps)
    # 2000 gaps: five standard deviations.
    assert np.abs(shares - 0.25).max() < 0.05
    assert meetings(RandomGap(4), 7, 100) != meetings(RandomGap(4), 8, 100)
    assert meetings(RandomGap(1), 7, 10) == list(range(1, 11))


@pytest.mark.parametrize("kind", [Every, RandomGap])
@pytest.mark.parametrize("H", [0, -3, 2.0, True, "4"])
def test_gaps_are_whole_numbers(kind: Callable[[Any], Trigger], H: Any) -> None:
    with pytest.raises(SettingError, match=r"H must be a whole number of at least 1"):
        kind(H)


# --- schedules -----------------------------------------------------------------------------------


def test_cosine_warms_up_and_comes_down() -> None:
    schedule = Cosine(0.4, steps=110, warmup=10, floor=0.1)
    rates = [schedule.at(t) for t in range(1, 131)]
    assert rates[:10] == pytest.approx([0.04 * t for t in range(1, 11)])
    assert rates[10] == 0.4, "the first step after the warm-up is at the peak"
    assert rates[60] == pytest.approx(0.25), "halfway down after half of the steps"
    assert all(a > b for a, b in pairwise(rates[10:110]))
    for t in (11, 35, 77, 110):
        angle = math.pi * (t - 11) / 100
        assert schedule.at(t) == pytest.approx(0.1 + 0.3 * (1 + math.cos(angle)) / 2)
    assert schedule.at(111) == rates[129] == pytest.approx(0.1), "it stays at the floor"


def test_cosine_without_warmup_starts_at_its_peak() -> None:
    assert Cosine(0.4, steps=10).at(1) == 0.4
    assert Cosine(0.4, steps=1).at(1) == 0.4


def test_a_schedule_without_a_length_gets_the_runs() -> None:
    with pytest.raises(SettingError, match="how long the run is"):
        Cosine(0.4).at(1)
    assert Cosine(0.4, warmup=5, floor=0.1).over(100) == Cosine(0.4, 100, 5, 0.1)
    assert Cosine(0.4, 50).over(100) == Cosine(0.4, 50)
    assert Cosine(0.4, warmup=8).over(3).at(3) == pytest.approx(0.15), "a run shorter than its warm-up"
    assert over(SGD(0.3), 100) == SGD(0.3)
    assert over(SGD(Steps(0.3, (5,))), 100) == SGD(Steps(0.3, (5,)))
    assert over(SGD(Cosine(0.3)), 100) == SGD(Cosine(0.3, 100))
    algorithm = Algorithm(SGD(Cosine(0.4)), server=Majority(Cosine(0.2)))
    assert algorithm.over(60).local == SGD(Cosine(0.4, 60))
    assert algorithm.over(60).server == Majority(Cosine(0.2, 60))


def test_steps_fall_after_each_boundary() -> None:
    schedule = Steps(1.0, after=(3, 5), factor=0.5)
    assert [schedule.at(t) for t in range(1, 8)] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert [rate_at(schedule, 4), rate_at(0.7, 4), rate_at(2, 4)] == [0.5, 0.7, 2.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cosine(0.0),
        lambda: Cosine(0.1, steps=5, warmup=5),
        lambda: Cosine(0.1, warmup=-1),
        lambda: Cosine(0.1, floor=-0.1),
        lambda: Steps(0.0, ()),
        lambda: Steps(0.1, (2,), factor=0.0),
        *(lambda lr=lr: SGD(lr) for lr in (0.0, -1.0, float("nan"), float("inf"), "0.1")),
        lambda: AdamW(0.0),
        lambda: Descend(0.0),
        lambda: Majority(-0.1),
        lambda: SGD(0.1, momentum=1.0),
        lambda: SGD(0.1, momentum=-0.1),
        lambda: SGD(0.1, nesterov=True),
        lambda: SGD(0.1, weight_decay=-0.1),
        lambda: SGD(0.1, weight_decay=float("nan")),
        lambda: AdamW(0.1, beta1=1.0),
        lambda: AdamW(0.1, eps=0.0),
        lambda: Gradient(momentum=1.5),
        lambda: Gradient(nesterov=True),
    ],
)
def test_values_that_no_part_takes(make: Callable[[], object]) -> None:
    with pytest.raises(SettingError):
        make()


# --- local steps ---------------------------------------------------------------------------------


def _noisy(t: int, x: Vector, out: Vector) -> float:
    """A gradient of a known function and a little noise; its loss."""
    out[...] = 0.5 * x + np.random.default_rng(t).normal(size=x.size)
    return float(t)


RATES: list[Rate] = [0.05, Steps(0.1, (20, 40))]
LOCALS = [
    (SGD, {}, {}),
    (SGD, {"momentum": 0.9}, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
     {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (AdamW, {}, {}),
    (AdamW, {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1},
     {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rate", RATES, ids=repr)
@pytest.mark.parametrize(("kind", "ours", "theirs"), LOCALS)
def test_local_steps_are_torchs(
    kind: type, ours: dict[str, Any], theirs: dict[str, Any], rate: Rate, dtype: type
) -> None:
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(0).normal(size=N).astype(dtype)
    local: Local = kind(rate, **ours)
    x = start.copy()
    state = local.init(x)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = getattr(torch.optim, kind.__name__)([parameter], lr=1.0, **theirs)
    for t in range(1, 51):
        assert local.advance(state, lambda x, batch, out: _noisy(batch, x, out), t, t) == t
        slope = np.empty(N, dtype)
        _noisy(t, parameter.detach().numpy(), slope)
        parameter.grad = torch.from_numpy(slope)
        optimizer.param_groups[0]["lr"] = rate_at(rate, t)
        optimizer.step()
    # 50 steps of a few roundings each.
    allowed = 50 * 4 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(x, parameter.detach().numpy(), rtol=allowed, atol=allowed)
    assert np.abs(x - start).max() > 0.1
    assert np.array_equal(state["anchor"], start), "the anchor stays until the coordinator answers"
    assert x is state["x"]


@pytest.mark.parametrize("local", [SGD(0.1, momentum=0.5), AdamW(0.1)], ids=repr)
def test_reports_are_net_updates(local: Local) -> None:
    x = np.ones(N)
    state = local.init(x)
    for t in (1, 2, 3):
        local.advance(state, lambda x, batch, out: _noisy(batch, x, out), t, t)
    out = np.empty(N)
    assert local.report(state, out) is out
    assert np.array_equal(out, 1 - x)
    model = np.full(N, 7.0)
    local.adopt(state, model)
    model[:] = 0
    assert (x == 7).all()
    assert (state["anchor"] == 7).all()
    assert not local.report(state, out).any()


def test_an_oracle_may_have_its_own_place_for_gradients() -> None:
    place = np.zeros(N)
    state = SGD(0.5).init(np.zeros(N), place)
    SGD(0.5).advance(state, lambda x, batch, out: float(out is place), None, 1)
    assert state["gradient"] is place


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_gradient_reports_and_stands_still(momentum: float, nesterov: bool) -> None:
    local = Gradient(momentum, nesterov)
    x, out = np.ones(N), np.empty(N)
    state = local.init(x)
    m = np.zeros(N)
    for t in range(1, 6):
        g = np.empty(N)
        assert _noisy(t, x, g) == local.advance(state, lambda x, batch, out: _noisy(batch, x, out), t, t)
        m = momentum * m + g
        expected = g + momentum * m if nesterov else m
        np.testing.assert_allclose(local.report(state, out), expected, rtol=0, atol=1e-14)
        assert (x == 1).all()
    local.adopt(state, np.full(N, 3.0))
    assert (x == 3).all()


def test_who_follows_a_schedule() -> None:
    assert SGD(Steps(0.1, ())).claims.scheduled
    assert AdamW(Cosine(0.1)).claims.scheduled
    assert not SGD(0.1).claims.scheduled
    assert not Gradient().claims.scheduled


# --- server rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Descend(0.5), Majority(0.5)], ids=repr)
def test_server_rules(rule: ServerRule) -> None:
    start = np.array([1.0, 1.0, 1.0, 1.0])
    state = rule.init(start)
    u = np.array([2.0, -3.0, 0.0, -0.0])
    rule.absorb(state, u, 1)
    assert rule.model(state).tolist() == ([0, 2.5, 1, 1] if isinstance(rule, Descend) else [0.5, 1.5, 1, 1])
    assert start.tolist() == [1, 1, 1, 1]
    assert u.tolist() == [2, -3, 0, 0]


@pytest.mark.parametrize("kind", [Descend, Majority])
def test_server_rates_go_by_steps(kind: Callable[[Rate], ServerRule]) -> None:
    rule = kind(Steps(1.0, after=(2,), factor=0.5))
    state = rule.init(np.zeros(1))
    models = []
    for t in (1, 2, 3, 7):
        rule.absorb(state, np.ones(1), t)
        models.append(float(rule.model(state)[0]))
    assert models == [-1, -2, -2.5, -3]


def test_descend_averages_models_unless_told_otherwise() -> None:
    state = Descend().init(np.array([4.0]))
    Descend().absorb(state, np.array([3.0]), 1)
    assert state["x"].tolist() == [1.0]


def asking(**more: Any) -> Algorithm:
    """Gradients of which the coordinator asks for some."""
    row = Algorithm(Gradient(), up=Link(memory=Innovation()), server=Descend(0.1), participation=Ask())
    return replace(row, **more)


# --- what may not be composed --------------------------------------------------------------------

EF = ErrorFeedback()
STEPWISE = Steps(0.1, (5,))
SERVING = ParameterServer(works=False)
SHRINKING = SGD(0.1, weight_decay=0.1, decoupled=True)
CLIPPED = LowPrecision(delta=0.01)
REFUSED: list[tuple[Algorithm, Exchange, int, type[Exception], str]] = [
    (Algorithm(SGD(STEPWISE), up=Link(Float16(), EF)), ParameterServer(), 2, CompositionError,
     r"float16 under error feedback needs a constant learning rate.*choose"),
    (Algorithm(SGD(STEPWISE), up=Link(TopK(k=3) >> CLIPPED, EF)), ParameterServer(), 2, CompositionError,
     r"topk\(k=3\) >> lowprecision\(delta=0.01\) under error feedback.*C\(a·x\) is not a·C\(x\)"),
    (Algorithm(AdamW(STEPWISE), up=Link(Blockwise(Sign(norm=None), size=8), EF)), ParameterServer(), 2,
     CompositionError, "blockwise.*under error feedback"),
    (Algorithm(Gradient(), Every(2)), ParameterServer(), 2, CompositionError,
     r"gradient reports one gradient, so it must speak after every step, not every\(H=2\): use sgd"),
    (Algorithm(Gradient(0.9), RandomGap(2)), AllGather(), 2, CompositionError, r"gradient\(momentum=0.9\)"),
    (Algorithm(SGD(0.1), up=Link(Float32(), EF)), ParameterServer(), 2, CompositionError,
     "error feedback around float32 remembers nothing but rounding: use memory stateless"),
    (Algorithm(Gradient(), up=Link(TopK(k=3), EF), server=Descend(STEPWISE)), ParameterServer(), 2,
     CompositionError, r"error feedback needs a constant server step.*into local step sgd"),
    (Algorithm(SGD(0.1), up=Link(TopK(k=3), EF), server=Descend(STEPWISE)), ParameterServer(), 2,
     CompositionError, "error feedback needs a constant server step"),
    (Algorithm(Gradient(), Lazy(), Link(TopK(k=3), EF), Descend(0.1)), ParameterServer(), 2, CompositionError,
     "lazy skips messages, and what gradient with memory errorfeedback would have said is lost"),
    (Algorithm(SGD(0.1), Lazy(), Link(memory=Innovation())), ParameterServer(), 2, CompositionError, "lost"),
    (Algorithm(SGD(0.1), Every(2) & Drift(1.0), Link(memory=Innovation())), ParameterServer(), 2,
     CompositionError, r"every\(H=2\) & drift\(delta=1.0\) skips messages"),
    (Algorithm(Gradient(), Every(2) & Lazy(), Link(memory=Innovation())), ParameterServer(), 2,
     CompositionError, r"must speak after every step, not every\(H=2\) & lazy"),
    (Algorithm(SGD(0.1), Every((1, 2))), ParameterServer(), 2, CompositionError,
     r"every\(H=\[1, 2\]\) gives each worker steps of its own.*use meeting asynchronous"),
    (Algorithm(SGD(0.1), RandomGap((1, 2)) | Drift(1.0), meeting=Async()), SERVING, 4, SettingError,
     r"randomgap\(H=\[1, 2\]\): H is a list of 2 for 3 workers"),
    (asking(), ParameterServer(), 2,
     CompositionError, r"ask needs a coordinator that only serves.*unlike server: use exchange"),
    (asking(), TreeBroadcast(), 2,
     CompositionError, "ask needs a coordinator that only serves, and answers some"),
    (asking(), AllGather(), 2,
     CompositionError, "unlike allgather"),
    (Algorithm(SGD(0.1), Every(1), Link(TopK(k=3), EF), participation=Ask()), SERVING, 2, CompositionError,
     r"not for nothing as with sgd\(lr=0.1\) and memory errorfeedback"),
    (asking(up=Link(TopK(k=3), EF)), SERVING, 2, CompositionError,
     "not for nothing as with gradient and memory errorfeedback"),
    (asking(down=Link(memory=Innovation())),
     SERVING, 2, CompositionError, "who is not asked is told nothing"),
    (asking(meeting=Async()),
     SERVING, 2, CompositionError, "who is not asked is told nothing"),
    (asking(participation=Ask(smoothness=(1.0, 2.0))),
     SERVING, 4, SettingError, "smoothness is a list of 2 for 3 workers"),
    (asking(server=Still()), SERVING, 4, CompositionError,
     "ask compares news with the server's last steps"),
    (Algorithm(Gradient(), Lazy(), Link(memory=Innovation()), Descend(0.1), participation=Sample(0.5)),
     SERVING, 4, CompositionError, "by which workers choose as well"),
    (Algorithm(SGD(0.1), Every(2), Link(TopK(k=3), EF), down=Link(TopK(k=3), Innovation()),
               participation=Sample(0.5)), SERVING, 4, CompositionError, "who is not asked is told nothing"),
    (Algorithm(SGD(0.1), participation=Sample(0.5)), ParameterServer(), 4, CompositionError,
     r"sample\(fraction=0.5\) needs a coordinator that only serves"),
    (Algorithm(SHRINKING), ParameterServer(), 2, CompositionError,
     "every rank applies by itself needs a model that both ends of the down link know"),
    (Algorithm(SHRINKING, Every(2), down=Link(memory=Innovation())), ParameterServer(), 2, CompositionError,
     "else leave decoupled out"),
    (Algorithm(SHRINKING, down=Link(memory=Innovation()), meeting=Async()), SERVING, 2, CompositionError,
     "else leave decoupled out"),
    (Algorithm(Gradient(), Lazy()), ParameterServer(), 2, CompositionError, "gradient with memory stateless"),
    (Algorithm(Gradient(), Lazy(rate=0.3), Link(memory=Innovation()), Descend(0.1)), ParameterServer(), 2,
     CompositionError, r"lazy\(rate=0.3\): the step size is the server rule's, so leave rate out"),
    (Algorithm(SGD(0.1)), ParameterServer(root=2), 2, SettingError, r"server\(root=2\): there is no rank 2"),
    (Algorithm(SGD(0.1)), TreeBroadcast(root=-1), 4, SettingError, r"tree\(root=-1\): there is no rank -1"),
    (Algorithm(SGD(0.1)), ParameterServer(works=False), 1, SettingError,
     "nobody is left to work; start more ranks"),
]  # fmt: skip
ALLOWED: list[tuple[Algorithm, Exchange, int]] = [
    (Algorithm(SGD(0.1), up=Link(Float16(), EF)), ParameterServer(), 2),
    (Algorithm(SGD(STEPWISE), up=Link(Float16())), ParameterServer(), 2),
    (Algorithm(SGD(STEPWISE), up=Link(Float16(), Innovation())), ParameterServer(), 2),
    (Algorithm(SGD(STEPWISE), up=Link(BFloat16(), EF)), ParameterServer(), 2),
    (Algorithm(SGD(STEPWISE), up=Link(TopK(k=3) >> LowPrecision(), EF)), ParameterServer(), 2),
    (Algorithm(SGD(STEPWISE), RandomGap(3), Link(TopK(k=3) >> Sign(), EF)), ParameterServer(), 2),
    (Algorithm(Gradient(), Every(1), Link(TopK(k=3), EF), Descend(0.1)), ParameterServer(), 2),
    (Algorithm(Gradient(), up=Link(TopK(k=3)), server=Descend(STEPWISE)), ParameterServer(), 2),
    (Algorithm(SGD(0.1)), ParameterServer(root=1, works=False), 2),
    (Algorithm(SGD(0.1)), ParameterServer(), 1),
    (Algorithm(SGD(0.1), Lazy(), Link(TopK(k=3), EF)), ParameterServer(), 2),
    (Algorithm(SGD(0.1), Every(4) & (Lazy() | Drift(1.0))), AllGather(), 2),
    (Algorithm(SGD(0.1), Every((1, 2, 3)) & Drift(1.0), meeting=Async()), SERVING, 4),
    (Algorithm(Gradient(), Lazy() & Drift(1.0), Link(TopK(k=3), Innovation()), meeting=Async()), SERVING, 4),
    (
        asking(),
        SERVING,
        2,
    ),
    (Algorithm(SHRINKING, down=Link(Sign(), Innovation())), TreeBroadcast(), 2),
    (Algorithm(SGD(0.1, decoupled=True), Every(2)), ParameterServer(), 2),
    (Algorithm(SGD(0.1)), TreeBroadcast(root=3), 4),
    (Algorithm(SGD(0.1)), AllGather(), 1),
]


@pytest.mark.parametrize(("algorithm", "exchange", "size", "error", "reason"), REFUSED)
def test_refused(
    algorithm: Algorithm, exchange: Exchange, size: int, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        check(algorithm, exchange, size)


@pytest.mark.parametrize(("algorithm", "exchange", "size"), ALLOWED)
def test_allowed(algorithm: Algorithm, exchange: Exchange, size: int) -> None:
    check(algorithm, exchange, size)


def test_an_algorithm_spells_all_its_axes() -> None:
    algorithm = build("qsparse-local-sgd(lr=0.2, H=3, compressor=topk(k=2) >> sign)", "algorithm")
    axes = {
        "local": "sgd(lr=0.2)",
        "trigger": "every(H=3)",
        "compressor": "topk(k=2) >> sign",
        "memory": "errorfeedback",
        "server": "descend",
        "down": "float32",
        "down_memory": "changes",
        "meeting": spell(algorithm.meeting),
    }
    assert axes.items() <= algorithm.axes().items()
    for axis, kind in (("local", "local"), ("trigger", "trigger"), ("server", "server")):
        assert spell(build(algorithm.axes()[axis], kind)) == algorithm.axes()[axis]
    assert algorithm.spelling().startswith("local sgd(lr=0.2), trigger every(H=3), compressor topk(k=2)")

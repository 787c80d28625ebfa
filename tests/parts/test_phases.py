"""Algorithms of several phases: who knows what when one begins, what it costs, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qsparse.algorithm import Algorithm
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import Exchange, ParameterServer, TreeBroadcast
from qsparse.ledger import Ledger
from qsparse.meeting import Async
from qsparse.registry import build
from qsparse.rounds.asynchronous import Answered
from qsparse.rounds.phases import Walk
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.types import Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

N = 30
START = np.linspace(-1, 1, N, dtype=np.float32)


def preset(text: str) -> Algorithm:
    """An algorithm by its text."""
    algorithm: Algorithm = build(text, "algorithm")
    return algorithm


def walked(algorithm: Algorithm, ranks: int, steps: int, exchange: Exchange | None = None) -> list[Any]:
    """Each rank's model, its ledger and its steps by phase, after pulling towards a point of its own."""
    exchange = exchange or natural_exchange(algorithm)
    check(algorithm, exchange, ranks)

    def body(wire: Wire) -> tuple[Vector, Ledger, list[Algorithm]]:
        target = np.roll(START, 3 * wire.rank)

        def oracle(x: Vector, batch: Any, out: Vector) -> float:
            np.subtract(x, target, out=out)
            if batch is not None:
                out += np.float32(0.1) * np.random.default_rng((wire.rank, batch)).standard_normal(
                    N, np.float32
                )
            return float(out @ out)

        x = START.copy()
        walk = Walk(algorithm.over(steps), exchange, wire, x, Seed(3))
        events = list(walk.steps(steps, oracle, lambda t: t))
        return x, wire.ledger, [each.phase for each in events if not isinstance(each, Answered)]

    return run_threads(ranks, body, timeout=60)


def test_a_warm_up_is_a_prelude_that_comes_once() -> None:
    """Ten dense steps, then compressed ones to the end; the model goes on where the warm-up left it."""
    dense = replace(preset("sgd(lr=0.1)"), length=10)
    main = preset("topk-sgd(lr=0.1, k=2)")
    (x, ledger, phases), *others = walked(replace(main, prelude=dense), 3, 50, TreeBroadcast())
    assert [phase.length for phase in phases] == [10] * 10 + [None] * 40
    assert all(np.array_equal(x, other) for other, _, _ in others)
    assert ledger.paper_bits["up"] == 10 * 32 * N + 40 * (2 * 32 + 2 * 5)
    assert np.array_equal(walked(replace(main, prelude=dense), 3, 10)[0][0], walked(dense, 3, 10)[0][0])
    alone = walked(replace(main, prelude=dense), 3, 11)[0][0] - walked(dense, 3, 10)[0][0]
    assert 0 < np.count_nonzero(alone) <= 3 * 2, "the eleventh step is said by two entries of each worker"


def test_phases_are_walked_in_a_circle() -> None:
    """Preludes come back after every stretch, and the run is as long as it was to be."""
    one = replace(preset("sgd(lr=0.1)"), length=2)
    other = replace(preset("local-sgd(lr=0.1, H=3)"), prelude=one, length=4)
    phases = walked(other, 2, 15)[0][2]
    assert [phase.length for phase in phases] == [2, 2, 4, 4, 4, 4] * 2 + [2, 2, 4]


def test_a_full_gradient_costs_one_vector_each_way() -> None:
    """Up the gradient, down at the end of the phase the model; and nothing for a model that did not move."""
    algorithm = preset("asyfpg(lr=0.1, inner=5)")
    (coordinator, ledger, _), *workers = walked(algorithm, 3, 12)
    assert all(np.array_equal(coordinator, x) for x, _, _ in workers)
    assert not np.array_equal(coordinator, START)
    reports = sum(ledger.staleness.values())
    assert 20 <= reports <= 24
    sent = [ledger for _, ledger, _ in workers]
    assert sum(each.paper_bits["up"] for each in sent) == 32 * N * (reports + 2 * 2)
    # Each report is answered with a model, the last ones with that of the end of the phase.
    assert sum(each.paper_bits["down"] for each in sent) == 32 * N * reports
    assert sum(each.skips for each in sent) == 0


def test_variance_reduction_finds_the_minimum() -> None:
    """Noise of the batches is the same at both models and cancels, so a constant step converges."""
    goal = np.mean([np.roll(START, 3 * rank) for rank in (1, 2)], axis=0)
    for text in (
        "asylpg(lr=0.1, inner=20)",
        "sparse-asylpg(lr=0.1, inner=20)",
        "acc-asylpg(lr=0.1, inner=20)",
    ):
        x = walked(preset(text), 3, 300)[0][0]
        assert np.max(np.abs(x - goal)) < 2e-3, text
    pulled = walked(preset("asylpg(lr=0.1, inner=20, l2=1.0)"), 3, 300)[0][0]
    assert np.max(np.abs(pulled - goal / 2)) < 2e-3
    thinned = walked(preset("asylpg(lr=0.1, inner=20, l1=0.3)"), 3, 300)[0][0]
    np.testing.assert_allclose(thinned, goal - np.clip(goal, -0.3, 0.3), atol=2e-3)
    assert np.count_nonzero(thinned == 0) >= np.count_nonzero(np.abs(goal) < 0.25) > 0


def test_refusals() -> None:
    """What cannot be a phase, and parts that need the phase before them."""
    dense, packed = preset("sgd"), preset("dist-ef-sgd")
    snapshot = preset("asylpg")
    refused = [
        (replace(dense, prelude=dense), "a prelude needs a length"),
        (replace(dense, prelude=replace(dense, prelude=dense, length=1)), "has no prelude of its own"),
        (replace(dense, prelude=replace(packed, length=3)), "use float32 on its down link"),
        (replace(packed, prelude=replace(dense, length=3), length=4), "use float32 on its down link"),
        (replace(snapshot, prelude=None), "go together"),
        (replace(snapshot, server=dense.server), "go together"),
        (replace(snapshot, local=preset("gd").local), "go together"),
        (replace(dense, down=snapshot.answer, meeting=Async()), None),
        (replace(dense, server=preset("asylpg").prelude.server), "never moves the model"),
        (
            replace(dense, prelude=replace(dense, server=snapshot.prelude.server, length=1)),
            "never moves the model",
        ),
        (replace(snapshot, up=preset("laq").up), "use memory stateless"),
        (replace(preset("acc-asyfpg"), meeting=dense.meeting), "use meeting asynchronous"),
        (
            replace(dense, down=replace(snapshot.answer, compressor=build("sign", "compressor"))),
            "has but one",
        ),
    ]
    for algorithm, reason in refused:
        exchange = natural_exchange(algorithm)
        if reason is None:
            check(algorithm, exchange, 3)
            continue
        with pytest.raises(CompositionError, match=reason):
            check(algorithm, exchange, 3)
    for length in (0, -1, 2.5, True):
        with pytest.raises(SettingError, match=f"a whole number of at least 1 steps, not {length}"):
            replace(dense, length=length)
    with pytest.raises(CompositionError, match=r"server\(works=false\)"):
        check(snapshot, ParameterServer(), 3)

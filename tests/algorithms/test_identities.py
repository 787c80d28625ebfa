"""What follows from the formulas: virtual iterates, limits in which presets coincide, and AsyLPG's condition.

The identities hold for the states of the parts, in float64, whatever float32 scales travel: what is
kept of a message is what the receiver did not get.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import paper_runs as synchronous
import paper_runs_async as asynchronous
import pytest
import transcriptions as paper
import transcriptions_async as paper_async
import transcriptions_lazy as paper_lazy
from paper_runs import LAYERS, LAYOUT, RUN, START, WORKERS, N, counted, gradient

from qsparse.algorithm import Algorithm
from qsparse.compressors import decompress
from qsparse.exchange import ParameterServer
from qsparse.link import Link
from qsparse.meeting import Sync
from qsparse.memory import ErrorFeedback, Innovation, Snapshot
from qsparse.registry import build
from qsparse.rounds.asynchronous import Order
from qsparse.rounds.node import Node
from qsparse.rounds.phases import Walk
from qsparse.rounds.synchronous import rounds
from qsparse.rules import check
from qsparse.schedules import Schedule, rate_at
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads


def row(text: str) -> Algorithm:
    algorithm: Algorithm = build(text, "algorithm")
    return algorithm


# --- virtual iterates ----------------------------------------------------------------------------


class Wild(Schedule):
    """Up and down by factors of up to a hundred from one step to the next."""

    def at(self, t: int) -> float:
        return float(0.002 * 10 ** np.random.default_rng(t).uniform(-1, 1))


class Forgetful(ErrorFeedback):
    """Keeps nothing of what it did not say."""

    def commit(self, state: Any, draft: Any) -> Any:
        """Nothing."""


class Believing(Innovation):
    """Thinks that the receivers know all it wanted to say."""

    def commit(self, state: Any, draft: Any) -> Any:
        state["known"] += draft.target


def departure(algorithm: Algorithm, M: int = 4, steps: int = 120) -> tuple[float, float]:
    """How far x_t − (ẽ_t + (1/M)Σe_{t,i}) is from x_0 − Σ η·(mean direction), and how large Σe_{t,i} is.

    The largest entries over all meetings. Errors are in the units of the parameters, so this is the
    virtual iterate of Zheng et al. (2019) with η_{t−1} inside: x_t is the workers' model, ẽ_t is x_t minus
    the coordinator's model, which it has not said yet, and e_{t,i} is what worker i keeps. For Basu et al.
    (2019), whose models are said in float32, ẽ_t is that rounding.
    """
    check(algorithm, ParameterServer(), M)

    def body(wire: Wire) -> list[tuple[np.ndarray, ...]]:
        x, found = START.copy(), []
        node = Node(algorithm, ParameterServer(), wire, x, Seed(RUN), LAYOUT, wire.ledger)
        local: Any = algorithm.local
        own = paper.Momentum(N, local.momentum, local.nesterov)
        walked, behind = np.zeros(N), np.zeros(N)

        def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
            out[...] = gradient(wire.rank % WORKERS, x, M * t + wire.rank)
            walked[...] += rate_at(local.lr, t) * own.direction(out, x)
            return 0.0

        for _, _, met in rounds(node, x, steps, oracle, lambda t: t):
            if met:
                if (coordinator := node.coordinator) is not None:
                    behind = coordinator.sender.state.get("known", x) - coordinator.model
                assert node.worker.sender is not None
                found.append((x.copy(), behind, node.worker.sender.state["residual"].copy(), walked.copy()))
        return found

    most = kept = 0.0
    for meeting in zip(*run_threads(M, body, timeout=60), strict=True):
        models, behind, residuals, walked = zip(*meeting, strict=True)
        assert all(np.array_equal(x, models[0]) for x in models)
        errors = sum(residuals) / M
        virtual = models[0] - (behind[0] + errors)
        most = max(most, np.max(np.abs(virtual - (START - sum(walked) / M))))
        kept = max(kept, np.max(np.abs(errors)))
    return float(most), float(kept)


def wild(text: str) -> Algorithm:
    algorithm = row(text)
    return replace(algorithm, local=replace(algorithm.local, lr=Wild()))


@pytest.mark.parametrize(
    "text",
    [
        "dist-ef-sgd",
        "dist-ef-sgdm",
        "dist-ef-blocksgdm(nesterov=false, size=7)",
        "dist-ef-sgdm(compressor=topk(k=3))",
        "qsparse-local-sgd(H=4, momentum=0.9)",
        "qsparse-local-sgd(H=5, compressor=topk(k=9) >> qsgd(levels=3), random_gaps=true)",
    ],
)
def test_the_virtual_iterate_is_not_compressed(text: str) -> None:
    """With step sizes that change by factors of up to a hundred, and momentum 0.9."""
    most, kept = departure(wild(text))
    assert most < 1e-12
    assert kept > 1e-3, "with nothing kept there is nothing to show"


def test_the_virtual_iterate_shows_what_is_lost() -> None:
    """Of a worker's error, or of the coordinator's, all or a tenth."""
    whole = wild("dist-ef-sgdm")
    for memory in (Forgetful(), ErrorFeedback(decay=0.9)):
        assert departure(replace(whole, up=Link(whole.up.compressor, memory)))[0] > 1e-3
    assert departure(replace(whole, down=Link(whole.answer.compressor, Believing())))[0] > 1e-3


@pytest.mark.parametrize("ahead", ["none", "1"])
def test_the_virtual_iterate_of_workers_that_do_not_wait(ahead: str) -> None:
    """x − (1/R)Σm_r is x_0 − (1/R)Σ η·gradient over all steps of all workers: each counts with 1/R, once."""
    algorithm = row(
        f"qsparse-local-sgd-async(lr=0.02, H=4, compressor=topk(k=3) >> sign, momentum=0.9, ahead={ahead})"
    )

    def body(wire: Wire) -> tuple[np.ndarray, np.ndarray]:
        walk = Walk(algorithm, asynchronous.ASIDE, wire, START.copy(), Seed(RUN), LAYOUT)
        own, walked = paper.Momentum(N, 0.9), np.zeros(N)

        def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
            out[...] = gradient(wire.rank - 1, x, t)
            walked[...] += 0.02 * own.direction(out, x)
            return 0.0

        for _ in walk.steps(100, oracle, lambda t: t):
            pass
        sender = walk.node.worker.sender
        if sender is None:
            return walk.coordinators[0].model, np.zeros(N)
        return sender.state["residual"], walked

    (model, _), *workers = run_threads(WORKERS + 1, body, timeout=60)
    residuals, walked = zip(*workers, strict=True)
    virtual = model - sum(residuals) / WORKERS
    assert np.max(np.abs(virtual - (START - sum(walked) / WORKERS))) < 1e-12
    assert np.max(np.abs(sum(residuals))) > 1e-3


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("general", "special"),
    [
        ("qsparse-local-sgd(H=1, compressor=float32, memory=stateless)", "sgd"),
        ("qsparse-local-sgd(H=4, compressor=float32, memory=stateless)", "local-sgd(H=4)"),
        ("qsparse-local-sgd(H=1, compressor=topk(k=7))", "topk-sgd(k=7)"),
        ("qsparse-local-sgd(H=1, compressor=topk(k=7) >> sign)", "signtopk-sgd(k=7)"),
        ("qsparse-local-sgd(H=1, compressor=blockwise(sign, layers=true))", "ef-signsgd"),
        ("dist-ef-sgdm(lr=0.1, momentum=0.0, nesterov=false)", "dist-ef-sgd(lr=0.1)"),
        ("dist-ef-sgdm(compressor=blockwise(sign, size=7))", "dist-ef-blocksgdm(size=7)"),
    ],
)
def test_a_special_case_is_the_same_row(general: str, special: str) -> None:
    assert row(general) == row(special)


def last(text: str) -> np.ndarray:
    """The model with which a synchronous run ends."""
    algorithm = row(text)
    runs = run_threads(
        WORKERS, lambda wire: synchronous.trained(wire, algorithm, ParameterServer()), timeout=60
    )
    model: np.ndarray = runs[0][synchronous.STEPS]
    return model


def test_who_keeps_everything_averages_models() -> None:
    """C = identity, through the error memory: local SGD."""
    with_memory = last(f"qsparse-local-sgd(lr=0.05, H=4, compressor=topk(k={N}), momentum=0.5)")
    np.testing.assert_allclose(with_memory, last("local-sgd(lr=0.05, H=4, momentum=0.5)"), rtol=0, atol=1e-6)


def test_lazy_in_its_limits() -> None:
    """Never patient: QGD. No weight on the moves and exact values: GD. Exact values: LAG."""
    without, spoken, skipped = counted("laq(lr=0.05, patience=0)")
    assert np.array_equal(without, counted("qgd(lr=0.05)")[0])
    assert (spoken, skipped) == (WORKERS * synchronous.STEPS, 0)
    plain, _, skipped = counted("lag-wk(lr=0.05, xi=0.0)")
    assert skipped == 0
    np.testing.assert_allclose(plain, counted("gd(lr=0.05)")[0], rtol=0, atol=1e-6)
    assert replace(row("laq(D=7, published=true)"), up=Link(memory=Innovation())) == row("lag-wk(D=7)")
    almost, *messages = counted("laq(lr=0.05, bits=16)")
    exact, *the_same = counted("lag-wk(lr=0.05)")
    assert messages == the_same
    np.testing.assert_allclose(almost, exact, rtol=0, atol=1e-4)


def test_laq_of_one_worker() -> None:
    """M = 1: the factor 1/M of the server and the M² of the criterion are 1."""
    algorithm = row("laq(lr=0.05, bits=5)")
    (models,) = run_threads(
        1, lambda wire: synchronous.trained(wire, algorithm, ParameterServer(), still=True), timeout=60
    )
    wanted = paper_lazy.laq(
        START,
        lambda r, x, t: gradient(r, x, 1),
        synchronous.STEPS,
        1,
        LAYERS,
        None,
        lambda t: 0.05,
        bits=5,
    )
    assert models.keys() == wanted.keys()
    assert all(np.max(np.abs(model - wanted[t])) < 2e-6 for t, model in models.items())


# --- AsyLPG --------------------------------------------------------------------------------------

#: Steps of a worker between two full gradients.
PHASES = (39, 39, 39, 39, 4)
#: How many reports are taken before each phase: what its steps need, then one of each other worker.
BEFORE = np.cumsum([0, *(WORKERS * steps + WORKERS - 1 for steps in PHASES)])


def drawn() -> list[int]:
    """An order of arrivals in which rank 1 is seldom heard."""
    rng, order = np.random.default_rng(8), []
    for steps in PHASES:
        reports = rng.choice([1, 2, 3], WORKERS * steps, p=[0.1, 0.4, 0.5]).tolist()
        order += reports + [rank for rank in (1, 2, 3) if rank != reports[-1]]
    return order


def served(algorithm: Algorithm, workers: int = WORKERS) -> asynchronous.Trained:
    ranks = drawn() if workers == WORKERS else None
    run: asynchronous.Trained
    run, *_ = run_threads(
        workers + 1, lambda wire: asynchronous.trained(wire, algorithm, Order(ranks)), timeout=60
    )
    return run


@pytest.mark.parametrize("name", ["asylpg", "acc-asylpg"])
def test_exact_values_both_ways_are_the_baseline(name: str) -> None:
    """Bit for bit, given one order; with Algorithm 1 and 3."""
    quantized = row(f"{name}(lr=0.02, inner=39, l1=0.05)")
    memory = quantized.answer.memory
    assert isinstance(memory, Snapshot)
    exact = served(replace(quantized, up=Link(), down=Link(memory=memory)))
    baseline = served(row(f"{name.replace('lpg', 'fpg')}(lr=0.02, inner=39, l1=0.05)"))
    assert exact.order == baseline.order
    assert all(a.tobytes() == b.tobytes() for a, b in zip(exact.models, baseline.models, strict=True))
    assert not np.array_equal(exact.models[-1], served(quantized).models[-1])


def test_one_worker_waits_for_nobody() -> None:
    """AsyLPG is serial then, and its baseline is what synchronous rounds make of it, bit for bit."""
    case = asynchronous.Case("asylpg(lr=0.03, inner=39)", {"inner": 39}, 0.03)
    run = served(row(case.text), 1)
    # A step for each full gradient is no report.
    assert run.order == [(1, t) for t in range(1, asynchronous.STEPS + 1) if t % 40 != 1]
    assert {answered.staleness for answered, _ in run.answers} == {0}
    asynchronous.compare(case, run, 1)
    baseline = row("asyfpg(lr=0.03, inner=39)")
    together = served(replace(baseline, meeting=Sync()), 1)
    assert served(baseline, 1).final.tobytes() == together.final.tobytes()


@pytest.mark.parametrize(
    ("text", "mu", "accelerated"),
    [
        ("asylpg(lr=0.02, inner=39)", 0.5, False),
        ("asylpg(lr=0.02, bits=4, mu=0.01, inner=39)", 0.01, False),
        ("acc-asylpg(lr=0.02, mu=0.1, inner=39)", 0.1, True),
    ],
)
def test_every_model_is_as_precise_as_asked_for(text: str, mu: float, accelerated: bool) -> None:
    """E‖Q_b(x) − x‖² ≤ θ_s·μ‖x − x̃‖² at every answer, b − 1 bits would not do, and bits grow with time.

    The expectation is exact, and the errors that were made have it as their mean.
    """
    run = served(row(text))
    widths, made, expected, ends = [], 0.0, 0.0, 0
    for answered, x in run.answers:
        reply = answered.reply
        phase = (reply.step - 1) // 40
        if reply.nbits == 32 * N:
            assert reply.step in (*range(40, asynchronous.STEPS, 40), asynchronous.STEPS), "a phase ends"
            ends += 1
            continue
        theta = 2 / (phase + 2) if accelerated else 1.0
        bound = theta * mu * np.sum((x - run.models[BEFORE[phase]]) ** 2)
        bits, rest = divmod(reply.nbits - 32, N)
        assert rest == 0
        assert paper_async.expected_error(x, bits) <= bound
        assert all(paper_async.expected_error(x, fewer) > bound for fewer in range(2, bits))
        widths.append(bits)
        expected += paper_async.expected_error(x, bits) / bound
        made += np.sum((decompress(reply, np.empty(N)) - x) ** 2) / bound
    assert ends == asynchronous.WORKERS * 5, "each of five phases ends with the model itself"
    assert len(widths) > 450
    assert min(widths) >= 2
    assert np.mean(widths[-100:]) > np.mean(widths[:100]) + 1
    assert made == pytest.approx(expected, rel=0.03)

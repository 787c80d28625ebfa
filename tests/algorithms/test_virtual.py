"""Workers in one thread are ranks, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from paper_runs import CASES, LAYOUT, RUN, START, STEPS, WORKERS, Case, gradient, made, trained

from qsparse.link import Link
from qsparse.memory import Innovation
from qsparse.registry import build
from qsparse.rounds.virtual import Virtual
from qsparse.rules import natural_exchange
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

SAMPLE = [case for case in CASES if "," in case.text and made(case).local.claims.asks_once]
#: Steps of a run that only need be the same on both sides: several rounds of whatever a case counts.
SHORT = 64


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.text)
def test_virtual_workers_are_ranks(case: Case) -> None:
    """The same models at the same meetings, and the same paper bits, messages and skips."""
    algorithm = made(case, SHORT)
    star = natural_exchange(algorithm)

    def body(wire: Wire) -> tuple[dict[int, np.ndarray], dict[str, int], dict[str, int], int]:
        models = trained(wire, algorithm, star, case.still, SHORT)
        return models, wire.ledger.paper_bits, wire.ledger.messages, wire.ledger.skips

    ranks = run_threads(WORKERS + (not star.works), body, timeout=60)
    run = Virtual(algorithm, WORKERS, START, seed=Seed(RUN), layout=LAYOUT)
    models = {}
    for t in range(1, SHORT + 1):
        for r in range(WORKERS):
            run.gradients[r] = gradient(r, run.models[r], 1 if case.still else t)
        if run.step(last=t == SHORT):
            # Who was not asked has an older model.
            models[t] = (
                run.model.astype(np.float32)
                if algorithm.participation.claims.chooses
                else run.models[0].copy()
            )
    assert run.t == SHORT
    assert models.keys() == ranks[0][0].keys()
    assert all(np.array_equal(models[t], ranks[0][0][t]) for t in models)
    assert all(np.array_equal(row, run.models[0]) for row in run.models)
    for way in ("up", "down"):
        assert run.ledger.paper_bits[way] == sum(bits[way] for _, bits, _, _ in ranks)
        assert run.ledger.messages[way] == sum(messages[way] for _, _, messages, _ in ranks)
    assert run.ledger.skips == sum(skips for _, _, _, skips in ranks)


def test_asynchronous_virtual_workers_follow_the_paper() -> None:
    """Basu et al., 2019, Algorithm 2, line by line, on one clock."""
    row = build("qsparse-local-sgd-async(lr=0.1, H=4, compressor=topk(k=3) >> sign)", "algorithm")
    run = Virtual(row, WORKERS, START, seed=Seed(RUN), layout=LAYOUT)
    sets = [row.trigger.init(Seed(RUN, rank=r + 1, use="trigger")) for r in range(WORKERS)]
    master, told, local = START.astype(np.float64), [START] * WORKERS, [START] * WORKERS
    memory = [np.zeros(START.size) for _ in range(WORKERS)]
    alone = said = 0
    for t in range(1, STEPS + 1):
        for r in range(WORKERS):
            run.gradients[r] = gradient(r, run.models[r], t)
            local[r] = local[r] - 0.1 * gradient(r, local[r].astype(np.float32), t)
        meeting = [r for r in range(WORKERS) if row.trigger.due(sets[r], t) or t == STEPS]
        for r in meeting:
            u = memory[r] + told[r] - local[r]
            kept = np.argsort(-np.abs(u))[:3]
            g = np.zeros_like(u)
            g[kept] = np.abs(u[kept]).mean() * np.sign(u[kept])
            memory[r] = u - g
            master = master - g / WORKERS
        for r in meeting:
            told[r] = local[r] = master
        assert run.step(last=t == STEPS) == bool(meeting)
        np.testing.assert_allclose(run.models, np.stack(local), rtol=0, atol=2e-6)
        np.testing.assert_allclose(run.model, master, rtol=0, atol=2e-6)
        alone += 0 < len(meeting) < WORKERS
        said += len(meeting)
    assert alone > 3, "the sets are all alike"
    assert run.ledger.messages == {"up": said, "down": said}


def test_virtual_workers_that_do_not_wait_have_no_memory_of_models() -> None:
    row = build("qsparse-local-sgd-async(H=4)", "algorithm")
    with pytest.raises(ValueError, match="use down memory stateless, not innovation"):
        Virtual(replace(row, down=Link(memory=Innovation())), WORKERS, START)

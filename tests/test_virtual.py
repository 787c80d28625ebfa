"""Workers in one thread are ranks, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from test_presets import CASES, LAYOUT, RUN, START, STEPS, WORKERS, Case, gradient, made, trained

from qsparse.algorithm import natural_exchange
from qsparse.rounds.virtual import Virtual
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

SAMPLE = [case for case in CASES if "," in case.text and made(case).local.asks_once]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.text)
def test_virtual_workers_are_ranks(case: Case) -> None:
    """The same models at the same meetings, and the same paper bits, messages and skips."""
    algorithm = made(case)
    star = natural_exchange(algorithm)

    def body(wire: Wire) -> tuple[dict[int, np.ndarray], dict[str, int], dict[str, int], int]:
        models = trained(wire, algorithm, star, case.still)
        return models, wire.ledger.paper_bits, wire.ledger.messages, wire.ledger.skips

    ranks = run_threads(WORKERS + (not star.works), body, timeout=60)
    run = Virtual(algorithm, WORKERS, START, seed=Seed(RUN), layout=LAYOUT)
    models = {}
    for t in range(1, STEPS + 1):
        for r in range(WORKERS):
            run.gradients[r] = gradient(r, run.models[r], 1 if case.still else t)
        if run.step(last=t == STEPS):
            # Who was not asked has an older model.
            models[t] = run.model.astype(np.float32) if algorithm.trigger.asks else run.models[0].copy()
    assert run.t == STEPS
    assert models.keys() == ranks[0][0].keys()
    assert all(np.array_equal(models[t], ranks[0][0][t]) for t in models)
    assert all(np.array_equal(row, run.models[0]) for row in run.models)
    for way in ("up", "down"):
        assert run.ledger.paper_bits[way] == sum(bits[way] for _, bits, _, _ in ranks)
        assert run.ledger.messages[way] == sum(messages[way] for _, _, messages, _ in ranks)
    assert run.ledger.skips == sum(skips for _, _, _, skips in ranks)

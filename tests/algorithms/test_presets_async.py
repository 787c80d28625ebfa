"""Each asynchronous preset is its paper's algorithm, report by report, with `transcriptions_async`.

As in `test_presets`; a seed fixes the order in which reports are taken, and the transcription follows it.
"""

from __future__ import annotations

import numpy as np
import paper_runs as synchronous
import pytest
import transcriptions_async as paper_async
from paper_runs import TRANSCRIPTIONS, WORKERS
from paper_runs_async import CASES, Case, compare, made, trained

from qsparse.registry import names
from qsparse.rounds.asynchronous import Order
from qsparse.wire.threads import run_threads


def test_every_preset_has_a_transcription() -> None:
    transcribed = TRANSCRIPTIONS | paper_async.TRANSCRIPTIONS
    assert set(names("algorithm")) == set(transcribed)
    assert {case.name for case in (*synchronous.CASES, *CASES)} == set(transcribed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_preset_is_its_paper(case: Case) -> None:
    algorithm = made(case.text)
    run, *others = run_threads(WORKERS + 1, lambda wire: trained(wire, algorithm), timeout=60)
    compare(case, run)
    assert all(np.array_equal(run.final, other.final) for other in others)


@pytest.mark.parametrize(
    "text",
    [
        "qsparse-local-sgd-async(H=4, compressor=topk(k=9) >> qsgd(levels=7))",
        "asylpg(lr=0.02, bits=4, inner=39, ahead=4)",
        "acc-asylpg(lr=0.02, inner=39)",
        "sparse-asylpg(lr=0.01, inner=50)",
    ],
)
def test_a_run_is_repeated_from_its_order(text: str) -> None:
    """Whoever is slow the second time: through all phases the same bits, up and down."""
    algorithm = made(text)
    first, *_ = run_threads(WORKERS + 1, lambda wire: trained(wire, algorithm, Order(), slow=1), timeout=60)
    ranks = [rank for rank, _ in first.order]
    recorded = lambda wire: trained(wire, algorithm, Order(ranks), slow=3)  # noqa: E731
    again, *_ = run_threads(WORKERS + 1, recorded, timeout=60)
    assert again.order == first.order
    assert all(a.tobytes() == b.tobytes() for a, b in zip(again.models, first.models, strict=True))
    for (one, _), (other, _) in zip(again.answers, first.answers, strict=True):
        assert (one.rank, one.staleness) == (other.rank, other.staleness)
        assert (one.report.body, one.reply.body) == (other.report.body, other.reply.body)

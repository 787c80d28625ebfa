"""Answers that are adopted some local steps after their reports: overlap of exchange and computing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_laws import on_threads
from mpirun import mpi_run

import qsparse
from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Sign, TopK
from qsparse.errors import CompositionError, RankError, SettingError
from qsparse.exchange import AllGather, Exchange, ParameterServer, Sharded, TreeBroadcast
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.meeting import Sync
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.rules import check
from qsparse.run.config import RunConfig
from qsparse.seeds import Seed
from qsparse.triggers import Every
from qsparse.wire.base import Wire

N, STEPS, LR = 23, 37, 0.05


def target(rank: int, t: int) -> np.ndarray:
    found: np.ndarray = np.random.default_rng((rank, t)).normal(size=N).astype(np.float32)
    return found


def model(
    wire: Wire, row: Algorithm, exchange: Exchange, failing: int | None = None, share: int | None = None
) -> np.ndarray:
    """The model after all steps, each towards a point of this rank, or share, and step."""
    mine = wire.rank if share is None else share
    x = np.linspace(-1, 1, N).astype(np.float32)
    node = Node(row, exchange, wire, x, Seed(3), (), Ledger())

    def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
        if failing == wire.rank and t == 19:
            raise ValueError("no luck")
        out[...] = x - target(mine, t)
        return 0.0

    try:
        for _ in rounds(node, x, STEPS, oracle, lambda t: t, delay=row.meeting.claims.delay):
            pass
    except Exception as error:
        exchange.notify(wire, error, 19)
        raise
    return x


def transcribed(workers: int, H: int, delay: int) -> np.ndarray:
    """The same with exact messages, straight from the definition."""
    start = np.linspace(-1, 1, N)
    common, x, anchor = start.copy(), [start.copy() for _ in range(workers)], [start.copy()] * workers
    under_way: tuple[int, np.ndarray] | None = None
    for t in range(1, STEPS + 1):
        for rank in range(workers):
            x[rank] = x[rank] - LR * (x[rank] - target(rank, t).astype(float))
        if under_way is not None and (t == under_way[0] or t == STEPS):
            common = common - under_way[1]
            for rank in range(workers):
                x[rank] = common + (x[rank] - anchor[rank])
                anchor[rank] = common
            under_way = None
        if t % H == 0 or t == STEPS:
            report = np.mean([anchor[rank] - x[rank] for rank in range(workers)], axis=0)
            anchor = [each.copy() for each in x]
            if t == STEPS:
                return common - report
            under_way = t + delay, report
            if not delay:
                common = common - report
                x, anchor, under_way = [common.copy()] * workers, [common] * workers, None
    raise AssertionError


@pytest.mark.parametrize(("H", "delay"), [(4, 1), (4, 3), (6, 2), (5, 0)])
@pytest.mark.parametrize("exchange", [ParameterServer(), AllGather(), Sharded(), TreeBroadcast()], ids=str)
def test_exact_messages_make_the_model_of_the_definition(exchange: Exchange, H: int, delay: int) -> None:
    row = Algorithm(SGD(LR), Every(H), meeting=Sync(delay))
    check(row, exchange, 3)
    found = on_threads(3, lambda wire: model(wire, row, exchange))
    assert all(each.tobytes() == found[0].tobytes() for each in found)
    np.testing.assert_allclose(found[0], transcribed(3, H, delay), rtol=2e-5, atol=2e-6)


def test_a_coordinator_may_only_serve() -> None:
    """Three workers behind a fourth rank make what three make among themselves."""
    row = Algorithm(SGD(LR), Every(6), meeting=Sync(2))
    alone = on_threads(3, lambda wire: model(wire, row, AllGather()))
    for root in (0, 3):
        server = ParameterServer(root, works=False)

        def body(wire: Wire, server: ParameterServer = server) -> np.ndarray:
            workers = server.workers(4)
            share = workers.index(wire.rank) if wire.rank in workers else None
            return model(wire, row, server, share=share)

        assert {each.tobytes() for each in on_threads(4, body)} == {alone[0].tobytes()}


TWO_WAYS = Algorithm(
    SGD(LR, momentum=0.5),
    Every(5),
    Link(TopK(k=6) >> QSGD(3), ErrorFeedback()),
    down=Link(Sign(), Innovation()),
    meeting=Sync(3),
)


def test_results_do_not_depend_on_which_is_faster() -> None:
    """Ten times over threads, and over processes; and without a delay it is another run."""
    seen = {
        each.tobytes() for _ in range(10) for each in on_threads(3, lambda w: model(w, TWO_WAYS, Sharded()))
    }
    assert len(seen) == 1
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import test_delay as t
        from qsparse.exchange import Sharded
        from qsparse.wire.mpi import MpiWire
        wire = MpiWire()
        print(t.model(wire, t.TWO_WAYS, Sharded()).tobytes().hex(), flush=True)
        wire.close()
    """
    printed = mpi_run(3, program, Path(__file__).parent, timeout=60).stdout.split()
    assert {bytes.fromhex(each) for each in printed} == seen
    at_once = replace(TWO_WAYS, meeting=Sync())
    assert on_threads(3, lambda wire: model(wire, at_once, Sharded()))[0].tobytes() not in seen


@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
@pytest.mark.parametrize("exchange", [ParameterServer(), AllGather(), Sharded()], ids=str)
def test_an_error_reaches_every_rank(exchange: Exchange) -> None:
    """One that fails while a round is under way lets it end, and then tells the others."""

    def body(wire: Wire) -> Exception | None:
        try:
            model(wire, TWO_WAYS, exchange, failing=1)
        except Exception as error:
            return error
        return None

    errors = on_threads(3, body)
    assert type(errors[1]) is ValueError
    for rank in (0, 2):
        assert isinstance(errors[rank], RankError), errors
        assert "rank 1" in str(errors[rank])


def test_a_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    """With batch statistics and evaluations, whose messages wait for the round that is under way."""
    settings: dict[str, Any] = {
        "data": "digits", "wire": "threads", "ranks": 3, "steps": 24, "algorithm": "qsparse-local-sgd(H=4)",
        "meeting": "synchronous(delay=2)", "evaluations": 40, "checkpoint_every": 10, "out": str(tmp_path),
    }  # fmt: skip
    whole = qsparse.run(RunConfig(**settings))
    assert [line["step"] for line in whole.history] == [6, 10, 14, 18, 22, 24]
    first = next((tmp_path / "checkpoints").glob("*-step-10"))
    again = qsparse.run(RunConfig(**(settings | {"resume": str(first), "out": str(tmp_path / "again")})))
    assert again.summary["model_sha256"] == whole.summary["model_sha256"]


def test_what_does_not_go_with_a_delay_is_refused() -> None:
    def refused(row: Algorithm, word: str) -> None:
        with pytest.raises(CompositionError, match=word):
            check(row, ParameterServer(), 3)

    late = Sync(4)
    refused(Algorithm(SGD(LR), Every(4), meeting=late), "less than 4")
    check(Algorithm(SGD(LR), Every(5), meeting=late), ParameterServer(), 3)
    for preset, word in (("laq", "reports gradients"), ("sgd", "less than 1")):
        refused(replace(build(preset, "algorithm").closed(), meeting=late), word)
    with pytest.raises(CompositionError, match="the one that speaks"):
        check(TWO_WAYS, build("nodes(outer=server, ranks=2)", "exchange"), 4)
    with pytest.raises(SettingError, match="delay must be a whole number"):
        Sync(-1)
    with pytest.raises(SettingError, match="wire threads or mpi"):
        build("simulated(compute=0.1)", "wire").run(2, lambda wire: model(wire, TWO_WAYS, Sharded()))

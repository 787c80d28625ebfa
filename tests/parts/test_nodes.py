"""Exchange nodes: one rank of a machine says the mean of all of them, and nothing else is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_laws import LAYOUT, N, on_threads
from mpirun import mpi_run

import qsparse
from qsparse.algorithm import Algorithm
from qsparse.compressors import Blockwise, Float16, Sign, TopK
from qsparse.errors import CheckpointError, CompositionError, QsparseError, RankError, SettingError
from qsparse.exchange import AllGather, Exchange, Nodes, ParameterServer, Sharded, TreeBroadcast
from qsparse.ledger import Ledger, combine
from qsparse.link import Link
from qsparse.local import LASG, SGD, Gradient
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.participation import Everyone
from qsparse.planning import messages
from qsparse.registry import build, spell
from qsparse.rounds.node import Node
from qsparse.rounds.phases import Walk
from qsparse.rules import check
from qsparse.run.config import RunConfig
from qsparse.seeds import Seed
from qsparse.server import Descend
from qsparse.triggers import Drift, Lazy
from qsparse.wire.base import Wire
from qsparse.wire.threads import ThreadWire

OUTER = [ParameterServer(), ParameterServer(root=1), TreeBroadcast(), AllGather(), Sharded()]

#: Nothing in them is drawn, so it does not matter which rank speaks.
ROWS = {
    "one way": Algorithm(SGD(0.1), up=Link(TopK(k=5) >> Sign(), ErrorFeedback())),
    "two ways": Algorithm(
        SGD(0.1, momentum=0.5),
        up=Link(Blockwise(Sign(), layers=True), ErrorFeedback()),
        down=Link(TopK(ratio=0.2) >> Sign(), Innovation()),
    ),
    "dense": Algorithm(SGD(0.1)),
    "lazy": Algorithm(
        Gradient(),
        Lazy(D=3, xi=1.0),
        up=Link(Blockwise(Sign(), size=8), Innovation()),
        server=Descend(0.1),
    ),
    "who skips says it later": Algorithm(SGD(0.1), Drift(0.5), up=Link(TopK(k=9), ErrorFeedback())),
}


def walked(
    wire: Wire, row: Algorithm, exchange: Exchange, share: Callable[[int], int], steps: int = 8
) -> tuple[bytes, dict[str, Any]]:
    """The model after some steps, on data of a number of one's own, and what was counted."""
    x = np.linspace(-1, 1, N).astype(np.float32)
    walk = Walk(row, exchange, wire, x, Seed(3), LAYOUT)

    def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
        out[...] = x - np.random.default_rng((share(wire.rank), t)).normal(size=N).astype(np.float32)
        return 0.0

    for _ in walk.steps(steps, oracle, lambda t: t):
        pass
    return x.tobytes(), wire.ledger.snapshot()


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", OUTER, ids=spell)
@pytest.mark.parametrize("name", ROWS)
def test_machines_of_one_rank_are_the_outer_exchange(name: str, outer: Exchange) -> None:
    """To the last bit, bytes and paper bits included."""
    one, *others = (
        on_threads(3, lambda wire, e=e: walked(wire, ROWS[name], e, lambda rank: rank))
        for e in (outer, Nodes(outer, ranks=1), Nodes(outer, ranks=1, recompress=True))
    )
    for other in others:
        for (x, counted), (y, again) in zip(one, other, strict=True):
            assert x == y
            assert {**counted, "seconds": None} == {**again, "seconds": None}


@pytest.mark.parametrize("outer", OUTER, ids=spell)
@pytest.mark.parametrize("name", ROWS)
def test_ranks_of_a_machine_with_the_same_to_say_are_one_worker(name: str, outer: Exchange) -> None:
    """The mean of two equal reports is that report: bits, paper bits and skips are those of two workers."""
    alone = on_threads(2, lambda wire: walked(wire, ROWS[name], outer, lambda rank: rank))
    exchange = Nodes(outer, ranks=2)
    pairs = on_threads(4, lambda wire: walked(wire, ROWS[name], exchange, lambda rank: rank // 2))
    assert {x for x, _ in pairs} == {x for x, _ in alone}
    one, other = (combine(counted for _, counted in each) for each in (alone, pairs))
    for key in ("paper_bits", "messages", "skips", "link_bytes", "wire_bytes"):
        assert one[key] == other[key], key
    if ROWS[name].trigger.claims.may_skip:
        assert 0 < one["skips"] < 16


def met(reports: Sequence[np.ndarray], exchange: Exchange) -> np.ndarray:
    """The model after one round of reports in float32, the same on all ranks."""

    def body(wire: Wire) -> bytes:
        node = Node(Algorithm(SGD(0.1)), exchange, wire, np.zeros(N, np.float32), Seed(1), LAYOUT, Ledger())
        model = node.meet(reports[wire.rank].astype(np.float32), 1)
        assert model is not None
        return model.tobytes()

    (one,) = set(on_threads(len(reports), body))
    return np.frombuffer(one, np.float32)


@pytest.mark.parametrize("ranks", [2, 3, 4, (3, 1), (1, 3), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("outer", OUTER[2:], ids=spell)
def test_the_mean_over_machines_is_that_over_ranks(outer: Exchange, ranks: Any) -> None:
    """Of whole numbers exactly, and of others but for rounding, whatever ranks a machine has."""
    draw = np.random.default_rng(1)
    whole = [draw.integers(-1000, 1000, N) * 12.0 for _ in range(4)]
    exchange = Nodes(outer, ranks)
    if len(exchange.machines(4)) != 3:  # a third of a sum is rounded
        assert met(whole, exchange).tobytes() == met(whole, ParameterServer()).tobytes()
    reports = [draw.standard_normal(N) for _ in range(4)]
    np.testing.assert_allclose(met(reports, exchange), met(reports, ParameterServer()), rtol=1e-5, atol=1e-6)


def test_reports_are_added_in_rank_order() -> None:
    """1 is lost beside 2^24, and comes through once the large ones are gone; 2^24 + 3 is rounded to + 4."""
    big = 2.0**24
    reports = [np.full(N, each) for each in (big, -big, 1.0, 1.0, big, 1.0, -big, 0.0)]
    assert met(reports, Nodes(ParameterServer(), ranks=4)).tolist() == [-2 / 8] * N
    assert met(reports, Nodes(ParameterServer(), ranks=8)).tolist() == [-4 / 8] * N


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("outer", OUTER, ids=spell)
@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
def test_an_error_reaches_every_rank_of_every_machine(outer: Exchange, failing: int) -> None:
    exchange = Nodes(outer, ranks=2)

    def body(wire: Wire) -> None:
        x = np.zeros(N, np.float32)
        walk = Walk(ROWS["one way"], exchange, wire, x, Seed(3), LAYOUT)

        def oracle(x: np.ndarray, t: int, out: np.ndarray) -> float:
            if (wire.rank, t) == (failing, 3):
                raise ValueError("no luck")
            out[...] = 1
            return 0.0

        raised: Exception | None = None
        try:
            for _ in walk.steps(5, oracle, lambda t: t):
                pass
        except (ValueError, RankError) as error:
            exchange.notify(wire, error, walk.pace.t)
            raised = error
        assert isinstance(raised, ValueError if wire.rank == failing else RankError)
        assert str(raised).removeprefix(f"rank {failing}, step 3: ValueError: ") == "no luck"

    on_threads(5, body)


@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
def test_a_report_that_is_not_finite_is_named_by_its_rank() -> None:
    """By the rank that has it, not by the one that speaks for it."""
    exchange = Nodes(ParameterServer(), ranks=2)

    def body(wire: Wire) -> str:
        node = Node(ROWS["dense"], exchange, wire, np.zeros(N, np.float32), Seed(1), LAYOUT, Ledger())
        v = np.ones(N, np.float32)
        v[20] = np.nan if wire.rank == 3 else 1
        try:
            node.meet(v, 1)
        except QsparseError as error:
            exchange.notify(wire, error, 1)
            return str(error)
        return ""

    for text in on_threads(4, body):
        assert "at rank 3, step 1, in parameter 'b', element 3 of the update: element 20 is nan" in text


# --- runs ----------------------------------------------------------------------------------------

RUN: dict[str, Any] = {"data": "digits", "ranks": 4, "wire": "threads", "steps": 8, "seed": 2}
LOCAL = {"algorithm": "qsparse-local-sgd(H=2)", "compressor": "topk(ratio=0.1) >> sign"}


def ran(**settings: Any) -> dict[str, Any]:
    return qsparse.run(RunConfig(**(RUN | settings))).summary


def test_a_simulated_network_makes_the_same_model() -> None:
    settings = LOCAL | {"exchange": "nodes(outer=tree, ranks=2)"}
    one, other = ran(**settings), ran(**settings, wire="simulated(rate='100mbit')")
    assert one["model_sha256"] == other["model_sha256"]
    assert one["machine_bytes"] == other["machine_bytes"]


@pytest.mark.parametrize(
    ("exchange", "algorithm"),
    [
        ("nodes(outer=server, ranks=2)", "qsparse-local-sgd(H=2)"),
        ("nodes(outer=sharded, ranks=[3, 1])", "qsparse-local-sgd(H=2)"),
        ("nodes(outer=allgather, ranks=2)", "laq"),
        ("nodes(outer=server, ranks=2, recompress=true)", "qsparse-local-sgd(H=2)"),
        ("nodes(outer=sharded, ranks=[3, 1], recompress=true)", "dist-ef-sgd"),
    ],
)
def test_a_resumed_run_keeps_what_machines_have_not_said(
    tmp_path: Path, exchange: str, algorithm: str
) -> None:
    settings = {"algorithm": algorithm, "exchange": exchange, "out": str(tmp_path), "checkpoint_every": 4}
    whole = ran(**settings)
    first = tmp_path / "checkpoints" / "000001-step-4"
    on = settings | {"resume": str(first), "out": str(tmp_path / "again")}
    again = ran(**on)
    assert again["model_sha256"] == whole["model_sha256"]
    for key in ("paper_bits", "wire_bytes", "link_bytes", "machine_bytes"):
        assert again[key] == whole[key], key
    if exchange.endswith("ranks=2)"):
        with pytest.raises(CheckpointError, match=r"remembered by machine.* go on with as many ranks"):
            ran(**(on | {"ranks": 6, "out": str(tmp_path / "six")}))
    with pytest.raises(CheckpointError, match="exchange is 'nodes"):
        ran(**(on | {"exchange": "nodes(outer=server, ranks=4)", "out": str(tmp_path / "other")}))


@pytest.mark.parametrize("outer", ["server", "tree", "allgather", "sharded"])
def test_bytes_between_machines_fall_by_their_ranks(outer: str) -> None:
    """Two machines of four ranks send each other at most a 3.5th of what eight ranks do."""
    settings = {"algorithm": "dist-ef-sgd", "ranks": 8, "steps": 4}
    alone, together = ran(**settings, exchange=outer), ran(**settings, exchange=f"nodes({outer}, ranks=4)")
    sent = [sum(each["wire_bytes"].values()) for each in (alone, together)]
    assert 0 < sent[1] <= sent[0] / 3.5
    # The speaker's link carries no more than the busiest link does without it.
    assert sum(together["link_bytes"].values()) <= sum(alone["link_bytes"].values())
    assert together["paper_bits"]["up"] * 4 == alone["paper_bits"]["up"]
    # Six dense reports go to who speaks, in every round.
    assert together["machine_bytes"]["up"] >= 4 * 6 * 4 * together["parameters"]
    assert "machine_bytes" not in alone


def test_reports_at_home_are_as_short_as_those_between_machines() -> None:
    """Six signs of a vector in each round in place of six dense ones; between machines all is as it was."""
    settings = {"algorithm": "dist-ef-sgd", "ranks": 8, "steps": 4}
    exact, twice = (
        ran(**settings, exchange=f"nodes(server, ranks=4{more})") for more in ("", ", recompress=true")
    )
    assert twice["model_sha256"] != exact["model_sha256"]
    for key in ("wire_bytes", "link_bytes", "paper_bits", "messages"):
        assert twice[key] == exact[key], key
    assert exact["machine_bytes"]["up"] > 6 * 4 * 4 * exact["parameters"]
    # One machine sends a report to the other in every round, and six ranks do at home.
    assert twice["machine_bytes"]["up"] == 6 * twice["wire_bytes"]["up"]
    assert twice["machine_bytes"]["down"] == exact["machine_bytes"]["down"]


@pytest.mark.parametrize("outer", OUTER, ids=spell)
def test_cost_is_that_of_a_round_between_machines(outer: Exchange) -> None:
    row, n, size = build("dist-ef-sgd(lr=0.1)", "algorithm"), 30_000, 6
    exchange = Nodes(outer, ranks=2)
    sent = messages(row, n, 3)
    cost = exchange.cost(sent.up, sent.down, size)

    def body(wire: Wire) -> tuple[int, int]:
        node = Node(row, exchange, wire, np.zeros(n, np.float32), Seed(1), (), Ledger())
        node.meet(np.random.default_rng(wire.rank).standard_normal(n).astype(np.float32), 1)
        out = wire.ledger.wire_bytes["up"] + wire.ledger.wire_bytes["down"]
        return out, sum(wire.ledger.link_bytes.values()) - out

    found = on_threads(size, body)
    for wanted, place in ((cost.sent, 0), (cost.received, 1)):
        assert max(each[place] for each in found) == pytest.approx(wanted, rel=0.1)
    inner = outer.cost(sent.up, sent.down, 3)
    assert (cost.hops, cost.messages) == (inner.hops + 2, inner.messages + 2)


# --- where the ranks are -------------------------------------------------------------------------


def test_ranks_of_a_machine_are_found_on_the_wire() -> None:
    (wire,) = ThreadWire.group(1)
    for places, text in (
        ((0, 0, 2, 2), "ranks=2"),
        ((0, 0, 0, 3), "ranks=3"),
        ((0, 1, 1, 1), "ranks=[1, 3]"),
        ((0, 0, 2, 2, 4), "ranks=2"),
        ((0, 0, 2, 2, 2), "ranks=[2, 3]"),
        ((0, 0), "ranks=2"),
        ((0, 1), "ranks=1"),
    ):
        wire.machines = places
        found = Nodes(Sharded()).on(wire)
        assert isinstance(found, Nodes)
        assert spell(found) == f"nodes(outer=sharded, {text})"
        assert [ranks[0] for ranks in found.machines(len(places))] == sorted(set(places))
    wire.machines = (0, 1, 0, 1)
    with pytest.raises(SettingError, match=r"\[0, 1, 0, 1\]: have the launcher fill one machine"):
        Nodes(Sharded()).on(wire)
    assert Nodes(Sharded(), 2).on(wire) == Nodes(Sharded(), 2)


def test_threads_are_told_how_many_ranks_a_machine_has() -> None:
    with pytest.raises(SettingError, match=r"say how many .* e\.g\. nodes\(outer=server, ranks=4\)"):
        ran(**LOCAL, exchange="nodes(outer=server)")


def test_processes_make_the_bits_of_threads_and_find_their_machine() -> None:
    pytest.importorskip("mpi4py")
    program = """
        from qsparse.exchange import AllGather, Nodes, ParameterServer, Sharded
        from qsparse.wire.mpi import MpiWire
        import exchange_laws as t

        wire = MpiWire()
        assert wire.machines == (0,) * 4, wire.machines
        assert Nodes(ParameterServer()).on(wire) == Nodes(ParameterServer(), 4)
        bits = [
            t.model(wire, algorithm, Nodes(outer, ranks, recompress))
            for algorithm in t.ALGORITHMS.values()
            for outer in (ParameterServer(), AllGather(), Sharded())
            for ranks in (2, (3, 1), 4)
            for recompress in (False, True)
        ]
        wire.close()
        if wire.rank == 3:
            print(*(each.tobytes().hex() for each in bits))
    """
    import exchange_laws as t

    printed = mpi_run(4, program, timeout=80).stdout.split()
    wanted = [
        set(on_threads(4, lambda wire, a=a, e=e: t.model(wire, a, e).tobytes().hex()))
        for a in t.ALGORITHMS.values()
        for outer in (ParameterServer(), AllGather(), Sharded())
        for ranks in (2, (3, 1), 4)
        for e in (Nodes(outer, ranks), Nodes(outer, ranks, recompress=True))
    ]
    assert [{each} for each in printed] == wanted


def test_a_job_without_a_number_takes_what_mpi_finds(tmp_path: Path) -> None:
    """One machine here, on which one rank speaks; its summary says so."""
    pytest.importorskip("mpi4py")
    out = tmp_path / "out"
    words = ["-m", "qsparse", "train", "--quiet", "--data", "digits", "--steps", "4", "--out", str(out)]
    mpi_run(3, [*words, "--exchange", "nodes(outer=sharded)"], timeout=80)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["exchange"] == "nodes(outer=sharded, ranks=3)"
    assert summary["link_bytes"] == {"up": 0, "down": 0}
    same = ran(ranks=3, steps=4, seed=summary["seed"], exchange="nodes(outer=sharded, ranks=3)")
    assert same["model_sha256"] == summary["model_sha256"]


#: Has MPICH take ranks of this machine for those of two: the lower half and the upper, or every other one.
HALVES = {"MPIR_CVAR_NUM_CLIQUES": "2", "MPIR_CVAR_CLIQUES_BY_BLOCK": "1"}
ODD_AND_EVEN = {"MPIR_CVAR_ODD_EVEN_CLIQUES": "1"}


@pytest.mark.skipif(shutil.which("mpichversion") is None, reason="only MPICH can pretend several machines")
def test_mpi_tells_machines_apart(tmp_path: Path) -> None:
    """Two machines, whose ranks follow each other; where they do not, the job ends with the reason."""
    pytest.importorskip("mpi4py")
    out = tmp_path / "out"
    words = ["-m", "qsparse", "train", "--quiet", "--data", "digits", "--steps", "4", "--out", str(out)]
    words += ["--algorithm", "qsparse-local-sgd(H=2)", "--exchange", "nodes(outer=sharded)"]
    mpi_run(4, words, timeout=80, env=HALVES)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["exchange"] == "nodes(outer=sharded, ranks=2)"
    same = ran(
        algorithm="qsparse-local-sgd(H=2)", steps=4, seed=summary["seed"], exchange=summary["exchange"]
    )
    for key in ("model_sha256", "wire_bytes", "link_bytes", "machine_bytes", "paper_bits"):
        assert same[key] == summary[key], key
    done = mpi_run(4, words, timeout=80, env=ODD_AND_EVEN, check=False)
    assert done.returncode != 0
    assert "are [0, 1, 0, 1]: have the launcher fill one machine after the other" in done.stderr


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size", "word"),
    [
        ("nodes(outer=server(works=false), ranks=2)", 4, "cannot speak for its machine"),
        ("nodes(outer=server(root=2), ranks=2)", 4, "between 2 machines: .* no rank 2 among 2"),
        ("nodes(outer=server, ranks=[2, 3])", 4, "these machines have 5 ranks together, and there are 4"),
        ("nodes(outer=server, ranks=0)", 4, "at least 1"),
        ("nodes(outer=server, ranks=[])", 4, "at least 1"),
        ("nodes(outer=server, ranks=[2, true])", 4, "at least 1"),
        ("nodes(outer=nodes(server, ranks=2), ranks=2)", 4, "the exchange between the machines"),
        ("nodes(outer=topk(k=3))", 4, "the exchange between the machines"),
    ],
)
def test_machines_that_cannot_be_are_refused(text: str, size: int, word: str) -> None:
    with pytest.raises(SettingError, match=word):
        build(text, "exchange").check(size)


def test_what_would_be_another_algorithm_is_refused() -> None:
    exchange, uneven = Nodes(ParameterServer(), 2), Nodes(ParameterServer(), (3, 1))
    row = Algorithm(SGD(0.1))
    half = replace(row, up=Link(Float16()))
    check(half, exchange, 4)
    with pytest.raises(CompositionError, match="different numbers of ranks"):
        check(half, uneven, 4)
    lasg = build("lasg-wk2(lr=0.1)", "algorithm")
    assert lasg.local == LASG()
    check(lasg, ParameterServer(), 4)
    with pytest.raises(CompositionError, match="a machine says the mean of several"):
        check(lasg, exchange, 4)
    twice = Nodes(ParameterServer(), 2, recompress=True)
    check(build("dist-ef-sgd", "algorithm"), twice, 4)
    for text, word in (
        ("laq", "trigger lazy.* keeps back what a machine has to say"),
        ("lag-ps", "memory innovation does not take what a report spells"),
    ):
        check(build(text, "algorithm").with_(participation=Everyone()), exchange, 4)
        with pytest.raises(CompositionError, match=word):
            check(build(text, "algorithm").with_(participation=Everyone()), twice, 4)
    with pytest.raises(CompositionError, match="different numbers of ranks"):
        check(half, replace(uneven, recompress=True), 4)
    for other in (
        row.with_(participation=build("sample(fraction=0.5)", "participation")),
        row.with_(meeting=build("asynchronous", "meeting")),
    ):
        with pytest.raises(CompositionError, match=r"nodes.* server.works=false"):
            check(other, exchange, 4)

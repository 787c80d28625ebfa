"""What every exchange must do, as bodies for any wire; over threads for 1 to 9 ranks and over processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from exchange_laws import (
    ALGORITHMS,
    LAWS,
    N,
    brings_an_error_to_every_rank,
    bytes_of_all,
    counts_what_it_sends,
    divides,
    exchanges,
    model,
    news_of,
    on_threads,
    pools,
)
from mpirun import mpi_run

from qsparse.compressors import Sign, TopK
from qsparse.errors import RankError
from qsparse.exchange import AllGather, Exchange, ParameterServer, Sharded
from qsparse.exchange.base import Peers
from qsparse.link import Link
from qsparse.memory import ErrorFeedback
from qsparse.payload import Kind, Payload, Way
from qsparse.registry import names
from qsparse.wire.base import Wire

SIZES = range(1, 10)


# --- laws: bodies for any wire -------------------------------------------------------------------


# --- over threads --------------------------------------------------------------------------------


def test_all_exchanges_are_here() -> None:
    assert {exchange.registered_name for exchange in exchanges(3)} == set(names("exchange"))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
def test_threads_obey(law: Callable[[Wire, Exchange], None], size: int) -> None:
    for exchange in exchanges(size):
        on_threads(size, lambda wire, exchange=exchange: law(wire, exchange))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
def test_an_error_reaches_every_rank(size: int) -> None:
    """From every rank, before it hands anything in and, where it coordinates, before it answers."""
    for exchange in exchanges(size):
        if isinstance(exchange, Peers) or getattr(exchange, "root", 0) in (0, size - 1):
            for failing in range(size):
                body = lambda wire, e=exchange, f=failing: brings_an_error_to_every_rank(wire, e, f, "before")  # noqa: E731
                on_threads(size, body)
            root = getattr(exchange, "root", None)
            if root is not None:
                body = lambda wire, e=exchange, f=root: brings_an_error_to_every_rank(wire, e, f, "between")  # noqa: E731
                on_threads(size, body)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_those_of_the_frames(size: int) -> None:
    for exchange in exchanges(size):
        counted = on_threads(size, lambda wire, exchange=exchange: counts_what_it_sends(wire, exchange))
        total = {way: sum(one[way] for one in counted) for way in ("up", "down", "control")}
        assert total == bytes_of_all(exchange, size), exchange


def test_allgather_goes_on_after_an_error() -> None:
    """An error is raised only when all have spoken, so the next round starts clean."""

    def body(wire: Wire) -> None:
        for step in range(1, 13):
            failing = step % 4 if step % 2 else None
            news = news_of(wire.rank, step)
            if wire.rank == failing:
                news = Payload.build([b"no"], kind=Kind.ERROR, way=Way.CONTROL, origin=wire.rank, step=step)
            if failing is None:
                payloads = AllGather().gather(wire, news)
                assert payloads is not None
                assert [payload.step for payload in payloads] == [step] * wire.size
            else:
                with pytest.raises(RankError, match=f"rank {failing}, step {step}: no"):
                    AllGather().gather(wire, news)

    on_threads(4, body)


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_star_tree_and_allgather_make_the_same_bits(size: int, name: str) -> None:
    """On all ranks, whatever the root; the coordinator's random numbers are its role's, not its rank's."""
    algorithm = ALGORITHMS[name]
    seen = set()
    for exchange in exchanges(size):
        everybody = exchange.workers(size) == list(range(size)) and not pools(exchange, size)
        if everybody and not divides(algorithm, exchange):
            body = lambda wire, exchange=exchange: model(wire, algorithm, exchange).tobytes()  # noqa: E731
            seen.update(on_threads(size, body))
    assert len(seen) == 1
    start = np.linspace(-1, 1, N).astype(np.float32)
    assert seen != {start.tobytes()}


def test_a_root_that_only_serves_has_the_workers_model() -> None:
    """Three workers behind a fourth rank make what three make among themselves (nothing is drawn)."""
    algorithm = replace(ALGORITHMS["dense"], up=Link(TopK(k=5) >> Sign(), ErrorFeedback()))
    alone = on_threads(3, lambda wire: model(wire, algorithm, AllGather()).tobytes())
    for root in range(4):
        server = ParameterServer(root, works=False)
        served = on_threads(4, lambda wire, server=server: model(wire, algorithm, server).tobytes())
        assert set(served) == set(alone)


# --- over processes ------------------------------------------------------------------------------


def test_processes_obey() -> None:
    pytest.importorskip("mpi4py")
    program = """
        from qsparse.exchange import AllGather, TreeBroadcast
        from qsparse.payload import Payload, Way
        from qsparse.wire.mpi import MpiWire
        import exchange_laws as t

        bits = {name: set() for name in (*t.ALGORITHMS, "two ways by stretches")}
        for exchange in t.exchanges(4):
            wire = MpiWire()
            t.keeps_the_order_of_ranks(wire, exchange)
            for name, algorithm in t.ALGORITHMS.items():
                if t.divides(algorithm, exchange):
                    name += " by stretches"
                if len(exchange.workers(4)) == 4 and not t.pools(exchange, 4):
                    bits[name].add(t.model(wire, algorithm, exchange).tobytes())
            t.leaves_other_messages_alone(wire, exchange)
            mine = t.counts_what_it_sends(wire, exchange)
            # Each rank's counters to all others, by hand.
            counted = []
            for rank in range(wire.size):
                note = Payload.build([repr(mine).encode()], way=Way.CONTROL, origin=rank)
                for dest in range(wire.size):
                    if rank == wire.rank:
                        wire.send([note], dest)
                counted.append(eval(wire.receive(rank)[1][0].text))
            wire.flush()
            total = {way: sum(one[way] for one in counted) for way in mine}
            assert total == t.bytes_of_all(exchange, 4), (exchange, total)
            wire.close()
            for failing in range(4):
                for at in ("before", "between"):
                    # In a tree a rank's children and its parent wait for it, whatever it has said before.
                    late = getattr(exchange, "root", None) == failing or exchange == TreeBroadcast(1)
                    if at == "before" or late:
                        # A wire of its own: what was sent to a rank that had given up stays on it.
                        wire = MpiWire()
                        t.brings_an_error_to_every_rank(wire, exchange, failing, at)
                        wire.flush()
        assert all(len(seen) == 1 for seen in bits.values())
        if wire.rank == 0:
            print(*sorted(seen.pop().hex() for seen in bits.values()))
    """
    printed = mpi_run(4, program, timeout=80).stdout.split()
    bits = []
    for one, exchange in (
        *((each, AllGather()) for each in ALGORITHMS.values()),
        (ALGORITHMS["two ways"], Sharded()),
    ):
        body = lambda wire, one=one, exchange=exchange: model(wire, one, exchange).tobytes().hex()  # noqa: E731
        bits += set(on_threads(4, body))
    assert printed == sorted(bits), "threads and processes make the same bits"

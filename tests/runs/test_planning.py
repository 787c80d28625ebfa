"""What a round costs beforehand, and the exchange that a run chooses by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_laws import on_threads

import qsparse
from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.exchange import AllGather, Exchange, Nodes, ParameterServer, Sharded, TreeBroadcast
from qsparse.files import read_toml
from qsparse.ledger import Ledger
from qsparse.planning import (
    Links,
    Messages,
    Speeds,
    best,
    candidates,
    dense_seconds,
    estimate,
    exchange_for,
    in_parts,
    messages,
)
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.run.config import RunConfig
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.simulated import Simulated, run_simulated


def preset(text: str) -> Algorithm:
    found: Algorithm = build(text, "algorithm").closed()
    return found


# --- costs are those of rounds -------------------------------------------------------------------

ROWS = {
    "one way": "qsparse-local-sgd",
    "dense": "sgd",
    "two ways": "dist-ef-sgd",
    "grid": "qsgd(levels=7)",
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("exchange", [ParameterServer(), TreeBroadcast(), AllGather(), Sharded()], ids=str)
def test_bytes_are_those_of_a_round(exchange: Exchange, name: str) -> None:
    """What the busiest rank sends and receives, within a tenth, for 2, 4 and 7 ranks."""
    row, n = preset(ROWS[name]), 30_000
    for size in (2, 4, 7):
        sent = in_parts(messages(row, n, size), row, exchange, n, size)
        cost = exchange.cost(sent.up, sent.down, size)

        def body(wire: Wire) -> tuple[int, int]:
            node = Node(row, exchange, wire, np.zeros(n, np.float32), Seed(1), (), Ledger())
            noise = np.random.default_rng(wire.rank).standard_normal(n).astype(np.float32)
            node.meet(noise, 1)
            counted = wire.ledger
            out = counted.wire_bytes["up"] + counted.wire_bytes["down"]
            return out, sum(counted.link_bytes.values()) - out

        found = on_threads(size, body)
        for wanted, place in ((cost.sent, 0), (cost.received, 1)):
            assert max(each[place] for each in found) == pytest.approx(wanted, rel=0.1)


def test_long_messages_are_told_from_short_ones() -> None:
    """A million coordinates, as they are and by a sample; a fixed number of values does not grow."""
    n = 1_000_000
    noise = np.random.default_rng(3).standard_normal(n).astype(np.float32)
    for text in ("topk(ratio=0.01) >> sign", "topk(k=500)", "blockwise(sign, size=512)", "uniform(bits=4)"):
        part = build(text, "compressor")
        row = preset("qsparse-local-sgd").with_(compressor=part)
        assert messages(row, n, 4).up == pytest.approx(len(part.compress(noise, Seed(0))), rel=0.05)


# --- seconds -------------------------------------------------------------------------------------


def test_seconds_are_those_of_the_formulas() -> None:
    """At 1,000 bytes a second; nothing else takes time."""
    sent, links, still = Messages(100, 400, 0, 0), Links(1000, 0, 0), Speeds(0, 0, 0)

    def seconds(exchange: Exchange, size: int) -> float:
        return estimate(exchange, sent, 1, size, links, still).seconds

    assert seconds(ParameterServer(), 5) == pytest.approx(4 * 0.1 + 4 * 0.4)
    assert seconds(TreeBroadcast(), 5) == pytest.approx(4 * 0.1 + 3 * 0.4)
    assert seconds(AllGather(), 5) == pytest.approx(4 * 0.1)
    assert seconds(Sharded(), 5) == pytest.approx(0.8 * 0.5 + 2 * 4 * 0.06)


#: Ranks, bytes per second, seconds: links that are short of bytes, and links that are short of speed.
NETWORKS = [(2, 1.25e5, 1e-4), (8, 1.25e8, 1e-4), (12, 1.25e6, 1e-3), (16, 1.25e5, 1e-4)]


@pytest.mark.parametrize("name", ["one way", "two ways"])
@pytest.mark.parametrize(("size", "rate", "latency"), NETWORKS)
@pytest.mark.parametrize("exchange", [ParameterServer(), TreeBroadcast(), AllGather(), Sharded()], ids=str)
def test_seconds_are_those_of_a_simulated_round(
    exchange: Exchange, size: int, rate: float, latency: float, name: str
) -> None:
    """When the last rank has its model, by the clock of a simulated network, within a tenth."""
    row, n = preset(ROWS[name]), 30_000

    def body(wire: Wire) -> float:
        node = Node(row, exchange, wire, np.zeros(n, np.float32), Seed(1), (), Ledger())
        noise = np.random.default_rng(wire.rank).standard_normal(n).astype(np.float32)
        node.meet(noise, 1)
        return wire.now()

    found = max(run_simulated(size, body, Simulated(rate, latency), timeout=60))
    sent = in_parts(messages(row, n, size), row, exchange, n, size)
    told = estimate(exchange, sent, n, size, Links(rate, latency, 0), Speeds(0, 0, 0))
    assert told.moving == pytest.approx(found, rel=0.1)
    assert told.computing == 0


def test_a_link_and_its_rank_are_busy_at_the_same_time() -> None:
    """With short messages the rank is what is waited for, with long ones the link."""
    still = Speeds(0, 0, 0)
    for size, rate in ((10, 10.0), (1000, 10_000.0)):
        links = Links(rate=rate, latency=0, message=5)
        sent = Messages(100, 100, 0, 0)
        others = size - 1
        found = estimate(ParameterServer(), sent, 1, size, links, still).moving
        assert found == pytest.approx(max(200 * others / rate, 2 * others * 5))


def test_what_a_rank_does_counts_where_it_is_done() -> None:
    """Seconds of each activity by themselves, at n = 1,000 and five ranks."""
    sent, links = Messages(0, 0, 10, 20), Links(1, 0, 0)

    def computing(exchange: Exchange, **speeds: Any) -> float:
        told = Speeds(**{"encode": 0, "answer": 0, "decode": 0} | speeds)
        return estimate(exchange, sent, 1000, 5, links, told).computing

    server, shares = ParameterServer(), Sharded()
    assert computing(server, encode=1) == computing(shares, encode=1) == 1000
    # A rank that speaks for others compresses what it reports, and what they all have reported.
    twice = Nodes(server, 5, recompress=True)
    assert (computing(Nodes(server, 5), encode=1), computing(twice, encode=1)) == (1000, 2000)
    assert (computing(server, answer=1), computing(shares, answer=1)) == (1000, 200)
    assert (computing(server, absorb=1), computing(shares, absorb=1)) == (1000, 200)
    assert (computing(server, decode=1), computing(shares, decode=1)) == (5 * 10 + 20, 10 + 20)
    assert computing(AllGather(), decode=1) == 5 * 10
    # What is measured counts also where every rank makes its own answer.
    assert computing(AllGather(), hear=1, answer=1) == 2000
    assert computing(server, decode=1, hear=1) == 5 * 10 + 1000


def test_sharded_does_not_grow_with_the_ranks() -> None:
    """Messages take their time, too: dense vectors fill the links all the same."""
    row, n = preset("sgd"), 25_557_032
    found = []
    for size in (8, 64, 512, 4096):
        found.append(estimate(Sharded(), messages(row, n, size), n, size, Links()).seconds)
    assert max(found) <= 1.3 * found[0]


def test_a_ring_carries_twice_the_vector() -> None:
    assert dense_seconds(1000, 1, Links()) == 0
    assert dense_seconds(1000, 5, Links(rate=1000, latency=2)) == pytest.approx(8 / 5 * 4 + 16)
    assert dense_seconds(1000, 4096, Links(rate=1000, latency=0)) == pytest.approx(8, rel=1e-3)


# --- the choice ----------------------------------------------------------------------------------


def test_what_is_chosen() -> None:
    """A server for small models; where it pays, what carries least: reports alone, or a share of all."""
    assert exchange_for(preset("sgd"), 8_000, 4) == ParameterServer()
    assert exchange_for(preset("sgd"), 4_000_000, 1) == ParameterServer()
    assert exchange_for(preset("sgd"), 4_000_000, 16) == Sharded()
    assert exchange_for(preset("qsparse-local-sgd"), 4_000_000, 4) == AllGather()
    assert exchange_for(preset("dist-ef-sgd"), 4_000_000, 16) == Sharded()
    # With a delay a hop is hidden, and what every rank would compute to save it is not.
    assert exchange_for(preset("qsparse-local-sgd-2way"), 1_500_000, 4) == AllGather()
    assert exchange_for(preset("qsparse-local-sgd-2way(delay=4)"), 1_500_000, 4) == ParameterServer()
    assert exchange_for(preset("qsparse-local-sgd(delay=4)"), 4_000_000, 4) == AllGather()
    # Another model only for a large gain.
    assert exchange_for(preset("dist-ef-sgd"), 300_000, 8) == ParameterServer()


def test_who_needs_a_server_has_one() -> None:
    for text in ("asylpg", "lag-ps", "qsparse-local-sgd-async"):
        (own,) = candidates(preset(text), 4)
        assert own == ParameterServer(works=False) == exchange_for(preset(text), 10_000_000, 4)


def test_a_small_gain_changes_nothing() -> None:
    row, n = preset("sgd"), 100_000
    sent = messages(row, n, 2)
    rates = (math.inf, 1e9, 1e8, 1e7)
    found = [
        best((estimate(each, sent, n, 2, Links(rate)) for each in candidates(row, 2)), True).exchange
        for rate in rates
    ]
    assert found[0] == ParameterServer()
    assert found[-1] != ParameterServer()


def test_a_run_says_what_it_has_chosen_and_keeps_it(tmp_path: Path) -> None:
    """The model is the one that a server makes; a run with other ranks goes on over the same exchange."""
    base: dict[str, Any] = {
        "data": "digits", "model": "mlp(6000)", "algorithm": "sgd", "wire": "threads", "ranks": 3, "steps": 4,
    }  # fmt: skip
    chosen = qsparse.run(RunConfig(**base, out=str(tmp_path / "one"), checkpoint_every=2)).summary
    assert chosen["exchange"] == "sharded"
    assert read_toml(tmp_path / "one" / "config.toml", "config.toml")["exchange"] == "sharded"
    server = qsparse.run(RunConfig(**base, exchange="server")).summary
    assert server["model_sha256"] == chosen["model_sha256"]
    first = next((tmp_path / "one" / "checkpoints").glob("*-step-2"))
    others = base | {"ranks": 2, "resume": str(first), "out": str(tmp_path / "two")}
    assert qsparse.run(RunConfig(**others)).summary["exchange"] == "sharded"


#: A model whose reports are short enough for a server at 1 Gbit/s, and too long for one at 10 Mbit/s.
SHORT: dict[str, Any] = {
    "data": "digits", "model": "softmax", "algorithm": "sgd", "ranks": 3, "steps": 4, "batch": 8,
}  # fmt: skip


def test_the_choice_goes_by_the_links_that_are_given() -> None:
    """By rate, and by latency, of which one hop has less; a simulated network has its own unless given."""

    def taken(**options: Any) -> str:
        return str(qsparse.run(RunConfig(**{**SHORT, "wire": "threads", **options})).summary["exchange"])

    assert taken() == "server"
    assert taken(link_rate="1gbit", link_latency="50us") == "server"
    assert taken(link_rate="10mbit") == "sharded"
    assert taken(link_rate="10mbit", link_latency="50ms") == taken(link_latency="50ms") == "allgather"
    assert taken(link_rate="10mbit", link_latency=5e-5) == "sharded"
    assert taken(link_rate="10mbit", exchange="tree") == "tree"
    slow = "simulated(rate='10mbit', latency=5e-05)"
    assert taken(wire=slow) == "sharded"
    assert taken(wire=slow, link_rate="1gbit") == "server"
    assert taken(wire=slow, link_latency="50ms") == "allgather"


def test_a_run_that_goes_on_keeps_what_was_chosen_for_its_links(tmp_path: Path) -> None:
    out = tmp_path / "one"
    base = {**SHORT, "wire": "threads", "link_rate": "10mbit", "link_latency": "60us"}
    done = qsparse.run(RunConfig(**base, out=str(out), checkpoint_every=2)).summary
    kept = read_toml(out / "config.toml", "config.toml")
    assert (kept["exchange"], kept["link_rate"], kept["link_latency"]) == ("sharded", "10mbit", "60us")
    again = qsparse.run(RunConfig.read(out / "config.toml")).summary
    assert (again["exchange"], again["model_sha256"]) == ("sharded", done["model_sha256"])
    first = str(next((out / "checkpoints").glob("*-step-2")))
    faster = base | {"link_rate": "1gbit", "resume": first, "out": str(tmp_path / "two")}
    ended = qsparse.run(RunConfig(**faster)).summary
    assert (ended["exchange"], ended["model_sha256"]) == ("sharded", done["model_sha256"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"link_rate": "fast"}, "link rate fast: write a number with its unit, such as 1gbit"),
        ({"link_rate": "0gbit"}, "link rate 0gbit: write a number"),
        ({"link_rate": "12500000"}, "link rate 12500000: write a number with its unit"),
        (
            {"link_latency": "-1"},
            "link latency -1: write a time with its unit, such as 50us or 2ms, or seconds",
        ),
        ({"link_latency": "50mbit"}, "link latency 50mbit: write a time"),
        ({"link_latency": "nan"}, "link latency nan: write a time"),
    ],
    ids=str,
)
def test_links_that_are_none_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=f"^{text}"):
        qsparse.run(RunConfig(**SHORT, wire="threads", **options))


def test_a_simulated_network_knows_its_slowest_link(tmp_path: Path) -> None:
    """The lowest rate, and the way between the two ranks that are farthest away."""
    file = tmp_path / "links.toml"
    file.write_text('[1]\nrate = "200mbit"\n[2]\nlatency = 0.01\n')
    found = run_simulated(3, lambda wire: wire.links, Simulated("1gbit", 1e-3, links=str(file)), timeout=60)
    assert found == [(25e6, pytest.approx(5.5e-3))] * 3
    assert on_threads(2, lambda wire: wire.links) == [None, None]

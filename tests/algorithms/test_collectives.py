"""Server compression between reduce and broadcast of a tree, between reduce-scatter and allgather, and twice.

Everything runs in float64 from a float32 start; what travels is float32, as in `transcriptions_collectives`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paper_runs as runs
import pytest
import transcriptions as paper
from transcriptions_collectives import dist_ef_ring, two_levels

from qsparse.exchange import Exchange, Nodes, ParameterServer, Sharded, TreeBroadcast
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.rules import check
from qsparse.schedules import rate_at
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

#: Enough for a tree in which a rank hands on another's report, and for two machines that are unlike.
WORKERS, STEPS = 5, 48
COSINE = "cosine(peak=0.02)"


def gradient(r: int, x: np.ndarray, t: int) -> np.ndarray:
    """Workers with the data of one of three, and batches of their own."""
    return runs.gradient(r % runs.WORKERS, x, t + 1000 * r)


@functools.cache
def trained(text: str, exchange: Exchange) -> dict[int, np.ndarray]:
    """{t: the model after the meeting of step t}, which is the same on all ranks."""
    algorithm = build(text, "algorithm").among(WORKERS).over(STEPS)
    check(algorithm, exchange, WORKERS)

    def body(wire: Wire) -> dict[int, np.ndarray]:
        x = runs.START.copy()
        node = Node(algorithm, exchange, wire, x, Seed(runs.RUN), runs.LAYOUT, wire.ledger)

        def oracle(x: np.ndarray, t: int | None, out: np.ndarray) -> float:
            assert t is not None
            out[...] = gradient(wire.rank, x, t)
            return 0.0

        return {t: x.copy() for t, _, met in rounds(node, x, STEPS, oracle, lambda t: t) if met}

    models, *others = run_threads(WORKERS, body, timeout=60)
    for other in others:
        assert all(np.array_equal(models[t], other[t]) for t in models)
    return models


def compare(models: dict[int, np.ndarray], wanted: dict[int, np.ndarray]) -> None:
    assert models.keys() == wanted.keys()
    for t, model in models.items():
        assert np.max(np.abs(model - wanted[t])) < 2e-6, f"apart from step {t} on"
    assert np.max(np.abs(models[STEPS] - runs.START)) > 0.1, "a run that stands still proves nothing"


def rate(eta: str | float) -> Callable[[int], float]:
    schedule = build(eta, "schedule").over(STEPS) if isinstance(eta, str) else eta
    return lambda t: rate_at(schedule, t)


# --- one server, whatever the way ------------------------------------------------------------------

SERVERS = [
    f"dist-ef-sgd(lr={COSINE}, weight_decay=0.1)",
    f"dist-ef-blocksgdm(lr={COSINE}, momentum=0.5, size=6)",
]


@pytest.mark.parametrize("text", SERVERS)
def test_between_reduce_and_broadcast_of_a_tree_is_the_server(text: str) -> None:
    """Nothing is decoded on the way, so the bits are the same."""
    wanted = trained(text, ParameterServer())
    for root in (0, 3):
        models = trained(text, TreeBroadcast(root))
        assert all(np.array_equal(models[t], wanted[t]) for t in wanted)


def chunks() -> list[slice]:
    return [slice(each.start, each.stop) for each in Sharded().stretches(runs.N, WORKERS)]


def sign_blocks(v: np.ndarray, size: int | None) -> np.ndarray:
    """The scaled sign of each block of a size from the beginning on, or of all."""
    size = size or len(v)
    return np.concatenate([paper.scaled_sign(v[i : i + size]) for i in range(0, len(v), size)])


@pytest.mark.parametrize(
    ("text", "size", "settings"),
    [
        (SERVERS[0], None, {"weight_decay": 0.1}),
        # Blocks of 7 begin anew in every chunk of 12.
        (f"dist-ef-blocksgdm(lr={COSINE}, momentum=0.5, size=7)", 7, {"momentum": 0.5, "nesterov": True}),
    ],
)
def test_between_reduce_scatter_and_allgather_each_chunk_has_a_server(
    text: str, size: int | None, settings: dict[str, Any]
) -> None:
    def C(v: np.ndarray) -> np.ndarray:
        return sign_blocks(v, size)

    assert {chunk.stop - chunk.start for chunk in chunks()} == {12}
    wanted = dist_ef_ring(runs.START, gradient, STEPS, WORKERS, rate(COSINE), chunks(), C, C, **settings)
    models = trained(text, Sharded())
    compare(models, wanted)
    # It is an algorithm of its own, as the server's blocks are others.
    assert np.max(np.abs(models[STEPS] - trained(text, ParameterServer())[STEPS])) > 1e-4


def test_chunks_of_whole_blocks_make_the_model_of_a_server() -> None:
    """Bit for bit: each of the 5 chunks has two blocks of 6."""
    models, wanted = (trained(SERVERS[1], exchange) for exchange in (Sharded(), ParameterServer()))
    assert all(np.array_equal(models[t], wanted[t]) for t in wanted)


# --- compressed again at an inner node -------------------------------------------------------------


def signs(v: np.ndarray, *_: int) -> np.ndarray:
    return sign_blocks(v, None)


def layered(v: np.ndarray, *_: int) -> np.ndarray:
    return paper.by_layers(lambda part, _: paper.scaled_sign(part), v, runs.LAYERS)


def top(v: np.ndarray, *_: int) -> np.ndarray:
    return paper.sign_top_k(v, 6)


def random_levels(*path: int) -> Callable[[np.ndarray, int, int], np.ndarray]:
    """Q_s by layers; who speaks for a machine draws numbers of its own for it."""

    def said(v: np.ndarray, r: int, t: int) -> np.ndarray:
        def one(part: np.ndarray, number: int) -> np.ndarray:
            return paper.q_s(part, 15, runs.uniforms(r, t, (*path, number, 1), len(part)))

        return paper.by_layers(one, v, runs.LAYERS)

    return said


EVERY = range(1, STEPS + 1)


@pytest.mark.parametrize(
    ("text", "eta", "meetings", "inner", "outer", "settings"),
    [
        (f"dist-ef-sgd(lr={COSINE})", COSINE, EVERY, signs, signs, {"down": signs}),
        (f"dist-ef-blocksgdm(lr={COSINE}, momentum=0.5)", COSINE, EVERY, layered, layered,
         {"down": layered, "momentum": 0.5, "nesterov": True}),
        ("qsparse-local-sgd(lr=0.02, H=4, compressor=topk(k=6) >> sign)", 0.02, range(4, STEPS + 1, 4),
         top, top, {}),
        ("qsgd(lr=0.05)", 0.05, EVERY, random_levels(-1), random_levels(), {"feedback": False}),
    ],
    ids=lambda value: value.partition("(")[0] if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("ranks", [3, (1, 4), 5], ids=str)
def test_what_a_machine_has_heard_is_compressed_again(
    text: str,
    eta: str | float,
    meetings: Sequence[int],
    inner: Callable[..., np.ndarray],
    outer: Callable[..., np.ndarray],
    settings: dict[str, Any],
    ranks: Any,
) -> None:
    """Machines of three and two ranks; one rank that has nobody to tell; one machine of all."""
    exchange = Nodes(ParameterServer(), ranks, recompress=True)
    machines = exchange.machines(WORKERS)
    wanted = two_levels(runs.START, gradient, STEPS, machines, rate(eta), meetings, inner, outer, **settings)
    models = trained(text, exchange)
    compare(models, wanted)

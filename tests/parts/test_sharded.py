"""Exchange sharded: each rank coordinates a stretch, and nothing but the way of the bytes is another."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_laws import on_threads

import qsparse
from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Compressor, Sign, TopK, decompress
from qsparse.compressors.cutting import cut
from qsparse.errors import CompositionError, RankError
from qsparse.exchange import ParameterServer, Sharded
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.payload import HEADER_BYTES, Payload
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.rules import check
from qsparse.run.config import RunConfig
from qsparse.seeds import Seed
from qsparse.server import Descend, ServerClaims
from qsparse.wire.base import Wire

# --- cutting frames ------------------------------------------------------------------------------

COMPRESSORS = [
    "float32",
    "float16",
    "sign(norm=2)",
    "qsgd(levels=300)",
    "uniform(bits=3, coder='ans')",
    "uniform(bits=11)",
    "lowprecision(bits=5)",
    "minmax(levels=10)",
    "ternary",
    "ternary(coder='ans')",
    "topk(ratio=0.05) >> sign",
    "topk(ratio=0.9) >> qsgd(levels=3)",
    "randk(ratio=0.1)",
    "blockwise(sign, size=64)",
    "blockwise(qsgd(levels=7), size=50)",
    "blockwise(uniform(bits=4), size=37)",
    "blockwise(topk(ratio=0.1) >> sign, size=100)",
    "blockwise(blockwise(sign, size=10), size=100)",
]


@pytest.mark.parametrize("text", COMPRESSORS)
def test_parts_of_a_frame_spell_what_the_frame_spells(text: str) -> None:
    """Wherever it is cut: within bytes, within blocks, with more stretches than coordinates."""
    draw = np.random.default_rng(1)
    for n, count in itertools.product((1, 9, 1000, 2053), (2, 3, 16)):
        part: Compressor = build(text, "compressor").limited(n)
        payload = part.compress(draw.standard_normal(n).astype(np.float32), Seed(0, rank=3, step=9, use="up"))
        whole = decompress(payload, np.empty(n, np.float32))
        edges = [0, *sorted(draw.integers(0, n + 1, count - 1).tolist()), n]
        bounds = list(itertools.pairwise(edges))
        frames = [Payload.parse(bytes(each.frame)) for each in cut(payload, bounds)]
        assert sum(each.nbits for each in frames) == payload.nbits
        for (start, stop), frame in zip(bounds, frames, strict=True):
            assert (frame.origin, frame.step, frame.way) == (3, 9, payload.way)
            assert (
                decompress(frame, np.empty(stop - start, np.float32)).tobytes() == whole[start:stop].tobytes()
            )


def test_a_quantizer_that_cannot_cut_is_spelled_exactly() -> None:
    class Halves(QSGD):
        code = 244

        @staticmethod
        def decode(section: Any, k: int) -> Any:
            return QSGD.decode(section, k)

    x = np.linspace(-1, 1, 50).astype(np.float32)
    payload = Halves(levels=4).compress(x, Seed(0, use="up"))
    whole = decompress(payload, np.empty(50, np.float32))
    first, second = cut(payload, [(0, 20), (20, 50)])
    assert len(second.body) == 2 + 4 * 30
    both = [decompress(each, np.empty(each.n, np.float32)) for each in (first, second)]
    assert np.concatenate(both).tobytes() == whole.tobytes()


# --- runs ----------------------------------------------------------------------------------------

RUN: dict[str, Any] = {"data": "digits", "ranks": 4, "wire": "threads", "steps": 8, "seed": 2}


def ran(**settings: Any) -> dict[str, Any]:
    return qsparse.run(RunConfig(**(RUN | settings))).summary


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "qsparse-local-sgd(H=2)"},
        {"algorithm": "qsparse-local-sgd(H=2)", "down": "float32", "down_memory": "stateless", "ranks": 3},
        {
            "algorithm": "sgd",
            "weight_decay": 0.01,
            "weight_decay_on": "weights",
            "nesterov": True,
            "momentum": 0.5,
        },
        {"algorithm": "laq", "epochs": 6, "steps": None},
        {"algorithm": "signum-majority", "ranks": 3},
        {
            "algorithm": "qsparse-local-sgd",
            "compressor": "blockwise(qsgd(levels=7), size=100)",
            "sync_every": 3,
        },
    ],
    ids=lambda settings: settings["algorithm"] + str(len(settings)),
)
def test_with_exact_answers_the_run_is_that_of_a_server(settings: dict[str, Any]) -> None:
    """To the last bit, and with the same paper bits up; lazy workers skip the same rounds."""
    one, other = (ran(**settings, exchange=exchange) for exchange in ("server", "sharded"))
    assert one["model_sha256"] == other["model_sha256"]
    assert one["paper_bits"]["up"] == other["paper_bits"]["up"]
    assert one["skips"] == other["skips"]


@pytest.mark.parametrize("ranks", [3, 5])
def test_a_resumed_run_keeps_what_was_not_said(tmp_path: Path, ranks: int) -> None:
    """Of 4 ranks, and of others: the memories of workers and of the owners of stretches."""
    settings = {
        "algorithm": "qsparse-local-sgd(H=2)",
        "compressor": "topk(ratio=0.1) >> sign",
        "down": "blockwise(sign, size=64)",
        "exchange": "sharded",
        "out": str(tmp_path),
        "checkpoint_every": 4,
    }
    whole = ran(**settings)
    first = tmp_path / "checkpoints" / "000001-step-4"
    assert first.is_dir()
    again = ran(**(settings | {"resume": str(first), "out": str(tmp_path / "again")}))
    assert again["model_sha256"] == whole["model_sha256"]
    fewer = ran(**(settings | {"resume": str(first), "out": str(tmp_path / "others"), "ranks": ranks}))
    note = fewer["resumed"][0]
    assert (note["memory_difference"], note["update_difference"]) == (0.0, 0.0)
    assert math.isfinite(fewer["train_loss"])


@pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")
def test_an_error_reaches_ranks_that_coordinate_nothing() -> None:
    """Two coordinates among four ranks: two have a stretch, and all are told."""

    def body(wire: Wire) -> Exception:
        node = Node(Algorithm(SGD(0.1)), Sharded(), wire, np.zeros(2, np.float32), Seed(0), (), Ledger())
        try:
            if wire.rank == 1:
                raise ValueError("no luck")
            node.meet(np.ones(2, np.float32), 1)
        except (ValueError, RankError) as error:
            node.exchange.notify(wire, error, 1)
            return error
        raise AssertionError

    errors = on_threads(4, body)
    assert type(errors.pop(1)) is ValueError
    assert all(isinstance(error, RankError) and error.rank == 1 for error in errors)


# --- bytes ---------------------------------------------------------------------------------------

UP, DOWN = TopK(ratio=0.01) >> Sign(), build("blockwise(sign, size=512)", "compressor")


@pytest.mark.parametrize(("size", "n"), [(2, 40_001), (3, 40_001), (7, 100_003), (64, 100_003)])
def test_every_rank_sends_its_share_whatever_their_number(size: int, n: int) -> None:
    """(R − 1)/R·(c + d) bytes, c and d those of whole messages; headers, tables and scales beside."""
    row = Algorithm(SGD(0.1), up=Link(UP, ErrorFeedback()), down=Link(DOWN, Innovation()))
    start = np.zeros(n, np.float32)

    def body(wire: Wire) -> dict[str, int]:
        node = Node(row, Sharded(), wire, start, Seed(1), (), Ledger())
        node.meet(np.random.default_rng(wire.rank).standard_normal(n).astype(np.float32), 1)
        return wire.ledger.wire_bytes

    seed, noise = Seed(0), np.random.default_rng(9).standard_normal(n).astype(np.float32)
    whole = sum(len(part.compress(noise, seed).body) for part in (UP, DOWN))
    beside = 2 * (size - 1) * (HEADER_BYTES + 40)
    for counted in on_threads(size, body):
        assert counted["up"] + counted["down"] <= 1.05 * (size - 1) / size * whole + beside


@pytest.mark.parametrize("size", range(2, 257, 2))
def test_stretches_are_even(size: int) -> None:
    for n in (1_000_003, 257_001, 9973):
        sizes = [stretch.size for stretch in Sharded().stretches(n, size)]
        assert sum(sizes) == n
        assert max(sizes) <= max(math.ceil(n / size), 1.05 * n / size)


# --- what is refused -----------------------------------------------------------------------------


def test_what_would_be_another_algorithm_is_refused() -> None:
    class Normed(Descend):
        @property
        def claims(self) -> ServerClaims:
            return ServerClaims(rate=1.0)

    fine = Algorithm(SGD(0.1), up=Link(UP, ErrorFeedback()), down=Link(DOWN, Innovation()))
    check(fine, Sharded(), 4)
    for changed, word in (
        (fine.with_(server=Normed()), "single coordinates"),
        (fine.with_(down=TopK(k=10)), "give it a ratio"),
    ):
        check(changed, ParameterServer(), 4)
        with pytest.raises(CompositionError, match=word):
            check(changed, Sharded(), 4)
    sampled = Algorithm(SGD(0.1)).with_(participation=build("sample(fraction=0.5)", "participation"))
    with pytest.raises(CompositionError, match="server"):
        check(sampled, Sharded(), 4)

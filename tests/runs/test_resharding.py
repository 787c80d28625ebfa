"""Checkpoints of some ranks that others go on from: sums are kept as real numbers, and runs converge."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from bowl import LEFTOVERS, RUNS, Bowl, Fault, N, preset, train
from click.testing import CliRunner

from qsparse.algorithm import Algorithm
from qsparse.cli.commands import qsparse
from qsparse.errors import CheckpointError
from qsparse.exchange import AllGather, Exchange, ParameterServer
from qsparse.link import Link
from qsparse.memory import ErrorFeedback, MemoryClaims
from qsparse.rounds.state import CoordinatorState, NodeState, WalkState, WorkerState, typed
from qsparse.rules import natural_exchange
from qsparse.run.checkpoint import Found, file_of
from qsparse.run.resharding import difference, distilled, reshard, shared
from qsparse.run.state import JobState
from qsparse.run.statefile import read
from qsparse.types import State, Vector

# --- sums without rounding ------------------------------------------------------------------------------


def exact(rows: Any) -> list[Fraction]:
    """The sum of each column as a real number."""
    return [sum(map(Fraction, map(float, column)), Fraction(0)) for column in np.asarray(rows).T]


def vectors(kind: str, ranks: int, dtype: Any, n: int = 400) -> Any:
    rng = np.random.default_rng((ranks, n))
    rows = rng.standard_normal((ranks, n))
    if kind == "wide":
        rows *= 10.0 ** rng.integers(-8, 8, rows.shape)
    if kind == "sparse":
        rows *= rng.random(rows.shape) < 0.6
    if kind == "cancelling":
        rows[-1] = -rows[0] * (1 + 1e-7)
    if kind == "tiny":
        rows *= np.finfo(dtype).smallest_subnormal * 100
    return rows.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["plain", "wide", "sparse", "cancelling", "tiny"])
def test_sums_are_kept_as_real_numbers(kind: str, dtype: Any) -> None:
    for ranks, count in ((4, 3), (8, 7), (3, 2), (8, 3), (3, 4), (2, 9), (2, 1), (5, 1)):
        rows = vectors(kind, ranks, dtype)
        kept = shared(rows, count)
        assert kept.dtype == dtype
        off = max(abs(a - b) for a, b in zip(exact(rows), exact(kept), strict=True))
        # What is reported is what is so.
        assert difference(rows, kept) == pytest.approx(float(off), rel=1e-6)
        assert (difference(rows, kept) == 0) == (off == 0)
        if count >= ranks:
            assert np.array_equal(kept, np.concatenate([rows, np.zeros((count - ranks, 400), dtype)]))
        elif count > 1 and kind != "wide":
            assert off == 0, (ranks, count)
        else:
            # As near as so many floats come: the last of them is rounded.
            largest = np.abs(kept).max(axis=0).astype(np.float64)
            assert float(off) <= np.finfo(dtype).eps ** count * float(largest.max()) * 2


def test_one_float_cannot_hold_two() -> None:
    rows = np.array([[1.0], [2.0**-30]], np.float32)
    kept = shared(rows, 1)
    assert kept.tolist() == [[1.0]]
    assert difference(rows, kept) == 2.0**-30
    assert shared(np.array([[1.0], [2.0**-30], [0.0]], np.float32), 2).tolist() == [[1.0], [2.0**-30]]


def test_most_of_a_memory_stays_where_it_was() -> None:
    """Who is alone with an entry keeps it, and gets no more than what those that are gone had."""
    rows = vectors("sparse", 4, np.float32)
    kept = shared(rows, 3)
    gone = rows[3] == 0
    assert np.array_equal(kept[:, gone], rows[:3, gone])
    moved = np.abs(kept - rows[:3]).max(axis=0) > np.abs(rows[3]) * 1.001
    assert moved.mean() < 0.25


def test_distilled_rows_add_up_to_nothing_only_if_they_are() -> None:
    rows = vectors("wide", 6, np.float32)
    apart = distilled(rows)
    assert exact(apart) == exact(rows)
    for above, below in itertools.pairwise(apart):
        assert np.all(above + below == below)
    assert not distilled(np.concatenate([rows, -rows[::-1]])).any()


# --- what ranks remember --------------------------------------------------------------------------------


def ended(
    out: Path, algorithm: Algorithm, ranks: int, exchange: Exchange | None, steps: int = 120, last: int = 40
) -> Found:
    """A run that was ended after its ``last`` step; its newest checkpoint."""
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, out, ranks, steps, exchange=exchange, watcher=Fault(last))
    newest = max((out / "checkpoints").iterdir())
    return Found(newest, json.loads((newest / "manifest.json").read_text()))


def walks_of(found: Found, ranks: int) -> list[WalkState]:
    return [typed(JobState, found.state(rank)).walk for rank in range(ranks)]


def main_of(walk: WalkState) -> NodeState:
    return walk.phases["main"][0]


def local_of(walk: WalkState) -> State:
    return main_of(walk).local or {}


def gone_on(found: Found, algorithm: Algorithm, size: int, exchange: Exchange) -> list[WalkState]:
    walks = walks_of(found, found.ranks)
    made = [reshard(walks, algorithm, exchange, rank, size) for rank in range(size)]
    assert all(note == made[0][1] for _, note in made)
    assert made[0][1] == {"memory_difference": 0.0, "update_difference": 0.0}
    return [walk for walk, _ in made]


def memories(walks: list[WalkState], name: str) -> list[Vector]:
    senders = [main_of(walk).worker.sender for walk in walks]
    return [sender[name] for sender in senders if sender is not None]


@LEFTOVERS
@pytest.mark.parametrize("size", [2, 3, 5, 6])
@pytest.mark.parametrize("exchange", [ParameterServer(), ParameterServer(works=False), AllGather()], ids=str)
def test_the_error_memories_add_up(tmp_path: Path, size: int, exchange: Exchange) -> None:
    algorithm = preset("qsparse-local-sgd(H=4, lr=0.1, momentum=0.9)")
    found = ended(tmp_path, algorithm, 4, exchange)
    before = walks_of(found, 4)
    if size == 2 and not exchange.workers(1):
        return  # one worker's floats cannot hold three's
    after = gone_on(found, algorithm, size, exchange)
    assert any(exact(memories(before, "residual")))
    assert exact(memories(after, "residual")) == exact(memories(before, "residual"))
    # Momentum stays with who has it; who is new takes the mean.
    old, new = ([local_of(walk)["momentum"] for walk in walks if local_of(walk)] for walks in (before, after))
    for number, momentum in enumerate(new):
        wanted = old[number] if number < len(old) else np.mean(old, axis=0, dtype=np.float64)
        assert np.array_equal(momentum, np.asarray(wanted, np.float32))
    assert len({walk.x.tobytes() for walk in after}) == 1
    coordinators = [rank for rank, walk in enumerate(after) if main_of(walk).coordinator is not None]
    assert coordinators == (list(range(size)) if isinstance(exchange, AllGather) else [0])


@LEFTOVERS
@pytest.mark.parametrize("size", [2, 5])
def test_workers_and_coordinator_know_the_same(tmp_path: Path, size: int) -> None:
    """Under LAQ the mean of what the workers have said is what the coordinator has heard."""
    algorithm = preset("laq(lr=0.1)")
    found = ended(tmp_path, algorithm, 3, ParameterServer())
    walks = gone_on(found, algorithm, size, ParameterServer())
    coordinator = main_of(walks[0]).coordinator
    assert coordinator is not None
    heard = coordinator.receiver["known"]
    assert heard.any()
    for known in memories(walks, "known"):
        assert np.array_equal(known, heard)


@LEFTOVERS
@pytest.mark.parametrize("size", [2, 5])
def test_statistics_of_old_ranks_are_averaged(tmp_path: Path, size: int) -> None:
    algorithm = preset("local-sgd(lr=0.1, H=2)")
    newest = ended(tmp_path, algorithm, 3, None)
    found = Found(newest.folder.with_name("000004-step-28"), newest.manifest)
    own = [walk.buffers for walk in walks_of(found, 3)]
    assert not np.allclose(own[0], own[1]), "nothing was evaluated since each went its way"
    for walk in gone_on(found, algorithm, size, ParameterServer()):
        np.testing.assert_allclose(walk.buffers, np.mean(own, axis=0), atol=1e-6)


@LEFTOVERS
def test_what_a_skip_has_kept_back_is_not_lost(tmp_path: Path) -> None:
    """Net updates that were not worth a message go to those who stay."""
    algorithm = preset("local-sgd(lr=0.1)", trigger="drift(0.15)")
    found = ended(tmp_path, algorithm, 4, None)
    before = walks_of(found, 4)
    anchor = local_of(before[0])["anchor"]
    unsaid = [exact([anchor, -walk.x]) for walk in before]
    assert any(unsaid[3]), "the one that goes has something to say"
    after = [reshard(before, algorithm, ParameterServer(), rank, 3) for rank in range(3)]
    total = [sum(column, Fraction(0)) for column in zip(*unsaid, strict=True)]
    kept = [sum(c, Fraction(0)) for c in zip(*(exact([anchor, -w.x]) for w, _ in after), strict=True)]
    off = max(abs(a - b) for a, b in zip(total, kept, strict=True))
    assert after[0][1]["update_difference"] == pytest.approx(float(off), rel=1e-6)
    assert off <= 1e-6 < max(map(abs, unsaid[3]))
    assert np.array_equal(after[1][0].x, before[1].x)


#: Of a run that goes on: enough to come near the goal, of which 0.9^40 of the way is left at this rate.
STEPS = 60


@LEFTOVERS
@pytest.mark.parametrize("name", [name for name in RUNS if name != "signum-majority"])
@pytest.mark.parametrize(("ranks", "size"), [(4, 3), (3, 4)])
def test_other_ranks_go_on_and_converge(tmp_path: Path, name: str, ranks: int, size: int) -> None:
    algorithm, exchange = RUNS[name]
    exchange = exchange or natural_exchange(algorithm)
    ended(tmp_path, algorithm, ranks, exchange, STEPS, STEPS // 3)
    fault = Fault(0)
    summary = train(algorithm, tmp_path, size, STEPS, exchange=exchange, watcher=fault)
    assert fault.first > 0
    (note,) = summary["resumed"]
    assert (note["from_ranks"], note["ranks"], note["memory_difference"]) == (ranks, size, 0)
    workers = exchange.workers(size)
    assert (summary["ranks"], summary["workers"]) == (size, len(workers))
    goal = np.mean([Bowl(rank)._goal for rank in workers], axis=0)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == STEPS
    assert np.isfinite(summary["test_loss"])
    # The whole job is counted, each stretch with its own workers.
    begin, before = note["step"], len(exchange.workers(ranks))
    assert summary["dense_bits"]["up"] == 32 * N * (before * begin + len(workers) * (STEPS - begin))
    if exchange == ParameterServer() and algorithm.trigger.claims.always_due:
        said = summary["messages"]["up"] + summary["skips"]
        # Statistics go beside where the model is evaluated, each five steps of a stretch, and where phases
        # end.
        ends = set(itertools.accumulate(length for _, length in algorithm.phases(STEPS)))
        early = ends | set(range(0, begin + 1, 5))
        late = ends | set(range(begin, STEPS, 5))
        said -= before * sum(1 <= t <= begin for t in early)
        said -= len(workers) * sum(begin < t <= STEPS for t in late)
        assert said == before * begin + len(workers) * (STEPS - begin)
    # As near as a run that has had these ranks from the beginning.
    train(algorithm, tmp_path / "whole", size, STEPS, exchange=exchange)
    far, whole = (float(np.linalg.norm(final(out) - goal)) for out in (tmp_path, tmp_path / "whole"))
    assert far < 1.5 * whole + 0.3


@LEFTOVERS
def test_a_schedule_goes_by_the_epochs_that_are_left(tmp_path: Path) -> None:
    """Three ranks take more steps for the same epochs than four, and the learning rate ends where they do."""
    algorithm = preset("local-sgd(lr=cosine(0.1), H=2)")
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, tmp_path, 4, epochs=8, per_epoch=15, watcher=Fault(40))
    other = preset("local-sgd(lr=cosine(0.2), H=2)")
    with pytest.raises(CheckpointError, match=r"local as given is .*peak=0.1.* there and .*peak=0.2.* here"):
        train(other, tmp_path, 3, epochs=8, per_epoch=20)
    fault = Fault(60)
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, tmp_path, 3, epochs=8, per_epoch=20, watcher=fault)
    summary = train(algorithm, tmp_path, 3, epochs=8, per_epoch=20)
    begin = summary["resumed"][0]["step"]
    assert fault.first == begin > 0
    assert summary["steps"] == begin + round((8 - begin / 15) * 20) > 8 * 15
    assert f"steps={summary['steps']})" in summary["algorithm"]["local"]
    assert [note["ranks"] for note in summary["resumed"]] == [3, 3]


def final(out: Path) -> Vector:
    newest = max((out / "checkpoints").iterdir())
    assert newest.name.endswith(f"-step-{STEPS}")
    x: Vector = walks_of(Found(newest, {}), 1)[0].x
    return x


@LEFTOVERS
def test_epochs_are_those_of_the_ranks(tmp_path: Path) -> None:
    """With fewer workers an epoch has more steps: what is left of the epochs is counted in theirs."""
    algorithm = preset("topk-sgd(lr=0.1)")
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, tmp_path, 4, epochs=10, watcher=Fault(50))
    fault = Fault(70)
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, tmp_path, 2, epochs=10, per_epoch=20, watcher=fault)
    assert fault.first == 49
    summary = train(algorithm, tmp_path, 2, epochs=10, per_epoch=20)
    assert summary["steps"] == 49 + round((10 - 4.9) * 20) == 151
    assert summary["epochs"] == pytest.approx(10)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(5, 50, 5), *range(59, 150, 10), 151]
    assert [note["ranks"] for note in summary["resumed"]] == [2, 2]


def test_a_run_that_is_over_is_over_for_others_too(tmp_path: Path) -> None:
    algorithm = preset("topk-sgd(lr=0.1)")
    over = train(algorithm, tmp_path, 3, epochs=4)
    again = train(algorithm, tmp_path, 2, epochs=4)
    assert again["steps"] == over["steps"] == 40
    assert again["model_sha256"] == over["model_sha256"]
    with pytest.raises(CheckpointError, match="made after step 40, and the run has 20: give it more"):
        train(algorithm, tmp_path, 2, epochs=2)
    # Where an epoch is longer now, what is too much may be more than was taken.
    with pytest.raises(CheckpointError, match="made after step 40, and the run has 1: give it more"):
        train(algorithm, tmp_path, 2, epochs=1, per_epoch=30)


def test_everything_is_news_where_the_coordinator_knows_something_else(tmp_path: Path) -> None:
    algorithm = preset("lasg-wk2(lr=0.05)")
    train(algorithm, tmp_path, 3, steps=20)
    (checkpoint,) = (tmp_path / "checkpoints").glob("*-step-20")
    walks = [typed(JobState, read(checkpoint / file_of(rank))).walk for rank in range(3)]
    assert all(np.isfinite(local_of(walk)["news"]) for walk in walks)
    for rank in range(2):
        walk, _ = reshard(walks, algorithm, natural_exchange(algorithm), rank, 2)
        assert local_of(walk)["news"] == np.inf
    assert train(algorithm, tmp_path, 2, steps=30)["steps"] == 30


@dataclass(frozen=True)
class Keeper(ErrorFeedback):
    """A memory that does not say that it keeps the rest."""

    registered_name: ClassVar[str] = "keeper"

    @property
    def claims(self) -> MemoryClaims:
        return replace(super().claims, keeps_error=False)


@LEFTOVERS
def test_refusals(tmp_path: Path) -> None:
    asynchronous = preset("asylpg(lr=0.1, inner=8)")
    train(asynchronous, tmp_path / "a", 3)
    with pytest.raises(CheckpointError, match="is one of 3 ranks, and workers that do not wait"):
        train(asynchronous, tmp_path / "a", 4)
    algorithm = preset("topk-sgd(lr=0.1)")
    node = NodeState(WorkerState({}, {}, {}, True, {}), CoordinatorState({}, {}, {}, {}, {}))
    nothing = np.zeros(0, np.float32)
    walk = WalkState(nothing, nothing, nothing, 0, "main", {"main": [node]})
    strange = replace(algorithm, up=Link(algorithm.up.compressor, Keeper()))
    with pytest.raises(CheckpointError, match="does not say whether what it keeps adds up"):
        reshard([walk, walk], strange, ParameterServer(), 0, 1)


# --- on digits ------------------------------------------------------------------------------------------


@LEFTOVERS
@pytest.mark.parametrize(("ranks", "size"), [(4, 3), (3, 4)])
def test_digits_are_learned_with_other_ranks(tmp_path: Path, ranks: int, size: int) -> None:
    def call(count: int, *args: object) -> dict[str, Any]:
        result = CliRunner().invoke(
            qsparse,
            [
                "train", "--quiet", "--wire", "threads", "--ranks", str(count), "--model", "mlp(16)",
                "--sync-every", "4", "--out", str(tmp_path), "--checkpoint-every", "50", *map(str, args),
            ],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())
        return found

    first = call(ranks, "--epochs", 4)
    second = call(size, "--epochs", 25, "--resume", "auto")
    assert second["test_accuracy"] > max(0.9, first["test_accuracy"])
    assert second["epochs"] == pytest.approx(25, abs=0.1)
    (note,) = second["resumed"]
    assert note == {
        "checkpoint": note["checkpoint"], "step": first["steps"], "ranks": size, "from_ranks": ranks,
        "memory_difference": 0.0, "update_difference": 0.0,
    }  # fmt: skip
    meetings = first["steps"] // 4, -(-(second["steps"] - first["steps"]) // 4)
    assert second["messages"]["up"] == pytest.approx(ranks * meetings[0] + size * meetings[1], abs=size)
    assert second["paper_bits"]["up"] > first["paper_bits"]["up"] > 0

"""Shards and batches: who trains on what, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from qsparse import registry
from qsparse.data import Batches, Sharding, shard
from qsparse.errors import SettingError, UnknownPart
from qsparse.seeds import Seed

LABELS = np.random.default_rng(3).integers(0, 10, 1003)


@pytest.mark.parametrize("how", ["contiguous", "random", "dirichlet(0.1)", "dirichlet(100)"])
@pytest.mark.parametrize("ranks", [1, 2, 7, 64])
def test_every_example_goes_to_one_rank(how: str, ranks: int) -> None:
    parts = shard(LABELS, ranks, how, Seed(5))
    assert len(parts) == ranks
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LABELS)))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    if not how.startswith("dirichlet"):
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("how", ["random", "dirichlet(0.5)"])
def test_shards_depend_on_the_run_and_on_nothing_else(how: str) -> None:
    def dealt(seed: Seed) -> list[list[int]]:
        return [part.tolist() for part in shard(LABELS, 4, how, seed)]

    assert dealt(Seed(5)) == dealt(Seed(5, rank=3, step=9, use="batch"))
    assert dealt(Seed(5)) != dealt(Seed(6))


def test_contiguous_keeps_the_order_and_random_does_not() -> None:
    assert np.concatenate(shard(LABELS, 5, "contiguous", Seed(5))).tolist() == list(range(1003))
    first = shard(LABELS, 5, "random", Seed(5))[0]
    # The mean of 201 indices out of 1003 without order is 501 with a deviation of 18.
    assert abs(first.mean() - 501) < 100


def test_every_rank_gets_an_example_even_when_there_is_one_each() -> None:
    parts = shard(np.zeros(8, np.int64), 8, "dirichlet(0.01)", Seed(5))
    assert [len(part) for part in parts] == [1] * 8


def skew(alpha: float) -> float:
    """Mean over ranks of the largest share that one label has."""
    parts = shard(np.repeat(np.arange(10), 500), 8, f"dirichlet({alpha})", Seed(2))
    labels = np.repeat(np.arange(10), 500)
    return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))


def test_small_alpha_skews_and_large_alpha_does_not() -> None:
    assert skew(0.1) > 0.35 > skew(1.0) > skew(1000)
    assert skew(1000) < 0.13


@pytest.mark.parametrize(
    ("ranks", "how", "message"),
    [
        (0, "random", "0 ranks"),
        (4, "random", "3 examples cannot be dealt to 4 ranks"),
        (2, "random(3)", "random cannot be made of .* it has none"),
        (2, "dirichlet", "dirichlet cannot be made of .* it has alpha"),
        (2, "dirichlet('x')", "ALPHA"),
        (2, "dirichlet(1, 2)", "cannot be made of .* it has alpha"),
        (2, "dirichlet(0)", "above 0"),
        (2, "dirichlet(1e999)", "above 0"),
        (2, "dirichlet(-1)", "above 0"),
        (2, "dirichlet(true)", "above 0"),
        (2, "dirichlet(0.5", "cannot read"),
    ],
)
def test_bad_sharding_is_refused(ranks: int, how: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        shard(np.array([0, 1, 0]), ranks, how, Seed(0))


@pytest.mark.parametrize("how", ["sorted", "dirichlet(x)", "dirichlet(inf)", "dirichlet(nan)", "randomm"])
def test_unknown_shardings_are_answered_with_the_known_ones(how: str) -> None:
    with pytest.raises(UnknownPart, match=r"no sharding is named .*: .*contiguous, dirichlet, random"):
        shard(np.array([0, 1, 0]), 2, how, Seed(0))
    with pytest.raises(UnknownPart, match="did you mean 'random'"):
        shard(np.array([0, 1, 0]), 2, "randmo", Seed(0))


@pytest.mark.parametrize(
    "shares",
    [[], [[0, 1, 2]], [[0, 1], [1, 2]], [[0, 1], [3]], [[0, 1, 2], []], [[0, 1], [2], []], [[0, 1], [-1]]],
)
def test_a_sharding_that_leaves_something_out_is_refused(
    shares: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Odd(Sharding):
        def deal(self, labels: Any, ranks: int, seed: Seed) -> Any:
            return [np.array(share, np.intp) for share in shares]

    monkeypatch.setitem(registry._parts["sharding"], "odd", Odd)
    with pytest.raises(SettingError, match=r"'odd' deals 3 examples to 2 ranks as .*: every example must go"):
        shard(np.array([0, 1, 0]), 2, "odd", Seed(0))


def test_labels_must_be_flat() -> None:
    with pytest.raises(SettingError, match="one label per example"):
        shard(np.zeros((3, 2)), 2, "random", Seed(0))


# batches

SHARD = np.arange(100, 123)


def test_an_epoch_visits_each_example_at_most_once() -> None:
    batches = Batches(SHARD, 5, Seed(1, rank=2, use="batch"))
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        seen = np.concatenate([batches.batch(epoch * 4 + i) for i in range(4)])
        assert len(set(seen.tolist())) == 20
        assert set(seen.tolist()) <= set(SHARD.tolist())


def test_batches_do_not_depend_on_what_was_asked_before() -> None:
    seed = Seed(1, rank=2, use="batch")
    walked = Batches(SHARD, 5, seed)
    forward = [walked.batch(t).tolist() for t in range(30)]
    backward = [walked.batch(t).tolist() for t in reversed(range(30))]
    assert backward[::-1] == forward
    assert [Batches(SHARD, 5, seed).batch(t).tolist() for t in range(30)] == forward


def test_epochs_ranks_and_runs_differ() -> None:
    def epoch(seed: Seed, number: int) -> list[int]:
        return [int(index) for index in Batches(SHARD, 23, seed).batch(number)]

    seen = [epoch(Seed(1), 0), epoch(Seed(1), 1), epoch(Seed(2), 0), epoch(Seed(1, rank=1), 0)]
    assert len({tuple(order) for order in seen}) == 4
    assert all(sorted(order) == SHARD.tolist() for order in seen)


def test_changing_a_batch_or_the_shard_changes_nothing_later() -> None:
    indices = SHARD.copy()
    batches = Batches(indices, 5, Seed(1))
    before = batches.batch(1).tolist()
    batches.batch(1)[:] = -1
    indices[:] = -1
    assert batches.batch(1).tolist() == before
    batches.batch(9)
    assert batches.batch(1).tolist() == before


def test_examples_are_drawn_evenly() -> None:
    batches = Batches(np.arange(10), 3, Seed(1))
    counts = np.bincount(np.concatenate([batches.batch(t) for t in range(3000)]), minlength=10)
    # 1000 epochs, each leaving one example of ten out: 900 on average, deviation about 9.5.
    assert counts.sum() == 9000
    assert np.all(np.abs(counts - 900) < 50)


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [
        (np.arange(3), 4, "larger than the rank's shard of 3"),
        (np.arange(3), 0, "at least 1"),
        (np.arange(0), 1, "shard of 0"),
        (np.zeros((2, 2), np.intp), 1, "flat"),
    ],
)
def test_bad_batches_are_refused(indices: np.ndarray, size: int, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Batches(indices, size, Seed(0))


def test_there_is_no_step_before_the_first() -> None:
    with pytest.raises(SettingError, match="-1"):
        Batches(np.arange(3), 1, Seed(0)).batch(-1)

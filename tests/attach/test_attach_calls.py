"""Calls that are for all ranks, made by some: who is where is said on every rank, and nobody waits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mpirun import mpi_run

from qsparse.errors import DisagreementError, QsparseError, RankError
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, normed, step  # noqa: E402

from qsparse import CompressedAllreduce  # noqa: E402
from qsparse.torch import attach  # noqa: E402

UPDATES = "in an exchange of updates"


class Loop:
    """A rank's loop that has met once, and what it may call next."""

    def __init__(self, wire: Wire, folder: Path, exchange: str) -> None:
        self.wire, self.folder = wire, folder
        self.model = normed(1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.attached = attach(self.model, self.optimizer, "local-sgd(H=2)", wire, exchange=exchange)

    def steps(self) -> None:
        for t in range(2):
            step(self.model, self.optimizer, batch(self.wire.rank, t, torch.float32))

    def save(self) -> None:
        self.attached.save(self.folder)

    def resume(self) -> None:
        self.attached.resume(self.folder)

    def finish(self) -> None:
        self.attached.finish()

    def attach(self) -> None:
        model = normed(2)
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "sgd", self.wire)

    def allreduce(self) -> None:
        CompressedAllreduce(self.wire)


CALLS: list[tuple[Callable[[Loop], None], Callable[[Loop], None], str, str]] = [
    (Loop.save, Loop.steps, r"in save\(\) at step 2", f"{UPDATES} at step 4"),
    (Loop.save, Loop.finish, r"in save\(\) at step 2", "in (finish|an exchange of updates)"),
    (Loop.resume, Loop.steps, r"in resume\(\) at step 0", f"{UPDATES} at step 2"),
    (Loop.resume, Loop.save, r"in resume\(\) at step 0", r"in save\(\) at step 0"),
    (Loop.resume, Loop.finish, r"in resume\(\) at step 0", r"in finish\(\) at step 0"),
]


@LEFTOVERS
@pytest.mark.parametrize(
    "exchange", ["server", "server(root=1)", "tree", "allgather", "nodes(outer=tree(root=1), ranks=2)"]
)
@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize(
    ("call", "other", "one", "two"), CALLS, ids=[f"{a.__name__}-{b.__name__}" for a, b, *_ in CALLS]
)
def test_a_call_of_some_ranks_is_named_on_all(
    tmp_path: Path,
    call: Callable[[Loop], None],
    other: Callable[[Loop], None],
    one: str,
    two: str,
    ranks: tuple[int, ...],
    exchange: str,
) -> None:
    def body(wire: Wire) -> str:
        loop = Loop(wire, tmp_path, exchange)
        if call is not Loop.resume:
            loop.steps()
        with pytest.raises((DisagreementError, RankError)) as caught:
            (call if wire.rank in ranks else other)(loop)
        # It has ended on this rank, too.
        with pytest.raises((DisagreementError, RankError)):
            loop.finish()
        return str(caught.value)

    texts = run_threads(3, body, timeout=60)
    for text in texts:
        assert "the ranks are in different calls: rank" in text
        assert re.search(one, text), text
        assert re.search(two, text), text
    assert not list(tmp_path.iterdir())


@LEFTOVERS
@pytest.mark.parametrize("call", [Loop.attach, Loop.allreduce])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_wire_that_is_in_use_is_not_used_for_a_start_by_one_rank(
    tmp_path: Path, call: Callable[[Loop], None], rank: int
) -> None:
    def body(wire: Wire) -> str:
        loop = Loop(wire, tmp_path, "server")
        with pytest.raises(QsparseError) as caught:
            (call if wire.rank == rank else Loop.steps)(loop)
        return str(caught.value)

    for text in run_threads(2, body, timeout=60):
        assert "the ranks are in different calls: rank" in text
        assert UPDATES in text
        assert ("in attach()" if call is Loop.attach else "in CompressedAllreduce()") in text


@LEFTOVERS
def test_saving_at_different_steps_is_told_as_that(tmp_path: Path) -> None:
    def body(wire: Wire) -> str:
        loop = Loop(wire, tmp_path, "server")
        if wire.rank == 1:
            step(loop.model, loop.optimizer, batch(0, 0, torch.float32))
        with pytest.raises((DisagreementError, RankError)) as caught:
            loop.save()
        return str(caught.value)

    for text in run_threads(2, body, timeout=60):
        assert r"the ranks call save() at different steps (rank: step) {0: 0, 1: 1}" in text


def test_saving_on_rank_0_only_ends_the_job_with_a_sentence(tmp_path: Path) -> None:
    """The habit of other frameworks, over processes: both print who was where, and nothing is written."""
    pytest.importorskip("mpi4py")
    program = """
        import sys
        import torch
        torch.set_num_threads(1)
        from qsparse.torch import attach
        from loops import batch, normed, step

        model = normed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        link = attach(model, optimizer, "local-sgd(H=2)")
        for t in range(6):
            step(model, optimizer, batch(link.wire.rank, t, torch.float32))
            if link.wire.rank == 0 and t == 1:
                link.save(sys.argv[1])
        link.finish()
        print("went on")
    """
    finished = mpi_run(2, program, tmp_path / "checkpoints", timeout=150, check=False)
    assert finished.returncode != 0
    assert "went on" not in finished.stdout
    said = "rank 0 in save() at step 2; rank 1 in an exchange of updates at step 4: save() must be called by"
    for rank in (0, 1):
        assert [
            line for line in finished.stderr.splitlines() if f"[rank {rank}] " in line and said in line
        ], finished
    assert not (tmp_path / "checkpoints").exists()

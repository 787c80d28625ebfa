"""What a rank counts, and when a run reports it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qsparse.ledger import Clock, Ledger, combine
from qsparse.payload import Kind, Payload, Way
from qsparse.run.job import Job


def test_a_block_within_takes_its_seconds_from_the_outer_one() -> None:
    """Activities add up to the time that has passed, however they are nested."""
    ledger = Ledger()
    begin = time.perf_counter()
    with ledger.timed("exchange"):
        with ledger.timed("encode"):
            time.sleep(0.02)
            with ledger.timed("decode"):
                time.sleep(0.01)
        with ledger.timed("encode"):
            pass
    passed = time.perf_counter() - begin
    assert sum(ledger.seconds.values()) <= passed
    assert ledger.seconds["encode"] >= 0.02
    assert ledger.seconds["decode"] >= 0.01
    assert ledger.seconds["exchange"] <= passed - 0.03


class _Steady(Clock):
    """A clock on which only work takes time: a second for each unit."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def worked(self, activity: str, amount: float) -> None:
        self.time += amount


def test_seconds_go_by_the_clock() -> None:
    """What a clock charges for work within a block is that block's, however blocks are nested."""
    ledger = Ledger()
    ledger.clock = clock = _Steady()
    with ledger.timed("exchange"):
        clock.time += 0.5
        with ledger.timed("encode", 8):
            clock.time += 0.25
        with ledger.apart():
            clock.time += 100
    with ledger.timed("decode", 3), pytest.raises(ZeroDivisionError), ledger.timed("encode", 1000):
        1 / 0  # noqa: B018
    assert ledger.seconds == {"compute": 0, "encode": 8.25, "exchange": 0.5, "decode": 3}


def test_bits_bytes_and_skips_are_apart() -> None:
    """Paper bits of what was spoken, bytes of what was sent, by way; skips have no bits."""
    ledger = Ledger()
    up = Payload.build([b"abc"], way=Way.UP, nbits=7)
    ledger.count_message(up)
    ledger.count_message(Payload.build(kind=Kind.SKIP, nbits=9))
    for payload in (up, up, Payload.build(way=Way.DOWN), Payload.build([b"hello"], way=Way.CONTROL)):
        ledger.count_bytes(payload)
    both = combine([ledger.snapshot(), ledger.snapshot()])
    assert both["paper_bits"] == {"up": 14, "down": 0}
    assert both["wire_bytes"] == {"up": 2 * 2 * 51, "down": 2 * 48, "control": 2 * 53}
    assert both["messages"] == {"up": 2, "down": 0}
    assert both["skips"] == 2


@pytest.mark.parametrize(("per_epoch", "evaluations"), [(10, 3), (49, 5), (100, 7), (7, 3), (5, 1), (2, 5)])
def test_evaluations_come_once(per_epoch: int, evaluations: int) -> None:
    """As many an epoch as were asked for (or one a step), at the epoch's end among others, none twice."""
    job = cast(Any, SimpleNamespace())
    job.problem = SimpleNamespace(steps_per_epoch=per_epoch)
    job.settings = SimpleNamespace(evaluations=evaluations)
    job._evaluated = 0
    job._stretches = [(0, 0.0, 1)]
    due = [t for t in range(1, 3 * per_epoch + 1) if Job._is_due(job, t)]
    assert len(due) == 3 * min(evaluations, per_epoch)
    assert {per_epoch, 2 * per_epoch, 3 * per_epoch} <= set(due)

"""What every wire must do, as bodies that run on any of them; here over ranks that are threads.

`test_wire_mpi.py` runs the same bodies over processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest
from wire_laws import LAWS, frame, reaches_itself

import qsparse
from qsparse.errors import RankError, WireError
from qsparse.payload import Payload
from qsparse.run import RunConfig
from qsparse.testing.wire_bodies import keeps_time
from qsparse.wire.base import ANY, Wire
from qsparse.wire.threads import ThreadWire, run_threads

SIZES = (1, 2, 3, 5)
SMALL = RunConfig(model="softmax", data="digits", steps=3, batch=8, evaluations=1)


# --- laws: bodies for any wire -------------------------------------------------------------------


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_threads_obey(law: Callable[[Wire], None], size: int) -> None:
    run_threads(size, law, timeout=20)


class Stranger(Wire):
    """A wire of somebody who knows of no clock: what every wire must have, and nothing else."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.rank, self.size, self.ledger = wire.rank, wire.size, wire.ledger

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        self._wire.send(payloads, dest)

    def receive(self, source: int = ANY) -> tuple[int, list[Payload]]:
        return self._wire.receive(source)

    def flush(self) -> None:
        self._wire.flush()

    def close(self) -> None:
        self._wire.close()

    def abort(self, status: int = 1) -> None:
        self._wire.abort(status)


def test_a_wire_without_a_clock_has_that_of_the_machine() -> None:
    def body(wire: Wire) -> float:
        keeps_time(Stranger(wire))
        return qsparse.run(SMALL, Stranger(wire)).summary.get("seconds", {}).get("total", 0.0)

    begin = time.perf_counter()
    seconds = run_threads(2, body, timeout=60)
    assert 0 < seconds[0] < time.perf_counter() - begin


def test_results_come_in_the_order_of_the_ranks() -> None:
    def body(wire: Wire) -> tuple[int, int]:
        time.sleep(0.01 * (wire.size - wire.rank))
        return wire.rank, wire.size

    assert run_threads(4, body, timeout=10) == [(rank, 4) for rank in range(4)]
    with pytest.raises(WireError, match="at least one rank"):
        run_threads(0, body)


@pytest.mark.parametrize("source", [ANY, 2])
def test_a_failing_rank_wakes_the_others(source: int) -> None:
    reasons: dict[int, str] = {}

    def body(wire: Wire) -> None:
        if wire.rank == 2:
            time.sleep(0.05)
            raise ZeroDivisionError("of rank 2")
        try:
            wire.receive(source)
        except WireError as error:
            reasons[wire.rank] = str(error)
            raise

    with pytest.raises(ZeroDivisionError, match="of rank 2") as caught:
        run_threads(4, body, timeout=10)
    assert caught.value.__notes__ == ["raised by rank 2 of 4"]
    assert sorted(reasons) == [0, 1, 3]
    assert all("ZeroDivisionError: of rank 2" in reason for reason in reasons.values())


def test_what_was_sent_before_a_failure_arrives() -> None:
    heard = []

    def body(wire: Wire) -> None:
        if wire.rank:
            wire.send([Payload.build([b"last words"])], 0)
            raise ValueError("own reason")
        time.sleep(0.05)
        heard.append(wire.receive(1)[1][0].text)

    with pytest.raises(ValueError, match="own reason"):
        run_threads(2, body, timeout=10)
    assert heard == ["last words"]


def test_the_lowest_rank_that_failed_by_itself_is_raised() -> None:
    def body(wire: Wire) -> None:
        if wire.rank == 0:
            raise RankError(3, 7, "told by rank 3")
        if wire.rank == 1:
            wire.receive(3)
        raise ValueError(f"rank {wire.rank}")

    with pytest.raises(ValueError, match="rank 2"):
        run_threads(4, body, timeout=10)


def test_a_failure_reaches_ranks_that_wait_for_a_third() -> None:
    def body(wire: Wire) -> None:
        if wire.rank == 2:
            raise KeyError("root")
        wire.receive(1 - wire.rank)  # 0 and 1 wait for each other

    with pytest.raises(KeyError, match="root"):
        run_threads(3, body, timeout=10)


def test_deadlock_is_found_at_once() -> None:
    begin = time.monotonic()
    with pytest.raises(
        WireError, match=r"all ranks wait.*rank 0 for rank 2, rank 1 for rank 0, rank 2 for rank 1"
    ):
        run_threads(3, lambda wire: wire.receive((wire.rank - 1) % 3), timeout=30)
    assert time.monotonic() - begin < 5


def test_waiting_for_a_rank_that_has_ended_or_closed() -> None:
    def ended(wire: Wire) -> None:
        if wire.rank == 0:
            wire.receive(1)

    def closed(wire: Wire) -> None:
        if wire.rank:
            wire.close()
            time.sleep(0.2)
            with pytest.raises(WireError, match="has closed"):
                wire.receive(0)
        else:
            wire.receive()

    with pytest.raises(WireError, match="rank 0 waits for a message of rank 1, which has ended"):
        run_threads(2, ended, timeout=10)
    with pytest.raises(WireError, match="any rank, and no other rank is left"):
        run_threads(3, closed, timeout=10)


def test_abort_ends_the_run() -> None:
    def body(wire: Wire) -> None:
        if wire.rank == 1:
            wire.abort(5)
        wire.receive(2 if wire.rank == 0 else 0)

    with pytest.raises(WireError, match="rank 1 has aborted the run with status 5"):
        run_threads(3, body, timeout=10)


def test_timeout_shows_where_every_rank_is() -> None:
    release = threading.Event()

    def body(wire: Wire) -> None:
        if wire.rank:
            wire.receive(0)
        else:
            release.wait(20)

    try:
        with pytest.raises(WireError, match=r"not ended within 0\.3 s") as caught:
            run_threads(2, body, timeout=0.3)
    finally:
        release.set()
    text = str(caught.value)
    assert "rank 0 is at" in text
    assert "release.wait(20)" in text
    assert "rank 1 is at" in text
    assert "wire.receive(0)" in text


def test_messages_that_nobody_receives_are_told() -> None:
    with pytest.warns(RuntimeWarning, match="2 messages were sent and never received"):
        run_threads(2, lambda wire: wire.send([Payload.build()], 0), timeout=10)


def test_waiting_costs_no_time() -> None:
    def body(wire: Wire) -> float:
        if wire.rank == 0:
            time.sleep(1.0)
            wire.send([Payload.build()], 1)
            return 0.0
        begin = time.thread_time()
        wire.receive()
        return time.thread_time() - begin

    assert run_threads(2, body, timeout=10)[1] < 0.1


def test_one_rank_needs_no_thread() -> None:
    (wire,) = ThreadWire.group(1)
    reaches_itself(wire)
    with pytest.raises(WireError, match="no other rank is left"):
        wire.receive()


def test_many_ranks() -> None:
    def body(wire: Wire) -> int:
        wire.send([frame(wire, wire.rank, 8)], 0)
        if wire.rank:
            return wire.receive(0)[1][0].step
        heard = sorted(wire.receive()[0] for _ in range(wire.size))
        assert heard == list(range(wire.size))
        for dest in range(1, wire.size):
            wire.send([frame(wire, dest, 8)], dest)
        return 0

    assert run_threads(64, body, timeout=20) == list(range(64))

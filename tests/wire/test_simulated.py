"""The simulated network: how long messages take, to the last bit, and that nothing depends on real time."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wire_laws import LAWS

from qsparse.errors import PeerGone, SettingError, WireError
from qsparse.payload import HEADER_BYTES, Payload
from qsparse.registry import build, spell
from qsparse.wire.base import ANY, Wire
from qsparse.wire.simulated import Simulated, run_simulated

#: One second for each message of `second`; sums of these numbers are exact.
SLOW = Simulated(rate=1024, latency=0.5)


def second(step: int = 0, seconds: int = 1) -> Payload:
    """A message that occupies a link for so many seconds."""
    return Payload.build([bytes(1024 * seconds - HEADER_BYTES)], step=step)


def steps(wire: Wire, count: int, source: int = ANY) -> list[tuple[int, int, float]]:
    """Of so many messages: sender, step and time of arrival."""
    found = []
    for _ in range(count):
        rank, (payload,) = wire.receive(source)
        found.append((rank, payload.step, wire.now()))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_simulated_wire_obeys(law: Callable[[Wire], None], size: int) -> None:
    run_simulated(size, law, timeout=20)


# --- how long messages take ----------------------------------------------------------------------


def test_a_message_takes_its_latency_and_its_bytes_once() -> None:
    def body(wire: Wire) -> Any:
        if wire.rank:
            return steps(wire, 1)
        wire.sleep(0.25)
        wire.send([second()], 1)
        sent = wire.now()
        wire.flush()
        return sent, wire.now()

    assert run_simulated(2, body, SLOW, timeout=10) == [(0.25, 1.25), [(0, 0, 1.75)]]


def test_nothing_but_latency_for_what_weighs_nothing() -> None:
    def body(wire: Wire) -> float:
        if wire.rank == 0:
            wire.send([Payload.build()], 1)
            return wire.now()
        return steps(wire, 1)[0][2]

    fast = Simulated(rate=2.0**1000, latency=0.5)
    assert run_simulated(2, body, fast, timeout=10) == [0.0, 0.5]


def test_messages_of_one_sender_share_its_way_out() -> None:
    def body(wire: Wire) -> Any:
        if wire.rank:
            return steps(wire, 1)[0][2]
        for dest in (1, 2, 3):
            wire.send([second()], dest)
        wire.flush()
        return wire.now()

    assert run_simulated(4, body, SLOW, timeout=10) == [3.0, 1.5, 2.5, 3.5]


def test_messages_to_one_receiver_share_its_way_in() -> None:
    def body(wire: Wire) -> Any:
        if wire.rank == 0:
            return steps(wire, 3)
        wire.send([second(wire.rank)], 0)
        return wire.now()

    found = run_simulated(4, body, SLOW, timeout=10)
    assert found == [[(1, 1, 1.5), (2, 2, 2.5), (3, 3, 3.5)], 0.0, 0.0, 0.0]


def test_both_ways_of_a_link_are_apart() -> None:
    def body(wire: Wire) -> float:
        wire.send([second()], 1 - wire.rank)
        return steps(wire, 1)[0][2]

    assert run_simulated(2, body, SLOW, timeout=10) == [1.5, 1.5]


def test_the_slower_link_holds_a_message_up(tmp_path: Path) -> None:
    def body(wire: Wire) -> Any:
        if wire.rank == 3:
            return None
        if wire.rank == 0:
            wire.send([second()], 1)
            wire.send([second()], 2)
            return steps(wire, 1)
        if wire.rank == 1:
            found = steps(wire, 1)
            wire.send([second()], 0)
            return found
        return steps(wire, 1)

    file = tmp_path / "links.toml"
    file.write_text("[1]\nrate = 256\n\n[2-3]\nlatency = 1.5\n")
    found = run_simulated(4, body, Simulated(rate=1024, latency=0.5, links=str(file)), timeout=10)
    # To rank 1: 0.5 + 4; to rank 2, behind that message: 1 + 0.25 + 0.75 + 1; back from rank 1: 4.5 + 4.5.
    assert found == [[(1, 0, 9.0)], [(0, 0, 4.5)], [(0, 0, 3.0)], None]


def test_who_arrives_first_is_received_first() -> None:
    def body(wire: Wire) -> Any:
        if wire.rank == 0:
            return steps(wire, 4)
        wire.sleep(float(4 - wire.rank) * 4)
        wire.send([second()], 0)
        if wire.rank == 2:
            wire.sleep(0.25)
            wire.send([second(1)], 0)
        return None

    found = run_simulated(4, body, SLOW, timeout=10)[0]
    assert found == [(3, 0, 5.5), (2, 0, 9.5), (2, 1, 10.5), (1, 0, 13.5)]


def test_a_receiver_that_works_finds_what_has_come() -> None:
    def body(wire: Wire) -> Any:
        if wire.rank == 0:
            wire.sleep(10.0)
            return steps(wire, 2)
        wire.send([second(wire.rank)], 0)
        return None

    assert run_simulated(3, body, SLOW, timeout=10)[0] == [(1, 1, 10.0), (2, 2, 10.0)]


def test_a_message_to_oneself_takes_no_link_and_its_turn() -> None:
    def body(wire: Wire) -> Any:
        if wire.rank:
            wire.send([second(wire.rank)], 0)
            return None
        wire.sleep(1.75)
        wire.send([second(7)], 0)
        return steps(wire, 3)

    assert run_simulated(3, body, SLOW, timeout=10)[0] == [(1, 1, 1.75), (0, 7, 1.75), (2, 2, 2.5)]


def test_work_costs_what_is_said(tmp_path: Path) -> None:
    def body(wire: Wire) -> Any:
        for activity, amount in (("compute", 3), ("encode", 2_000_000), ("decode", 500_000), ("exchange", 9)):
            with wire.ledger.timed(activity, amount):
                pass
        return wire.ledger.seconds, wire.now()

    file = tmp_path / "links.toml"
    file.write_text("[1]\ncompute = 4\n")
    part = Simulated(compute=0.5, encode=0.25, decode=8.0, links=str(file))
    usual = {"compute": 1.5, "encode": 0.5, "decode": 4.0, "exchange": 0.0}
    slow = {activity: 4 * each for activity, each in usual.items()}
    assert run_simulated(2, body, part, timeout=10) == [(usual, 6.0), (slow, 24.0)]


def test_measured_work_is_the_threads_own() -> None:
    def body(wire: Wire) -> tuple[float, float]:
        begin = time.thread_time()
        while wire.rank == 1 and time.thread_time() < begin + 0.05:
            pass
        time.sleep(0.2)
        return wire.now(), time.thread_time()

    (idle, _), (busy, spent) = run_simulated(2, body, Simulated(compute="measured"), timeout=20)
    assert idle < 0.04
    assert 0.05 <= busy <= spent + 0.01


# --- how waits end -------------------------------------------------------------------------------


def test_what_was_sent_before_a_failure_arrives() -> None:
    reasons: dict[int, str] = {}

    def body(wire: Wire) -> Any:
        if wire.rank == 2:
            wire.send([second()], 0)
            raise ZeroDivisionError("of rank 2")
        try:
            if wire.rank == 0:
                assert steps(wire, 1, 2) == [(2, 0, 1.5)]
            wire.receive(2 if wire.rank == 0 else ANY)
        except PeerGone as error:
            reasons[wire.rank] = str(error)
            assert wire.now() == (1.5 if wire.rank == 0 else 1.25)
            raise

    with pytest.raises(ZeroDivisionError, match="of rank 2") as caught:
        run_simulated(3, body, SLOW, timeout=10)
    assert caught.value.__notes__ == ["raised by rank 2 of 3"]
    assert sorted(reasons) == [0, 1]
    assert all("failed with ZeroDivisionError: of rank 2" in reason for reason in reasons.values())


def test_a_circle_is_found_at_once() -> None:
    begin = time.monotonic()
    with pytest.raises(WireError, match=r"all ranks wait.*rank 0 for rank 2, rank 1 for rank 0, rank 2 for"):
        run_simulated(3, lambda wire: wire.receive((wire.rank - 1) % 3), timeout=30)
    assert time.monotonic() - begin < 5


def test_waiting_for_who_has_ended_or_closed_or_aborted() -> None:
    def closed(wire: Wire) -> None:
        if wire.rank:
            wire.close()
            with pytest.raises(WireError, match="has closed"):
                wire.receive(0)
        else:
            wire.receive()

    def aborted(wire: Wire) -> None:
        if wire.rank == 1:
            wire.abort(5)
        wire.receive(2 if wire.rank == 0 else 0)

    with pytest.raises(WireError, match="rank 0 waits for a message of rank 1, which has ended"):
        run_simulated(2, lambda wire: None if wire.rank else wire.receive(1), timeout=10)
    with pytest.raises(WireError, match="any rank, and no other rank is left"):
        run_simulated(3, closed, timeout=10)
    with pytest.raises(WireError, match="rank 1 has aborted the run with status 5"):
        run_simulated(3, aborted, timeout=10)


def test_messages_that_nobody_receives_are_told() -> None:
    with pytest.warns(RuntimeWarning, match="6 messages were sent and never received"):
        run_simulated(3, lambda wire: [wire.send([second()], 0) for _ in range(2)], timeout=10)


def test_what_is_received_cannot_be_written_to() -> None:
    def body(wire: Wire) -> None:
        if wire.rank == 0:
            payload = second()
            for dest in (1, 2):
                wire.send([payload], dest)
            return
        _, (payload,) = wire.receive(0)
        with pytest.raises(TypeError):
            payload.frame[-1] = 1

    run_simulated(3, body, timeout=10)


def test_who_says_the_same_to_all_keeps_one_copy() -> None:
    def body(wire: Wire) -> None:
        payload = Payload.build([bytes(1_000_000)])
        for step in range(1, wire.size):
            wire.send([payload], (wire.rank + step) % wire.size)
        for step in range(1, wire.size):
            wire.receive((wire.rank + step) % wire.size)
        wire.flush()

    run_simulated(2, body, timeout=30)  # what loads kernels and modules is not counted
    tracemalloc.start()
    try:
        run_simulated(16, body, timeout=30)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


# --- many ranks ----------------------------------------------------------------------------------


def test_a_thousand_ranks() -> None:
    def body(wire: Wire) -> Any:
        if wire.rank:
            wire.send([second()], 0)
            return steps(wire, 1)[0][2]
        for rank, _, _ in steps(wire, wire.size - 1):
            wire.send([second()], rank)
        return None

    found = run_simulated(1024, body, SLOW, timeout=60)[1:]
    # The last message has come at 1023.5, and then the answers leave, one a second.
    assert found == [1024.0 + rank for rank in range(1, 1024)]


@pytest.mark.filterwarnings("ignore:.* never received")
def test_chaos_repeats_bit_for_bit() -> None:
    """Whoever is heard decides who is told next, so one change of the order would change everything."""

    def body(wire: Wire) -> list[tuple[int, int, float]]:
        heard = []
        for step in range(3):
            wire.send([second(step, 1 + wire.rank % 3)], (5 * wire.rank + step) % wire.size)
        for step in range(40):
            wire.worked("compute", 1 + (wire.rank * step) % 7)
            try:
                heard += steps(wire, 1)
            except PeerGone:
                break
            rank, said, _ = heard[-1]
            wire.send([second(said + 1)], (3 * rank + said + wire.rank) % wire.size)
        return heard

    part = Simulated(rate=1000.0, latency=0.013, compute=0.171)
    first, again = (run_simulated(12, body, part, timeout=30) for _ in range(2))
    assert first == again
    assert sum(map(len, first)) > 300


# --- settings ------------------------------------------------------------------------------------


def test_rates_are_bytes_or_text() -> None:
    text = "simulated(rate='100mbit', latency=0.01, compute=0.5)"
    part = build(text, "wire")
    assert part == Simulated(rate="100mbit", latency=0.01, compute=0.5)
    assert spell(part) == text
    (wire,) = run_simulated(1, lambda wire: [wire], part)[0]
    assert wire.simulates == text

    def body(wire: Wire) -> float:
        if wire.rank == 0:
            wire.send([Payload.build([bytes(12_500_000 - HEADER_BYTES)])], 1)
            return 0.0
        return steps(wire, 1)[0][2]

    assert run_simulated(2, body, part, timeout=10)[1] == pytest.approx(1.01, rel=1e-12)
    assert run_simulated(2, body, Simulated(rate=12_500_000, latency=0.01), timeout=10)[1] == pytest.approx(
        1.01
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rate='fast'", "the rate of wire simulated is 'fast': write bytes per second, or e.g. '1gbit'"),
        ("rate=0", "the rate of wire simulated is 0:"),
        ("rate=true", "the rate of wire simulated is True:"),
        ("latency=-1", "latency of wire simulated is -1: it must be a number, 0 or more"),
        ("compute='much'", "compute of wire simulated is 'much': write seconds, or 'measured'"),
        ("compute=-0.5", "compute of wire simulated is -0.5: it must be"),
        ("encode='x'", "encode of wire simulated is 'x': it must be"),
        ("compute='measured', decode=1", "leave out encode and decode"),
        ("links=3", "links of wire simulated is 3: write the path of a file"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text: str, told: str) -> None:
    with pytest.raises(SettingError) as caught:
        build(f"simulated({text})", "wire")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[3]\nrate = 5\n", "has a table '3', and there are 3 ranks: 0 to 2"),
        ("[2-1]\nrate = 5\n", "has a table '2-1', and there are 3 ranks"),
        ("[all]\nrate = 5\n", "has a table 'all': name it after a rank, or after ranks as in 8-15"),
        ("[1]\nspeed = 5\n", "has no setting 'speed': it has rate, latency, compute"),
        ("[1]\nrate = 'x'\n", "is 'x': write bytes per second"),
        ("[1]\nlatency = -1\n", "is -1: it must be a number"),
        ("1 = 5\n", "is 5: it must be a table with rate, latency, compute"),
        ("[1\n", "is not valid TOML"),
    ],
)
def test_files_of_links_that_mean_nothing_are_refused(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "links.toml"
    file.write_text(text)
    with pytest.raises(SettingError) as caught:
        run_simulated(3, lambda wire: None, Simulated(links=str(file)))
    assert told in str(caught.value)
    assert "links.toml" in str(caught.value)

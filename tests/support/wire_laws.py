"""What every wire keeps, over threads and over processes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from qsparse.errors import Corrupted, WireError
from qsparse.payload import HEADER_BYTES, Kind, Payload, Way
from qsparse.wire.base import ANY, Wire

CHUNK = 1 << 16


def content(origin: int, step: int, length: int) -> bytes:
    """Bytes that only this message has."""
    return random.Random(f"{origin} {step} {length}").randbytes(length)


def frame(wire: Wire, step: int, length: int, way: Way = Way.UP) -> Payload:
    return Payload.build([content(wire.rank, step, length)], origin=wire.rank, step=step, way=way, n=length)


def check(payload: Payload, origin: int, step: int) -> None:
    assert (payload.origin, payload.step) == (origin, step)
    assert bytes(payload.body) == content(origin, step, payload.n)


def keeps_the_order_of_each_pair(wire: Wire) -> None:
    lengths = [0, 1, 5000, CHUNK, 17, 3 * CHUNK + 1, 100]
    for step in range(30):
        for dest in range(wire.size):
            wire.send([frame(wire, step, lengths[(step + dest) % len(lengths)])], dest)
    pause = random.Random(wire.rank)
    for step in range(30):
        for source in reversed(range(wire.size)):
            if pause.random() < 0.1:
                time.sleep(0.001)
            got, (payload,) = wire.receive(source)
            assert got == source
            check(payload, source, step)


def keeps_the_order_of_each_pair_from_any(wire: Wire) -> None:
    for step in range(40):
        for dest in range(wire.size):
            wire.send([frame(wire, step, 10 * step if step % 7 else CHUNK + step)], dest)
    heard = [0] * wire.size
    for _ in range(40 * wire.size):
        source, (payload,) = wire.receive(ANY)
        check(payload, source, heard[source])
        heard[source] += 1
    assert heard == [40] * wire.size


def is_fair(wire: Wire) -> None:
    """A rank that floods the coordinator does not delay those that say little."""
    many, few = 400, 20
    if wire.rank:
        wire.send([frame(wire, 0, 0)], 0)
        for step in range(many if wire.rank == 1 else few):
            wire.send([frame(wire, step, 500)], 0)
        return
    for source in range(1, wire.size):
        wire.receive(source)
    time.sleep(0.3)
    order = [wire.receive()[0] for _ in range(many + few * (wire.size - 2) if wire.size > 1 else 0)]
    for source in range(2, wire.size):
        last = max(i for i, rank in enumerate(order) if rank == source)
        # In turn, `few` of the flood; more where the library's own queue has them in front.
        assert order[:last].count(1) <= many // 2, (source, order)


def reaches_itself(wire: Wire) -> None:
    for step, length in enumerate((0, 10, CHUNK + 1, 1_000_000)):
        wire.send([frame(wire, step, length)], wire.rank)
    for step in range(4):
        source, (payload,) = wire.receive(wire.rank if step % 2 else ANY)
        assert source == wire.rank
        check(payload, wire.rank, step)


def carries_any_length(wire: Wire) -> None:
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    edges = [CHUNK - HEADER_BYTES + d for d in (-1, 0, 1)] + [
        3 * CHUNK - HEADER_BYTES + d for d in (-1, 0, 1)
    ]
    lengths = [0, 1, *edges, 1_000_003]
    for step, length in enumerate(lengths):
        wire.send([frame(wire, step, length)], right)
    for step, length in enumerate(lengths):
        _, (payload,) = wire.receive(left)
        assert len(payload) == HEADER_BYTES + length
        check(payload, left, step)
        if not payload.frame.readonly:
            payload.frame[-1] ^= 1  # the receiver's own memory, or nobody's


def carries_several_frames(wire: Wire) -> None:
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    lengths = (0, 3, CHUNK, 0, 200_000)
    frames = [frame(wire, step, length) for step, length in enumerate(lengths)]
    frames.append(Payload.build(kind=Kind.STOP, way=Way.DOWN, origin=wire.rank, step=7))
    wire.send(frames, right)
    _, payloads = wire.receive(left)
    assert len(payloads) == len(frames)
    for step, payload in enumerate(payloads[:-1]):
        check(payload, left, step)
    end = payloads[-1]
    assert (end.kind, end.way, end.origin, end.step) == (Kind.STOP, Way.DOWN, left, 7)


def can_flush_before_anybody_receives(wire: Wire) -> None:
    for step in range(3):
        for dest in range(wire.size):
            wire.send([frame(wire, step, 1_000_000)], dest)
    wire.flush()
    for source in range(wire.size):
        for step in range(3):
            check(wire.receive(source)[1][0], source, step)


def leaves_the_memory_alone_after_flush(wire: Wire) -> None:
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    payload = frame(wire, 1, 500_000)
    wire.send([payload], right)
    wire.flush()
    payload.frame[HEADER_BYTES:] = bytes(500_000)
    check(wire.receive(left)[1][0], left, 1)


def counts_what_it_sends(wire: Wire) -> None:
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    before = dict(wire.ledger.wire_bytes)
    up = [frame(wire, 0, 10), frame(wire, 1, 3 * CHUNK)]
    down = frame(wire, 2, 1000, Way.DOWN)
    wire.send(up, right)
    wire.send([down], right)
    with pytest.raises(WireError):
        wire.send([down], wire.size)
    wire.receive(left)
    wire.receive(left)
    assert wire.ledger.wire_bytes["up"] - before["up"] == sum(map(len, up))
    assert wire.ledger.wire_bytes["down"] - before["down"] == len(down) == 1000 + HEADER_BYTES


def refuses_nonsense(wire: Wire) -> None:
    payload = frame(wire, 0, 1)
    for rank in (wire.size, -2):
        with pytest.raises(WireError, match=f"no rank {rank}"):
            wire.send([payload], rank)
        with pytest.raises(WireError, match=f"no rank {rank}"):
            wire.receive(rank)
    with pytest.raises(WireError, match="without frames"):
        wire.send([], 0)
    with pytest.raises(WireError, match="its own"):
        wire.receive(wire.rank)


def refuses_altered_frames(wire: Wire) -> None:
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    bad, good = frame(wire, 0, 1000), frame(wire, 1, 1000)
    bad.frame[500] ^= 4
    wire.send([bad], right)
    wire.send([good], right)
    with pytest.raises(Corrupted, match=f"rank {wire.rank} refuses a message of rank {left}: .*checksum"):
        wire.receive(left)
    check(wire.receive(left)[1][0], left, 1)


LAWS: tuple[Callable[[Wire], None], ...] = (
    keeps_the_order_of_each_pair,
    keeps_the_order_of_each_pair_from_any,
    is_fair,
    reaches_itself,
    carries_any_length,
    carries_several_frames,
    can_flush_before_anybody_receives,
    leaves_the_memory_alone_after_flush,
    counts_what_it_sends,
    refuses_nonsense,
    refuses_altered_frames,
)

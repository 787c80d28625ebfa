"""What every wire must do, as bodies that all ranks run together, be they made by a wire or by a launcher."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from qsparse.errors import Corrupted, WireError
from qsparse.payload import HEADER_BYTES, Kind, Payload, Way
from qsparse.testing.base import Broken, hold
from qsparse.wire.base import ANY, Wire

#: Lengths around this one and its multiples are tried; a wire that sends in pieces may be given it as their
#: size.
CHUNK: Final = 1 << 16

Body: TypeAlias = Callable[[Wire], None]


@functools.lru_cache(16)
def content(origin: int, step: int, length: int) -> bytes:
    """Bytes that only this message has."""
    return random.Random(f"{origin} {step} {length}").randbytes(length)


def frame(wire: Wire, step: int, length: int, way: Way = Way.UP) -> Payload:
    """A frame with the `content` of this rank and step."""
    return Payload.build([content(wire.rank, step, length)], origin=wire.rank, step=step, way=way, n=length)


def check(payload: Payload, origin: int, step: int) -> None:
    """Hold a frame to be that of a rank and a step, byte for byte."""
    found = payload.origin, payload.step
    hold(
        found == (origin, step), f"step {step} of rank {origin} was to come, and {found[1]} of {found[0]} did"
    )
    right = bytes(payload.body) == content(origin, step, payload.n)
    hold(right, f"the frame of step {step} of rank {origin} has other bytes than were sent")


def refused(kind: type[Exception], what: str, act: Callable[[], Any], *words: object) -> None:
    """Hold that something is refused with an error of a kind whose sentence has some words."""
    try:
        act()
    except kind as error:
        missing = [str(word) for word in words if str(word) not in str(error)]
        hold(not missing, f"{what} is refused without naming {', '.join(missing)}: {error}")
        return
    except Exception as error:
        raise Broken(f"{what} ends with {type(error).__name__}, not with {kind.__name__}: {error}") from error
    raise Broken(f"{what} is not refused with {kind.__name__}")


def _neighbours(wire: Wire) -> tuple[int, int]:
    return (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size


def keeps_the_order_of_each_pair(wire: Wire) -> None:
    """Messages of one rank to another come in the order in which they were sent, whoever is heard first."""
    lengths = [0, 1, 5000, CHUNK, 17, 3 * CHUNK + 1, 100]
    for step in range(30):
        for dest in range(wire.size):
            wire.send([frame(wire, step, lengths[(step + dest) % len(lengths)])], dest)
    pause = random.Random(wire.rank)
    for step in range(30):
        for source in reversed(range(wire.size)):
            if pause.random() < 0.1:
                wire.sleep(0.001)
            got, (payload,) = wire.receive(source)
            hold(got == source, f"a wait for rank {source} returns a message of rank {got}")
            check(payload, source, step)


def keeps_the_order_of_each_pair_from_any(wire: Wire) -> None:
    """So they do where a rank waits for any."""
    for step in range(40):
        for dest in range(wire.size):
            wire.send([frame(wire, step, 10 * step if step % 7 else CHUNK + step)], dest)
    heard = [0] * wire.size
    for _ in range(40 * wire.size):
        source, (payload,) = wire.receive(ANY)
        check(payload, source, heard[source])
        heard[source] += 1
    hold(heard == [40] * wire.size, f"of 40 messages of each rank came {heard}")


def takes_senders_in_turn(wire: Wire) -> None:
    """A rank that floods another one does not delay those that say little."""
    many, few = 400, 20
    if wire.rank:
        wire.send([frame(wire, 0, 0)], 0)
        for step in range(many if wire.rank == 1 else few):
            wire.send([frame(wire, step, 500)], 0)
        return
    for source in range(1, wire.size):
        wire.receive(source)
    wire.sleep(0.3)
    order = [wire.receive()[0] for _ in range(many + few * (wire.size - 2) if wire.size > 1 else 0)]
    for source in range(2, wire.size):
        last = max(i for i, rank in enumerate(order) if rank == source)
        # In turn, `few` of the flood; more where the library's own queue has them in front.
        before = order[:last].count(1)
        hold(before <= many // 2, f"{before} of {many} messages of rank 1 come before {few} of rank {source}")


def reaches_itself(wire: Wire) -> None:
    """A rank can send to itself."""
    for step, length in enumerate((0, 10, CHUNK + 1, 1_000_000)):
        wire.send([frame(wire, step, length)], wire.rank)
    for step in range(4):
        source, (payload,) = wire.receive(wire.rank if step % 2 else ANY)
        hold(source == wire.rank, f"a message of rank {wire.rank} to itself is one of rank {source}")
        check(payload, wire.rank, step)


def carries_any_length(wire: Wire) -> None:
    """Frames of any length arrive whole; what is received is the receiver's own, or cannot be written to."""
    right, left = _neighbours(wire)
    edges = [times * CHUNK - HEADER_BYTES + d for times in (1, 3) for d in (-1, 0, 1)]
    lengths = [0, 1, *edges, 1_000_003]
    for step, length in enumerate(lengths):
        wire.send([frame(wire, step, length)], right)
    for step, length in enumerate(lengths):
        _, (payload,) = wire.receive(left)
        hold(len(payload) == HEADER_BYTES + length, f"a frame has {len(payload)} bytes, {length} of body")
        check(payload, left, step)
        if not payload.frame.readonly:
            payload.frame[-1] ^= 1


def carries_several_frames(wire: Wire) -> None:
    """A message of several frames arrives as one, with all of them."""
    right, left = _neighbours(wire)
    lengths = (0, 3, CHUNK, 0, 200_000)
    frames = [frame(wire, step, length) for step, length in enumerate(lengths)]
    frames.append(Payload.build(kind=Kind.STOP, way=Way.DOWN, origin=wire.rank, step=7))
    wire.send(frames, right)
    _, payloads = wire.receive(left)
    hold(len(payloads) == len(frames), f"of {len(frames)} frames {len(payloads)} come")
    for step, payload in enumerate(payloads[:-1]):
        check(payload, left, step)
    end = payloads[-1]
    hold((end.kind, end.way, end.origin, end.step) == (Kind.STOP, Way.DOWN, left, 7), f"{end!r} is no STOP")


def can_flush_before_anybody_receives(wire: Wire) -> None:
    """Flushing does not need receivers that wait."""
    for step in range(3):
        for dest in range(wire.size):
            wire.send([frame(wire, step, 1_000_000)], dest)
    wire.flush()
    for source in range(wire.size):
        for step in range(3):
            check(wire.receive(source)[1][0], source, step)


def leaves_the_memory_alone_after_flush(wire: Wire) -> None:
    """Once a wire has been flushed, the memory of what was sent may be used for other things."""
    right, left = _neighbours(wire)
    payload = frame(wire, 1, 500_000)
    wire.send([payload], right)
    wire.flush()
    payload.frame[HEADER_BYTES:] = bytes(500_000)
    check(wire.receive(left)[1][0], left, 1)
    # The same object, which says something else now: what is checked and kept must not be the object.
    again = frame(wire, 2, 500_000)
    payload.frame[:] = again.frame
    wire.send([payload], right)
    check(wire.receive(left)[1][0], left, 2)


def counts_what_it_sends(wire: Wire) -> None:
    """The ledger counts the bytes of each frame once, by its way; what is refused is not counted."""
    right, left = _neighbours(wire)
    before = dict(wire.ledger.wire_bytes)
    up = [frame(wire, 0, 10), frame(wire, 1, 3 * CHUNK)]
    down = frame(wire, 2, 1000, Way.DOWN)
    wire.send(up, right)
    wire.send([down], right)
    refused(WireError, "a message to a rank that does not exist", lambda: wire.send([down], wire.size))
    wire.receive(left)
    wire.receive(left)
    for way, sent in (("up", sum(map(len, up))), ("down", 1000 + HEADER_BYTES)):
        counted = wire.ledger.wire_bytes[way] - before[way]
        hold(counted == sent, f"{sent} bytes were sent {way}, and the ledger counts {counted}")


def refuses_nonsense(wire: Wire) -> None:
    """Ranks that do not exist, messages without frames, and a wait for oneself are refused by a sentence."""
    payload = frame(wire, 0, 1)
    for rank in (wire.size, -2):
        refused(WireError, f"a message to rank {rank}", functools.partial(wire.send, [payload], rank), rank)
        refused(WireError, f"a wait for rank {rank}", functools.partial(wire.receive, rank), rank)
    refused(WireError, "a message without frames", lambda: wire.send([], 0))
    refused(WireError, "a wait for a message of its own", lambda: wire.receive(wire.rank), wire.rank)


def refuses_altered_frames(wire: Wire) -> None:
    """A frame that was altered on the way is refused, with its sender; the next one is fine."""
    right, left = _neighbours(wire)
    bad, good = frame(wire, 0, 1000), frame(wire, 1, 1000)
    bad.frame[500] ^= 4
    wire.send([bad], right)
    wire.send([good], right)
    refused(Corrupted, "an altered frame", lambda: wire.receive(left), f"rank {left}", "checksum")
    check(wire.receive(left)[1][0], left, 1)


def keeps_time(wire: Wire) -> None:
    """Time never goes back, sleeping takes it, and the ledger counts by the same clock."""
    right, left = _neighbours(wire)
    begin = last = wire.now()

    def later(what: str, least: float = 0.0) -> None:
        nonlocal last
        now = wire.now()
        # Clocks of a machine may differ by a little where they are two.
        hold(now - last >= 0.9 * least, f"{what}, time goes from {last} to {now}")
        last = now

    wire.sleep(0.01)
    later("sleeping for 0.01 s", 0.01)
    before = wire.ledger.seconds["exchange"]
    for step in range(20):
        with wire.ledger.timed("exchange"):
            wire.send([frame(wire, step, 100)], right)
            later("sending")
            check(wire.receive(left)[1][0], left, step)
            later("receiving")
            wire.sleep(0.001)
        wire.worked("compute", 1)
        later("told of work")
        wire.flush()
        later("flushing")
    counted = wire.ledger.seconds["exchange"] - before
    hold(counted >= 0.018, f"20 blocks that sleep for 0.001 s each count {counted} s in the ledger")
    hold(counted <= 1.001 * (last - begin), f"{counted} s are counted of {last - begin} s that have passed")


#: All of them. On wires of one kind they may run one after the other.
BODIES: Final[tuple[Body, ...]] = (
    keeps_the_order_of_each_pair,
    keeps_the_order_of_each_pair_from_any,
    takes_senders_in_turn,
    reaches_itself,
    carries_any_length,
    carries_several_frames,
    can_flush_before_anybody_receives,
    leaves_the_memory_alone_after_flush,
    counts_what_it_sends,
    refuses_nonsense,
    refuses_altered_frames,
    keeps_time,
)

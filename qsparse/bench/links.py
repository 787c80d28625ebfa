"""The link between every two ranks, measured one pair after another."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Final

from qsparse.exchange.base import receive_one
from qsparse.exchange.notes import note
from qsparse.payload import HEADER_BYTES, Payload, Way
from qsparse.planning.links import Pair
from qsparse.wire.base import Wire

#: Up to so many ranks every pair is measured; of more, neighbours in the order of the ring.
ALL_PAIRS: Final = 16
_CALL: Final = "doctor --links"
_PINGS: Final = 20
_BURST: Final = 50
#: Bytes of long messages, tried one after another until one takes long enough.
_SIZES: Final = (1 << 16, 1 << 20, 1 << 23)
#: Seconds of a round trip that a clock and a burst of the link cannot spoil.
_ENOUGH: Final = 0.02
_BULKS: Final = 3
#: No message takes less, in seconds.
_INSTANT: Final = 1e-9
#: What a message asks for, in the step of its header: to come back, nothing, and no more to be waited for.
_ECHO, _QUIET, _END = 1, 2, 3


def pairs_of(size: int) -> list[tuple[int, int]]:
    """Which ranks are measured with each other, neighbours of the ring first.

    >>> pairs_of(4), len(pairs_of(16)), len(pairs_of(17))
    ([(0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (1, 3)], 120, 17)
    """
    ring = [(rank, rank + 1) for rank in range(size - 1)]
    if size > 2:
        ring.append((0, size - 1))
    if size > ALL_PAIRS:
        return ring
    others = [(one, other) for one in range(size) for other in range(one + 1, size)]
    return list(dict.fromkeys([*ring, *others]))


def measure_links(wire: Wire) -> list[Pair]:
    """Measure between all pairs in turn, while the other ranks are silent; collective.

    Args:
        wire: between the ranks; seconds are those of its clock.

    Returns:
        The pairs, in their order, on rank 0; an empty list elsewhere.

    Raises:
        RankError: another rank failed.
    """
    found = []
    for one, other in pairs_of(wire.size):
        if wire.rank == 0:
            # Nobody else has anything to send now: two pairs at once would share what lies between them.
            for rank in {one, other} - {0}:
                wire.send([note(wire, _CALL)], rank)
            wire.flush()
        elif wire.rank in (one, other):
            receive_one(wire, 0)
        if wire.rank == one:
            pair = _lead(wire, one, other)
            if one != 0:
                text = json.dumps(pair).encode()
                wire.send([Payload.build([text], way=Way.CONTROL, origin=one)], 0)
                wire.flush()
        elif wire.rank == other:
            _follow(wire, one)
        if wire.rank == 0:
            found.append(pair if one == 0 else Pair(*json.loads(receive_one(wire, one)[1].text)))
    return found


def _lead(wire: Wire, one: int, other: int) -> Pair:
    def there_and_back(message: Sequence[Payload]) -> float:
        begin = wire.now()
        wire.send(message, other)
        wire.flush()
        receive_one(wire, other)
        return wire.now() - begin

    short = [_message(one, _ECHO)]
    there_and_back(short)  # the first message of a pair makes its connection
    ping = statistics.median(there_and_back(short) for _ in range(_PINGS)) / 2
    bulk, size = 0.0, 0
    for size in _SIZES:
        long = [_message(one, _ECHO, size)]
        bulk = statistics.median(there_and_back(long) for _ in range(_BULKS)) / 2
        if 2 * bulk >= _ENOUGH:
            break
    quiet = [_message(one, _QUIET)]
    begin = wire.now()
    for _ in range(_BURST):
        wire.send(quiet, other)
    there_and_back(short)
    seconds = wire.now() - begin - 2 * ping
    wire.send([_message(one, _END)], other)
    wire.flush()
    # Headers travel in short messages as in long ones.
    rate = size / max(bulk - ping, _INSTANT)
    return Pair(one, other, max(0.0, ping - HEADER_BYTES / rate), rate, max(0.0, seconds) / _BURST)


def _follow(wire: Wire, one: int) -> None:
    while True:
        _, payload = receive_one(wire, one)
        if payload.step == _END:
            return
        if payload.step == _ECHO:
            wire.send([payload], one)
            wire.flush()


def _message(origin: int, what: int, size: int = 0) -> Payload:
    return Payload.build([bytes(size)], way=Way.CONTROL, origin=origin, step=what)

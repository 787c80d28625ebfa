"""A wire between some ranks of another wire, and what is counted of those on one machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qsparse.errors import WireError
from qsparse.ledger import Ledger, combine
from qsparse.payload import Payload, Way
from qsparse.testing.wire_bodies import BODIES
from qsparse.wire.base import ANY, Wire
from qsparse.wire.subwire import SubWire
from qsparse.wire.threads import run_threads


@pytest.mark.parametrize("law", BODIES, ids=lambda law: law.__name__)
def test_a_wire_of_some_ranks_is_a_wire(law: Callable[[Wire], None]) -> None:
    """All of them, in the order of the wire below."""
    run_threads(3, lambda wire: law(SubWire(wire, range(3))), timeout=30)


def test_ranks_have_numbers_of_their_own() -> None:
    def body(wire: Wire) -> None:
        if wire.rank == 1:
            return
        some = SubWire(wire, [3, 0, 2])
        assert (some.rank, some.size, some.origin) == ([3, 0, 2].index(wire.rank), 3, wire.rank)
        for dest in range(3):
            some.send([Payload.build([b"from %d" % wire.rank], way=Way.UP)], dest)
        for source in range(3):
            rank, (payload,) = some.receive(source)
            assert (rank, payload.text) == (source, f"from {[3, 0, 2][source]}")
        with pytest.raises(WireError, match="name one of them"):
            some.receive(ANY)
        with pytest.raises(WireError, match="no rank 3 on a wire of 3 ranks"):
            some.receive(3)

    run_threads(4, body, timeout=30)


def test_what_stays_on_a_machine_is_counted_apart() -> None:
    frame = Payload.build([bytes(100)])

    def body(wire: Wire) -> Ledger:
        SubWire(wire, [0, 1], indoors=True).send([frame], 1 - wire.rank)
        wire.receive(1 - wire.rank)
        wire.send([frame], 1 - wire.rank)
        SubWire(wire, [0, 1], indoors=True).receive(1 - wire.rank)
        return wire.ledger

    for ledger in run_threads(2, body, timeout=30):
        assert ledger.machine_bytes == {"up": 148, "down": 0, "control": 0}
        assert ledger.wire_bytes == {"up": 148, "down": 0, "control": 0}
        # One frame out, and one in that was received as any other.
        assert ledger.link_bytes == {"up": 296, "down": 0}
        again = Ledger()
        again.resume(ledger.snapshot())
        assert again.machine_bytes == ledger.machine_bytes
        assert combine([ledger.snapshot(), Ledger().snapshot()])["machine_bytes"]["up"] == 148
    assert "machine_bytes" not in Ledger().snapshot()

"""Laws of wires."""

from __future__ import annotations

from typing import Final

from qsparse.payload import Payload
from qsparse.testing.base import hold, law
from qsparse.types import Vector
from qsparse.wire.base import Ranks, Wire

_SIZES: Final = (1, 2, 5)


@law("ring", "wire", once=True)
def _ring(part: Ranks, name: str, x: Vector) -> bool:
    """There are as many ranks as were asked for, and messages of one rank come in order, byte for byte.

    Tried where the wire makes its ranks itself.
    """
    if part.launched:
        return False

    def body(wire: Wire) -> tuple[int, int]:
        after, before = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
        for step in range(3):
            wire.send([Payload.build([bytes([wire.rank, step])], origin=wire.rank, step=step)], after)
        for step in range(3):
            source, payloads = wire.receive(before)
            got = [bytes(payload.body) for payload in payloads]
            hold(source == before and got == [bytes([before, step])], f"message {step} of {before} is {got}")
        wire.flush()
        return wire.rank, wire.size

    for size in _SIZES:
        found = part.run(size, body)
        hold(found == (0, size), f"asked for {size} ranks, it runs rank {found[0]} of {found[1]}")
    return True

"""Laws of wires: those that make their ranks themselves are tried, on several numbers of ranks."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, Final, TypeVar

from qsparse.errors import PeerGone, WireError
from qsparse.payload import Payload
from qsparse.testing.base import Broken, hold, law
from qsparse.testing.wire_bodies import BODIES, Body, refused
from qsparse.types import Vector
from qsparse.wire.base import ANY, Ranks, Wire

T = TypeVar("T")

_SIZES: Final = (1, 2, 5)
#: Seconds after which a wire that does not come to an end has broken a law.
_PATIENCE: Final = 60.0


class _Deliberate(Exception):
    """What a rank fails with in a law."""


def _run(part: Ranks, size: int, body: Callable[[Wire], T]) -> T:
    """What the ranks come to; a wire on which they wait for ever breaks the law, and is left behind."""
    found: list[T] = []
    raised: list[BaseException] = []

    def live() -> None:
        try:
            found.append(part.run(size, body))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    hold(not thread.is_alive(), f"{size} ranks have not ended within {_PATIENCE:.0f} s")
    if raised:
        raise raised[0]
    return found[0]


def _of(body: Body) -> None:
    """Make a law of a body."""

    def holds(part: Ranks, name: str, x: Vector) -> bool:
        if part.launched:
            return False
        for size in _SIZES:
            _run(part, size, body)
        return True

    holds.__doc__ = body.__doc__
    law(body.__name__.replace("_", " "), "wire", once=True)(holds)


for _body in BODIES:
    _of(_body)


@law("ring", "wire", once=True)
def _ring(part: Ranks, name: str, x: Vector) -> bool:
    """There are as many ranks as were asked for, and what the lowest returns comes back."""
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
        found = _run(part, size, body)
        hold(found == (0, size), f"asked for {size} ranks, it runs rank {found[0]} of {found[1]}")
    return True


@law("close", "wire", once=True)
def _close(part: Ranks, name: str, x: Vector) -> bool:
    """A rank may close its wire twice, and then neither send nor receive."""
    if part.launched:
        return False

    def body(wire: Wire) -> None:
        wire.send([Payload.build()], (wire.rank + 1) % wire.size)
        wire.receive()
        wire.close()
        wire.close()
        refused(WireError, "sending on a closed wire", lambda: wire.send([Payload.build()], 0), "closed")
        refused(WireError, "receiving on a closed wire", lambda: wire.receive(0), "closed")

    for size in _SIZES:
        _run(part, size, body)
    return True


@law("departure", "wire", once=True)
def _departure(part: Ranks, name: str, x: Vector) -> bool:
    """A wait for a rank that has ended or closed its wire ends with PeerGone, when its messages are taken."""
    if part.launched:
        return False

    def body(closes: bool, wire: Wire) -> None:
        last = wire.size - 1
        if wire.rank == last:
            for dest in range(last):
                wire.send([Payload.build([b"farewell"])], dest)
            if closes:
                wire.close()
            return
        heard = wire.receive(last)[1][0].text
        hold(heard == "farewell", f"what a rank has sent before it ends is {heard!r}")
        refused(PeerGone, f"a wait for rank {last}, which is gone,", lambda: wire.receive(last), last)
        if wire.rank == 0:
            refused(PeerGone, "a wait for any rank, when all are gone,", lambda: wire.receive(ANY))

    for size in (2, 5):
        for closes in (False, True):
            _run(part, size, functools.partial(body, closes))
    return True


@law("failure", "wire", once=True)
def _failure(part: Ranks, name: str, x: Vector) -> bool:
    """The error of a rank ends the waits of all others with PeerGone, and is what the run raises."""
    if part.launched:
        return False

    def body(wire: Wire) -> None:
        if wire.rank == wire.size - 1:
            raise _Deliberate("on purpose")
        wire.receive(ANY if wire.rank % 2 else (wire.rank - 1) % wire.size)

    def aborted(wire: Wire) -> None:
        if wire.rank == wire.size - 1:
            wire.abort(3)
            raise _Deliberate("a rank goes on after it has aborted the run")
        wire.receive((wire.rank - 1) % wire.size)

    _raises(part, 5, body, _Deliberate)
    _raises(part, 5, aborted, WireError)
    return True


def _raises(part: Ranks, size: int, body: Callable[[Wire], Any], kind: type[BaseException]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of messages that nobody has received
        try:
            _run(part, size, body)
        except kind:
            return
        except Exception as error:
            raise Broken(f"{size} ranks end with {type(error).__name__}: {error}") from error
    raise Broken(f"{size} ranks end without the {kind.__name__} that one of them raises")

"""Laws of memories, held at both ends of a link: one that loses almost everything, and one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from qsparse.compressors import Float32, LowPrecision, Sign, TopK
from qsparse.link import Link, Receiver, Sender
from qsparse.memory import Memory
from qsparse.testing.base import (
    SEED,
    apart,
    bits_of,
    decoded,
    hold,
    is_moderate,
    law,
    same,
    same_state,
    saved,
)
from qsparse.types import State, Vector

_ROUNDS: Final = 5
#: Repetitions after which a vector must be known, one coordinate or more at a time.
_MANY: Final = 40


def _links(memory: Memory, n: int) -> Iterator[Link]:
    if not memory.claims.exact:
        yield Link(
            LowPrecision(bits=2) if memory.claims.needs_precision else (TopK(k=3) >> Sign()).limited(n),
            memory,
        )
    yield Link(Float32(), memory)


def _said(x: Vector, t: int) -> Vector:
    """What is said in round t: near x, and never the same twice."""
    factors = (1.0, -0.5, 0.25, 0.75)
    said: Vector = (np.roll(x, t) * x.dtype.type(factors[t % 4])).astype(x.dtype)
    return said


def _start(x: Vector) -> Vector:
    return np.linspace(-1, 1, x.size).astype(x.dtype)


def _spoken(link: Link, x: Vector, rounds: int) -> Sender:
    """A sender that has said something for some rounds."""
    sender = Sender(link, _start(x))
    for t in range(rounds):
        sender.commit(sender.draft(_said(x, t), SEED.at(step=t)))
    return sender


@law("start", "memory")
def _start_is_copied(part: Memory, name: str, x: Vector) -> bool:
    """init copies the start, leaves it alone, and makes a state of its own for each end."""
    start = _start(x)
    before = start.tobytes()
    one, other = part.init(start), part.init(start)
    hold(start.tobytes() == before, "init changed the start")
    apart(one, other, "two ends of a link")
    apart(one, {"start": start}, "the state and the start")
    same_state(one, other, "two states from one start")
    return True


@law("draft", "memory")
def _draft(part: Memory, name: str, x: Vector) -> bool:
    """Adding and compressing change neither the state nor what is said, however often."""
    for link in _links(part, x.size):
        sender = _spoken(link, x, 2)
        v = _said(x, 2)
        before, state = v.tobytes(), saved(sender.state)
        first = bytes(sender.draft(v, SEED).payload.frame)
        same_state(sender.state, state, "after a draft that was not committed")
        sender.draft(_said(x, 3), SEED)
        again = sender.draft(v, SEED)
        hold(bytes(again.payload.frame) == first, "a draft depends on drafts before it that were not sent")
        hold(v.tobytes() == before, "a draft changed what is said")
        hold(again.target.shape == x.shape and again.target.dtype == x.dtype, "the target has another type")
        same_state(sender.state, state, "after three drafts that were not committed")
    return True


@law("commit", "memory")
def _commit(part: Memory, name: str, x: Vector) -> bool:
    """commit leaves the frame as it was sent, and gives back a vector that is no part of the state."""
    for link in _links(part, x.size):
        sender = _spoken(link, x, 2)
        v = _said(x, 2).copy()
        draft = sender.draft(v, SEED)
        frame, before = bytes(draft.payload.frame), v.tobytes()
        given = part.commit(sender.state, draft)
        hold(bytes(draft.payload.frame) == frame, "commit changed the frame")
        hold(v.tobytes() == before, "commit changed what was said")
        free = draft.total.out if given is None else given
        if free is not None:
            hold(free.shape == x.shape and free.dtype == x.dtype, "commit gave back no vector like x")
        state = bits_of(sender.state)
        for vector in (v, free):
            if vector is not None:
                vector[...] = 7
        hold(bits_of(sender.state) == state, "the state changes with a vector that is not its own any more")
    return True


@law("restore", "memory")
def _restore(part: Memory, name: str, x: Vector) -> bool:
    """What was restored owns the state: neither the next total nor the last one reaches into it."""
    state, twin = part.init(_start(x)), part.init(_start(x))
    buffer = np.empty_like(x)
    for t in range(_ROUNDS):
        np.copyto(buffer, _said(x, t))
        got = part.restore(state, buffer).copy()
        wanted = part.restore(twin, _said(x, t))
        same(got, wanted, f"restored in round {t}, in a buffer that is used again")
        buffer[...] = 7
        same_state(state, twin, f"after the buffer of round {t} was overwritten")
    return True


@law("lossless", "memory")
def _lossless(part: Memory, name: str, x: Vector) -> bool:
    """Where the compressor loses nothing, the receiver hears what was said."""
    if not is_moderate(x):
        return False
    link = Link(Float32(), part)
    sender, receiver = Sender(link, _start(x)), Receiver(link, _start(x))
    most = 1 + float(np.max(np.abs(x), initial=0))
    for t in range(_ROUNDS):
        draft = sender.draft(_said(x, t), SEED.at(step=t))
        sender.commit(draft)
        heard = receiver.merge([draft.payload])
        off = float(np.max(np.abs(heard - _said(x, t)), initial=0))
        hold(off <= 1e-5 * most, f"round {t}: what is heard is off by {off:.3g} through float32")
    return True


@law("accounts", "memory")
def _account(part: Memory, name: str, x: Vector) -> bool:
    """What was said is what was sent and what is kept; both ends know the same, where both know something."""
    if not is_moderate(x):
        return False
    checked = False
    for link in _links(part, x.size):
        for v in (x, x.astype(np.float64)):
            checked |= _accounts(link, v)
    return checked


def _accounts(link: Link, x: Vector) -> bool:
    """Whether there was something to hold."""
    part, claims = link.memory, link.memory.claims
    sender, receiver = Sender(link, _start(x)), Receiver(link, _start(x))
    told_by = (claims.keeps_error, claims.skip_repeats, claims.exact, claims.adds_nothing)
    checked = any(told_by) or not claims.remembers
    owed = np.zeros(x.size)
    told = part.shared(sender.state).astype(np.float64) if claims.skip_repeats else owed.copy()
    for t in range(_ROUNDS):
        v = _said(x, t)
        draft = sender.draft(v, SEED.at(step=t))
        sender.commit(draft)
        heard = receiver.merge([draft.payload])
        if claims.exact:
            single = v.astype(np.float32).astype(v.dtype)
            same(heard, single, f"heard in round {t}, against what was said")
            same(part.shared(sender.state), single, f"shared with the sender in round {t}")
            continue
        sent = decoded(draft.payload)
        told += sent
        if claims.adds_nothing:
            same(heard, sent, f"heard in round {t}, against what was sent")
        if not claims.remembers:
            hold(not sender.state and not receiver.state, "something is kept")
        if claims.skip_repeats:
            shared = part.shared(sender.state)
            same(part.shared(receiver.state), shared, f"shared by both ends in round {t}")
            same(heard, shared, f"heard in round {t}, against what the sender knows")
            _near(
                shared, told, 1 + _largest(x), f"what both ends know in round {t}, against all that was sent,"
            )
        added = part.addend(sender.state, t + 1)
        kept = np.zeros(x.size) if added is None else added[0] * added[1].astype(np.float64)
        if claims.keeps_error:
            owed = v + owed - sent
            # A reset after this step drops what is kept before the next one.
            owed *= 0 if t in claims.resets else claims.decay
            _near(kept, owed, _largest(x), f"what round {t} keeps, against said − sent,")
        elif added is not None and t == 0:
            checked = True
            hold(
                not _parallel(kept, v - sent), "it adds the error of the last message, and does not claim to"
            )
    return checked


def _parallel(one: Vector, other: Vector) -> bool:
    """Whether two vectors of several coordinates point the same way."""
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    several = bool(np.count_nonzero(one) > 3)
    return several and 0 < lengths < np.inf and float(one @ other) > 0.999 * lengths


@law("repetition", "memory")
def _repetition(part: Memory, name: str, x: Vector) -> bool:
    """What is said again and again gets known, although each message holds little of it."""
    claims = part.claims
    keeps = claims.skip_repeats or (claims.keeps_error and claims.decay == 1)
    if not keeps or not 0 < x.size <= 64 or not is_moderate(x) or not np.any(x):
        return False
    link = Link(TopK(k=1), part)
    sender, receiver = Sender(link, np.zeros_like(x)), Receiver(link, np.zeros_like(x))
    rounds = _MANY * x.size
    total = np.zeros(x.size)
    for t in range(rounds):
        draft = sender.draft(x, SEED.at(step=t))
        sender.commit(draft)
        total += receiver.merge([draft.payload])
    # An error memory speaks of x in turn, and on average says all of it; what both ends know is x itself.
    heard, most = (part.shared(receiver.state), 1e-5) if claims.skip_repeats else (total / rounds, 0.1)
    off = _largest(heard - x) / _largest(x)
    hold(off <= most, f"after {rounds} rounds what is heard is off by {off:.3g} of the largest value")
    return True


@law("resume", "memory")
def _resume(part: Memory, name: str, x: Vector) -> bool:
    """A state is plain arrays and numbers: both ends go on from a copy with the same bits."""
    for link in _links(part, x.size):
        sender, receiver = Sender(link, _start(x)), Receiver(link, _start(x))
        later, resumed = Sender(link, _start(x)), Receiver(link, _start(x))
        for t in range(_ROUNDS):
            if t == 2:
                later.state, resumed.state = saved(sender.state), saved(receiver.state)
            draft = sender.draft(_said(x, t), SEED.at(step=t))
            sender.commit(draft)
            heard = receiver.merge([draft.payload])
            if t >= 2:
                again = later.draft(_said(x, t), SEED.at(step=t))
                later.commit(again)
                hold(bytes(again.payload.frame) == bytes(draft.payload.frame), f"round {t} sends other bytes")
                same(resumed.merge([again.payload]), heard, f"heard in round {t} from a copied state")
                _same_ends(later.state, sender.state, resumed.state, receiver.state)
    return True


def _same_ends(later: State, sender: State, resumed: State, receiver: State) -> None:
    same_state(later, sender, "the sender, resumed")
    same_state(resumed, receiver, "the receiver, resumed")


def _largest(x: Vector) -> float:
    return float(np.max(np.abs(x), initial=0))


def _near(got: Vector, wanted: Vector, largest: float, what: str) -> None:
    """Within the rounding of a few sums of such values."""
    off = _largest(got - wanted)
    hold(off <= 2.0**-20 * largest * wanted.size + 2.0**-140, f"{what} is off by {off:.3g}")


class _Sealed:
    """A vector that nobody can look into."""


@law("hands on", "memory")
def _hands_on(part: Memory, name: str, x: Vector) -> bool:
    """Where it is claimed, vectors are named and exchanged, and never looked into."""
    if not part.claims.hands_on:
        return False
    state = {
        key: _Sealed() if isinstance(value, np.ndarray) else value for key, value in part.init(x).items()
    }
    for t in (1, 2):
        kept: list[Any] = [value for value in state.values() if isinstance(value, _Sealed)]
        added = part.addend(state, t)
        named = added is None or (isinstance(added[0], float) and any(added[1] is each for each in kept))
        hold(named, "what it adds is no vector of its state")
        free = part.commit(state, SimpleNamespace(rest=_Sealed(), target=_Sealed(), clock=t))  # type: ignore[arg-type]
        hold(free is None or any(free is each for each in kept), "what it gives back was not its own")
    return True

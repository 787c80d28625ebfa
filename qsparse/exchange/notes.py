"""What ranks say about where they stand: errors, notes that name a call, and bundles of several payloads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from qsparse.errors import DisagreementError, RankError, WireError
from qsparse.payload import Kind, Payload, Way
from qsparse.wire.base import Wire

#: The codec of a frame that holds whole frames: the payloads of ranks that one rank speaks for.
BUNDLE: Final = 4

#: The name of the call in which ranks send each other updates.
UPDATES: Final = "an exchange of updates"
#: The call that ends a loop, where ranks that took fewer steps than others are found.
FINISH: Final = "finish()"


def error_payload(origin: int, step: int, reason: str) -> Payload:
    """The message that a failing rank sends in place of its payload."""
    return Payload.build([reason.encode()], kind=Kind.ERROR, way=Way.CONTROL, origin=origin, step=step)


def error_of(error: BaseException, rank: int, step: int) -> Payload:
    """The ERROR that names what was raised on a rank; one that came from another rank keeps its origin."""
    if isinstance(error, RankError):
        return error_payload(error.rank, error.step, error.reason)
    return error_payload(rank, step, f"{type(error).__name__}: {error}")


def wrapped(error: Payload, way: Way) -> Payload:
    """An ERROR as data, which an exchange carries to the end of a round like any other payload.

    So all ranks are told and nothing is left over, and they may go on with the next round. It is a bundle of
    one frame.

    Args:
        error: what has happened.
        way: up in place of a report, down in place of an answer.
    """
    inner = Payload.build([error.body], kind=Kind.ERROR, way=way, origin=error.origin, step=error.step)
    return Payload.build([inner.frame], way=Way.CONTROL, codec=BUNDLE, origin=error.origin, step=error.step)


def wrapped_error(payloads: Sequence[Payload]) -> Payload | None:
    """The ERROR in the first of the payloads that was `wrapped`; None where all are others."""
    for payload in payloads:
        if payload.codec == BUNDLE and (inner := opened([payload])[0]).kind is Kind.ERROR:
            return inner
    return None


def bundle(payloads: Sequence[Payload]) -> Payload:
    """One frame that holds the frames of several ranks; of one payload it is that payload."""
    first = payloads[0]
    if len(payloads) == 1:
        return first
    frames = [payload.frame for payload in payloads]
    return Payload.build(frames, way=first.way, codec=BUNDLE, origin=first.origin, step=first.step)


def opened(payloads: Sequence[Payload]) -> list[Payload]:
    """The payloads, those that are bundles as what they hold."""
    found: list[Payload] = []
    for payload in payloads:
        found += Payload.split(payload.body) if payload.codec == BUNDLE else [payload]
    return found


def note(wire: Wire, call: str, step: int = 0, said: Any = None) -> Payload:
    """A control message that names the call for all ranks that this rank is in, with further JSON data."""
    text = json.dumps({"call": call, "said": said}).encode()
    return Payload.build([text], way=Way.CONTROL, origin=wire.rank, step=step)


def call_of(payload: Payload) -> str:
    """The call that the sender of a payload is in: an exchange of updates, or the call its note names."""
    if payload.way is not Way.CONTROL:
        return UPDATES
    try:
        return str(json.loads(payload.text)["call"])
    except (ValueError, LookupError, TypeError):
        return "another call"


def same_step(payloads: list[Payload]) -> list[Payload]:
    """Refuse a round with ranks at different steps, or with updates of some and notes of other ranks."""
    whole = opened(payloads)
    if len({(payload.step, payload.way is Way.CONTROL) for payload in whole}) > 1:
        raise DisagreementError(_apart(whole))
    return payloads


def same_call(payloads: list[Payload]) -> list[Payload]:
    """Refuse a round of notes in which the ranks are in different calls."""
    if len({call_of(payload) for payload in payloads}) > 1:
        raise DisagreementError(_apart(payloads))
    return payloads


def with_own(mine: Payload, heard: list[Payload]) -> list[Payload]:
    """What a rank has heard, and what it says itself where that is not among it: it only serves."""
    return heard if any(each.origin == mine.origin for each in heard) else [mine, *heard]


def only_updates(wire: Wire, step: int, payloads: list[Payload]) -> list[Payload]:
    """Refuse notes where a rank that says nothing itself expects updates at a step."""
    if any(payload.way is Way.CONTROL for payload in payloads):
        same_call([note(wire, UPDATES, step), *payloads])
    return payloads


def one_each(wire: Wire, payloads: list[Payload]) -> list[Payload]:
    """Refuse a round in which not every rank of a wire has said one thing, at one step.

    In a call over one exchange a rank may speak for others, too, and over another one for itself alone.
    """
    same_step(payloads)
    if len(payloads) != wire.size:
        same_call(payloads)
        raise WireError(
            f"rank {wire.origin} got {len(payloads)} payloads of {wire.size} ranks: every rank must make the "
            "same calls on a wire, in the same order"
        )
    return payloads


def _apart(payloads: list[Payload]) -> str:
    """The reason why a round cannot go on: which ranks are in which call."""
    ranks: dict[tuple[str, int], list[int]] = {}
    for payload in payloads:
        ranks.setdefault((call_of(payload), payload.step), []).append(payload.origin)
    calls = {call for call, _ in ranks}
    named = sorted(calls - {UPDATES, FINISH})
    if named and len(calls) > 1:
        places = [
            f"{'ranks' if len(those) > 1 else 'rank'} {', '.join(map(str, those))} in {call} at step {step}"
            for (call, step), those in ranks.items()
        ]
        return (
            f"the ranks are in different calls: {'; '.join(places)}: {' and '.join(named)} must be called by "
            "all ranks, at the same step"
        )
    steps = {payload.origin: payload.step for payload in payloads}
    ended = [str(rank) for (call, _), those in ranks.items() if call == FINISH for rank in those]
    verb = f"call {named[0]}" if named else "meet"
    tail = f" (rank {', '.join(ended)} has called finish())" if ended and len(calls) > 1 else ""
    return (
        f"the ranks {verb} at different steps (rank: step) {steps}{tail}: give every rank the same trigger, "
        "and let all take as many steps"
    )

"""Small control data between ranks, as JSON: what each rank has, and whether all have the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qsparse.errors import DisagreementError
from qsparse.exchange import AllGather
from qsparse.exchange.notes import same_call
from qsparse.payload import Payload, Way
from qsparse.wire.base import Wire

T = TypeVar("T")


def agree(wire: Wire, make: Callable[[], tuple[T, Mapping[str, Any]]], call: str = "the start") -> T:
    """Make an object on every rank, and go on only if all ranks could, and all made the same.

    Args:
        wire: between the ranks.
        make: returns the object and the settings that must be equal on all ranks.
        call: the name of this call in the error, where other ranks are in another call.

    Raises:
        DisagreementError: on every rank, with both spellings, or with the calls that ranks are in instead.
        RankError: on the other ranks, where ``make`` raised on one; that rank raises the error of ``make``.
    """
    made: list[T] = []

    def greet() -> Payload:
        thing, settings = make()
        made.append(thing)
        text = json.dumps({"call": call, **settings}, sort_keys=True).encode()
        return Payload.build([text], way=Way.CONTROL, origin=wire.rank)

    with wire.at(f"the agreement on settings in {call}"):
        greetings = AllGather().say(wire, greet)
    everybodys = [json.loads(greeting.text) for greeting in greetings]
    # Another release may send other settings in its greeting.
    if len({settings.get("qsparse") for settings in everybodys}) == 1:
        same_call(greetings)
    difference = _difference(everybodys)
    if difference:
        raise DisagreementError(difference)
    return made[0]


def _difference(settings: list[dict[str, Any]]) -> str:
    for rank, other in enumerate(settings):
        # Other differences between two releases are not reasons of their own.
        for name in sorted(settings[0].keys() | other.keys(), key=lambda name: (name != "qsparse", name)):
            ours, theirs = settings[0].get(name), other.get(name)
            if ours != theirs:
                remedy = "start all ranks with the same command on the same data"
                if name == "qsparse":
                    remedy = "install the same release on the machines of all ranks"
                return (
                    f"the ranks disagree about {name}: rank 0 has {ours!r} and rank {rank} has {theirs!r}; "
                    f"{remedy}"
                )
    return ""


def everybodys(wire: Wire, make: Callable[[], Any], step: int = 0) -> list[Any]:
    """What ``make`` returns on each rank, sent as JSON; collective.

    Raises:
        RankError: on the other ranks, where ``make`` raised on one; that rank raises the error of ``make``.
    """

    def speak() -> Payload:
        return Payload.build([json.dumps(make()).encode()], way=Way.CONTROL, origin=wire.rank, step=step)

    with wire.at(f"the checkpoint of step {step}" if step else "the search for checkpoints"):
        return [json.loads(payload.text) for payload in AllGather().say(wire, speak, step)]

"""Nobody begins before all ranks have made the same thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qsparse.errors import DisagreementError
from qsparse.exchange import AllGather
from qsparse.payload import Payload, Way
from qsparse.wire.base import Wire

T = TypeVar("T")


def agree(wire: Wire, make: Callable[[], tuple[T, Mapping[str, Any]]]) -> T:
    """Make something on every rank, and go on only if all could and all made the same.

    Args:
        wire: between the ranks.
        make: returns the thing and the settings that must be equal on all ranks.

    Raises:
        DisagreementError: on every rank, with both spellings.
        RankError: on the other ranks where ``make`` raised on one, which raises what it raised.
    """
    made: list[T] = []

    def greet() -> Payload:
        thing, settings = make()
        made.append(thing)
        text = json.dumps(settings, sort_keys=True).encode()
        return Payload.build([text], way=Way.BESIDE, origin=wire.rank)

    with wire.at("the agreement on settings"):
        greetings = AllGather().say(wire, greet)
    difference = _difference([json.loads(greeting.text) for greeting in greetings])
    if difference:
        raise DisagreementError(difference)
    return made[0]


def _difference(settings: list[dict[str, Any]]) -> str:
    for rank, other in enumerate(settings):
        for name in sorted(settings[0].keys() | other.keys()):
            ours, theirs = settings[0].get(name), other.get(name)
            if ours != theirs:
                return (
                    f"the ranks disagree about {name}: rank 0 has {ours!r} and rank {rank} has {theirs!r}; "
                    "start all ranks with the same command on the same data"
                )
    return ""

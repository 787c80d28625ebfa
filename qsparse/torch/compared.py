"""What the ranks of an attached loop tell each other beside the exchange, so that no difference is unseen."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from qsparse.exchange import Exchange
from qsparse.exchange.notes import note, same_call, with_own
from qsparse.payload import Payload
from qsparse.torch.steps import Optimizers
from qsparse.wire.base import Wire

#: Of a parameter group: what is stepped, and how it is computed, which may differ.
_NO_SETTINGS: Final = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}

#: Settings are compared at the first, second, fourth, … meeting, and at every one that this divides.
_EVERY: Final = 16


def due(meeting: int) -> bool:
    """Are settings compared at the meeting of this number, from 1? It takes a round of small messages."""
    return meeting % _EVERY == 0 or (meeting < _EVERY and meeting & (meeting - 1) == 0)


def everybodys(exchange: Exchange, wire: Wire, step: int, mine: Any, call: str) -> list[Any]:
    """What each rank tells, as JSON has it, in rank order; collective.

    On the road of the exchange, so that a rank that stands at another step, or gives up, is heard of.

    Args:
        exchange, wire: how notes travel.
        step: where this rank stands.
        mine: what this rank tells.
        call: what all ranks are in.

    Raises:
        DisagreementError: the ranks stand at different steps, or are in different calls.
        RankError: a rank has failed.
    """
    here = note(wire, call, step, mine)
    heard = exchange.gather(wire, here)
    answer = None
    if heard is not None:
        answer = note(wire, call, step, [_said(payload) for payload in same_call(with_own(here, heard))])
    _, reply = same_call([here, exchange.broadcast(wire, answer)])
    told: list[Any] = _said(reply)
    return told


def _said(payload: Payload) -> Any:
    return json.loads(payload.text)["said"]


def settings_of(optimizers: Optimizers) -> dict[str, Any]:
    """The settings of all parameter groups, by optimizer, group and name."""
    found = {}
    for number, optimizer in enumerate(optimizers):
        kind = type(optimizer).__name__ + (f" ({number})" if len(optimizers) > 1 else "")
        for place, group in enumerate(optimizer.param_groups):
            for name, value in group.items():
                if isinstance(value, torch.Tensor) and value.numel() == 1:
                    value = value.item()
                if name not in _NO_SETTINGS and _is_plain(value):
                    found[f"{name} of group {place} of {kind}"] = value
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def digest(thing: Any) -> str:
    """A fingerprint of a tensor's values, or of what JSON can say."""
    if isinstance(thing, torch.Tensor):
        dense = thing.detach().cpu().contiguous().reshape(-1)
        return hashlib.blake2b(dense.view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()
    return hashlib.blake2b(json.dumps(thing, sort_keys=True).encode(), digest_size=8).hexdigest()


def other_settings(settings: Sequence[Mapping[str, Any]], step: int) -> str:
    """Where the ranks' settings differ, as a sentence; "" where they do so by a rounding only.

    Args:
        settings: of all ranks, in rank order.
        step: at which they were compared.
    """
    for rank, theirs in enumerate(settings):
        for name in sorted(settings[0].keys() | theirs.keys()):
            first, second = settings[0].get(name), theirs.get(name)
            if not _alike(first, second):
                return (
                    f"at step {step} the ranks train with different settings: {name} is {first} on rank 0 "
                    f"and {second} on rank {rank}. A scheduler that goes by each rank's own loss, such as "
                    "ReduceLROnPlateau, does that: give it what all ranks have in common, e.g. "
                    "comm.allreduce(loss) / comm.size, and give optimizers the same settings on all ranks"
                )
    return ""


def _alike(first: Any, second: Any) -> bool:
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_alike, first, second))
    if isinstance(first, float) and isinstance(second, float):
        # Another machine's cosine may be off by a bit.
        both_nan = math.isnan(first) and math.isnan(second)
        return both_nan or math.isclose(first, second, rel_tol=1e-6)
    return bool(first == second)


def stray(strays: Sequence[Mapping[str, str]], pending: Sequence[str], met: int) -> str:
    """What differs between the ranks and was never exchanged, as a sentence; "" where nothing does.

    Args:
        strays: of each rank, fingerprints of what `FlatModel.strays` has found there.
        pending: of each rank, `Steps.pending`.
        met: the step of the last meeting; 0 before the first.
    """
    for name in sorted({name for each in strays for name in each}):
        told = [each.get(name) for each in strays]
        if len(set(told)) == 1:
            continue
        rank = next(rank for rank, each in enumerate(told) if each is not None)
        if name.startswith("buffer"):
            return (
                f"{name} of rank {rank} was not there when the model was attached, so it is not averaged, "
                "and it differs between the ranks: register it before the model is attached"
            )
        since = f"the meeting at step {met}" if met else "the model was attached"
        half = f" ({pending[rank]})" if pending[rank] else ""
        return (
            f"the ranks end with different models: on rank {rank} {name} has moved since {since}, by no step "
            f"that was counted{half}, and no rank was told of it. A step is counted when all optimizers that "
            "were given to attach have taken step(). Let nothing else train the model, neither updates of "
            "your own nor an optimizer without torch's hooks; load, swap or average weights, or call an "
            "optimizer's eval(), before the last step, or with the same result on all ranks"
        )
    return ""

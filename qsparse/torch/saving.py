"""What an attached loop goes on from, as plain data: its place, optimizers, schedulers and tensors."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from qsparse.algorithm import Algorithm
from qsparse.exchange import Exchange
from qsparse.rounds.node import Node
from qsparse.rounds.state import WalkState, typed
from qsparse.run.checkpoint import Found
from qsparse.run.resharding import merged, reshard
from qsparse.run.state import RankState
from qsparse.torch.flat import FlatModel
from qsparse.torch.steps import Optimizers
from qsparse.torch.tensors import anchor_of, host_state, on_host, restore_tensor
from qsparse.types import State

#: The name under which the items of a Counter are kept, by which torch counts milestones.
_COUNTER: Final = "collections.Counter"


def plain(value: Any) -> Any:
    """A state with arrays in place of tensors, which keeps their types by name."""
    if isinstance(value, torch.Tensor):
        dense = value.detach().cpu().contiguous()
        # As bytes, because NumPy has not all types of torch.
        return {
            "dtype": str(dense.dtype).removeprefix("torch."),
            "shape": list(dense.shape),
            "tensor": dense.reshape(-1).view(torch.uint8).numpy().copy(),
        }
    if isinstance(value, Counter):
        return {_COUNTER: dict(value)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(each) for each in value)
    return value


def tensors(value: Any) -> Any:
    """The state that was made `plain`."""
    if isinstance(value, dict):
        if value.keys() == {"dtype", "shape", "tensor"}:
            return _tensor(value).reshape(value["shape"])
        if value.keys() == {_COUNTER}:
            return Counter(value[_COUNTER])
        return {key: tensors(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(tensors(each) for each in value)
    return value


def mean(states: Sequence[Any]) -> Any:
    """The mean of plain states of several ranks: of tensors of floats; all else is the first's."""
    first = states[0]
    if isinstance(first, dict):
        if first.keys() == {"dtype", "shape", "tensor"}:
            each = [_tensor(state) for state in states]
            if not each[0].is_floating_point():
                return first
            total = torch.stack([one.double() for one in each]).mean(0)
            return plain(total.to(each[0].dtype).reshape(first["shape"]))
        return {key: mean([state[key] for state in states]) for key in first}
    return first


@dataclass
class LoopState(RankState):
    """What an attached loop leaves in a checkpoint.

    Attributes:
        torch: what torch remembers, `plain`: tensors that are not exchanged, optimizers, ``others``, and the
            generator of random numbers; None for the last on a rank that is new.
        notes: of the user's.
    """

    torch: State
    notes: dict[str, Any]


def walk_of(flat: FlatModel, nodes: Sequence[Node], t: int, met: int, rates: list[float]) -> WalkState:
    """Where a rank stands.

    Args:
        flat: its model, whose buffers were collected.
        nodes: about the parameters, and about the buffers if there are any.
        t: its steps.
        met: the step of the last meeting.
        rates: the learning rates then.
    """
    buffers = on_host(flat.buffer_values)
    return WalkState(
        x=on_host(flat.values),
        buffers=buffers,
        anchor=on_host(anchor_of(nodes[-1])) if len(nodes) > 1 else buffers,
        t=t,
        phase="main",
        phases={"main": [host_state(node, number == 0) for number, node in enumerate(nodes)]},
        met=met,
        rates=rates,
    )


def restore_walk(flat: FlatModel, nodes: Sequence[Node], walk: WalkState) -> None:
    """Bring a model and new nodes to what was saved."""
    main, *rest = walk.phases["main"]
    assert main.local is not None
    restore_tensor(nodes[0], main, walk.x, main.local["anchor"])
    for node, saved in zip(nodes[1:], rest, strict=True):
        restore_tensor(node, saved, walk.buffers, walk.anchor)
    flat.spread()


def torch_of(flat: FlatModel, optimizers: Optimizers, others: Sequence[Any]) -> State:
    """What torch remembers, beside what is exchanged.

    Args:
        flat: the model.
        optimizers: those that were attached.
        others: whatever else has a ``state_dict``.
    """
    states = [each.state_dict() for each in optimizers]
    return {
        "rest": plain(list(flat.left().values())),
        "optimizer": plain(states[0] if len(states) == 1 else {str(n): s for n, s in enumerate(states)}),
        "others": [plain(each.state_dict()) for each in others],
        "generator": plain(torch.get_rng_state()),
    }


def restore_torch(flat: FlatModel, optimizers: Optimizers, others: Sequence[Any], saved: State) -> None:
    """Bring all of it to what was saved."""
    with torch.no_grad():
        for tensor, kept in zip(flat.left().values(), tensors(saved["rest"]), strict=True):
            if tensor.shape != kept.shape:
                tensor.data = torch.empty(kept.shape, dtype=tensor.dtype, device=tensor.device)
            tensor.copy_(kept)
    moments = tensors(saved["optimizer"])
    for number, optimizer in enumerate(optimizers):
        optimizer.load_state_dict(moments if len(optimizers) == 1 else moments[str(number)])
    for each, state in zip(others, saved["others"], strict=True):
        each.load_state_dict(tensors(state))
    if saved["generator"] is not None:
        torch.set_rng_state(tensors(saved["generator"]))


def found_state(found: Found, algorithm: Algorithm, exchange: Exchange, rank: int, size: int) -> LoopState:
    """What rank ``rank`` of ``size`` goes on from; made of all ranks' states where they were others.

    Rank 0 warns where that rounds the sum of the error memories.
    """
    if found.ranks == size:
        return typed(LoopState, found.state(rank))
    states = [typed(LoopState, found.state(other)) for other in range(found.ranks)]
    state = merged(states, rank)
    state.walk, differences = reshard([each.walk for each in states], algorithm, exchange, rank, size)
    off = differences["memory_difference"]
    if off and rank == 0:
        warnings.warn(
            f"{found.folder} is of {found.ranks} ranks and goes on with {size}, whose error memories cannot "
            f"hold the same sums: these are off by up to {off:.2g}",
            RuntimeWarning,
            stacklevel=2,
        )
    if rank < found.ranks:
        state.torch = states[rank].torch
    else:
        state.torch = mean([each.torch for each in states]) | {"generator": None}
    return state


def _tensor(value: dict[str, Any]) -> torch.Tensor:
    # A copy, aligned as torch likes it, of what may be a map of a file.
    flat = torch.from_numpy(np.array(value["tensor"], np.uint8))
    return flat.view(getattr(torch, value["dtype"]))

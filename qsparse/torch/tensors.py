"""Nodes about tensors: what the ranks of an attached loop have in common, moved by the user's optimizer.

Where a tensor lies on a device, reports are formed there, and go to the host as far as the link needs them:
where its compressor looks for the largest entries, so much as it finds (`qsparse.torch.device`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from qsparse.algorithm import Algorithm
from qsparse.compressors import Composed, Compressor
from qsparse.compressors.blockwise import Piecewise
from qsparse.compressors.composed import Selector
from qsparse.exchange import Exchange
from qsparse.link import Sender
from qsparse.local import Local
from qsparse.rounds.node import Node, Pace
from qsparse.rounds.state import NodeState, restore, state_of
from qsparse.seeds import Seed
from qsparse.torch.device import device_sum
from qsparse.types import Layout, State, Vector
from qsparse.wire.base import Wire


@dataclass(frozen=True)
class UsersOptimizer(Local):
    """Local steps that the user's optimizer takes: it moves x, a tensor, and the net update is reported."""

    def init(self, x: Any, gradient: Vector | None = None) -> State:
        """The anchor is where one is."""
        return {"x": x, "anchor": x.clone()}

    def advance(self, state: State, oracle: Any, batch: Any, t: int) -> float:
        """Nobody asks for it."""
        raise AssertionError("the user's optimizer takes the steps")

    def report(self, state: State, out: Any) -> Any:
        """Write anchor − x into ``out``, (n,): a tensor of the device, or an array of the host."""
        place = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
        if place.device == state["x"].device:
            torch.sub(state["anchor"], state["x"], out=place)
        else:
            place.copy_(state["anchor"] - state["x"])
        return out

    def adopt(self, state: State, model: Vector) -> None:
        """Take the model."""
        state["anchor"].copy_(torch.from_numpy(model))
        state["x"].copy_(state["anchor"])

    def posted(self, state: State) -> None:
        """The anchor is where x is."""
        state["anchor"].copy_(state["x"])

    def landed(self, state: State, model: Vector) -> None:
        """Move x to the model, and keep what the optimizer has done since the report."""
        state["x"] -= state["anchor"]
        state["anchor"].copy_(torch.from_numpy(model))
        state["x"] += state["anchor"]

    def follow(self, state: State, model: Vector) -> None:
        """Move x as the model did, so that what was not said stays."""
        before = state["anchor"].clone()
        state["anchor"].copy_(torch.from_numpy(model))
        state["x"] += state["anchor"] - before


def node_about(
    tensor: torch.Tensor,
    algorithm: Algorithm,
    exchange: Exchange,
    wire: Wire,
    seed: Seed,
    layout: Layout,
    pace: Pace | None = None,
) -> Node:
    """This rank's place in the synchronizations about a tensor, (n,), which is moved in place.

    Args:
        tensor: the model, or the buffers; equal on all ranks.
        algorithm: the parts; local steps are the user's optimizer's.
        exchange, wire: how payloads travel.
        seed: of the run.
        layout: the tensor's layers.
        pace: where this rank stands; nodes of one rank share it.
    """
    row = replace(algorithm, local=UsersOptimizer())
    node = Node(row, exchange, wire, tensor.cpu().numpy(), seed, layout, wire.ledger, pace)
    sender = node.worker.sender
    out: Any = torch.empty_like(tensor)
    if not elsewhere(tensor):
        out = out.numpy()
    elif sender is not None and node.machine is None and chooses_there(sender, row, tensor.numel()):
        # The mean of a machine is formed on the host, and what is said of it as well.
        move(sender, tensor.device)
    else:
        # Locked pages are copied at the full speed of the bus.
        out = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda).numpy()
    node.worker.begin(tensor, out=out)
    return node


def elsewhere(tensor: torch.Tensor) -> bool:
    """Whether it lies where NumPy cannot read it."""
    return tensor.device.type != "cpu"


def chooses_there(sender: Sender, algorithm: Algorithm, n: int) -> bool:
    """Whether there is a choice to make on the device, and nobody who asks for the vector on the host."""
    trigger = algorithm.trigger
    alone = trigger.claims.may_skip or algorithm.participation.claims.chooses
    return sender.memory.claims.hands_on and not alone and _chooses(sender.compressor, n)


def _chooses(part: Compressor, n: int) -> bool:
    """Does it look for the largest of n entries, so that not all of them need be copied?"""
    if isinstance(part, Piecewise):
        return any(_chooses(inner, size) for size, inner, _ in part.runs(n))
    selector = part.selector if isinstance(part, Composed) else part
    if not isinstance(selector, Selector):
        return False
    claims = selector.claims_for(n)
    return claims.largest and (claims.kept or 0) < n


def move(sender: Sender, device: torch.device) -> None:
    """Let a sender speak of tensors of a device from now on, and keep there what it keeps."""
    sender.form = device_sum
    for name, value in sender.state.items():
        if isinstance(value, np.ndarray):
            sender.state[name] = torch.from_numpy(value).to(device)


def anchor_of(node: Node) -> torch.Tensor:
    """What the tensor was after the last synchronization, (n,)."""
    assert node.worker.state is not None
    anchor: torch.Tensor = node.worker.state["anchor"]
    return anchor


def host_state(node: Node, local: bool) -> NodeState:
    """As `state_of`, with arrays of the host."""
    found: NodeState = on_host(state_of(node, local))
    return found


def on_host(value: Any) -> Any:
    """A state with arrays in place of tensors; of those of the host they are views."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if isinstance(value, dict):
        return {name: on_host(each) for name, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: on_host(getattr(value, each.name)) for each in fields(value)})
    return value


def restore_tensor(node: Node, saved: NodeState, x: Vector, anchor: Vector) -> None:
    """Bring a new node to what was saved, with its tensor at x and its anchor where that was."""
    restore(node, replace(saved, local=None))
    sender, state = node.worker.sender, node.worker.state
    assert state is not None
    if sender is not None and sender.form is device_sum:
        move(sender, state["x"].device)
    for mine, kept in ((state["x"], x), (state["anchor"], anchor)):
        mine.copy_(torch.from_numpy(np.array(kept)))

"""Nodes about tensors: what the ranks of an attached loop have in common, moved by the user's optimizer.

Where a tensor lies on a device, reports are formed there, and go to the host as far as the link needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qsparse.algorithm import Algorithm
from qsparse.exchange import Exchange
from qsparse.local import Local
from qsparse.rounds.node import Node, Pace
from qsparse.rounds.state import NodeState, restore, state_of
from qsparse.seeds import Seed
from qsparse.torch import device
from qsparse.torch.device import DeviceSender, moved, on_host
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
    if not device.elsewhere(tensor):
        out = out.numpy()
    elif sender is not None and node.machine is None and DeviceSender.serves(sender, row, tensor.numel()):
        # The mean of a machine is formed on the host, and what is said of it as well.
        node.worker.sender = DeviceSender(sender, tensor)
    else:
        # Locked pages are copied at the full speed of the bus.
        out = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda).numpy()
    node.worker.begin(tensor, out=out)
    return node


def anchor_of(node: Node) -> torch.Tensor:
    """What the tensor was after the last synchronization, (n,)."""
    assert node.worker.state is not None
    anchor: torch.Tensor = node.worker.state["anchor"]
    return anchor


def host_state(node: Node, local: bool) -> NodeState:
    """As `state_of`, with arrays of the host."""
    found: NodeState = on_host(state_of(node, local))
    return found


def restore_tensor(node: Node, saved: NodeState, x: Vector, anchor: Vector) -> None:
    """Bring a new node to what was saved, with its tensor at x and its anchor where that was."""
    restore(node, replace(saved, local=None))
    sender, state = node.worker.sender, node.worker.state
    assert state is not None
    if isinstance(sender, DeviceSender):
        sender.state = {name: moved(value, state["x"].device) for name, value in sender.state.items()}
    for mine, kept in ((state["x"], x), (state["anchor"], anchor)):
        mine.copy_(torch.from_numpy(np.array(kept)))

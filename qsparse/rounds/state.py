"""What a node remembers, as plain data: live vectors going out, and copied back into their places."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsparse.errors import CheckpointError
from qsparse.rounds.node import Node
from qsparse.types import State, Vector


def state_of(node: Node) -> State:
    """All that a node goes on from, by its places.

    Not among it are the worker's model, which lies elsewhere, and what is overwritten before it is read.
    Vectors are those of the node itself: write them away before the next step, or copy them.
    """
    worker, coordinator = node.worker, node.coordinator
    state: State = {
        "seat": {
            "listener": worker.receiver.state,
            "trigger": worker.trigger_state,
            "shrinkage": worker.decoupled_decay.state,
            "asked": worker.asked,
        }
    }
    if worker.sender is not None:
        state["seat"]["sender"] = worker.sender.state
    if coordinator is not None:
        state["desk"] = {
            "hearer": coordinator.receiver.state,
            "replier": coordinator.sender.state,
            "server": coordinator.server,
            "shrinkage": coordinator.decoupled_decay.state,
            "asking": coordinator.asking,
            "tally": vars(coordinator.tally),
        }
    if node.local is not None:
        state["local"] = {name: value for name, value in node.local.items() if name != "x"}
    return state


def restore(node: Node, saved: State, x: Vector, gradient: Vector | None) -> None:
    """Bring a new node to what was saved.

    Args:
        node: new.
        saved: what `state_of` returned.
        x, gradient: the worker's model and where its gradients are left, (n,), as the local step has them.
    """
    worker, coordinator = node.worker, node.coordinator
    for name, state in (
        ("listener", worker.receiver.state),
        ("trigger", worker.trigger_state),
        ("shrinkage", worker.decoupled_decay.state),
    ):
        fill(state, saved["seat"][name])
    worker.asked = saved["seat"]["asked"]
    if worker.sender is not None:
        fill(worker.sender.state, saved["seat"]["sender"])
    if coordinator is not None:
        for name, state in (
            ("hearer", coordinator.receiver.state),
            ("replier", coordinator.sender.state),
            ("server", coordinator.server),
            ("shrinkage", coordinator.decoupled_decay.state),
            ("tally", vars(coordinator.tally)),
        ):
            fill(state, saved["desk"][name])
        if "asking" in saved["desk"]:
            fill(coordinator.asking, saved["desk"]["asking"])
        else:
            coordinator.ask_anew()
    if "local" in saved:
        node.local = node.algorithm.local.init(x, gradient)
        fill(node.local, {**saved["local"], "x": x})


def fill(state: State, saved: State) -> None:
    """Make a state what was saved; arrays stay where they are, as others may have views of them.

    Raises:
        CheckpointError: something that the part remembers was not saved.
    """
    if missing := sorted(state.keys() - saved.keys()):
        raise CheckpointError(
            f"the checkpoint has no {', '.join(missing)} beside {sorted(saved)}: the code of this part was "
            "another when it was made; go on with that code, or start afresh with resume none"
        )
    for name, value in saved.items():
        mine = state.get(name)
        if isinstance(mine, dict) and isinstance(value, dict):
            fill(mine, value)
        elif isinstance(mine, np.ndarray) and isinstance(value, np.ndarray) and _form(mine) == _form(value):
            np.copyto(mine, value)
        else:
            state[name] = own(value)


def own(value: Any) -> Any:
    """A copy that shares no memory."""
    if isinstance(value, np.ndarray):
        return np.array(value)
    if isinstance(value, dict):
        return {name: own(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(own(each) for each in value)
    return value


def _form(array: Any) -> tuple[Any, ...]:
    return array.dtype, array.shape

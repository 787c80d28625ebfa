"""What a station remembers, as plain data: live vectors going out, and copied back into their places."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsparse.errors import CheckpointError
from qsparse.rounds.node import Station
from qsparse.types import State, Vector


def state_of(station: Station) -> State:
    """All that a station goes on from, by its places.

    Not among it are the worker's model, which lies elsewhere, and what is overwritten before it is read.
    Vectors are those of the station itself: write them away before the next step, or copy them.
    """
    seat, desk = station.seat, station.desk
    state: State = {
        "seat": {
            "listener": seat.listener.state,
            "trigger": seat.trigger_state,
            "shrinkage": seat.shrinkage.state,
            "asked": seat.asked,
        }
    }
    if seat.sender is not None:
        state["seat"]["sender"] = seat.sender.state
    if desk is not None:
        state["desk"] = {
            "hearer": desk.hearer.state,
            "replier": desk.replier.state,
            "server": desk.server,
            "shrinkage": desk.shrinkage.state,
            "asking": desk.asking,
            "tally": vars(desk.tally),
        }
    if station.local is not None:
        state["local"] = {name: value for name, value in station.local.items() if name != "x"}
    return state


def restore(station: Station, saved: State, x: Vector, gradient: Vector | None) -> None:
    """Bring a new station to what was saved.

    Args:
        station: new.
        saved: what `state_of` returned.
        x, gradient: the worker's model and where its gradients are left, (n,), as the local step has them.
    """
    seat, desk = station.seat, station.desk
    for name, state in (
        ("listener", seat.listener.state),
        ("trigger", seat.trigger_state),
        ("shrinkage", seat.shrinkage.state),
    ):
        fill(state, saved["seat"][name])
    seat.asked = saved["seat"]["asked"]
    if seat.sender is not None:
        fill(seat.sender.state, saved["seat"]["sender"])
    if desk is not None:
        for name, state in (
            ("hearer", desk.hearer.state),
            ("replier", desk.replier.state),
            ("server", desk.server),
            ("shrinkage", desk.shrinkage.state),
            ("tally", vars(desk.tally)),
        ):
            fill(state, saved["desk"][name])
        if "asking" in saved["desk"]:
            fill(desk.asking, saved["desk"]["asking"])
        else:
            desk.ask_anew()
    if "local" in saved:
        station.local = station.algorithm.local.init(x, gradient)
        fill(station.local, {**saved["local"], "x": x})


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

"""What a checkpoint holds, as a tree of dataclasses: the only place that knows the keys of its files.

Live vectors go out as they are, and are copied back into their places. The states of parts are dictionaries
of their own, which nobody but the part reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar, get_args, get_type_hints

import numpy as np

from qsparse.errors import CheckpointError
from qsparse.exchange.base import Stretch
from qsparse.rounds.flight import Answer
from qsparse.rounds.node import Node
from qsparse.types import State, Vector

T = TypeVar("T")


@dataclass
class WorkerState:
    """What a worker end remembers.

    Attributes:
        receiver: of its end of the down link.
        trigger: of its trigger.
        decoupled_decay: of the decay that every rank applies by itself.
        asked: does it work in the next round?
        sender: of its end of the up link; None on a rank that does not work.
    """

    receiver: State
    trigger: State
    decoupled_decay: State
    asked: bool
    sender: State | None = None


@dataclass
class CoordinatorState:
    """What a coordinator remembers.

    Attributes:
        receiver: of its end of the up link.
        sender: of its end of the down link.
        server: of the server rule.
        decoupled_decay: as of `WorkerState`.
        tally: what it has counted.
        asking: of its participation; None: it begins anew.
    """

    receiver: State
    sender: State
    server: State
    decoupled_decay: State
    tally: State
    asking: State | None = None


@dataclass
class NodeState:
    """What a node remembers.

    Attributes:
        worker: of its worker end.
        coordinator: None on a rank that does not coordinate.
        local: of the local step, without the model; None on a rank that does not work.
        answer: the answer that is still to be adopted, if any.
        home: of the link by which this rank reports on its machine; None where that keeps nothing.
    """

    worker: WorkerState
    coordinator: CoordinatorState | None = None
    local: State | None = None
    answer: Answer | None = None
    home: State | None = None


@dataclass
class WalkState:
    """Where a rank stands in a run.

    Attributes:
        x: its model, (n,).
        buffers: what is averaged and not trained.
        anchor: the buffers after the last synchronization.
        t: its own steps.
        phase: the name of the phase that it is in.
        phases: by name, the nodes of a phase: about the model, and about the buffers.
        clock: the steps of the run; None: as many as its own.
        taken: how many recorded arrivals were taken.
        met: the step of the last synchronization of an attached loop.
        rates: the learning rates of an attached loop.
    """

    x: Vector
    buffers: Vector
    anchor: Vector
    t: int
    phase: str
    phases: dict[str, list[NodeState]]
    clock: int | None = None
    taken: int | None = None
    met: int | None = None
    rates: list[float] | None = None


#: What files call a field, where that is not its name.
_KEYS: Final = {
    WorkerState: {"receiver": "listener", "decoupled_decay": "shrinkage"},
    CoordinatorState: {"receiver": "hearer", "sender": "replier", "decoupled_decay": "shrinkage"},
    NodeState: {"worker": "seat", "coordinator": "desk"},
    WalkState: {"buffers": "aside"},
}


def _key(kind: type[Any], name: str) -> str:
    return _KEYS.get(kind, {}).get(name, name)


def plain(value: Any) -> Any:
    """A tree of dataclasses as dictionaries; what is None by default and is None is left out."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            _key(type(value), each.name): plain(found)
            for each in fields(value)
            if not ((found := getattr(value, each.name)) is None and each.default is None)
        }
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def typed(kind: type[T], saved: Mapping[str, Any]) -> T:
    """The dataclass that `plain` was given.

    Raises:
        KeyError: something that has no default is missing.
    """
    hints = get_type_hints(kind)
    found = {}
    for each in fields(kind):  # type: ignore[arg-type]
        key = _key(kind, each.name)
        if key in saved:
            found[each.name] = _as(hints[each.name], saved[key])
        elif each.default is MISSING and each.default_factory is MISSING:
            raise KeyError(key)
    return kind(**found)


def _as(hint: Any, value: Any) -> Any:
    """A saved value as a field of this type has it."""
    if isinstance(hint, type) and is_dataclass(hint):
        return typed(hint, value)
    inner = [kind for kind in get_args(hint) if kind is not type(None)]
    if isinstance(value, dict) and len(inner) == 1 and is_dataclass(inner[0]):
        return _as(inner[0], value)  # an optional one
    if isinstance(value, dict) and len(inner) == 2 and inner[1] is not Any:
        return {name: _as(inner[1], each) for name, each in value.items()}
    if isinstance(value, list) and len(inner) == 1:
        return [_as(inner[0], each) for each in value]
    return value


def state_of(node: Node, local: bool = True) -> NodeState:
    """All that a node goes on from. A round that is under way comes to its end first.

    Not among it are the worker's model, which lies elsewhere, and what is overwritten before it is read.
    Vectors are those of the node itself: write them away before the next step, or copy them.

    Args:
        node: the node.
        local: with the state of its local step.

    Raises:
        QsparseError: what has happened to a round under way.
    """
    flight = node.flight
    answer = None if flight is None else Answer(flight.due, flight.landed())
    worker, coordinator = node.worker, node.coordinator
    return NodeState(
        WorkerState(
            receiver=joined([ear.receiver.state for ear in worker.ears], node.stretches),
            trigger=worker.trigger_state,
            decoupled_decay=joined([ear.decoupled_decay.state for ear in worker.ears], node.stretches),
            asked=worker.asked,
            sender=None if worker.sender is None else worker.sender.state,
        ),
        None
        if coordinator is None
        else CoordinatorState(
            receiver=coordinator.receiver.state,
            sender=coordinator.sender.state,
            server=coordinator.server,
            decoupled_decay=coordinator.decoupled_decay.state,
            tally=vars(coordinator.tally),
            asking=coordinator.asking,
        ),
        {name: value for name, value in worker.state.items() if name != "x"}
        if local and worker.state is not None
        else None,
        answer,
        None if node.machine is None else node.machine.sender.state or None,
    )


def restore(node: Node, saved: NodeState) -> None:
    """Bring a new node, of which the worker stands at its model, to what was saved."""
    worker, coordinator = node.worker, node.coordinator
    n = node.stretches[-1].stop
    for ear, stretch in zip(worker.ears, node.stretches, strict=True):
        fill(ear.receiver.state, within(saved.worker.receiver, stretch, n))
        fill(ear.decoupled_decay.state, within(saved.worker.decoupled_decay, stretch, n))
    fill(worker.trigger_state, saved.worker.trigger)
    worker.asked = saved.worker.asked
    if worker.sender is not None:
        fill(worker.sender.state, saved.worker.sender or {})
    if node.machine is not None:
        fill(node.machine.sender.state, saved.home or {})
    if coordinator is not None:
        kept = saved.coordinator
        if kept is None:
            raise CheckpointError("the checkpoint has no coordinator at this rank: keep the exchange")
        fill(coordinator.receiver.state, kept.receiver)
        fill(coordinator.sender.state, kept.sender)
        fill(coordinator.server, kept.server)
        fill(coordinator.decoupled_decay.state, kept.decoupled_decay)
        fill(vars(coordinator.tally), kept.tally)
        if kept.asking is not None:
            fill(coordinator.asking, kept.asking)
        else:
            coordinator.ask_anew()
    if saved.answer is not None:
        node.flight = Answer(saved.answer.due, own(saved.answer.model))
    if saved.local is not None and worker.state is not None:
        fill(worker.state, {**saved.local, "x": worker.state["x"]})


def joined(states: Sequence[State], stretches: Sequence[Stretch]) -> State:
    """The state for the whole vector, of those for its stretches in order.

    Vectors with an entry for each coordinate are laid end to end; all else is that of the first.
    """
    if len(states) == 1:
        return states[0]
    whole = dict(states[0])
    for name, value in states[0].items():
        found = [state[name] for state in states]
        if isinstance(value, dict):
            whole[name] = joined(found, stretches)
        elif all(_is_of(each, stretch.size) for each, stretch in zip(found, stretches, strict=True)):
            whole[name] = np.concatenate(found)
    return whole


def within(state: State, stretch: Stretch, n: int) -> State:
    """The state for a stretch, of one for a vector of n coordinates; vectors are views."""
    if stretch.size == n:
        return state
    return {
        name: within(value, stretch, n)
        if isinstance(value, dict)
        else value[stretch.start : stretch.stop]
        if _is_of(value, n)
        else value
        for name, value in state.items()
    }


def _is_of(value: Any, n: int) -> bool:
    """Whether it has an entry for each of n coordinates."""
    return isinstance(value, np.ndarray) and value.shape == (n,)


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
        if mine is value:
            continue
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

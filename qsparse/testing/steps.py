"""Laws of local steps and server rules: what moves a model, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from qsparse.local import Gradient, Local
from qsparse.schedules import rate_at
from qsparse.server import Descend, Majority, ServerRule
from qsparse.testing.base import apart, bits_of, hold, is_moderate, law, same, same_state, saved
from qsparse.types import State, Vector

_LOSS: Final = 0.75
_BATCH: Final = ("a batch",)


class _Oracle:
    """Hands out one gradient after another, and notes how it was asked."""

    def __init__(self, slope: Callable[[Vector], Vector]) -> None:
        self.slope = slope
        self.asked: list[tuple[bool, Any]] = []
        self.outs: list[Vector] = []

    def __call__(self, x: Vector, batch: Any, out: Vector) -> float:
        self.asked.append((np.shares_memory(x, out), batch))
        self.outs.append(out)
        out[...] = self.slope(x)
        return _LOSS


def _pulling(x: Vector) -> _Oracle:
    """Gradients that depend on where one is, and on the hostile vector."""
    target = x.copy()
    return _Oracle(lambda at: (at * at.dtype.type(0.5) - target).astype(at.dtype))


def _begun(part: Local, x: Vector) -> State:
    return part.init(_start(x))


def _start(x: Vector) -> Vector:
    return np.linspace(1, -1, x.size).astype(x.dtype)


def _advance(part: Local, state: State, oracle: _Oracle, steps: int, first: int = 1) -> None:
    for t in range(first, first + steps):
        # Differences of what is out of range are no concern of ours.
        with np.errstate(over="ignore", invalid="ignore"):
            part.advance(state, oracle, _BATCH, t)


def _precisions(x: Vector) -> tuple[Vector, Vector]:
    return x.astype(np.float32), x.astype(np.float64)


def _lasting(part: Any) -> Any:
    """The part for a run of so many steps, as a run makes it."""
    lr = getattr(part, "lr", None)
    if lr is None or isinstance(lr, float | int):
        return part
    return replace(part, lr=lr.over(20))


def _reports_gradient(part: Local) -> bool:
    """Does the step leave x where it is, for the server rule to move?"""
    state = part.init(np.zeros(3, np.float32))
    _advance(part, state, _Oracle(lambda x: np.ones_like(x)), 1)
    return not np.any(state["x"])


@law("in place", "local")
def _in_place(part: Local, name: str, x: Vector) -> bool:
    """x is moved in its own memory, the gradient comes where it was asked for, and the loss comes back."""
    part = _lasting(part)
    for v in _precisions(x):
        own, gradient = _start(v), np.empty_like(v)
        before = own.copy()
        state, oracle = part.init(own, gradient), _pulling(v)
        for t in (1, 2):
            loss = part.advance(state, oracle, _BATCH, t)
            hold(loss == _LOSS, f"advance returns {loss!r}, not the oracle's loss")
        part.adopt(state, before)
        same(own, before, "x after a model was adopted")
        _advance(part, state, oracle, 1, 3)
        hold(state["x"] is own, "x was replaced by another array")
        alike = all(out is gradient for out in oracle.outs)
        hold(alike, "the oracle was not given the array in which the gradient is to lie")
        overlapping = any(shared and x.size for shared, _ in oracle.asked)
        hold(not overlapping, "the oracle was asked to write the gradient over x")
        wanted = None if getattr(part, "whole", False) else _BATCH
        hold(all(batch is wanted for _, batch in oracle.asked), "the oracle was given another batch")
    return True


@law("report", "local")
def _report(part: Local, name: str, x: Vector) -> bool:
    """The report is anchor − x, or the gradient, in the array that was given; it changes nothing."""
    if not is_moderate(x):
        return False
    part = _lasting(part)
    state, oracle, out = _begun(part, x), _pulling(x), np.empty_like(x)
    anchor = _start(x)
    velocity = np.zeros(x.size)
    for t in (1, 2, 3):
        _advance(part, state, oracle, 1, t)
        before = bits_of(state)
        out[...] = np.nan
        got = part.report(state, out)
        hold(bits_of(state) == before, "report changed the state")
        hold(got is out, "report did not return the array that it was given")
        for key, value in state.items():
            hold(
                not isinstance(value, np.ndarray) or not np.shares_memory(value, out),
                f"{key!r} is the report",
            )
        if isinstance(part, Gradient):
            g = oracle.slope(state["x"]).astype(np.float64)
            velocity = part.momentum * velocity + g
            wanted = g + part.momentum * velocity if part.nesterov else velocity
            slack = 1e-5 * np.abs(velocity) + 1e-5 * np.abs(g) + 1e-40
            hold(np.all(np.abs(got - wanted) <= slack), f"report {t} is neither gradient nor momentum")
            if not part.momentum:
                same(got, oracle.slope(state["x"]), f"report {t}, against the gradient")
        elif not _reports_gradient(part):
            same(got, anchor - state["x"], f"report {t}, against anchor − x")
        again = part.report(state, np.empty_like(x))
        same(again, got, f"report {t}, asked again")
    return True


@law("adopt", "local")
def _adopt(part: Local, name: str, x: Vector) -> bool:
    """A model is copied, even a read-only one; after it there is nothing to report."""
    part = _lasting(part)
    state, oracle = _begun(part, x), _pulling(x)
    for t in (1, 2):
        _advance(part, state, oracle, 1, t)
        model = np.roll(x, t)
        model.flags.writeable = False
        before = model.tobytes()
        part.adopt(state, model)
        hold(model.tobytes() == before, "adopt changed the model")
        same(state["x"], model, "x after adopting")
        after = bits_of(state)
        model.flags.writeable = True
        model[...] = 7
        hold(bits_of(state) == after, "the state changes with the model that was adopted")
        if not _reports_gradient(part):
            same(part.report(state, np.empty_like(x)), np.zeros_like(x), "the report after adopting")
    return True


@law("rest", "local")
def _rest(part: Local, name: str, x: Vector) -> bool:
    """With gradients of zero and no weight decay x stays where it is."""
    if getattr(part, "weight_decay", 0):
        return False
    part = _lasting(part)
    state = part.init(x.copy())
    _advance(part, state, _Oracle(np.zeros_like), 3)
    same(state["x"], x, "x after three gradients of zero")
    same(part.report(state, np.empty_like(x)), np.zeros_like(x), "the report of gradients of zero")
    return True


@law("resume", "local")
def _resume(part: Local, name: str, x: Vector) -> bool:
    """Two workers share nothing, move alike, and go on alike from a copied state of plain arrays."""
    part = _lasting(part)
    text = repr(part)
    one, other = _begun(part, x), _begun(part, x)
    apart(one, other, "two workers with one part")
    fresh = bits_of(other)
    _advance(part, one, _pulling(x), 2)
    hold(bits_of(other) == fresh, "one worker's steps change the state of another")
    _advance(part, other, _pulling(x), 2)
    same_state(other, one, "two workers after the same two steps")
    later = saved(one)
    for state in (one, later):
        part.adopt(state, np.roll(x, 1))
        _advance(part, state, _pulling(x), 2, 3)
    same_state(later, one, "a worker that went on from a copied state")
    hold(repr(part) == text, "the settings changed")
    return True


# --- server rules --------------------------------------------------------------------------------


class _Ruled(NamedTuple):
    rule: ServerRule
    state: State


def _ruling(part: ServerRule, start: Vector) -> _Ruled:
    rule = _lasting(part)
    return _Ruled(rule, rule.init(start))


def _heard(x: Vector, t: int) -> Vector:
    heard: Vector = np.roll(x, t) * x.dtype.type((0.5, -0.25, 1.0)[t % 3])
    return heard


@law("zero", "server")
def _zero(part: ServerRule, name: str, x: Vector) -> bool:
    """News of zero leaves the model bit for bit, where nothing pulls it to zero."""
    if getattr(part, "l1", 0) or getattr(part, "l2", 0):
        return False
    for start in _precisions(x):
        rule, state = _ruling(part, start)
        for _ in range(2):
            rule.absorb(state, np.zeros_like(start), 1)
        hold(rule.model(state).tobytes() == start.tobytes(), "the model moved")
    return True


@law("start", "server")
def _server_start(part: ServerRule, name: str, x: Vector) -> bool:
    """init copies the start, which is the first model; two coordinators share nothing."""
    start = x.copy()
    rule, state = _ruling(part, start)
    other = rule.init(start)
    apart(state, other, "two coordinators with one part")
    apart(state, {"start": start}, "the state and the start")
    same(rule.model(state), x, "the first model")
    hold(rule.model(state).dtype == x.dtype, "the model has another type than the start")
    rule.absorb(state, _heard(x, 0), 1)
    hold(start.tobytes() == x.tobytes(), "the start was changed")
    same(rule.model(other), x, "the model of another coordinator")
    return True


@law("input", "server")
def _server_input(part: ServerRule, name: str, x: Vector) -> bool:
    """absorb neither changes what it is given nor keeps it, as it is overwritten by the next round."""
    rule, state = _ruling(part, _start(x))
    for t in (0, 1):
        u = _heard(x, t)
        before = u.tobytes()
        rule.absorb(state, u, t + 1)
        hold(u.tobytes() == before, "absorb changed its input")
        after = bits_of(state)
        u[...] = 7
        hold(bits_of(state) == after, "the state changes with a report that is over")
    return True


@law("model", "server")
def _model(part: ServerRule, name: str, x: Vector) -> bool:
    """The model is the state's own vector, and asking for it changes nothing."""
    rule, state = _ruling(part, _start(x))
    for t in (0, 1):
        rule.absorb(state, _heard(x, t), t + 1)
        before = bits_of(state)
        model = rule.model(state)
        own = any(value is model for value in state.values())
        hold(own, "the model is a copy, or does not stand in the state")
        hold(
            rule.model(state) is model and bits_of(state) == before, "asking for the model changes the state"
        )
    return True


@law("resume", "server")
def _server_resume(part: ServerRule, name: str, x: Vector) -> bool:
    """Equal reports make equal models, also from a copied state of plain arrays."""
    text = repr(part)
    rule, one = _ruling(part, _start(x))
    other = rule.init(_start(x))
    for state in (one, other):
        rule.absorb(state, _heard(x, 0), 1)
    same_state(other, one, "two coordinators after the same report")
    later = saved(one)
    for t in (1, 2):
        for state in (one, later):
            rule.absorb(state, _heard(x, t), t + 1)
    same_state(later, one, "a coordinator that went on from a copied state")
    hold(repr(part) == text, "the settings changed")
    return True


@law("step", "server")
def _step(part: ServerRule, name: str, x: Vector) -> bool:
    """x − lr·u of descend, linear in u; x − lr·sign(u) of majority, with sign(0) = 0."""
    if not isinstance(part, Descend | Majority) or not is_moderate(x):
        return False
    rule, state = _ruling(part, _start(x).astype(np.float64))
    wanted = _start(x).astype(np.float64)
    for t in (1, 2, 3):
        u = _heard(x, t).astype(np.float64)
        rule.absorb(state, u, t)
        wanted -= rate_at(rule.lr, t) * (np.sign(u) if isinstance(part, Majority) else u)  # type: ignore[attr-defined]
        most = 1 + float(np.max(np.abs(x), initial=0))
        off = float(np.max(np.abs(rule.model(state) - wanted), initial=0))
        hold(off <= 1e-12 * most, f"after report {t} the model is off by {off:.3g}")
    return True

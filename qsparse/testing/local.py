"""Laws of local steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from qsparse.local import Local
from qsparse.testing.base import apart, bits_of, hold, is_moderate, law, same, same_state, saved
from qsparse.testing.moves import STEPS, bowl, lasting, precisions, scheduled, start_of
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
    return part.init(start_of(x))


def _advance(part: Local, state: State, oracle: _Oracle, steps: int, first: int = 1) -> None:
    for t in range(first, first + steps):
        # Differences of what is out of range are no concern of ours.
        with np.errstate(over="ignore", invalid="ignore"):
            part.advance(state, oracle, _BATCH, t)


@law("in place", "local")
def _in_place(part: Local, name: str, x: Vector) -> bool:
    """x is moved in its own memory, the gradient comes where it was asked for, and the loss comes back."""
    part = lasting(part)
    for v in precisions(x):
        own, gradient = start_of(v), np.empty_like(v)
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
        wanted = None if part.claims.takes_all else _BATCH
        hold(all(batch is wanted for _, batch in oracle.asked), "the oracle was given another batch")
        often = len(oracle.asked)
        hold(
            often == 3 or not part.claims.asks_once, f"three steps asked for {often} gradients, not one each"
        )
    return True


@law("report", "local")
def _report(part: Local, name: str, x: Vector) -> bool:
    """The report is anchor − x, or the gradient, in the array that was given; it changes nothing."""
    if not is_moderate(x):
        return False
    part = lasting(part)
    state, oracle, out = _begun(part, x), _pulling(x), np.empty_like(x)
    anchor, claims = start_of(x), part.claims
    velocity = np.zeros(x.size)
    for t in (1, 2, 3):
        _advance(part, state, oracle, 1, t)
        before = bits_of(state)
        out[...] = np.nan
        got = part.report(state, out)
        hold(bits_of(state) == before, "report changed the state")
        measured = part.change(state) is not None
        hold(measured == claims.measures, "it says how much news a report is, or not, against its claim")
        hold(got is out, "report did not return the array that it was given")
        for key, value in state.items():
            hold(
                not isinstance(value, np.ndarray) or not np.shares_memory(value, out),
                f"{key!r} is the report",
            )
        if claims.reports_gradient:
            same(state["x"], anchor, f"x after step {t}, which is the server rule's to move")
        else:
            same(got, anchor - state["x"], f"report {t}, against anchor − x")
        if claims.momentum is not None:
            g = oracle.slope(state["x"]).astype(np.float64)
            velocity = claims.momentum * velocity + g
            wanted = g + claims.momentum * velocity if claims.nesterov else velocity
            slack = 1e-5 * np.abs(velocity) + 1e-5 * np.abs(g) + 1e-40
            hold(np.all(np.abs(got - wanted) <= slack), f"report {t} is neither gradient nor momentum")
            if not claims.momentum:
                same(got, oracle.slope(state["x"]), f"report {t}, against the gradient")
        again = part.report(state, np.empty_like(x))
        same(again, got, f"report {t}, asked again")
    return True


@law("adopt", "local")
def _adopt(part: Local, name: str, x: Vector) -> bool:
    """A model is copied, even a read-only one; after it there is nothing to report."""
    part = lasting(part)
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
        if not part.claims.reports_gradient:
            same(part.report(state, np.empty_like(x)), np.zeros_like(x), "the report after adopting")
    return True


@law("rest", "local")
def _rest(part: Local, name: str, x: Vector) -> bool:
    """With gradients of zero, and nothing else that moves it, x stays where it is."""
    if part.claims.decays:
        return False
    part = lasting(part)
    state = part.init(x.copy())
    _advance(part, state, _Oracle(np.zeros_like), 3)
    same(state["x"], x, "x after three gradients of zero")
    same(part.report(state, np.empty_like(x)), np.zeros_like(x), "the report of gradients of zero")
    return True


@law("resume", "local")
def _resume(part: Local, name: str, x: Vector) -> bool:
    """Two workers share nothing, move alike, and go on alike from a copied state of plain arrays."""
    part = lasting(part)
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


@law("steps along its gradient", "local", once=True)
def _steps_along_its_gradient(part: Local, name: str, x: Vector) -> bool:
    """What the first step reports points along the gradient, as the model moves against reports."""
    if part.claims.needs_mean:
        return False
    part, start = lasting(part), np.zeros(8)
    state, slope = part.init(start), -bowl(start.size, 1.0)
    _advance(part, state, _Oracle(lambda at: slope), 1)
    report = part.report(state, np.empty_like(slope))
    steep = float(report @ slope) / float(np.linalg.norm(slope))
    hold(steep > 0, f"along a gradient the report of the first step is {steep:.3g} long, so the model climbs")
    return True


@law("descends", "local", once=True)
def _descends(part: Local, name: str, x: Vector) -> bool:
    """In the plain row, with exact gradients, the model comes nearer to the lowest point of a bowl."""
    claims, part = part.claims, lasting(part)
    model = np.zeros(8)
    lowest = bowl(model.size, 100.0)
    # A bowl so flat that no step size in use leaves it; the coordinator's own steps are as short.
    oracle = _Oracle(lambda at: 1e-3 * (at - lowest))
    state = part.init(model.copy())
    part.enter(state, model)
    mean = oracle.slope(model) if claims.needs_mean else np.zeros_like(model)
    losses = [float(np.sum((model - lowest) ** 2))]
    for t in range(1, STEPS + 1):
        _advance(part, state, oracle, 1, t)
        model = model - (part.report(state, np.empty_like(model)) + mean)
        part.adopt(state, model)
        losses.append(float(np.sum((model - lowest) ** 2)))
    for after in (STEPS // 2, STEPS):
        share = losses[after] / losses[0]
        hold(share < 1, f"after {after} steps the loss of a bowl is {share:.9g} of what it was")
    return True


@law("schedule", "local", once=True)
def _scheduled(part: Local, name: str, x: Vector) -> bool:
    """A local step with a schedule among its settings says that its reports follow one."""
    if not scheduled(part):
        return False
    hold(part.claims.scheduled, "it has a schedule, and does not claim to follow one")
    return True

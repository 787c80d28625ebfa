"""Laws of server rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qsparse.schedules import rate_at
from qsparse.server import Descend, Majority, ServerRule
from qsparse.testing.base import apart, bits_of, hold, is_moderate, law, same, same_state, saved
from qsparse.testing.moves import lasting, precisions, start_of
from qsparse.types import State, Vector


class _Ruled(NamedTuple):
    rule: ServerRule
    state: State


def _ruling(part: ServerRule, start: Vector) -> _Ruled:
    rule = lasting(part)
    return _Ruled(rule, rule.init(start))


def _heard(x: Vector, t: int) -> Vector:
    heard: Vector = np.roll(x, t) * x.dtype.type((0.5, -0.25, 1.0)[t % 3])
    return heard


@law("zero", "server")
def _zero(part: ServerRule, name: str, x: Vector) -> bool:
    """News of zero leaves the model bit for bit, where nothing pulls it to zero."""
    if getattr(part, "l1", 0) or getattr(part, "l2", 0):
        return False
    for start in precisions(x):
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
    rule, state = _ruling(part, start_of(x))
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
    rule, state = _ruling(part, start_of(x))
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
    rule, one = _ruling(part, start_of(x))
    other = rule.init(start_of(x))
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
    rule, state = _ruling(part, start_of(x).astype(np.float64))
    wanted = start_of(x).astype(np.float64)
    for t in (1, 2, 3):
        u = _heard(x, t).astype(np.float64)
        rule.absorb(state, u, t)
        wanted -= rate_at(rule.lr, t) * (np.sign(u) if isinstance(part, Majority) else u)  # type: ignore[attr-defined]
        most = 1 + float(np.max(np.abs(x), initial=0))
        off = float(np.max(np.abs(rule.model(state) - wanted), initial=0))
        hold(off <= 1e-12 * most, f"after report {t} the model is off by {off:.3g}")
    return True

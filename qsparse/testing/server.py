"""Laws of server rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qsparse.schedules import Schedule, rate_at
from qsparse.server import ServerRule
from qsparse.testing.base import apart, bits_of, hold, is_moderate, law, same, same_state, saved
from qsparse.testing.moves import STEPS, bowl, lasting, precisions, scheduled, start_of
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
    """News of zero leaves the model bit for bit, where nothing else moves it."""
    if part.claims.moves_all:
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
        if not part.claims.ends_elsewhere:
            same(rule.leave(state), model, "the model with which a phase ends, against that of its last step")
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
    """Moves are as claimed: x − rate·u, linear in u, or x − rate·sign(u), with sign(0) = 0."""
    if part.claims.moves is None or not is_moderate(x):
        return False
    rule, state = _ruling(part, start_of(x).astype(np.float64))
    wanted = start_of(x).astype(np.float64)
    for t in (1, 2, 3):
        u = _heard(x, t).astype(np.float64)
        rule.absorb(state, u, t)
        wanted -= _rate(rule, t) * (np.sign(u) if part.claims.moves == "signs" else u)
        most = 1 + float(np.max(np.abs(x), initial=0))
        off = float(np.max(np.abs(rule.model(state) - wanted), initial=0))
        hold(off <= 1e-12 * most, f"after report {t} the model is off by {off:.3g}")
    return True


def _rate(rule: ServerRule, t: int) -> float:
    """The step that is claimed; 1 where none is, as reports are in the units of the parameters."""
    rate = rule.claims.rate
    return 1.0 if rate is None else rate_at(rate, t)


@law("steps by its rate", "server", once=True)
def _steps_by_its_rate(part: ServerRule, name: str, x: Vector) -> bool:
    """A report of ordinary size moves the model along it, by about the rate that is claimed."""
    if part.claims.rate is None:
        return False
    start = np.zeros(8)
    rule, state = _ruling(part, start)
    u = np.where(np.arange(start.size) % 3, 1.0, -1.0)
    along = u.copy()
    if part.claims.needs_mean:
        rule.enter(state, start, {"x": start, "mean": 0.5 * u})
        along += 0.5 * u
    rule.absorb(state, u, 1)
    moved, rate = start - rule.model(state), _rate(rule, 1)
    step = float(moved @ along) / float(along @ along)
    hold(
        rate / 2 <= step <= 2 * rate,
        f"it claims a rate of {rate:.3g}, and moves the model by {-step:.3g} times the mean report, where "
        f"{-rate:.3g} was to be expected",
    )
    beside = float(np.linalg.norm(moved - step * along) / np.linalg.norm(moved))
    hold(beside <= 0.5, f"{beside:.0%} of the way of the model is not along the mean report")
    return True


@law("descends", "server", once=True)
def _descends(part: ServerRule, name: str, x: Vector) -> bool:
    """With exact gradients as reports the model comes nearer to the lowest point of a bowl."""
    if part.claims.holds:
        return False
    start = np.zeros(8)
    rule, state = _ruling(part, start)
    if part.claims.needs_mean:
        rule.enter(state, start, {"x": start, "mean": np.zeros_like(start)})
    fastest = max(_rate(rule, t) for t in range(1, STEPS + 1))
    lowest = bowl(start.size, 20 * fastest)
    losses = [0.5 * float(np.sum((start - lowest) ** 2))]
    for t in range(1, STEPS + 1):
        rule.absorb(state, 0.1 / fastest * (rule.model(state) - lowest), t)
        losses.append(0.5 * float(np.sum((rule.model(state) - lowest) ** 2)))
    for after in (STEPS // 2, STEPS):
        share = losses[after] / losses[0]
        hold(share < 1, f"after {after} exact gradients the loss of a bowl is {share:.9g} of what it was")
    return True


@law("holds", "server")
def _holds(part: ServerRule, name: str, x: Vector) -> bool:
    """A rule that claims it leaves the model bit for bit, and keeps the last mean report, as claimed."""
    claims = part.claims
    if not (claims.holds or claims.keeps_mean):
        return False
    for start in precisions(x):
        rule, state = _ruling(part, start)
        for t in (0, 1):
            u = _heard(start, t)
            rule.absorb(state, u, t + 1)
            if claims.holds:
                hold(rule.model(state).tobytes() == start.tobytes(), "the model moved")
            if claims.keeps_mean:
                same(state["mean"], u, "the mean report that is kept")
    return True


@law("replays", "server")
def _replays(part: ServerRule, name: str, x: Vector) -> bool:
    """Where x is claimed to be all that it goes by, x alone makes the same step, bit for bit."""
    if not part.claims.replayable:
        return False
    rule, state = _ruling(part, start_of(x))
    for t in (0, 1):
        own = {"x": rule.model(state).copy()}
        for each in (state, own):
            rule.absorb(each, _heard(x, t), t + 1)
        same(own["x"], rule.model(state), f"the model after report {t + 1}, made of x alone")
    return True


@law("coordinates", "server")
def _coordinates(part: ServerRule, name: str, x: Vector) -> bool:
    """Coordinates of which a report says nothing stay, unless the rule claims to move all."""
    if part.claims.moves_all or x.size < 2:
        return False
    rule, state = _ruling(part, start_of(x))
    rule.absorb(state, _heard(x, 0), 1)
    before, u = rule.model(state).copy(), _heard(x, 1)
    u[::2] = 0
    rule.absorb(state, u, 2)
    same(rule.model(state)[::2], before[::2], "coordinates of which the report says nothing")
    return True


@law("by coordinate", "server")
def _by_coordinate(part: ServerRule, name: str, x: Vector) -> bool:
    """Where it is claimed, two rules with half of the coordinates each make the model of one, bit for bit."""
    if not part.claims.by_coordinate or x.size < 2:
        return False
    start, half = start_of(x), x.size // 2
    rule, whole = _ruling(part, start)
    halves = [(place, rule.init(start[place])) for place in (slice(half), slice(half, x.size))]
    for t in (0, 1, 2):
        u = _heard(x, t)
        rule.absorb(whole, u, t + 1)
        for place, state in halves:
            rule.absorb(state, u[place], t + 1)
            same(rule.model(state), rule.model(whole)[place], f"half of the model after report {t + 1}")
    return True


@law("schedule", "server", once=True)
def _scheduled(part: ServerRule, name: str, x: Vector) -> bool:
    """A rule with a schedule among its settings claims it as its rate."""
    if not scheduled(part):
        return False
    hold(isinstance(part.claims.rate, Schedule), "it has a schedule, and claims a rate that does not change")
    return True

"""Laws of triggers and schedules: what is asked by the number of the step."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import Final

import numpy as np

from qsparse.compressors import Float32
from qsparse.compressors.sums import Sum
from qsparse.errors import SettingError
from qsparse.memory import Draft
from qsparse.registry import build, spell
from qsparse.schedules import Schedule
from qsparse.testing.base import SEED, Broken, apart, hold, law, same_state, saved
from qsparse.triggers import Trigger
from qsparse.types import State, Vector

_STEPS: Final = 300


def _meetings(part: Trigger, state: State, steps: range) -> list[int]:
    met = []
    for t in steps:
        due = part.due(state, t)
        hold(isinstance(due, bool | np.bool_), f"due({t}) is {due!r}, neither yes nor no")
        if due:
            met.append(t)
    return met


def _lasting(part: Trigger) -> Trigger:
    """The trigger as a run has it."""
    lasting = part.over(_STEPS) if is_dataclass(part) else part
    return lasting.bind(0.1)


@law("due", "trigger", once=True)
def _due(part: Trigger, name: str, x: Vector) -> bool:
    """Meetings follow from the seed and the step alone: two ranks with one seed meet, whatever they say."""
    part = _lasting(part)
    met = _meetings(part, part.init(SEED), range(1, _STEPS + 1))
    always = len(met) == _STEPS
    hold(always or not part.claims.always_due, "it claims that a message is due after every step")
    state = part.init(SEED)
    v = np.zeros(3, np.float32)
    for t in range(1, _STEPS + 1):
        hold(part.due(state, t) == (t in met), f"equal seeds disagree about step {t}")
        draft = Draft(Float32().compress(v, SEED.at(step=t)), Sum(v))
        part.worth(state, draft)
        part.heard(state, v)
        v = v + np.float32(t)
    return True


@law("gaps", "trigger", once=True)
def _gaps(part: Trigger, name: str, x: Vector) -> bool:
    """Gaps lie within 1 … H, random ones reach both ends, and after a jump another gap begins."""
    part = _lasting(part)
    longest_of = part.claims.gap
    if longest_of is None:
        return False
    for rank in (1, 2):
        seed = SEED.at(rank=rank)
        longest = [longest_of(rank, t) for t in range(1, _STEPS + 1)]
        steps = max(_STEPS, 40 * max(longest))
        state = part.init(seed)
        gaps = _gaps_of(part, state, rank, range(1, steps + 1))
        if part.claims.drawn and len(set(longest)) == 1:
            hold({1, longest[0]} <= gaps, f"gaps drawn from 1 … {longest[0]} are {sorted(gaps)}")
        # Another phase has passed.
        _gaps_of(part, state, rank, range(steps + 3, 2 * steps))
    return True


def _gaps_of(part: Trigger, state: State, rank: int, steps: range) -> set[int]:
    """The gaps from before the first step to the last meeting."""
    longest_of = part.claims.gap
    assert longest_of is not None
    found, before = set(), steps.start - 1
    for met in _meetings(part, state, steps):
        H, gap = longest_of(rank, before + 1), met - before
        legal = 1 <= gap <= H if part.claims.drawn else gap == H
        hold(legal, f"the gap after step {before} is {gap} where H is {H}")
        found.add(gap)
        before = met
    hold(steps.stop - 1 - before < longest_of(rank, before + 1), f"no meeting after step {before}")
    return found


@law("seeding", "trigger", once=True)
def _seeding(part: Trigger, name: str, x: Vector) -> bool:
    """A random synchronisation set is another one for every run, rank and path."""
    part = _lasting(part)
    longest_of = part.claims.gap
    if not part.claims.drawn or longest_of is None or max(longest_of(1, t) for t in range(1, 20)) == 1:
        return False
    others = (SEED, SEED.at(rank=2), SEED.child(1), type(SEED)(7, SEED.rank, SEED.step, SEED.use))
    met = {tuple(_meetings(part, part.init(seed), range(1, _STEPS + 1))) for seed in others}
    hold(len(met) == len(others), "two ranks, runs or paths draw one synchronisation set")
    return True


@law("state", "trigger", once=True)
def _state(part: Trigger, name: str, x: Vector) -> bool:
    """Two users of one part share nothing, and one goes on from a plain copy of its state."""
    part = _lasting(part)
    text = repr(part)
    one, other = part.init(SEED), part.init(SEED)
    hold(one is not other, "two users were given one state")
    apart(one, other, "two users of one part")
    before = saved(other)
    first = _meetings(part, one, range(1, 101))
    same_state(other, before, "the state of one user after another one's steps")
    hold(repr(part) == text, "the settings changed")
    copied = saved(one)
    rest = _meetings(part, one, range(101, 201))
    hold(_meetings(part, copied, range(101, 201)) == rest, "a copied state meets at other steps")
    hold(_meetings(part, other, range(1, 201)) == first + rest, "the second user meets at other steps")
    return True


@law("worth", "trigger")
def _worth(part: Trigger, name: str, x: Vector) -> bool:
    """worth says yes, or no where that is claimed, and changes no draft; heard changes no model."""
    part = _lasting(part)
    state = part.init(SEED)
    part.heard(state, x)
    for t in (1, 2, 3):
        part.due(state, t)
        draft = Draft(Float32().compress(x, SEED.at(step=t)), Sum(x))
        frame, target = bytes(draft.payload.frame), x.tobytes()
        worth = part.worth(state, draft)
        hold(isinstance(worth, bool | np.bool_), f"worth is {worth!r}, neither yes nor no")
        hold(worth or part.claims.may_skip, "worth says no, and it does not claim that it may skip")
        part.settled(state, worth)
        part.heard(state, x)
        hold(bytes(draft.payload.frame) == frame and x.tobytes() == target, "a draft or model was changed")
    return True


@law("finite", "schedule", once=True)
def _finite(part: Schedule, name: str, x: Vector) -> bool:
    """Numbers that are finite and not negative for t = 1 … 1000, and positive at first."""
    lasting = part.over(1000)
    for t in range(1, 1001):
        value = lasting.at(t)
        fine = isinstance(value, float | int) and math.isfinite(value) and value >= 0
        hold(fine, f"step {t} has {value!r}")
    hold(lasting.at(1) > 0, "step 1 has 0")
    return True


@law("determinism", "schedule", once=True)
def _determinism(part: Schedule, name: str, x: Vector) -> bool:
    """The number of a step depends on the step alone, not on what was asked before."""
    lasting = part.over(1000)
    onward = [lasting.at(t) for t in range(1, 1001)]
    backward = [part.over(1000).at(t) for t in range(1000, 0, -1)]
    wrong = [t for t in range(1, 1001) if onward[t - 1] != backward[-t]]
    hold(not wrong, f"asked in another order, steps {wrong[:5]} have other numbers")
    return True


@law("over", "schedule", once=True)
def _over(part: Schedule, name: str, x: Vector) -> bool:
    """over(steps) gives a length once: then it changes nothing, and the part itself stays as it was."""
    text = repr(part)
    try:
        part.at(1)
        known = True
    except SettingError:
        known = False
    for steps in (1, 2, 17, 1000):
        lasting = part.over(steps)
        hold(lasting.over(steps) == lasting, f"over({steps}) twice is not over({steps})")
        hold(lasting.over(steps + 5) == lasting, f"a schedule of {steps} steps was given another length")
        hold(not known or lasting == part, f"over({steps}) changed a schedule that has a length")
        again = build(spell(lasting), "schedule")
        hold(again == lasting, f"build({spell(lasting)!r}) gives {again!r}")
        try:
            lasting.at(1), lasting.at(steps), lasting.at(steps + 1)
        except Exception as error:
            raise Broken(f"over({steps}) raises {type(error).__name__}: {error}") from None
    hold(repr(part) == text, "over changed the settings")
    return True

"""Which parts go together, and why others do not.

The rules go by what parts claim, never by their classes, so a part of one's own is held to them as those of
the package are. Most are about a phase: they are asked of the prelude, too, where an algorithm has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qsparse.algorithm import Algorithm
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import ParameterServer
from qsparse.exchange.base import Exchange
from qsparse.link import Link
from qsparse.registry import spell
from qsparse.schedules import Schedule


@dataclass(frozen=True)
class Rule:
    """One rule of composition.

    Args:
        name: what it is called.
        breaks: (algorithm, exchange, number of ranks) → why the algorithm breaks it and what to do instead;
            None where it holds.
        sentence: what must be so.
        whole: it is about the algorithm as a whole, and not asked of a prelude by itself.
        error: what is raised where it breaks.
    """

    name: str
    breaks: Callable[[Algorithm, Exchange, int], str | None]
    sentence: str
    whole: bool = False
    error: type[CompositionError] | type[SettingError] = CompositionError


def natural_exchange(algorithm: Algorithm) -> ParameterServer:
    """The exchange that an algorithm is run over unless another is asked for."""
    serves = any(
        not each.meeting.claims.waits or each.participation.claims.chooses for each in _phases(algorithm)
    )
    return ParameterServer(works=not serves)


def check(algorithm: Algorithm, exchange: Exchange, size: int) -> None:
    """Refuse, before the first message, what may not be composed.

    Raises:
        CompositionError: with the reason and the remedy.
        SettingError: the exchange, or a list of settings, does not fit the number of ranks.
    """
    for rule, phase in _asked(algorithm):
        reason = rule.breaks(phase, exchange, size)
        if reason is not None:
            raise rule.error(reason)


def judged(algorithm: Algorithm, exchange: Exchange, size: int) -> Iterator[tuple[Rule, str | None]]:
    """Every rule in the order of `RULES`, with why the algorithm breaks it; None where it holds."""
    for rule in RULES:
        reasons = (each.breaks(phase, exchange, size) for each, phase in _asked(algorithm) if each is rule)
        yield rule, next((reason for reason in reasons if reason is not None), None)


def refuse_if_inhomogeneous(up: Link) -> None:
    """With C(a·x) ≠ a·C(x) an error kept from a step size of yesterday is wrong for today's."""
    reason = _inhomogeneous(up)
    if reason is not None:
        raise CompositionError(reason)


def _phases(algorithm: Algorithm) -> list[Algorithm]:
    return [phase for phase in (algorithm.prelude, algorithm) if phase is not None]


def _asked(algorithm: Algorithm) -> Iterator[tuple[Rule, Algorithm]]:
    """Every rule with what it is asked of, in the order in which `check` asks."""
    yield from ((rule, algorithm) for rule in RULES if rule.whole)
    for phase in _phases(algorithm):
        yield from ((rule, phase) for rule in RULES if not rule.whole)


def _inhomogeneous(up: Link) -> str | None:
    if up.compressor.claims.homogeneous:
        return None
    return (
        f"{spell(up.compressor)} under error feedback needs a constant learning rate, because it does "
        "not scale with its input (C(a·x) is not a·C(x)): choose a homogeneous compressor, such as "
        "bfloat16 for float16 or a grid without a fixed delta"
    )


# --- the rules -----------------------------------------------------------------------------------------


def _ranks(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    return _refused(lambda: exchange.check(size))


def _refused(ask: Callable[[], object]) -> str | None:
    """What a part says where it refuses."""
    try:
        ask()
    except (CompositionError, SettingError) as error:
        return str(error)
    return None


def _prelude(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    prelude = algorithm.prelude
    if prelude is not None and (prelude.prelude is not None or prelude.length is None):
        return "a prelude needs a length, and has no prelude of its own"
    return None


def _one_model(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    for phase in _ending(algorithm):
        if not (phase.answer.compressor.claims.lossless or phase.server.claims.holds):
            return (
                f"a synchronous phase before another must end with the coordinator's own model at all ranks, "
                f"not with what {spell(phase.answer.compressor)} says of it: use float32 on its down link"
            )
        if phase.server.claims.ends_elsewhere:
            return (
                f"a phase under {spell(phase.server)} ends with another model than that of its last step, "
                "which synchronous workers are not told: use meeting asynchronous"
            )
    return None


def _ending(algorithm: Algorithm) -> list[Algorithm]:
    """The synchronous phases that another one follows."""
    prelude = algorithm.prelude
    if prelude is None:
        return []
    phases = [prelude] if algorithm.length is None else [prelude, algorithm]
    return [phase for phase in phases if phase.meeting.claims.waits]


def _moves(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    for phase in _phases(algorithm):
        may_hold = phase is not algorithm and phase.local.claims.reports_gradient
        if phase.server.claims.holds and not may_hold:
            return (
                f"server rule {spell(phase.server)} never moves the model, so nothing would be learned: it "
                "belongs into a prelude, with a local step that reports gradients"
            )
    return None


def _precision(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    for link in (algorithm.up, algorithm.answer):
        claims = link.compressor.claims
        fits = claims.any_precision or claims.checks_precision
        if link.memory.claims.needs_precision and not fits:
            return (
                f"memory {spell(link.memory)} asks for a precision, and {spell(link.compressor)} has but "
                "one: use lowprecision or float32"
            )
    return None


def _exact_up(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    memory = algorithm.up.memory
    if not memory.claims.exact:
        return None
    return (
        f"memory {spell(memory)} says one model to each receiver, and reports of several workers are "
        "added: it belongs on the down link; use memory errorfeedback or stateless for reports"
    )


def _exact_down(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    link = algorithm.answer
    if not link.memory.claims.exact or link.compressor.claims.lossless:
        return None
    return (
        f"memory {spell(link.memory)} says models exactly, not in the words of "
        f"{spell(link.compressor)}: use float32, or memory innovation"
    )


def _full_gradient(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    kept = algorithm.prelude is not None and algorithm.prelude.server.claims.keeps_mean
    if kept == algorithm.server.claims.needs_mean == algorithm.local.claims.needs_mean:
        return None
    return (
        "local step svrg, a server rule such as proxsvrg, and a prelude with rule hold, which brings the "
        f"full gradient, go together: not {algorithm.spelling()}"
    )


def _arrivals(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    server, memory = algorithm.server, algorithm.up.memory
    alone = server.claims.per_arrival and not algorithm.meeting.claims.waits
    if not (alone and memory.claims.skip_repeats):
        return None
    return (
        f"server rule {spell(server)} takes each report for itself, and memory {spell(memory)} gives "
        "it the sum of what all workers said last: use memory stateless"
    )


def _coordinator(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    if algorithm.meeting.claims.waits or exchange.claims.serves:
        return None
    return (
        f"asynchronous workers need a coordinator that only serves, not {spell(exchange)}: "
        "use exchange server(works=false)"
    )


def _every_gradient(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    local, trigger = algorithm.local, algorithm.trigger
    if not local.claims.reports_gradient or trigger.claims.always_due:
        return None
    return (
        f"local step {spell(local)} reports one gradient, so it must speak after every step, not "
        f"{spell(trigger)}: use sgd, which reports the net update of several steps"
    )


def _step_size(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    rate = algorithm.server.claims.rate
    reason = _refused(lambda: algorithm.trigger.bind(rate))
    return reason or _refused(lambda: algorithm.participation.bind(rate))


def _same_steps(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    trigger = algorithm.trigger
    if not trigger.claims.differs or not algorithm.meeting.claims.waits:
        return None
    return (
        f"trigger {spell(trigger)} gives each worker steps of its own, and synchronous workers meet at "
        "the same ones: use meeting asynchronous"
    )


def _workers(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    workers = len(exchange.workers(size))
    reason = _refused(lambda: algorithm.trigger.check(workers))
    return reason or _refused(lambda: algorithm.participation.check(workers))


def _unasked(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    chosen, local, memory = algorithm.participation, algorithm.local, algorithm.up.memory
    if not chosen.claims.by_change or (local.claims.reports_gradient and memory.claims.skip_repeats):
        return None
    return (
        f"participation {spell(chosen)}: who is not asked says nothing, and that must stand for what it "
        f"said last, not for nothing as with {spell(local)} and memory {spell(memory)}: use local "
        "step gradient with memory innovation"
    )


def _untold(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    chosen = algorithm.participation
    together = algorithm.meeting.claims.waits
    if not chosen.claims.chooses or (together and not algorithm.answer.memory.claims.remembers):
        return None
    return (
        f"participation {spell(chosen)}: who is not asked is told nothing, so workers must meet "
        "synchronously, and the down link have memory stateless"
    )


def _answering_some(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    claims = exchange.claims
    if not algorithm.participation.claims.chooses or (claims.broadcasts_to_some and claims.serves):
        return None
    return (
        f"participation {spell(algorithm.participation)} needs a coordinator that only serves, and answers "
        f"some and not others, unlike {spell(exchange)}: use exchange server(works=false)"
    )


def _one_chooser(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    trigger, chosen = algorithm.trigger, algorithm.participation
    if not chosen.claims.chooses or not (trigger.claims.may_skip or trigger.claims.differs):
        return None
    return (
        f"participation {spell(chosen)} chooses who reports, so trigger {spell(trigger)}, by which workers "
        "choose as well, does not go with it: use trigger every"
    )


def _skips(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    trigger, local, memory = algorithm.trigger, algorithm.local, algorithm.up.memory
    # What is skipped must come later with the next net update, or be what was said last once more.
    kept = local.claims.reports_gradient == memory.claims.skip_repeats
    if not trigger.claims.may_skip or kept:
        return None
    return (
        f"trigger {spell(trigger)} skips messages, and what {spell(local)} with memory "
        f"{spell(memory)} would have said is lost then: use local step gradient with memory "
        "innovation, where a skip stands for what was said last, or local step sgd with another memory, "
        "where it is said later"
    )


def _decay(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    if not algorithm.local.claims.decoupled_decay:
        return None
    plain = algorithm.meeting.claims.waits and algorithm.trigger.claims.always_due
    memory = algorithm.answer.memory.claims
    if plain and (memory.skip_repeats or memory.exact):
        return None
    return (
        f"{spell(algorithm.local)}: a weight decay that every rank applies by itself needs a model that both "
        "ends of the down link know at every step: synchronous, trigger every, down memory "
        "innovation or changes; else leave decoupled out"
    )


def _constant_step(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    scheduled = isinstance(algorithm.server.claims.rate, Schedule)
    if not (algorithm.up.memory.claims.keeps_error and scheduled):
        return None
    return (
        f"error feedback needs a constant server step, not {spell(algorithm.server)}: what is kept of one "
        "report would be applied with the step size of a later one; put the schedule into local step sgd, "
        "whose reports have the step size inside"
    )


def _scaling(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    if not (algorithm.up.memory.claims.keeps_error and algorithm.local.claims.scheduled):
        return None
    return _inhomogeneous(algorithm.up)


def _something_kept(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    if not (algorithm.up.memory.claims.keeps_error and algorithm.up.compressor.claims.lossless):
        return None
    return "error feedback around float32 remembers nothing but rounding: use memory stateless"


def _delay(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    delay, trigger, local = algorithm.meeting.claims.delay, algorithm.trigger, algorithm.local
    if not delay:
        return None
    name = f"meeting {spell(algorithm.meeting)}"
    if algorithm.prelude is not None or local.claims.reports_gradient:
        return (
            f"{name} adopts answers to net updates while further steps are taken, and {spell(local)} reports "
            "gradients of the model that was answered last: use delay=0"
        )
    if trigger.claims.may_skip or algorithm.participation.claims.chooses:
        return f"{name} needs an answer to every report, and here some are skipped or left out: use delay=0"
    if exchange.claims.groups:
        return f"{name}: over {spell(exchange)} ranks of a machine wait for the one that speaks: use delay=0"
    gap = trigger.claims.gap
    least = 1 if trigger.claims.always_due else None if gap is None or trigger.claims.drawn else gap(1, 1)
    if least is None or least > delay:
        return None
    return (
        f"{name}: with {spell(trigger)} a report is due before the answer to the last one is adopted: use a "
        f"delay of less than {least}"
    )


def _stretches(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    if not exchange.claims.divides:
        return None
    server, link = algorithm.server, algorithm.answer
    remedy = f"so {spell(exchange)}, where each rank coordinates a stretch of the model, would be another "
    remedy += "algorithm: use exchange server or tree"
    if not server.claims.by_coordinate:
        return f"server rule {spell(server)} does not say that it goes by single coordinates, {remedy}"
    if link.memory.claims.needs_precision:
        return f"memory {spell(link.memory)} asks for a precision of the whole model, {remedy}"
    # Parts with a size for each layer refuse every other length.
    if (reason := _refused(lambda: link.compressor.claims.bits(_LONG))) is not None:
        return f"{reason}; {remedy.removeprefix('so ')}"
    one, two = (link.compressor.claims.bits(n) for n in (_LONG, 2 * _LONG))
    if one is not None and two is not None and two < 1.5 * one:
        return (
            f"{spell(link.compressor)} takes as many bits for a stretch of the model as for all of it, so "
            f"the answers of {size} ranks under {spell(exchange)} would be {size} times as long as one: give "
            "it a ratio instead of a number"
        )
    return None


def _one_voice(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    local = algorithm.local
    if not exchange.claims.groups or not local.claims.measures:
        return None
    return (
        f"local step {spell(local)} measures how much news the report of each worker is, and under "
        f"{spell(exchange)} a machine says the mean of several: use local step gradient, whose news is "
        "what is sent, or exchange server"
    )


def _weighed(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    up = algorithm.up.compressor
    if not exchange.claims.groups or up.claims.homogeneous or not exchange.weighs(size):
        return None
    return (
        f"the machines of {spell(exchange)} have different numbers of ranks, so their reports have weights, "
        f"which {spell(up)} would not keep (C(a·x) is not a·C(x)): choose a homogeneous compressor, or give "
        "all machines as many ranks"
    )


def _said_at_home(algorithm: Algorithm, exchange: Exchange, size: int) -> str | None:
    if not exchange.claims.recompresses:
        return None
    trigger, memory = algorithm.trigger, algorithm.up.memory
    name, remedy = spell(exchange), "leave recompress out, or use exchange server"
    if trigger.claims.may_skip:
        return (
            f"trigger {spell(trigger)} keeps back what a machine has to say, and under {name} its ranks have "
            f"said it already, at home: {remedy}"
        )
    if not memory.claims.adds_nothing:
        return (
            f"memory {spell(memory)} does not take what a report spells for the report, and under {name} who "
            f"speaks for a machine knows nothing else of its ranks: use memory errorfeedback, or {remedy}"
        )
    return None


#: A number of coordinates, with which the bits of an answer should grow.
_LONG: Final = 1 << 16

#: All rules, in the order in which they are asked.
RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "ranks",
        _ranks,
        "The exchange fits the number of ranks.",
        whole=True,
        error=SettingError,
    ),
    Rule(
        "one prelude",
        _prelude,
        "A prelude has a length, and no prelude of its own.",
        whole=True,
    ),
    Rule(
        "one model",
        _one_model,
        "A synchronous phase before another ends with the coordinator's own model at all ranks.",
        whole=True,
    ),
    Rule(
        "moves",
        _moves,
        "The model moves; a server rule that holds it belongs into a prelude whose local step reports "
        "gradients.",
        whole=True,
    ),
    Rule(
        "precision",
        _precision,
        "A memory that needs a precision has a compressor of any precision, or one that checks its own.",
    ),
    Rule(
        "exact up",
        _exact_up,
        "A memory that tells models exactly is on the down link.",
    ),
    Rule(
        "exact down",
        _exact_down,
        "A memory that tells models exactly has a lossless compressor.",
    ),
    Rule(
        "full gradient",
        _full_gradient,
        "A local step and a server rule that need the mean full gradient, and a prelude that keeps it, come "
        "together.",
    ),
    Rule(
        "arrivals",
        _arrivals,
        "Where each report that comes alone is a step of its own, the memory gives that report, and not the "
        "sum of all.",
    ),
    Rule(
        "coordinator",
        _coordinator,
        "Asynchronous workers have a coordinator that only serves.",
    ),
    Rule(
        "every gradient",
        _every_gradient,
        "A local step that reports gradients speaks after every step.",
    ),
    Rule(
        "step size",
        _step_size,
        "A trigger that compares with the model's moves has a server rule with a step size.",
    ),
    Rule(
        "same steps",
        _same_steps,
        "Synchronous workers meet at the same steps.",
    ),
    Rule(
        "workers",
        _workers,
        "Lists with one setting for each worker have as many as there are workers.",
        error=SettingError,
    ),
    Rule(
        "unasked",
        _unasked,
        "Where workers with little news are left out, silence stands for the gradient that was said last.",
    ),
    Rule(
        "untold",
        _untold,
        "Where workers may be left out, they meet synchronously, and the down link remembers nothing.",
    ),
    Rule(
        "answering some",
        _answering_some,
        "Where workers may be left out, the coordinator only serves, and can answer some and not others.",
    ),
    Rule(
        "one chooser",
        _one_chooser,
        "Where the coordinator chooses who reports, workers do not choose as well.",
    ),
    Rule(
        "delay",
        _delay,
        "An answer that is adopted later is one to a net update, and comes before the next report.",
    ),
    Rule(
        "stretches",
        _stretches,
        "Where each rank coordinates a stretch of the model, the server rule goes by single coordinates, and "
        "answers about stretches are together no longer than one about all.",
    ),
    Rule(
        "one voice",
        _one_voice,
        "Where a machine says the mean of its ranks' reports, no local step measures the news of its own.",
    ),
    Rule(
        "weights",
        _weighed,
        "Machines with different numbers of ranks weigh their reports, so the compressor is homogeneous.",
    ),
    Rule(
        "said at home",
        _said_at_home,
        "Where a machine's ranks compress what they report to the one that speaks, nothing is skipped, and a "
        "report is what its message spells.",
    ),
    Rule(
        "skips",
        _skips,
        "What is skipped is said later, or stands for what was said last.",
    ),
    Rule(
        "decoupled decay",
        _decay,
        "A weight decay that every rank applies by itself has a model that both ends of the down link know "
        "at every step.",
    ),
    Rule(
        "constant step",
        _constant_step,
        "A memory that keeps errors has a constant server step.",
    ),
    Rule(
        "scaling",
        _scaling,
        "A memory that keeps errors of scheduled reports has a homogeneous compressor.",
    ),
    Rule(
        "something kept",
        _something_kept,
        "A memory that keeps errors has a compressor that makes some.",
    ),
)

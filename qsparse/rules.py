"""Which parts go together, and why others do not."""

from __future__ import annotations

from qsparse.algorithm import Algorithm, Async, Sync
from qsparse.compressors import Compressor, Float32
from qsparse.errors import CompositionError
from qsparse.exchange import ParameterServer
from qsparse.exchange.base import Exchange
from qsparse.link import Link
from qsparse.local import SVRG
from qsparse.memory import ErrorFeedback, Stateless
from qsparse.registry import spell
from qsparse.schedules import Schedule
from qsparse.server import Hold, ServerRule, VarianceReduced


def natural_exchange(algorithm: Algorithm) -> ParameterServer:
    """The exchange that an algorithm is run over unless another is asked for."""
    phases = [phase for phase in (algorithm, algorithm.prelude) if phase is not None]
    serves = any(isinstance(phase.meeting, Async) or phase.trigger.asks for phase in phases)
    return ParameterServer(works=not serves)


def check(algorithm: Algorithm, exchange: Exchange, size: int, is_prelude: bool = False) -> None:
    """Refuse, before the first message, what may not be composed.

    Raises:
        CompositionError: with the reason and the remedy.
        SettingError: the exchange does not fit the number of ranks.
    """
    exchange.check(size)
    if algorithm.prelude is not None:
        _check_phases(algorithm, algorithm.prelude)
        check(algorithm.prelude, exchange, size, is_prelude=True)
    if algorithm.server.holds and not (is_prelude and algorithm.local.reports_gradient):
        raise CompositionError(
            f"server rule {spell(algorithm.server)} never moves the model, so nothing would be learned: it "
            "belongs into a prelude, with a local step that reports gradients"
        )
    up, local, server = algorithm.up, algorithm.local, algorithm.server
    for link in (up, algorithm.answer):
        fixed = type(link.compressor).within is Compressor.within
        if link.memory.needs_precision and fixed:
            raise CompositionError(
                f"memory {spell(link.memory)} asks for a precision, and {spell(link.compressor)} has but "
                "one: use lowprecision or float32"
            )
    if up.memory.exact:
        raise CompositionError(
            f"memory {spell(up.memory)} says one model to each receiver, and reports of several workers are "
            "added: it belongs on the down link; use memory errorfeedback or stateless for reports"
        )
    if algorithm.answer.memory.exact and not isinstance(algorithm.answer.compressor, Float32):
        raise CompositionError(
            f"memory {spell(algorithm.answer.memory)} says models exactly, not in the words of "
            f"{spell(algorithm.answer.compressor)}: use float32, or memory innovation"
        )
    held = algorithm.prelude is not None and isinstance(algorithm.prelude.server, Hold)
    if held != isinstance(server, VarianceReduced) or held != isinstance(local, SVRG):
        raise CompositionError(
            "local step svrg, a server rule such as proxsvrg, and a prelude with rule hold, which brings the "
            f"full gradient, go together: not {algorithm.spelling()}"
        )
    if server.per_arrival and isinstance(algorithm.meeting, Async) and up.memory.skip_repeats:
        raise CompositionError(
            f"server rule {spell(server)} takes each report for itself, and memory {spell(up.memory)} gives "
            "it the sum of what all workers said last: use memory stateless"
        )
    if isinstance(algorithm.meeting, Async) and exchange.workers(size) != list(range(1, size)):
        raise CompositionError(
            f"asynchronous workers need a coordinator that only serves, not {spell(exchange)}: "
            "use exchange server(works=false)"
        )
    _check_trigger(algorithm, exchange, size)
    if local.has_decoupled_decay:
        plain = isinstance(algorithm.meeting, Sync) and algorithm.trigger.always_due
        memory = algorithm.answer.memory
        if not (plain and (memory.skip_repeats or memory.exact)):
            raise CompositionError(
                f"{spell(local)}: a weight decay that every rank applies by itself needs a model that both "
                "ends of the down link know at every step: synchronous, trigger every, down memory "
                "innovation or changes; else leave decoupled out"
            )
    remembers = isinstance(up.memory, ErrorFeedback)
    if remembers and isinstance(getattr(server, "lr", None), Schedule):
        raise CompositionError(
            f"error feedback needs a constant server step, not {spell(server)}: what is kept of one report "
            "would be applied with the step size of a later one; put the schedule into local step sgd, whose "
            "reports have the step size inside"
        )
    if remembers and local.scheduled:
        refuse_if_inhomogeneous(up)
    if isinstance(up.compressor, Float32) and remembers:
        raise CompositionError(
            "error feedback around float32 remembers nothing but rounding: use memory stateless"
        )


def _check_trigger(algorithm: Algorithm, exchange: Exchange, size: int) -> None:
    """What is not said must not be missed, and everybody concerned must come to a meeting."""
    trigger, local, up = algorithm.trigger, algorithm.local, algorithm.up
    if local.reports_gradient and not trigger.always_due:
        raise CompositionError(
            f"local step {spell(local)} reports one gradient, so it must speak after every step, not "
            f"{spell(trigger)}: use sgd, which reports the net update of several steps"
        )
    # Refuses a server rule that the trigger cannot go by.
    trigger.bind(getattr(algorithm.server, "lr", None))
    if trigger.differs and not isinstance(algorithm.meeting, Async):
        raise CompositionError(
            f"trigger {spell(trigger)} gives each worker steps of its own, and synchronous workers meet at "
            "the same ones: use meeting asynchronous"
        )
    trigger.check(len(exchange.workers(size)))
    if trigger.asks:
        if not (local.reports_gradient and up.memory.skip_repeats):
            raise CompositionError(
                f"trigger {spell(trigger)}: who is not asked says nothing, and that must stand for what it "
                f"said last, not for nothing as with {spell(local)} and memory {spell(up.memory)}: use local "
                "step gradient with memory innovation"
            )
        if not (isinstance(algorithm.meeting, Sync) and isinstance(algorithm.answer.memory, Stateless)):
            raise CompositionError(
                f"trigger {spell(trigger)}: who is not asked is told nothing, so workers must meet "
                "synchronously, and the down link have memory stateless"
            )
        answers_some = type(exchange).broadcast_to is not Exchange.broadcast_to
        if not answers_some or exchange.workers(size) != list(range(1, size)):
            raise CompositionError(
                f"trigger {spell(trigger)} needs a coordinator that only serves, and answers some and not "
                f"others, unlike {spell(exchange)}: use exchange server(works=false)"
            )
    # What is skipped must come later with the next net update, or be what was said last once more.
    if trigger.may_skip and local.reports_gradient != up.memory.skip_repeats:
        raise CompositionError(
            f"trigger {spell(trigger)} skips messages, and what {spell(local)} with memory "
            f"{spell(up.memory)} would have said is lost then: use local step gradient with memory "
            "innovation, where a skip stands for what was said last, or local step sgd with another memory, "
            "where it is said later"
        )


def refuse_if_inhomogeneous(up: Link) -> None:
    """With C(a·x) ≠ a·C(x) an error kept from a step size of yesterday is wrong for today's."""
    if not up.compressor.claims.homogeneous:
        raise CompositionError(
            f"{spell(up.compressor)} under error feedback needs a constant learning rate, because it does "
            "not scale with its input (C(a·x) is not a·C(x)): choose a homogeneous compressor, such as "
            "bfloat16 for float16 or a grid without a fixed delta"
        )


def _check_phases(algorithm: Algorithm, prelude: Algorithm) -> None:
    """All ranks must stand at one model when a phase begins."""
    if prelude.prelude is not None or prelude.length is None:
        raise CompositionError("a prelude needs a length, and has no prelude of its own")
    for phase in (prelude, algorithm):
        ends = phase is prelude or phase.length is not None
        exact = isinstance(phase.answer.compressor, Float32) or phase.server.holds
        if ends and isinstance(phase.meeting, Sync) and not exact:
            raise CompositionError(
                f"a synchronous phase before another must end with the coordinator's own model at all ranks, "
                f"not with what {spell(phase.answer.compressor)} says of it: use float32 on its down link"
            )
        if ends and isinstance(phase.meeting, Sync) and type(phase.server).leave is not ServerRule.leave:
            raise CompositionError(
                f"a phase under {spell(phase.server)} ends with another model than that of its last step, "
                "which synchronous workers are not told: use meeting asynchronous"
            )

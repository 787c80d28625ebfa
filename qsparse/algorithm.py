"""An algorithm is one choice per axis of the design space."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from qsparse.compressors import Compressor, Float32
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import ParameterServer
from qsparse.exchange.base import Exchange
from qsparse.link import Link
from qsparse.local import SVRG, Local
from qsparse.memory import Changes, ErrorFeedback, Stateless
from qsparse.registry import register, spell
from qsparse.schedules import Schedule, among, over
from qsparse.server import Descend, Hold, ServerRule, VarianceReduced
from qsparse.triggers import Every, Trigger


class Meeting:
    """Who waits for whom; the loops of `qsparse.rounds` know what each means."""

    kind: ClassVar[str] = "meeting"
    registered_name: ClassVar[str]


@register("synchronous")
@dataclass(frozen=True)
class Sync(Meeting):
    """All workers meet at the same steps, and everybody waits for everybody."""


# "async" would be a keyword of the grammar that spells parts.
@register("asynchronous")
@dataclass(frozen=True)
class Async(Meeting):
    """Each worker meets the coordinator at steps of its own and waits for nobody else.

    Basu et al., 2019, Algorithm 2. The coordinator, rank 0, only serves.

    Args:
        ahead: a worker this many meetings ahead of the slowest is answered only when that one has
            caught up by one; None: never wait.
    """

    ahead: int | None = None

    def __post_init__(self) -> None:
        if self.ahead is not None and (not isinstance(self.ahead, int) or self.ahead < 0):
            raise SettingError(f"{spell(self)}: ahead must be a whole number of at least 0")


@dataclass(frozen=True)
class Algorithm:
    """What every rank does in every round: one choice per axis, for a whole run or for a phase of it.

    Args:
        local: what a worker does between meetings, and what it reports.
        trigger: when it speaks.
        up: how reports are said.
        server: what the coordinator does with their mean.
        down: how models are said; None: exactly, see `answer`.
        meeting: who waits for whom.
        prelude: another phase, which comes before this one and again after every ``length`` steps.
        length: steps of a worker in this phase; None: all that remain.
    """

    local: Local
    trigger: Trigger = Every(1)
    up: Link = Link()
    server: ServerRule = Descend()
    down: Link | None = None
    meeting: Meeting = Sync()
    prelude: Algorithm | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        length = self.length
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise SettingError(f"a phase takes a whole number of at least 1 steps, not {length}")

    @property
    def answer(self) -> Link:
        """How models are said: ``down``, or else exactly, as float32.

        Sparse reports move a model in few coordinates, so then what has changed is said, with memory changes.
        """
        if self.down is not None:
            return self.down
        few = self.up.compressor.sparse and not (self.up.memory.repeats or self.server.moves_all)
        return Link(memory=Changes() if few and not self.trigger.asks else Stateless())

    @property
    def replays(self) -> bool:
        """Whether a worker can take the coordinator's step by itself, if it is told the reports of all.

        Then it is told these where they are smaller than what they change.
        """
        plain = self.up.memory.adds_nothing and self.server.replayable
        return self.answer.memory.exact and plain and isinstance(self.meeting, Sync)

    def phases(self, steps: int) -> Iterator[tuple[Algorithm, int]]:
        """The phases of a run of so many steps, each with its number of steps: walked in a circle."""
        circle = [self] if self.prelude is None else [self.prelude, self]
        for phase in itertools.cycle(circle):
            taken = steps if phase.length is None else min(phase.length, steps)
            if taken == 0:
                return
            yield phase, taken
            steps -= taken

    def axes(self) -> dict[str, str]:
        """The choice on each axis as text; those of the prelude under ``prelude …``."""
        prelude = {} if self.prelude is None else self.prelude.axes()
        length = {} if self.length is None else {"length": str(self.length)}
        return {
            "local": spell(self.local),
            "trigger": spell(self.trigger),
            "compressor": spell(self.up.compressor),
            "memory": spell(self.up.memory),
            "server": spell(self.server),
            "down": spell(self.answer.compressor),
            "down_memory": spell(self.answer.memory),
            "meeting": spell(self.meeting),
            **length,
            **{f"prelude {axis}": text for axis, text in prelude.items()},
        }

    def over(self, steps: int) -> Algorithm:
        """The algorithm for a run of so many steps: schedules without a length get this one."""
        parts = {axis: over(getattr(self, axis), steps) for axis in ("local", "trigger", "server")}
        prelude = None if self.prelude is None else self.prelude.over(steps)
        return replace(self, prelude=prelude, **parts)

    def among(self, workers: int) -> Algorithm:
        """The algorithm for so many workers: rates that are theirs together become those of their mean."""
        prelude = None if self.prelude is None else self.prelude.among(workers)
        return replace(
            self,
            prelude=prelude,
            local=among(self.local, workers),
            server=among(self.server, workers),
        )

    def spelling(self) -> str:
        """All axes on one line."""
        return ", ".join(f"{axis} {text}" for axis, text in self.axes().items())


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
    if algorithm.server.silent and not (is_prelude and algorithm.local.reports_afresh):
        raise CompositionError(
            f"server rule {spell(algorithm.server)} never moves the model, so nothing would be learned: it "
            "belongs into a prelude, with a local step that reports gradients"
        )
    up, local, server = algorithm.up, algorithm.local, algorithm.server
    for link in (up, algorithm.answer):
        fixed = type(link.compressor).within is Compressor.within
        if link.memory.demanding and fixed:
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
    if server.one_by_one and isinstance(algorithm.meeting, Async) and up.memory.repeats:
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
    if local.shrinks:
        plain = isinstance(algorithm.meeting, Sync) and algorithm.trigger.always_due
        memory = algorithm.answer.memory
        if not (plain and (memory.repeats or memory.exact)):
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
    if local.reports_afresh and not trigger.always_due:
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
        if not (local.reports_afresh and up.memory.repeats):
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
        answers_some = type(exchange).tell_some is not Exchange.tell_some
        if not answers_some or exchange.workers(size) != list(range(1, size)):
            raise CompositionError(
                f"trigger {spell(trigger)} needs a coordinator that only serves, and answers some and not "
                f"others, unlike {spell(exchange)}: use exchange server(works=false)"
            )
    # What is skipped must come later with the next net update, or be what was said last once more.
    if trigger.may_skip and local.reports_afresh != up.memory.repeats:
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
        exact = isinstance(phase.answer.compressor, Float32) or phase.server.silent
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

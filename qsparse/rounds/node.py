"""One rank's place in an algorithm: a worker's end, perhaps the coordinator, and the exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.exchange.base import Exchange
from qsparse.exchange.notes import only_updates, same_step
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.payload import Kind, Payload, Way
from qsparse.process import notice
from qsparse.registry import spell
from qsparse.rounds.coordinator import Coordinator
from qsparse.rounds.flight import Answer, Flight
from qsparse.rounds.machine import Machine
from qsparse.rounds.worker import WorkerEnd
from qsparse.seeds import Seed
from qsparse.types import Layout, Vector
from qsparse.wire.base import Wire


@dataclass
class Pace:
    """Where a rank stands in a run.

    Attributes:
        t: the steps that this rank has taken.
        clock: the steps that the workers have taken on average, as far as this rank was told; schedules
            go by it. Where everybody waits for everybody it is t.
        asked: the number of the signal by which some rank was asked to stop, 0 without one; where everybody
            waits for everybody it is the same on all ranks after each meeting.
        over: the run ends before its steps, at the next stop of workers that do not wait.
    """

    t: int = 0
    clock: int = 0
    asked: int = 0
    over: bool = False


class Node:
    """One rank's place in an algorithm: its worker end, perhaps the coordinator, and the exchange.

    Args:
        algorithm: the parts.
        exchange, wire: how payloads travel.
        start: the common starting point, (n,); equal on all ranks.
        seed: of the run.
        layout: the model's layers.
        ledger: where messages and seconds are counted.
        pace: where this rank stands; nodes of one rank share it.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        exchange: Exchange,
        wire: Wire,
        start: Vector,
        seed: Seed,
        layout: Layout,
        ledger: Ledger,
        pace: Pace | None = None,
    ) -> None:
        if algorithm.meeting.claims.delay and not wire.threaded:
            raise SettingError(
                f"meeting {spell(algorithm.meeting)} moves frames while the rank computes, which this wire, "
                f"{type(wire).__name__}, cannot do: use delay=0, or wire threads or mpi (whose thread level, "
                "mpi4py.rc.thread_level, must be 'multiple')"
            )
        self.works = wire.rank in exchange.workers(wire.size)
        self.algorithm = algorithm
        self.ledger = ledger
        self.pace = pace or Pace()
        self._wire = wire
        #: Where this rank stands: from here on only those count that speak.
        post = self.post = exchange.post(wire)
        self.exchange = exchange = post.exchange
        self.machine = None
        mine = seed.at(rank=wire.rank)
        if post.home is not None:
            at_home = algorithm.up if post.compressed else Link()
            self.machine = Machine(post.home, post.divisor, at_home, start, mine, layout, ledger)
        self.stretches = exchange.stretches(start.size, post.size)
        speaks = self.works and post.wire is not None
        self.worker = WorkerEnd(algorithm, start, mine, layout, ledger, self.works, self.stretches, speaks)
        # A rank is spared the coordinator's vectors of what it does not coordinate.
        self.coordinator = None
        #: How many report: the workers, or those that speak for them.
        self.voices = len(exchange.workers(post.size))
        travels = exchange.claims.answers or self.machine is not None
        number = None if post.wire is None else post.wire.rank
        for stretch in self.stretches:
            if number is not None and exchange.coordinates(number) and stretch.owner in (None, number):
                self.coordinator = Coordinator(
                    algorithm, start, self.voices, seed, layout, ledger, travels, stretch
                )
        # Where no answer travels and an exact one would be the model, the model itself will do.
        waits, decays = algorithm.meeting.claims.waits, algorithm.local.claims.decoupled_decay
        plain = algorithm.answer.exact and waits and not decays
        self._unsaid = not travels and plain and start.dtype == np.float32
        #: Has the coordinator stopped this worker?
        self.stopped = False
        #: The step of the last report.
        self.reported = 0
        #: The round whose answer is still to be adopted.
        self.flight: Flight | Answer | None = None
        #: The signal that the last answer told of, which counts once that is adopted.
        self._asked = 0

    def due(self, t: int) -> bool:
        """Whether this rank meets the coordinator after step t."""
        return self.worker.due(t)

    def stepped(self, t: int, last: bool, final: bool, delay: int = 0) -> bool:
        """What follows local step t: the report that is due, and the answer that is; see `Flight`.

        Args:
            t: the step.
            last: report, whether it is due or not.
            final: there is no later report, so what a skip would leave for later is said now.
            delay: how many local steps come between a report and its answer.

        Returns:
            Whether an answer was adopted and no round is under way: the ranks may talk of other things.
        """
        # Asked at every step, so that the trigger's own count stays in step.
        due = self.due(t) or last
        met = self.lands(t, due)
        if met:
            self.land()
        if due and delay and not last:
            self.launch(t, delay)
            met = False
        elif due:
            self.synchronize(t, final)
            met = True
        return met

    def lands(self, t: int, due: bool) -> bool:
        """Whether an answer is adopted after step t: it is time, or the next report is ``due``."""
        return self.flight is not None and (due or t >= self.flight.due)

    def launch(self, t: int, delay: int) -> None:
        """Report what step t came to; the answer is adopted ``delay`` local steps later."""
        report, change = self.worker.report()
        self.reported = t
        signal, clock = notice.asked(), self.pace.clock
        parts = self._said(report, t, signal, change, False)
        self.worker.posted()
        self.flight = Flight(t + delay, self._wire, lambda: self._round(parts, t, clock, signal, False))

    def land(self) -> None:
        """Adopt the answer that is under way, once it is there.

        Raises:
            QsparseError: what has happened to the round meanwhile.
        """
        assert self.flight is not None
        self.worker.landed(self.flight.landed())
        self.flight = None
        self.pace.asked = max(self.pace.asked, self._asked)

    def synchronize(self, t: int, last: bool = False) -> None:
        """What follows local step t where a synchronization is due: report, and go on from the answer.

        Args:
            t: the step.
            last: there is no later one, so what a skip would leave for later is said now.
        """
        report, change = self.worker.report()
        self.reported = t
        self.worker.adopt(self.meet(report, t, change, last))

    def meet(self, v: Vector, t: int, change: float | None = None, last: bool = False) -> Vector | None:
        """One round: say v (ignored where this rank does not work), hear the new model.

        Returns:
            The model, overwritten by the next meeting; None where the answer is to keep the old one.
        """
        # Whoever was asked to stop says so in the headers, and the answer tells it to all at once.
        signal = notice.asked() if self.algorithm.meeting.claims.waits else 0
        if self.machine is None:
            parts = self._said(v, t, signal, change, last)
            model = self._round(parts, t, self.pace.clock, signal, last)
        else:
            model = self._as_one(self.machine, v, t, signal, change, last)
        self.pace.asked = max(self.pace.asked, self._asked)
        if model is not None:
            self.worker.note(model)
        return model

    def _as_one(
        self, machine: Machine, v: Vector, t: int, signal: int, change: float | None, last: bool
    ) -> Vector | None:
        """A round in which one rank of each machine speaks for it."""
        mine = machine.report(v, t, signal)
        pooled = machine.pool(mine, t)
        machine.commit()
        if pooled is None:
            replies, self.worker.sent = machine.hear(t, len(self.stretches))
            _same_call([mine], replies)
        else:
            v, signal = pooled
            parts = self._said(v, t, signal, change, last)
            assert parts is not None
            payloads, signal = self._gathered(parts, t, self.pace.clock, signal)
            replies = self._replied(parts, payloads, t, signal, last)
            machine.tell(parts[0], replies, self.worker.sent)
        return self._heard(replies, self.pace.clock)

    def _said(self, v: Vector, t: int, signal: int, change: float | None, last: bool) -> list[Payload] | None:
        """What this rank says of v, about each stretch; None where it does not work."""
        if not self.works:
            return None
        return self.worker.cut(self.worker.message(v, t, self.pace.clock, change, last).asking(signal))

    def _round(
        self, parts: Sequence[Payload] | None, t: int, clock: int, signal: int, last: bool
    ) -> Vector | None:
        """Hand in a report; where this rank coordinates take and answer those of all; decode the answer."""
        payloads, signal = self._gathered(parts, t, clock, signal)
        # An answer that is looked at is made, as others are.
        if self._unsaid and self.coordinator is not None and self.coordinator.sender.watch is None:
            return self._model(parts or (), payloads or (), signal)
        return self._heard(self._replied(parts, payloads, t, signal, last), clock)

    def _gathered(
        self, parts: Sequence[Payload] | None, t: int, clock: int, signal: int
    ) -> tuple[list[Payload] | None, int]:
        """Hand in a report, and take those of all where this rank coordinates; and any signal to stop."""
        wire = self._outside()
        with self.ledger.timed("exchange"), wire.at(f"the reports of step {t}"):
            payloads = self.exchange.gather_parts(wire, parts, self.stretches)
        if payloads is not None:
            assert self.coordinator is not None
            if parts is None:
                only_updates(wire, t, payloads)
            self.coordinator.take(payloads, clock)
            signal = max([signal, *(payload.asked for payload in payloads)])
        return payloads, signal

    def _replied(
        self,
        parts: Sequence[Payload] | None,
        payloads: Sequence[Payload] | None,
        t: int,
        signal: int,
        last: bool,
    ) -> list[Payload]:
        """Answer where this rank coordinates, and receive the answers."""
        reply = None
        if payloads is not None:
            assert self.coordinator is not None
            reply = self.coordinator.reply(t, self.coordinator.sender).asking(signal)
            self.coordinator.tally.add(reply, self.voices)
        replies = self._answers(self._outside(), payloads, reply, t, last)
        _same_call(parts, replies)
        stopped = self.stopped or any(each.kind is Kind.STOP for each in replies)
        if self.works and not stopped and self.exchange.claims.answers:
            self.ledger.count_message(*replies)
        elif parts is not None and not stopped and payloads is not None:
            self.ledger.count_forwarded(each for each in payloads if each is not parts[0])
        return replies

    def _heard(self, replies: Sequence[Payload], clock: int) -> Vector | None:
        """The model that is answered with; whoever was asked to stop, or is stopped, is told here."""
        self._asked = max(each.asked for each in replies)
        for each in replies:
            if each.kind is Kind.STOP:
                self.stopped, self.pace.t, self.pace.over = True, each.step, bool(each.n)
        if replies[0].kind is Kind.DATA and not self.algorithm.meeting.claims.waits:
            self.pace.clock = clock = replies[0].step
        return self.worker.decode(replies, clock)

    def _model(self, parts: Sequence[Payload], payloads: Sequence[Payload], signal: int) -> Vector | None:
        """The model that an answer would spell: every rank coordinates, and has it."""
        assert self.coordinator is not None
        self._asked = signal
        self.ledger.count_forwarded(each for each in payloads if each is not parts[0])
        if self.algorithm.server.claims.holds:
            return None
        with self.ledger.timed("decode"):
            # A zero has no sign, as in answers.
            model: Vector = np.add(self.coordinator.model, np.float32(0), out=self.worker.receiver.like)
        return model

    def _outside(self) -> Wire:
        """The wire between the ranks that speak."""
        assert self.post.wire is not None
        return self.post.wire

    def _answers(
        self, wire: Wire, payloads: Sequence[Payload] | None, reply: Payload | None, t: int, last: bool
    ) -> list[Payload]:
        """What comes back to this rank: an answer for each stretch."""
        if not self.algorithm.participation.claims.chooses:
            with self.ledger.timed("exchange"), wire.at(f"the answers of step {t}"):
                return self.exchange.broadcast_parts(wire, reply, self.stretches)
        invited = None
        if payloads is not None and self.coordinator is not None:
            invited = self.coordinator.invited(payloads, t, last)
        with self.ledger.timed("exchange"), wire.at(f"the answers of step {t}"):
            return [self.exchange.broadcast_to(wire, reply, invited)]

    def enter(self, x: Vector, before: Node) -> None:
        """A phase begins (again) at a model that all ranks have, after the phase of another node."""
        self.stopped = False
        self.worker.enter(x)
        if self.coordinator is not None and before.coordinator is not None:
            self.coordinator.enter(x, before.coordinator)


def _same_call(parts: Sequence[Payload] | None, replies: Sequence[Payload]) -> None:
    """Say why this cannot go on where the coordinator is in another call than this rank."""
    for each in replies:
        if each.kind is Kind.DATA and each.way is Way.CONTROL and parts is not None:
            same_step([parts[0], each])


def averaging(algorithm: Algorithm) -> Algorithm:
    """The algorithm that averages exactly what the given one does not train (batch statistics).

    It is told when to meet, so it has no trigger of its own: a trigger that skips would skip statistics
    that nobody remembers. Nor has it the given one's local step, whose weight decay must leave statistics
    alone: what is averaged is reported as any net update is.
    """
    return Algorithm(local=SGD(1.0), meeting=algorithm.meeting)

"""Meetings as workers see them, and the loop around them.

In synchronous rounds everybody meets at the same steps, and this file is all there is; where workers
do not wait for each other, the coordinator's side is in `asynchronous.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsparse import notice
from qsparse.algorithm import Algorithm, Async, Sync
from qsparse.compressors.reports import REPORTS, bundle, bundle_size, merged
from qsparse.exchange.base import Exchange, same_step
from qsparse.ledger import Ledger
from qsparse.link import Receiver, Sender
from qsparse.local import SGD, Local, Oracle
from qsparse.memory import Memory
from qsparse.payload import Kind, Payload, Way
from qsparse.seeds import COORDINATOR, Seed
from qsparse.types import Layout, State, Vector
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
    """

    t: int = 0
    clock: int = 0
    asked: int = 0


class Shrinkage:
    """The weight decay that every rank applies to the model by itself, and what it remembers."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self.state: State = {}

    def due(self, memory: Memory, state: State, clock: int) -> Vector | None:
        """What is subtracted from the model after the meeting at step ``clock``; None: nothing.

        Args:
            memory, state: of the end of the down link that knows the model before the meeting.
            clock: schedules go by it.
        """
        if not self._local.shrinks:
            return None
        return self._local.shrinkage(self.state, memory.known(state), clock)


class Seat:
    """A rank's ends of the two links, and the trigger that says when it speaks.

    Args:
        algorithm: the parts.
        start: the common starting point, (n,); equal on all ranks.
        seed: of the run, with this rank.
        layout: the model's layers.
        ledger: where messages and seconds are counted.
        works: a rank that does not work only listens.
    """

    def __init__(
        self, algorithm: Algorithm, start: Vector, seed: Seed, layout: Layout, ledger: Ledger, works: bool
    ) -> None:
        self.ledger = ledger
        self.local = algorithm.local.bind(layout)
        self.seed = seed.at(use="up")
        self.sender = Sender(algorithm.up, np.zeros_like(start), layout) if works else None
        self.listener = Receiver(algorithm.answer, start)
        self._server = algorithm.server
        self.trigger = algorithm.trigger.bind(getattr(algorithm.server, "lr", None))
        # Who waits for the others must meet at the same steps as they do.
        caller = 0 if isinstance(algorithm.meeting, Sync) else seed.rank
        self.trigger_state = self.trigger.init(seed.at(rank=caller, use="trigger"))
        self.note(start)
        #: Was there something to say at the last meeting?
        self.spoke = True
        self.shrinkage = Shrinkage(self.local)
        #: Does this rank work in the next round?
        self.asked = True

    def due(self, t: int) -> bool:
        """Whether this rank meets the coordinator after step t. Asked once a step."""
        return self.trigger.due(self.trigger_state, t)

    def news(
        self, v: Vector, t: int, clock: int, measure: float | None = None, last: bool = False
    ) -> Payload:
        """What is said of v at the meeting after step t: a message, or a SKIP.

        Args:
            v: the report, (n,).
            t: the step.
            clock: how far the run is.
            measure: how much news it is, where the local step says so itself.
            last: there is no later meeting, so what a skip would leave for later is said now.
        """
        assert self.sender is not None, "a rank that does not work has no news"
        if not self.asked:
            self.spoke = False
            payload = Payload.build(kind=Kind.SKIP, origin=self.seed.rank, step=t, n=v.size)
            self.ledger.spoke(payload)
            return payload
        with self.ledger.timed("encode"):
            draft = self.sender.draft(v, self.seed.at(step=t), measure, clock)
            payload = draft.payload
            must = last and not self.local.reports_afresh
            self.spoke = self.trigger.worth(self.trigger_state, draft) or must
            if self.spoke:
                self.sender.commit(draft)
            else:
                payload = payload.silence()
                self.ledger.starved += self.trigger.starved(self.trigger_state)
            self.trigger.settled(self.trigger_state, self.spoke)
        self.ledger.spoke(payload)
        return payload

    def hear(self, reply: Payload, clock: int) -> Vector | None:
        """The model that the coordinator answers with, overwritten by the next one; None: keep yours."""
        if self.trigger.asks:
            self.asked = reply.kind is Kind.DATA
        if reply.kind is not Kind.DATA:
            return None
        with self.ledger.timed("decode"):
            shrinkage = self.shrinkage.due(self.listener.memory, self.listener.state, clock)
            model = self._replayed(reply, clock) if reply.codec == REPORTS else self.listener.merge([reply])
            if shrinkage is not None:
                self.listener.memory.shift(self.listener.state, shrinkage)
        self.note(model)
        return model

    def _replayed(self, reply: Payload, clock: int) -> Vector:
        """The model, by taking the coordinator's step with the reports that it has told on."""
        model = self.listener.memory.known(self.listener.state)
        u = merged(reply, self.listener.like)
        self._server.absorb({"x": model}, u, clock)
        return model

    def enter(self, x: Vector) -> None:
        """A phase begins at a model that all ranks have."""
        self.listener.memory.enter(self.listener.state, x)
        self.note(x)

    def note(self, model: Vector) -> None:
        """The model is this one now: triggers go by how it moves."""
        # Where the coordinator asks, what models were like is its own business.
        if not self.trigger.asks:
            self.trigger.heard(self.trigger_state, model)


class Station:
    """One rank's place in the meetings of an algorithm: its seat, perhaps the desk, and the exchange.

    Args:
        algorithm: the parts.
        exchange, wire: how payloads travel.
        start: the common starting point, (n,); equal on all ranks.
        seed: of the run.
        layout: the model's layers.
        ledger: where messages and seconds are counted.
        pace: where this rank stands; stations of one rank share it.
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
        workers = exchange.workers(wire.size)
        self.works = wire.rank in workers
        self.algorithm = algorithm
        self.exchange = exchange
        self.wire = wire
        self.ledger = ledger
        self.pace = pace or Pace()
        self.seat = Seat(algorithm, start, seed.at(rank=wire.rank), layout, ledger, self.works)
        # A worker that does not coordinate is spared the coordinator's vectors.
        self.desk = None
        if exchange.coordinates(wire.rank):
            self.desk = Desk(algorithm, start, len(workers), seed, layout, ledger, exchange.answers)
        #: The local step's state, made by `rounds`.
        self.local: State | None = None
        #: Has the coordinator stopped this worker?
        self.stopped = False

    def due(self, t: int) -> bool:
        """Whether this rank meets the coordinator after step t."""
        return self.seat.due(t)

    def meet(self, v: Vector, t: int, measure: float | None = None, last: bool = False) -> Vector | None:
        """One round: say v (ignored where this rank does not work), hear the new model; see `Seat.news`.

        Returns:
            The model, overwritten by the next meeting; None where the answer is to keep the old one.
        """
        # Whoever was asked to stop says so in the headers, and the answer tells it to all at once.
        signal = notice.asked() if isinstance(self.algorithm.meeting, Sync) else 0
        news = self.seat.news(v, t, self.pace.clock, measure, last).asking(signal) if self.works else None
        with self.ledger.timed("exchange"), self.wire.at(f"the reports of step {t}"):
            payloads = self.exchange.gather(self.wire, news)
        reply = None
        if payloads is not None:
            assert self.desk is not None
            self.desk.take(payloads, self.pace.clock)
            signal = max([signal, *(payload.asked for payload in payloads)])
            reply = self.desk.reply(t, self.desk.replier).asking(signal)
            self.desk.tally.add(reply, len(self.exchange.workers(self.wire.size)))
        if self.algorithm.trigger.asks:
            asked = None if payloads is None or self.desk is None else self.desk.asks(payloads, t, last)
            with self.ledger.timed("exchange"), self.wire.at(f"the answers of step {t}"):
                reply = self.exchange.tell_some(self.wire, reply, asked)
        else:
            with self.ledger.timed("exchange"), self.wire.at(f"the answers of step {t}"):
                reply = self.exchange.broadcast(self.wire, reply)
        self.pace.asked = max(self.pace.asked, reply.asked)
        if reply.kind is Kind.DATA and reply.way is Way.BESIDE and news is not None:
            same_step([news, reply])  # the coordinator is in another call, and says why this cannot go on
        if reply.kind is Kind.STOP:
            self.stopped, self.pace.t = True, reply.step
        elif self.works and self.exchange.answers:
            self.ledger.spoke(reply)
        elif self.works and payloads is not None:
            self.ledger.overheard(each for each in payloads if each is not news)
        if reply.kind is Kind.DATA and isinstance(self.algorithm.meeting, Async):
            self.pace.clock = reply.step
        return self.seat.hear(reply, self.pace.clock)

    def enter(self, x: Vector, before: Station) -> None:
        """A phase begins (again) at a model that all ranks have, after the phase of another station."""
        self.stopped = False
        self.seat.enter(x)
        if self.local is not None:
            self.algorithm.local.enter(self.local, x)
        if self.desk is not None and before.desk is not None:
            self.desk.enter(x, before.desk)


class Tally:
    """What a desk has taken and answered: bits and bytes as the papers count them, forwarding aside."""

    def __init__(self) -> None:
        self.paper_bits, self.wire_bytes, self.messages = ({"up": 0, "down": 0} for _ in range(3))

    def add(self, payload: Payload, copies: int = 1) -> None:
        """A payload that came, or went to so many ranks."""
        way = payload.way.name.lower()
        self.paper_bits[way] += copies * payload.nbits
        self.wire_bytes[way] += copies * len(payload)
        self.messages[way] += copies * (payload.kind is Kind.DATA)


class Desk:
    """Where the coordinator of an algorithm works: the other ends of the links, and the server rule.

    Args:
        algorithm, start: as of `Seat`.
        workers: how many report.
        seed, layout, ledger: as of `Seat`.
        travels: answers go to other ranks, and are made as small as they can be.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        start: Vector,
        workers: int,
        seed: Seed,
        layout: Layout,
        ledger: Ledger,
        travels: bool = True,
    ) -> None:
        self.algorithm = algorithm
        self.seed = seed.at(rank=COORDINATOR, use="down")
        self.ledger = ledger
        self.tally = Tally()
        self._clock = 0
        one_by_one = isinstance(algorithm.meeting, Async) and algorithm.server.one_by_one
        self.hearer = Receiver(algorithm.up, np.zeros_like(start), speakers=1 if one_by_one else workers)
        # One report that comes alone is the R-th part of a round; where what is restored is not that
        # part but the running mean of all, the part is taken here.
        alone = isinstance(algorithm.meeting, Async) and not one_by_one
        self._part = 1 / workers if alone and algorithm.up.memory.repeats else 1.0
        self.replier = Sender(algorithm.answer, start, layout)
        self.server = algorithm.server.init(start)
        self.shrinkage = Shrinkage(algorithm.local.bind(layout))
        # In float64 a worker has the model as float32 rounds it, and would take the step from there.
        self._replays = travels and algorithm.replays and start.dtype == np.float32
        self._reports: Sequence[Payload] = ()
        self._trigger = algorithm.trigger.bind(getattr(algorithm.server, "lr", None))
        self.asking = self._trigger.init(seed.at(use="ask"))
        if self._trigger.asks:
            self._trigger.heard(self.asking, start)

    @property
    def model(self) -> Vector:
        """The coordinator's model."""
        return self.algorithm.server.model(self.server)

    def take(self, payloads: Sequence[Payload], clock: int) -> None:
        """Absorb the mean of reports, silent workers included; schedules go by the clock."""
        self._clock, self._reports = clock, payloads
        for payload in payloads:
            self.tally.add(payload)
        with self.ledger.timed("decode"):
            u = self.hearer.merge(payloads)
            if self._part != 1:
                u = u * (self._part * len(payloads))
            self.algorithm.server.absorb(self.server, u, clock)

    def reply(self, t: int, replier: Sender, number: int = 0) -> Payload:
        """The answer to who stands at step t, to be sent at once.

        Args:
            t: goes into the header.
            replier: the sending end of who is answered.
            number: tells answers of the same step apart, so that each draws its own random numbers.
        """
        seed = self.seed.at(step=t)
        if self.algorithm.server.silent:
            return Payload.build(kind=Kind.SKIP, way=Way.DOWN, origin=seed.rank, step=t, n=self.model.size)
        with self.ledger.timed("encode"):
            shrinkage = self.shrinkage.due(replier.memory, replier.state, self._clock)
            draft = replier.draft(self.model, seed.child(number) if number else seed)
            replier.commit(draft)
            if shrinkage is not None:
                replier.memory.shift(replier.state, shrinkage)
                self.algorithm.server.shift(self.server, shrinkage)
            # The bytes in front of both are the same.
            if self._replays and bundle_size(self._reports) < len(draft.payload.body):
                return bundle(self._reports, self.model.size, seed)
        return draft.payload

    def asks(self, payloads: Sequence[Payload], t: int, last: bool) -> list[bool]:
        """Which workers, in rank order, are told the model; all of them at the last meeting."""
        asked = self._trigger.asked(self.asking, payloads, self.model, t)
        return [True] * len(asked) if last else asked

    def ask_anew(self) -> None:
        """Forget who was asked when, because the workers are others."""
        self.asking = self._trigger.init(self.seed)
        if self._trigger.asks:
            self._trigger.heard(self.asking, self.model)

    def leave(self) -> Vector:
        """The model with which a phase ends."""
        return self.algorithm.server.leave(self.server)

    def enter(self, x: Vector, before: Desk) -> None:
        """A phase begins at x, after the phase of another desk."""
        if self._trigger.asks:
            self._trigger.heard(self.asking, x)
        self.replier.memory.enter(self.replier.state, x)
        self.algorithm.server.enter(self.server, x, before.server)


def averaging(algorithm: Algorithm) -> Algorithm:
    """The algorithm that averages exactly what the given one does not train (batch statistics).

    It is told when to meet, so it has no trigger of its own: a trigger that skips would skip statistics
    that nobody remembers. Nor has it the given one's local step, whose weight decay must leave statistics
    alone: what is averaged is reported as any net update is.
    """
    return Algorithm(local=SGD(1.0), meeting=algorithm.meeting)


def rounds(
    algorithm: Algorithm,
    station: Station,
    x: Vector,
    steps: int,
    oracle: Oracle,
    batch: Callable[[int], Any],
    gradient: Vector | None = None,
    beside: Callable[[int, bool], bool] | None = None,
    begin: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, float | None, bool]]:
    """Train: yields (step, loss, whether this rank met) after each step.

    The last step always meets; where nobody waits, the coordinator says when it is over.

    Args:
        algorithm: what to do; the station's local step moves x in place.
        station: this rank's place in the meetings; its pace says where to go on.
        x: this rank's model at the common starting point, (n,); holds the new model after a meeting.
        steps: T.
        oracle: gradients of the training loss.
        batch: step t = 1, 2, … → this rank's batch.
        gradient: where the oracle leaves gradients, (n,), if it has a place of its own.
        beside: called at every meeting, for what is exchanged beside the model, with the step and whether
            it is the last; returns whether the coordinator has stopped this rank there.
        begin: called with the step before each step.
    """
    local, pace = station.seat.local, station.pace
    # A rank that only serves has no step of its own.
    if station.local is None and station.works:
        station.local = local.init(x, gradient)
    state = station.local or {}
    report = np.empty_like(x)
    alone = isinstance(algorithm.meeting, Async)
    end = pace.clock + steps
    over = False
    while not over and not station.stopped:
        pace.t += 1
        pace.clock = min(pace.clock + 1, end)
        t = pace.t
        # Who does not wait may come here again: the coordinator says when it is over.
        last = pace.clock == end
        over = last and not alone
        if begin is not None:
            begin(t)
        loss = None
        if station.works and station.seat.asked:
            with station.ledger.timed("compute"):
                loss = local.advance(state, oracle, batch(t), pace.clock)
        # Asked at every step, so that the trigger's own count stays in step.
        met = station.due(t) or last
        if met:
            if station.works:
                news = local.news(state)
                model = station.meet(local.report(state, report), t, news, over)
                local.heard(state, model, station.seat.spoke)
            elif (model := station.meet(report, t, None, over)) is not None:
                np.copyto(x, model)
            if beside is not None and beside(t, last):
                station.stopped = True
        yield t, loss, met

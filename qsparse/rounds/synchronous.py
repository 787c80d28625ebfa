"""Meetings as workers see them, and the loop around them.

In synchronous rounds everybody meets at the same steps, and this file is all there is; where workers
do not wait for each other, the coordinator's side is in `asynchronous.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from qsparse.algorithm import Algorithm, Sync
from qsparse.exchange.base import Exchange
from qsparse.ledger import Ledger
from qsparse.link import Receiver, Sender
from qsparse.local import Oracle
from qsparse.memory import Draft
from qsparse.payload import Kind, Payload
from qsparse.seeds import COORDINATOR, Seed
from qsparse.types import Layout, Vector
from qsparse.wire.base import Wire


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
        self.seed = seed.at(use="up")
        self.sender = Sender(algorithm.up, np.zeros_like(start), layout) if works else None
        self.listener = Receiver(algorithm.down, start)
        self.trigger = algorithm.trigger.bind(getattr(algorithm.server, "lr", None))
        # Who waits for the others must meet at the same steps as they do.
        caller = 0 if isinstance(algorithm.meeting, Sync) else seed.rank
        self.trigger_state = self.trigger.init(seed.at(rank=caller, use="trigger"))
        self.trigger.heard(self.trigger_state, start)

    def due(self, t: int) -> bool:
        """Does this rank meet the coordinator after step t? Asked once a step."""
        return self.trigger.due(self.trigger_state, t)

    def news(self, v: Vector, t: int) -> Payload:
        """What is said of v at the meeting after step t: a message, or a SKIP."""
        assert self.sender is not None, "a rank that does not work has no news"
        with self.ledger.timed("encode"):
            draft = self.sender.draft(v, self.seed.at(step=t))
            payload = draft.payload
            spoke = self.trigger.worth(self.trigger_state, draft)
            if spoke:
                self.sender.commit(draft)
            else:
                payload = skip(draft)
            self.trigger.settled(self.trigger_state, spoke)
        self.ledger.spoke(payload)
        return payload

    def hear(self, reply: Payload) -> Vector:
        """The coordinator's answer; the result is overwritten by the next one."""
        with self.ledger.timed("decode"):
            model = self.listener.merge([reply])
        self.trigger.heard(self.trigger_state, model)
        return model


class Station:
    """One rank's place in the meetings of an algorithm: its seat, perhaps the desk, and the exchange.

    Args:
        algorithm: the parts.
        exchange, wire: how payloads travel.
        start: the common starting point, (n,); equal on all ranks.
        seed: of the run.
        layout: the model's layers.
        ledger: where messages and seconds are counted.
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
    ) -> None:
        workers = exchange.workers(wire.size)
        self.works = wire.rank in workers
        self.exchange = exchange
        self.wire = wire
        self.ledger = ledger
        self.seat = Seat(algorithm, start, seed.at(rank=wire.rank), layout, ledger, self.works)
        # A worker that does not coordinate is spared the coordinator's vectors.
        self.desk = None
        if exchange.coordinates(wire.rank):
            self.desk = Desk(algorithm, start, len(workers), seed, layout, ledger)

    def due(self, t: int) -> bool:
        """Does this rank meet the coordinator after step t?"""
        return self.seat.due(t)

    def meet(self, v: Vector, t: int) -> Vector:
        """One round: say v (ignored where this rank does not work), hear the new model.

        The result is overwritten by the next meeting.
        """
        news = self.seat.news(v, t) if self.works else None
        with self.ledger.timed("exchange"):
            payloads = self.exchange.gather(self.wire, news)
        reply = None
        if payloads is not None:
            assert self.desk is not None
            self.desk.take(payloads)
            reply = self.desk.reply(t, self.desk.replier)
        with self.ledger.timed("exchange"):
            reply = self.exchange.broadcast(self.wire, reply)
        if self.works and self.exchange.answers:
            self.ledger.spoke(reply)
        return self.seat.hear(reply)


class Desk:
    """Where the coordinator of an algorithm works: the other ends of the links, and the server rule."""

    def __init__(
        self, algorithm: Algorithm, start: Vector, workers: int, seed: Seed, layout: Layout, ledger: Ledger
    ) -> None:
        self.algorithm = algorithm
        self.seed = seed.at(rank=COORDINATOR, use="down")
        self.ledger = ledger
        self.hearer = Receiver(algorithm.up, np.zeros_like(start), speakers=workers)
        self.replier = Sender(algorithm.down, start, layout)
        self.server = algorithm.server.init(start)

    @property
    def model(self) -> Vector:
        """The coordinator's model."""
        return self.algorithm.server.model(self.server)

    def take(self, payloads: Sequence[Payload]) -> None:
        """Absorb the mean of reports, silent workers included."""
        with self.ledger.timed("decode"):
            self.algorithm.server.absorb(self.server, self.hearer.merge(payloads), payloads[0].step)

    def reply(self, t: int, replier: Sender) -> Payload:
        """The answer to who stands at step t, to be sent at once."""
        with self.ledger.timed("encode"):
            draft = replier.draft(self.model, self.seed.at(step=t))
            replier.commit(draft)
        return draft.payload


def skip(draft: Draft) -> Payload:
    """The message that stands for nothing new."""
    silent = draft.payload
    return Payload.build(kind=Kind.SKIP, origin=silent.origin, step=silent.step, n=silent.n)


def averaging(algorithm: Algorithm) -> Algorithm:
    """The algorithm that averages exactly what the given one does not train (batch statistics).

    It takes part in every meeting of the given one, so it has no trigger of its own: a trigger that
    skips would skip statistics that nobody remembers.
    """
    return Algorithm(local=algorithm.local, meeting=algorithm.meeting)


def rounds(
    algorithm: Algorithm,
    station: Station,
    x: Vector,
    steps: int,
    oracle: Oracle,
    batch: Callable[[int], Any],
    gradient: Vector | None = None,
    beside: Callable[[int], None] | None = None,
    begin: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, float | None, bool]]:
    """Train: yields (step, loss, whether this rank met) after each step; the last step always meets.

    Args:
        algorithm: what to do; its local step moves x in place.
        station: this rank's place in the meetings.
        x: this rank's model at the common starting point, (n,); holds the new model after a meeting.
        steps: T.
        oracle: gradients of the training loss.
        batch: step t = 1, 2, … → this rank's batch.
        gradient: where the oracle leaves gradients, (n,), if it has a place of its own.
        beside: called with the step at every meeting, for what is exchanged beside the model.
        begin: called with the step before each step.
    """
    local = algorithm.local
    state = local.init(x, gradient)
    report = np.empty_like(x)
    for t in range(1, steps + 1):
        if begin is not None:
            begin(t)
        loss = None
        if station.works:
            with station.ledger.timed("compute"):
                loss = local.advance(state, oracle, batch(t), t)
        # Asked at every step, so that the trigger's own count stays in step.
        met = station.due(t) or t == steps
        if met:
            local.adopt(state, station.meet(local.report(state, report), t))
            if beside is not None:
                beside(t)
        yield t, loss, met

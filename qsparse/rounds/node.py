"""One rank's place in an algorithm: a worker's end, perhaps the coordinator, and the exchange."""

from __future__ import annotations

from dataclasses import dataclass

from qsparse.algorithm import Algorithm, Async, Sync
from qsparse.exchange.base import Exchange, same_step
from qsparse.ledger import Ledger
from qsparse.local import SGD
from qsparse.payload import Kind, Way
from qsparse.process import notice
from qsparse.rounds.coordinator import Desk
from qsparse.rounds.worker import Seat
from qsparse.seeds import Seed
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


def averaging(algorithm: Algorithm) -> Algorithm:
    """The algorithm that averages exactly what the given one does not train (batch statistics).

    It is told when to meet, so it has no trigger of its own: a trigger that skips would skip statistics
    that nobody remembers. Nor has it the given one's local step, whose weight decay must leave statistics
    alone: what is averaged is reported as any net update is.
    """
    return Algorithm(local=SGD(1.0), meeting=algorithm.meeting)

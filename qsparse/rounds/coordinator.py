"""The coordinator's ends of the two links, and the server rule between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors.decoding import unpack
from qsparse.compressors.reports import bundle, bundle_size, vote
from qsparse.exchange.base import Stretch
from qsparse.kernels import vector
from qsparse.ledger import Ledger
from qsparse.link import Receiver, Sender
from qsparse.payload import Kind, Payload, Way
from qsparse.rounds.worker import DecoupledDecay
from qsparse.seeds import COORDINATOR, Seed
from qsparse.types import Layout, Vector, layers_within


class Tally:
    """What a coordinator has taken and answered, in bits and bytes as the papers count them."""

    def __init__(self) -> None:
        self.paper_bits, self.wire_bytes, self.messages = ({"up": 0, "down": 0} for _ in range(3))

    def add(self, payload: Payload, copies: int = 1) -> None:
        """A payload that came, or went to so many ranks."""
        way = payload.way.name.lower()
        self.paper_bits[way] += copies * payload.nbits
        self.wire_bytes[way] += copies * len(payload)
        self.messages[way] += copies * (payload.kind is Kind.DATA)


class Coordinator:
    """Where the coordinator of an algorithm works: the other ends of the links, and the server rule.

    Args:
        algorithm, start: as of `WorkerEnd`.
        workers: how many report.
        seed, layout, ledger: as of `WorkerEnd`.
        travels: answers go to other ranks, and are made as small as they can be.
        stretch: the coordinates of the model that are coordinated here; all of them unless given.
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
        stretch: Stretch | None = None,
    ) -> None:
        local = algorithm.local.bind(layout)
        self.seed = seed.at(rank=COORDINATOR, use="down")
        if stretch is not None and stretch.size < start.size:
            start = start[stretch.start : stretch.stop]
            layout = layers_within(layout, stretch.start, stretch.stop)
            local = local.part(stretch.start, stretch.stop)
            # Stretches draw numbers of their own.
            self.seed = self.seed.child(stretch.start)
        self.algorithm = algorithm
        self.ledger = ledger
        self.tally = Tally()
        self._clock = 0
        per_arrival = not algorithm.meeting.claims.waits and algorithm.server.claims.per_arrival
        self.receiver = Receiver(algorithm.up, np.zeros_like(start), senders=1 if per_arrival else workers)
        # One report that comes alone is the R-th part of a round; where what is restored is not that
        # part but the running mean of all, the part is taken here.
        alone = not algorithm.meeting.claims.waits and not per_arrival
        self._part = 1 / workers if alone and algorithm.up.memory.claims.skip_repeats else 1.0
        self.sender = Sender(algorithm.answer, start, layout)
        self.server = algorithm.server.init(start)
        self.decoupled_decay = DecoupledDecay(local)
        # In float64 a worker has the model as float32 rounds it, and would take the step from there.
        told = travels and start.dtype == np.float32
        self._hands_on, self._votes = told and algorithm.hands_on, told and algorithm.votes
        self._reports: Sequence[Payload] = ()
        self._u = np.empty(0, start.dtype)
        #: Which workers take part, and what that goes by.
        self.participation = algorithm.participation.bind(algorithm.server.claims.rate)
        self.asking = self.participation.init(seed.at(use="ask"))
        self.participation.heard(self.asking, start)
        # Of some workers the mean is over these; what is repeated stands for the others.
        self._of_some = self.participation.claims.chooses and not algorithm.up.memory.claims.skip_repeats

    @property
    def model(self) -> Vector:
        """The coordinator's model."""
        return self.algorithm.server.model(self.server)

    def take(self, payloads: Sequence[Payload], clock: int) -> None:
        """Absorb the mean of reports, silent workers included; schedules go by the clock."""
        self._clock, self._reports = clock, payloads
        for payload in payloads:
            self.tally.add(payload)
        with self.ledger.timed("decode", sum(map(len, payloads))):
            u = self.receiver.merge(payloads)
            if self._part != 1:
                u = u * (self._part * len(payloads))
            if self._of_some and (sent := sum(payload.kind is Kind.DATA for payload in payloads)):
                u = u * (len(payloads) / sent)
            self._u = u
            self.algorithm.server.absorb(self.server, u, clock)

    def reply(self, t: int, sender: Sender, number: int = 0) -> Payload:
        """The answer to who stands at step t, to be sent at once.

        Args:
            t: goes into the header.
            sender: the sending end of who is answered.
            number: tells answers of the same step apart, so that each draws its own random numbers.
        """
        seed = self.seed.at(step=t)
        if self.algorithm.server.claims.holds:
            return Payload.build(kind=Kind.SKIP, way=Way.DOWN, origin=seed.rank, step=t, n=self.model.size)
        with self.ledger.timed("encode", self.model.size):
            decoupled_decay = self.decoupled_decay.due(sender.memory, sender.state, self._clock)
            draft = sender.draft(self.model, seed.child(number) if number else seed)
            sender.commit(draft)
            if decoupled_decay is not None:
                sender.memory.subtract(sender.state, decoupled_decay)
                self.algorithm.server.subtract(self.server, decoupled_decay)
        return self._shortest(draft.payload, seed)

    def _shortest(self, answer: Payload, seed: Seed) -> Payload:
        """The answer, or in fewer bytes what lets a rank take the coordinator's step by itself."""
        # The bytes in front of all bodies are the same.
        if self._votes:
            answer = min(answer, vote(self._u, seed), key=lambda each: len(each.body))
        if self._hands_on and bundle_size(self._reports) < len(answer.body):
            answer = bundle(self._reports, self.model.size, seed)
        return answer

    def invited(self, payloads: Sequence[Payload], t: int, last: bool) -> list[bool]:
        """Which workers, in rank order, are told the model and work next; all, after the last round."""
        looks = self.participation.claims.by_change
        changes = [self._change(payload) if looks else None for payload in payloads]
        invited = self.participation.invited(self.asking, changes, self.model, t)
        return [True] * len(invited) if last else invited

    def _change(self, payload: Payload) -> float | None:
        """‖·‖² of what a worker has just said; None where it said nothing."""
        if payload.kind is Kind.SKIP:
            return None
        model = self.model
        pieces = unpack(payload, model.dtype, model.size)
        return float(sum(vector.squared_norm(piece.values) for piece in pieces))

    def ask_anew(self) -> None:
        """Forget who was asked when, because the workers are others."""
        self.asking = self.participation.init(self.seed)
        self.participation.heard(self.asking, self.model)

    def leave(self) -> Vector:
        """The model with which a phase ends."""
        return self.algorithm.server.leave(self.server)

    def enter(self, x: Vector, before: Coordinator) -> None:
        """A phase begins at x, after the phase of another coordinator."""
        self.participation.heard(self.asking, x)
        self.sender.memory.enter(self.sender.state, x)
        self.algorithm.server.enter(self.server, x, before.server)

"""A worker: its local step, its trigger, and its ends of the two links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors.cutting import cut
from qsparse.compressors.reports import REPORTS, merged
from qsparse.exchange.base import Stretch
from qsparse.ledger import Ledger
from qsparse.link import Receiver, Sender
from qsparse.local import Local, Oracle
from qsparse.memory import Memory
from qsparse.payload import Kind, Payload
from qsparse.seeds import Seed
from qsparse.types import Layout, State, Vector


class DecoupledDecay:
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
        if not self._local.claims.decoupled_decay:
            return None
        return self._local.decoupled_decay(self.state, memory.shared(state), clock)


class Ear:
    """The hearing end of the down link for one stretch of the model.

    Args:
        algorithm: as of `WorkerEnd`.
        start: the whole model at the common starting point, (n,).
        layout: as of `WorkerEnd`.
        stretch: which coordinates are heard of.
    """

    def __init__(self, algorithm: Algorithm, start: Vector, layout: Layout, stretch: Stretch) -> None:
        self.place = slice(stretch.start, stretch.stop)
        self.receiver = Receiver(algorithm.answer, start[self.place])
        local = algorithm.local.bind(layout)
        self.decoupled_decay = DecoupledDecay(local.part(stretch.start, stretch.stop))
        self._server = algorithm.server

    def hear(self, reply: Payload, clock: int) -> Vector:
        """What the stretch of the model is now, overwritten by the next answer."""
        memory, state = self.receiver.memory, self.receiver.state
        decoupled_decay = self.decoupled_decay.due(memory, state, clock)
        model = self._replayed(reply, clock) if reply.codec == REPORTS else self.receiver.merge([reply])
        if decoupled_decay is not None:
            memory.subtract(state, decoupled_decay)
        return model

    def _replayed(self, reply: Payload, clock: int) -> Vector:
        """The stretch, by taking the coordinator's step with the reports that it has told on."""
        model = self.receiver.memory.shared(self.receiver.state)
        u = merged(reply, self.receiver.like)
        self._server.absorb({"x": model}, u, clock)
        return model


class WorkerEnd:
    """A rank's local step, the trigger that says when it reports, and its ends of the two links.

    `begin` gives it the model that it moves; then `advance` takes a local step, `report` says what has come
    of the steps, and `adopt` goes on from what was answered.

    Args:
        algorithm: the parts.
        start: the common starting point, (n,); equal on all ranks.
        seed: of the run, with this rank.
        layout: the model's layers.
        ledger: where messages and seconds are counted.
        works: a rank that does not work only listens.
        stretches: of the model, about which there are answers of their own; all of it unless given.
        speaks: a rank that another one speaks for has no sending end; as ``works`` unless given.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        start: Vector,
        seed: Seed,
        layout: Layout,
        ledger: Ledger,
        works: bool,
        stretches: Sequence[Stretch] | None = None,
        speaks: bool | None = None,
    ) -> None:
        self.ledger = ledger
        self.local = algorithm.local.bind(layout)
        self.seed = seed.at(use="up")
        speaks = works if speaks is None else speaks
        self.sender = Sender(algorithm.up, np.zeros_like(start), layout) if speaks else None
        self.stretches = [Stretch(0, start.size)] if stretches is None else stretches
        self.ears = [Ear(algorithm, start, layout, stretch) for stretch in self.stretches]
        # What is heard of several stretches is put together here.
        self._model = np.empty_like(start) if len(self.ears) > 1 else None
        self._chosen = algorithm.participation.claims.chooses
        self.trigger = algorithm.trigger.bind(algorithm.server.claims.rate)
        # Who waits for the others must meet at the same steps as they do.
        caller = 0 if algorithm.meeting.claims.waits else seed.rank
        self.trigger_state = self.trigger.init(seed.at(rank=caller, use="trigger"))
        self.note(start)
        #: Was there something to say at the last meeting?
        self.sent = True
        #: Does this rank work in the next round?
        self.asked = True
        self._idle = False
        #: What the local step remembers; None before `begin`, and on a rank that does not work.
        self.state: State | None = None
        self._works = works
        self._x = self._out = np.empty(0, start.dtype)

    def begin(self, x: Any, gradient: Vector | None = None, out: Any = None) -> None:
        """Stand at the common starting point.

        Args:
            x: this rank's model, (n,); moved in place. A tensor, where the local step works on tensors.
            gradient: where the oracle leaves gradients, (n,), if it has a place of its own.
            out: where reports are formed, (n,); made here unless given.
        """
        self._x, self._out = x, np.empty_like(x) if out is None else out
        if self._works:
            self.state = self.local.init(x, gradient)

    def advance(self, oracle: Oracle, batch: Any, clock: int) -> float:
        """Take a local step; returns the loss. Schedules go by the clock."""
        assert self.state is not None, "a rank that does not work takes no steps"
        return self.local.advance(self.state, oracle, batch, clock)

    def report(self) -> tuple[Vector, float | None]:
        """What is to be said, (n,), and ‖·‖² of what is new in it where the local step says so itself.

        Of a rank that does not work, nothing that anybody looks at.
        """
        if self.state is None:
            return self._out, None
        return self.local.report(self.state, self._out), self.local.change(self.state)

    def adopt(self, model: Vector | None) -> None:
        """Go on from the model that was answered, (n,); None: from this rank's own."""
        if self.state is not None and not self._idle:
            self.local.heard(self.state, model, self.sent)
        elif self.state is not None and model is not None:
            self.local.adopt(self.state, model)  # it has not moved, so there is nothing to keep
        elif model is not None:
            np.copyto(self._x, model)

    def posted(self) -> None:
        """The report is under way, and its answer is adopted after further local steps."""
        if self.state is not None:
            self.local.posted(self.state)

    def landed(self, model: Vector | None) -> None:
        """Adopt an answer to a report from before, and keep the local steps since."""
        if model is None:
            return
        self.note(model)
        if self.state is None:
            np.copyto(self._x, model)
        else:
            self.local.landed(self.state, model)

    def due(self, t: int) -> bool:
        """Whether this rank meets the coordinator after step t. Asked once a step."""
        return self.trigger.due(self.trigger_state, t)

    @property
    def receiver(self) -> Receiver:
        """The hearing end of the down link, where there is one for the whole model."""
        (ear,) = self.ears
        return ear.receiver

    def message(
        self, v: Vector, t: int, clock: int, change: float | None = None, last: bool = False
    ) -> Payload:
        """What is said of v at the meeting after step t: a message, or a SKIP.

        Args:
            v: the report, (n,).
            t: the step.
            clock: how far the run is.
            change: ‖·‖² of what is new in it, where the local step says so itself.
            last: there is no later meeting, so what a skip would leave for later is said now.
        """
        assert self.sender is not None, "a rank that does not work has no message"
        self._idle = not self.asked
        if self._idle:
            self.sent = False
            payload = Payload.build(kind=Kind.SKIP, origin=self.seed.rank, step=t, n=v.size)
            self.ledger.count_message(payload)
            return payload
        with self.ledger.timed("encode", v.size):
            draft = self.sender.draft(v, self.seed.at(step=t), change, clock)
            payload = draft.payload
            must = last and not self.local.claims.reports_gradient
            self.sent = self.trigger.worth(self.trigger_state, draft) or must
            if self.sent:
                self.sender.commit(draft)
            else:
                payload = payload.skip()
                self.ledger.starved += self.trigger.starved(self.trigger_state)
            self.trigger.settled(self.trigger_state, self.sent)
        self.ledger.count_message(payload)
        return payload

    def cut(self, message: Payload) -> list[Payload]:
        """A message, divided into one for each stretch."""
        if len(self.stretches) == 1:
            return [message]
        with self.ledger.timed("encode"):
            return cut(message, [(stretch.start, stretch.stop) for stretch in self.stretches])

    def hear(self, replies: Sequence[Payload], clock: int) -> Vector | None:
        """The model that is answered with, overwritten by the next one; None: keep yours.

        Args:
            replies: one for each stretch.
            clock: how far the run is.
        """
        model = self.decode(replies, clock)
        if model is not None:
            self.note(model)
        return model

    def decode(self, replies: Sequence[Payload], clock: int) -> Vector | None:
        """As `hear`, and nobody is told yet: another thread may do it while local steps are taken."""
        told = [reply.kind is Kind.DATA for reply in replies]
        if self._chosen:
            self.asked = all(told)
        if not all(told):
            return None
        with self.ledger.timed("decode", sum(len(reply) for reply in replies)):
            parts = [ear.hear(reply, clock) for ear, reply in zip(self.ears, replies, strict=True)]
            return parts[0] if self._model is None else np.concatenate(parts, out=self._model)

    def enter(self, x: Vector) -> None:
        """A phase begins at a model that all ranks have."""
        for ear in self.ears:
            ear.receiver.memory.enter(ear.receiver.state, x[ear.place])
        self.note(x)
        if self.state is not None:
            self.local.enter(self.state, x)

    def note(self, model: Vector) -> None:
        """The model is this one now: triggers go by how it moves."""
        # A worker that may be left out does not hear of every model.
        if not self._chosen:
            self.trigger.heard(self.trigger_state, model)

"""One rank's way through the phases of an algorithm, whoever waits for whom in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.exchange.base import Exchange
from qsparse.local import Oracle
from qsparse.rounds.asynchronous import Answered, Order, leave, serve
from qsparse.rounds.coordinator import Coordinator
from qsparse.rounds.node import Node, Pace, averaging
from qsparse.rounds.state import WalkState, restore, state_of
from qsparse.rounds.synchronous import rounds
from qsparse.seeds import Seed
from qsparse.types import Layout, Vector
from qsparse.wire.base import Wire


class Stepped(NamedTuple):
    """A step of this rank.

    Attributes:
        t: its number.
        loss: of the batch; None where this rank does not work, or was not asked to.
        met: did it meet the coordinator?
        phase: of which phase it was.
    """

    t: int
    loss: float | None
    met: bool
    phase: Algorithm


class Walk:
    """A rank's nodes in all phases, and where it stands.

    Args:
        algorithm: the phases.
        exchange, wire: how payloads travel.
        x: this rank's model at the common starting point, (n,); moved in place.
        seed: of the run.
        layout: the model's layers.
        buffers: what is not trained but averaged exactly at meetings; may be empty. Moved in place.
        order: of arrivals, where workers do not wait.

    Attributes:
        pace: where this rank stands.
        node: its place in the phase that it is in.
        ends: is that the last phase of the run? Known when its first step was taken.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        exchange: Exchange,
        wire: Wire,
        x: Vector,
        seed: Seed,
        layout: Layout = (),
        buffers: Vector | None = None,
        order: Order | None = None,
    ) -> None:
        self.algorithm, self.exchange, self.wire = algorithm, exchange, wire
        self.x = x
        self.buffers = np.empty(0, x.dtype) if buffers is None else buffers
        self.pace = Pace()
        self.order = order or Order()
        self.ends = False
        self._seed, self._layout = seed, layout
        self._places: dict[Algorithm, list[Node]] = {}
        self._behind = 0  # steps that were taken before a checkpoint
        self._here = self._place(next(algorithm.phases(1))[0])

    @property
    def node(self) -> Node:
        """This rank's place in the phase that it is in."""
        return self._here[0]

    @property
    def coordinators(self) -> list[Coordinator]:
        """This rank's coordinators in the phase that it is in: of the model, and of the buffers."""
        return [node.coordinator for node in self._here if node.coordinator is not None]

    def tallied(self) -> dict[str, dict[str, int]]:
        """What this rank's coordinators have taken and answered up to here, by name and way."""
        tallies = [
            node.coordinator.tally
            for nodes in self._places.values()
            for node in nodes
            if node.coordinator is not None
        ]
        return {
            name: {way: sum(getattr(tally, name)[way] for tally in tallies) for way in ("up", "down")}
            for name in ("paper_bits", "wire_bytes", "messages")
        }

    def steps(
        self,
        steps: int,
        oracle: Oracle,
        batch: Callable[[int], Any],
        gradient: Vector | None = None,
        begin: Callable[[int], None] | None = None,
        used: Callable[[int], bool] | None = None,
    ) -> Iterator[Stepped | Answered]:
        """Take T steps: yields what happens on this rank; see `rounds` and `serve`.

        Args:
            steps, oracle, batch, gradient, begin: as of `rounds`.
            used: is the model used after the meeting at step t? Where all meet at once, what is aside is
                averaged only there and at the end of a phase, because no gradient depends on it; at every
                meeting unless given. The same answers on all ranks.
        """

        def on_sync(t: int, last: bool) -> bool:
            waits = self.node.algorithm.meeting.claims.waits
            idle = waits and not last and used is not None and not used(t)
            return False if idle else self.average(t)

        entered, ahead = False, -self._behind
        phases = list(self.algorithm.phases(steps))
        served = [number for number, (phase, _) in enumerate(phases) if not phase.meeting.claims.waits]
        for number, (phase, length) in enumerate(phases):
            before, self._here = self._here, self._place(phase)
            # What is left of the phase: less than its length if a checkpoint was made within it.
            ahead += length
            left = min(length, ahead)
            if left <= 0:
                entered = True
                continue
            self.ends = number == len(phases) - 1
            if entered and left == length:
                for node, former, vector in zip(self._here, before, self._vectors, strict=False):
                    node.enter(vector, former)
            entered = True
            take = functools.partial(rounds, self.node, self.x, left, oracle, batch, gradient, on_sync, begin)
            last = bool(served) and number == served[-1]
            yield from phase.meeting.drive(_Loops(self, phase, take, length, last))
            if self.pace.over:
                return

    def state(self) -> WalkState:
        """What this rank remembers, for a checkpoint; the vectors are its own, so write them away at once."""
        return WalkState(
            x=self.x,
            buffers=self.buffers,
            anchor=self._anchor,
            t=self.pace.t,
            clock=self.pace.clock,
            taken=self.order.taken,
            phase=next(name for name, phase in self._rows() if self._here is self._places.get(phase)),
            phases={
                name: [state_of(node, local=number == 0) for number, node in enumerate(self._places[phase])]
                for name, phase in self._rows()
                if phase in self._places
            },
        )

    def restore(self, saved: WalkState, gradient: Vector | None = None) -> None:
        """Stand where a walk of this algorithm stood whose `state` this was.

        Args:
            saved: the state.
            gradient: as `steps` will be given it.
        """
        np.copyto(self.x, saved.x)
        np.copyto(self.buffers, saved.buffers)
        self.pace.t, self.pace.clock = saved.t, saved.t if saved.clock is None else saved.clock
        self.order.taken = saved.taken or 0
        self._behind = self.pace.clock
        for name, phase in self._rows():
            rows = saved.phases.get(name, [])
            for node, vector, kept in zip(
                self._place(phase) if rows else [], self._vectors, rows, strict=False
            ):
                node.worker.begin(vector, gradient if vector is self.x else None)
                restore(node, kept)
        self._here = self._place(dict(self._rows())[saved.phase])
        np.copyto(self._anchor, saved.anchor)

    def _rows(self) -> list[tuple[str, Algorithm]]:
        rows = [("main", self.algorithm), ("prelude", self.algorithm.prelude)]
        return [(name, phase) for name, phase in rows if phase is not None]

    @property
    def _anchor(self) -> Vector:
        """The buffers after the last synchronization."""
        state = self._here[-1].worker.state if len(self._here) > 1 else None
        anchor: Vector = self.buffers if state is None else state["anchor"]
        return anchor

    @property
    def _vectors(self) -> tuple[Vector, Vector]:
        return self.x, self.buffers

    def _place(self, phase: Algorithm) -> list[Node]:
        if phase not in self._places:
            rows: list[tuple[Algorithm, Vector, Layout]] = [(phase, self.x, self._layout)]
            if self.buffers.size:
                rows.append((averaging(phase), self.buffers, ()))
            self._places[phase] = [
                Node(row, self.exchange, self.wire, start, self._seed, layout, self.wire.ledger, self.pace)
                for row, start, layout in rows
            ]
            for node in self._places[phase][1:]:
                node.worker.begin(self.buffers)
        return self._places[phase]

    def serve(self, ahead: int | None, steps: int, last: bool) -> Iterator[Answered]:
        """Answer reports as they come, until the workers have taken their steps; see `serve`."""
        workers = self.exchange.workers(self.wire.size)
        yield from serve(self.coordinators, ahead, self.wire, workers, steps, self.pace, self.order, last)
        # The workers have the final values in 32 bits, so the coordinator goes on from the same.
        self._adopt([coordinator.leave().astype(np.float32) for coordinator in self.coordinators])

    def leave(self) -> None:
        """Take the values with which a phase ends whose workers do not wait."""
        self._adopt(leave(self.wire, 0, self._here))

    def _adopt(self, finals: Sequence[Vector]) -> None:
        for vector, final in zip(self._vectors, finals, strict=False):
            np.add(final, 0, out=vector)  # a zero has no sign, as with the workers
        np.copyto(self._anchor, self.buffers)

    def average(self, t: int) -> bool:
        """Synchronize what is not trained; returns whether the coordinator has stopped this rank there."""
        if len(self._here) == 1:
            return False
        node = self._here[1]
        node.synchronize(t)
        return node.stopped


@dataclass
class _Loops:
    """The loops of a phase on one rank; see `qsparse.meeting.Loops`."""

    walk: Walk
    phase: Algorithm
    take: Callable[..., Iterator[tuple[int, float | None, bool]]]
    length: int
    last: bool

    def together(self, delay: int) -> Iterator[Stepped]:
        """Every rank takes the steps."""
        for t, loss, met in self.take(delay=delay):
            yield Stepped(t, loss, met, self.phase)

    def by_arrival(self, ahead: int | None) -> Iterator[Stepped | Answered]:
        """The coordinator serves, the others take steps."""
        if not self.walk.node.works:
            yield from self.walk.serve(ahead, self.length, self.last)
            return
        for t, loss, met in self.take():
            yield Stepped(t, loss, met, self.phase)
        self.walk.leave()

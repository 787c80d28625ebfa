"""Asynchronous meetings: workers do not wait for each other, the coordinator serves who comes.

Basu et al., 2019, Algorithm 2: every worker has a synchronisation set of its own; the coordinator
takes each report with the factor 1/R at once and sends the new model to who reported, and only to
it. A worker's side of a meeting is the same as in synchronous rounds (`Node.meet`); this file is
the coordinator's side, and the end.

The work is shared, not dealt out: the workers take T·R steps together, fast ones more of them than
slow ones, and then the coordinator stops everybody. Until then it tells with every answer how far the
run is (the clock), because schedules go by the run and not by one worker's own steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from qsparse.compressors import Float32, decompress
from qsparse.errors import DisagreementError
from qsparse.exchange.base import raise_error, receive_one
from qsparse.exchange.notes import only_updates
from qsparse.link import Sender
from qsparse.payload import Kind, Payload, Way
from qsparse.rounds.coordinator import Coordinator
from qsparse.rounds.node import Node, Pace
from qsparse.seeds import COORDINATOR, Seed
from qsparse.types import Vector
from qsparse.wire.base import Wire


class Answered(NamedTuple):
    """One report that was taken and answered.

    Attributes:
        rank: who reported.
        about: the number of the coordinator it was about.
        report, reply: what it said, and what it was answered; at the end the final values.
        staleness: how many reports about the model were taken since this worker was last told one.
    """

    rank: int
    about: int
    report: Payload
    reply: Payload
    staleness: int


class Order:
    """Whose report is taken next.

    Args:
        ranks: the recorded order of a run that is to be repeated, one rank for each report; None: who
            comes first.

    Attributes:
        taken: how many of the recorded were taken.
    """

    def __init__(self, ranks: Sequence[int] | None = None) -> None:
        self._ranks = ranks
        self.taken = 0

    def receive(self, wire: Wire, owing: Collection[int]) -> tuple[int, Payload]:
        """The next report, and whose it is: one of the workers that owe one."""
        if self._ranks is None:
            return receive_one(wire)
        if self.taken == len(self._ranks):
            raise self._other_run(f"ends after {self.taken} reports and the run does not")
        rank = self._ranks[self.taken]
        if rank not in owing:
            raise self._other_run(f"has rank {rank} after {self.taken} reports, which is not to report then")
        self.taken += 1
        return receive_one(wire, rank)

    def finish(self) -> None:
        """Refuse an order that goes on where the run does not."""
        if self._ranks is not None and self.taken < len(self._ranks):
            raise self._other_run(f"has {len(self._ranks)} reports and the run {self.taken}")

    def _other_run(self, what: str) -> DisagreementError:
        return DisagreementError(
            f"the recorded order of arrivals {what}: repeat it with the settings, the seed and the ranks of "
            "the recorded run"
        )


def serve(
    coordinators: Sequence[Coordinator],
    ahead: int | None,
    wire: Wire,
    workers: Sequence[int],
    steps: int,
    pace: Pace,
    order: Order,
    last: bool = True,
) -> Iterator[Answered]:
    """The coordinator's event loop: yields after each answer, ends when all workers were stopped.

    A worker has one credit: it may not report again before it was answered. The wire takes the ranks
    in turn, so nobody starves; with ``ahead`` a worker is answered only while it is not
    further ahead of the slowest one, which itself never waits, and is told the model of that moment.

    Args:
        coordinators: what a worker meets about, in its order (the model, then batch statistics).
        ahead: the bound; None: there is none.
        wire: between the ranks.
        workers: who reports.
        steps: T; when the workers have taken T·R steps, each is stopped at its next report.
        pace: where the run stands; it is moved on. Where it says that the run is over, they are stopped.
        order: of arrivals.
        last: is there no later phase in which reports arrive?

    Raises:
        RankError: a worker failed.
    """
    begin, first = pace.clock, pace.t
    turn = dict.fromkeys(workers, 0)  # reports taken of each worker, about anything
    met = dict.fromkeys(workers, 0)  # and about the model
    told = dict.fromkeys(workers, 0)  # reports about the model that were in the one it was last told
    taken = dict.fromkeys(workers, 0)  # local steps
    waiting: dict[int, tuple[int, Payload, int]] = {}
    stopped: dict[int, tuple[int, Payload, int]] = {}
    # What a worker knows is its own, where the down link has a memory at all.
    senders: dict[tuple[int, int], Sender] = {}

    def sender(about: int, rank: int) -> Sender:
        shared = coordinators[about].sender
        if not shared.memory.claims.per_receiver:
            return shared
        if (about, rank) not in senders:
            senders[about, rank] = copy.deepcopy(shared)
        return senders[about, rank]

    answers = 0
    while len(stopped) < len(workers):
        with wire.at(f"the reports near step {pace.clock}"):
            rank, report = order.receive(wire, [each for each in workers if each not in stopped | waiting])
            only_updates(wire, pace.t, [report])
        about = turn[rank] % len(coordinators)
        turn[rank] += 1
        staleness = 0
        if about == 0:
            staleness = sum(met.values()) - told[rank]
            met[rank] += 1
            taken[rank] = report.step - first
            pace.t = max(pace.t, report.step)
            # Rounded up, so that of workers in step each is at the step that it reports.
            pace.clock = begin + min(-(-sum(taken.values()) // len(workers)), steps)
        wire.ledger.arrived(rank, report.step, about, staleness)
        coordinators[about].take([report], pace.clock)
        waiting[rank] = about, report, staleness
        over = pace.over or sum(taken.values()) >= steps * len(workers)
        slowest = min((met[each] for each in workers if each not in stopped), default=0)
        furthest = math.inf if over or ahead is None else slowest + ahead
        for each in sorted(waiting):
            about, report, staleness = waiting[each]
            if about == 0 and met[each] > furthest:
                continue
            del waiting[each]
            if over and about == len(coordinators) - 1:
                stopped[each] = about, report, staleness
                continue
            coordinator = coordinators[about]
            answers += 1
            reply = coordinator.reply(pace.clock, sender(about, each), answers)
            coordinator.tally.add(reply)
            wire.send([reply], each)
            if about == 0:
                told[each] = sum(met.values())
            yield Answered(each, about, report, reply, staleness)
    if last or pace.over:
        order.finish()
    final = Seed(0, rank=COORDINATOR, step=pace.clock, use="down")
    models = [coordinator.leave() for coordinator in coordinators]
    for rank, (about, report, staleness) in stopped.items():
        finals = [last_words(model, sender(number, rank), final) for number, model in enumerate(models)]
        wire.send([Payload.build(kind=Kind.STOP, way=Way.CONTROL, step=pace.t, n=int(pace.over))], rank)
        wire.send(finals, rank)
        for coordinator, payload in zip(coordinators, finals, strict=True):
            coordinator.tally.add(payload)
        yield Answered(rank, about, report, finals[0], staleness)
    wire.flush()


def last_words(model: Vector, sender: Sender, seed: Seed) -> Payload:
    """The final values as a stopped worker is told them: in float32, as nothing corrects them later."""
    if not sender.memory.claims.exact:
        return Float32().compress(model, seed)
    draft = sender.draft(model, seed)
    sender.commit(draft)
    return draft.payload


def leave(wire: Wire, root: int, nodes: Sequence[Node]) -> list[Vector]:
    """What a worker that was stopped is told: the final values, (n,), of each of its nodes."""
    with wire.at("the end of the run"):
        _, payloads = wire.receive(root)
    raise_error(payloads[0])
    models = []
    for node, payload in zip(nodes, payloads, strict=True):
        wire.ledger.count_message(payload)
        node.pace.clock = payload.step
        receiver = node.worker.receiver
        exact = receiver.memory.claims.exact
        models.append(receiver.merge([payload]) if exact else decompress(payload, receiver.like))
    return models

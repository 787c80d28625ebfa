"""Asynchronous meetings: workers do not wait for each other, the coordinator serves who comes.

Basu et al., 2019, Algorithm 2: every worker has a synchronisation set of its own; the coordinator
takes each report with the factor 1/R at once and sends the new model to who reported, and only to
it. A worker's side of a meeting is the same as in synchronous rounds (`Station.meet`); this file is
the coordinator's side, and the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qsparse.algorithm import Async
from qsparse.compressors import Float32
from qsparse.errors import WireError
from qsparse.exchange.base import raise_error, receive_one
from qsparse.link import Sender
from qsparse.memory import Stateless
from qsparse.payload import Kind, Payload, Way
from qsparse.rounds.synchronous import Desk
from qsparse.seeds import Seed
from qsparse.wire.base import Wire


class Answered(NamedTuple):
    """One report that was taken and answered.

    Attributes:
        rank: who reported.
        about: the number of the desk it was about.
        report, reply: what it said, and what it was answered.
        staleness: how many reports about the model were taken since this worker was last told one.
    """

    rank: int
    about: int
    report: Payload
    reply: Payload
    staleness: int


def serve(desks: Sequence[Desk], meeting: Async, wire: Wire, workers: Sequence[int]) -> Iterator[Answered]:
    """The coordinator's event loop: yields after each answer, ends when all workers have stopped.

    A worker has one credit: it may not report again before it was answered. The wire takes the ranks
    in turn, so nobody starves; with ``meeting.ahead`` a worker is answered only while it is not
    further ahead of the slowest one, which itself never waits, and is told the model of that moment.

    Args:
        desks: what a worker meets about, in its order (the model, then batch statistics).
        meeting: the bound.
        wire: between the ranks.
        workers: who reports.

    Raises:
        RankError: a worker failed.
    """
    turn = dict.fromkeys(workers, 0)  # reports taken of each worker, about anything
    met = dict.fromkeys(workers, 0)  # and about the model
    told = dict.fromkeys(workers, 0)  # reports about the model that were in the one it was last told
    waiting: dict[int, tuple[int, Payload, int]] = {}
    running = set(workers)
    # What a worker knows is its own, where the down link has a memory at all.
    repliers: dict[tuple[int, int], Sender] = {}
    while running:
        rank, report = receive_one(wire)
        if rank not in running:
            raise WireError(f"rank {rank} spoke at step {report.step} after it had stopped")
        if report.kind is Kind.STOP:
            running.discard(rank)
        else:
            about = turn[rank] % len(desks)
            staleness = sum(met.values()) - told[rank] if about == 0 else 0
            turn[rank] += 1
            met[rank] += about == 0
            desks[about].take([report])
            waiting[rank] = about, report, staleness
        slowest = min((met[each] for each in running), default=math.inf)
        furthest = math.inf if meeting.ahead is None else slowest + meeting.ahead
        for each in sorted(waiting):
            about, report, staleness = waiting[each]
            if about == 0 and met[each] > furthest:
                continue
            del waiting[each]
            desk = desks[about]
            replier = desk.replier
            if not isinstance(desk.algorithm.down.memory, Stateless):
                if (about, each) not in repliers:
                    repliers[about, each] = copy.deepcopy(desk.replier)
                replier = repliers[about, each]
            reply = desk.reply(report.step, replier)
            wire.send([reply], each)
            if about == 0:
                told[each] = sum(met.values())
            yield Answered(each, about, report, reply, staleness)
    finals = [Float32().compress(desk.model, Seed(0)) for desk in desks]
    for rank in workers:
        wire.send(finals, rank)
    wire.flush()


def leave(wire: Wire, root: int, step: int) -> list[Payload]:
    """A worker's last word; returns the final values when all have left, a frame for each desk.

    They are not compressed: they are sent once, and nobody would correct them later.
    """
    wire.send([Payload.build(kind=Kind.STOP, way=Way.BESIDE, origin=wire.rank, step=step)], root)
    _, payloads = wire.receive(root)
    raise_error(payloads[0])
    return payloads

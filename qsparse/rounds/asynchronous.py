"""Asynchronous meetings: workers do not wait for each other, the coordinator serves who comes.

Basu et al., 2019, Algorithm 2: every worker has a synchronisation set of its own; the coordinator
takes each report with the factor 1/R at once and sends the new model to who reported, and only to
it. A worker's side of a meeting is the same as in synchronous rounds (`Station.meet`); this file is
the coordinator's side, and the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qsparse.algorithm import Async
from qsparse.compressors import Float32
from qsparse.errors import WireError
from qsparse.exchange.base import raise_error, receive_one
from qsparse.link import Sender
from qsparse.memory import Stateless
from qsparse.payload import Kind, Payload, Way
from qsparse.rounds.synchronous import Station
from qsparse.seeds import Seed
from qsparse.wire.base import Wire


class Arrival(NamedTuple):
    """One report that was taken.

    Attributes:
        rank: who reported.
        report, reply: what it said, and what it is or will be answered.
        staleness: how many reports of others were taken since it was last answered.
    """

    rank: int
    report: Payload
    reply: Payload
    staleness: int


def serve(
    stations: Sequence[Station], meeting: Async, wire: Wire, workers: Sequence[int]
) -> Iterator[Arrival]:
    """The coordinator's event loop: yields after each report, ends when all workers have stopped.

    A worker has one credit: it may not report again before it was answered. The wire takes the ranks
    in turn, so nobody starves; with ``meeting.ahead`` an answer is held back while its worker is
    further ahead of the slowest one, which itself is never held.

    Args:
        stations: what a worker meets about, in its order (the model, then batch statistics).
        meeting: the bound.
        wire: between the ranks.
        workers: who reports.

    Raises:
        RankError: a worker failed.
    """
    turn = dict.fromkeys(workers, 0)  # messages taken of each worker, all stations together
    answered_at = dict.fromkeys(workers, 0)
    held: dict[int, Payload] = {}
    running = set(workers)
    taken = 0
    repliers: dict[tuple[int, int], Sender] = {}

    def release() -> None:
        slowest = min((turn[rank] for rank in running), default=None)
        for rank in sorted(held):
            ahead = 0 if slowest is None else (turn[rank] - slowest) // len(stations)
            if meeting.ahead is None or ahead <= meeting.ahead:
                wire.send([held.pop(rank)], rank)
                answered_at[rank] = taken

    while running:
        rank, payload = receive_one(wire)
        if rank not in running:
            raise WireError(f"rank {rank} spoke at step {payload.step} after it had stopped")
        if payload.kind is Kind.STOP:
            running.discard(rank)
            release()
            continue
        number = turn[rank] % len(stations)
        station = stations[number]
        turn[rank] += 1
        station.take([payload])
        # What a worker knows of the model is its own, where the down link has a memory at all.
        own = 0 if isinstance(station.algorithm.down.memory, Stateless) else rank
        if (number, own) not in repliers:
            repliers[number, own] = station.new_replier()
        held[rank] = station.reply(payload.step, repliers[number, own])
        if number == 0:
            arrival = Arrival(rank, payload, held[rank], taken - answered_at[rank])
            taken += 1
            release()
            yield arrival
        else:
            release()
    finals = [Float32().compress(station.model, Seed(0, step=taken)) for station in stations]
    for rank in workers:
        wire.send(finals, rank)
    wire.flush()


def leave(wire: Wire, root: int, step: int) -> list[Payload]:
    """A worker's last word; returns the final values when all have left, a frame for each station.

    They are not compressed: they are sent once, and nobody would correct them later.
    """
    wire.send([Payload.build(kind=Kind.STOP, way=Way.BESIDE, origin=wire.rank, step=step)], root)
    _, payloads = wire.receive(root)
    raise_error(payloads[0])
    return payloads

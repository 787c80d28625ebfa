"""How much the ends of an algorithm's links remember, counted where they are made, at a small length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import Float32
from qsparse.exchange import Exchange
from qsparse.ledger import Ledger
from qsparse.link import Link, Sender
from qsparse.rounds.coordinator import Coordinator
from qsparse.rounds.worker import WorkerEnd
from qsparse.seeds import Seed

#: Two lengths tell what grows with the vector from what does not.
_LENGTHS: Final = (4096, 8192)
#: A worker hears of so many stretches alike as of more.
_RANKS: Final = 8


class Held(NamedTuple):
    """Vectors of n float32 that stay in memory between two synchronizations.

    Attributes:
        worker: of a worker's end: its model, gradient and report, and what its parts remember.
        coordinator: of a coordinator's end, as a whole; where ranks coordinate a stretch each, each has an
            R-th of it.
    """

    worker: float
    coordinator: float


def held(algorithm: Algorithm, exchange: Exchange, size: int) -> Held:
    """Make both ends at two small lengths, and count the entries of their arrays.

    What a compressor needs only while it works, and messages, are no part of it.

    Args:
        algorithm: the parts.
        exchange: it says how the vector is divided.
        size: the number of ranks.
    """
    few, many = (_entries(algorithm, exchange, size, n) for n in _LENGTHS)
    first, second = _LENGTHS
    return Held(*(round((b - a) / (second - first), 2) for a, b in zip(few, many, strict=True)))


def _entries(algorithm: Algorithm, exchange: Exchange, size: int, n: int) -> tuple[float, float]:
    start = np.zeros(n, np.float32)
    workers = len(exchange.workers(size))
    stretches = exchange.stretches(n, min(size, _RANKS))
    x, gradient, report = start.copy(), start.copy(), start.copy()
    ends: list[WorkerEnd | Sender] = []
    coordinators = []
    # A phase before the phase keeps what it has, and moves the same model.
    for phase in (each for each in (algorithm.prelude, algorithm) if each is not None):
        plain = _uncompressed(phase.among(workers))
        end = WorkerEnd(plain, start, Seed(0, use="up"), (), Ledger(), True, stretches)
        end.begin(x, gradient, report)
        ends.append(end)
        if exchange.claims.recompresses:
            ends.append(Sender(plain.up, np.zeros_like(start)))
        coordinator = Coordinator(plain, start, workers, Seed(0), (), Ledger(), exchange.claims.answers)
        coordinators.append(coordinator)
    of_receivers = 0.0
    if not algorithm.meeting.claims.waits and coordinators[-1].sender.memory.claims.per_receiver:
        of_receivers = (workers - 1) * _size(coordinators[-1].sender, set())
    # All ends have seen the common start, which none of them keeps.
    return _size([ends, x, gradient, report], {id(start)}), _size(coordinators, {id(start)}) + of_receivers


def _uncompressed(phase: Algorithm) -> Algorithm:
    """The same memories and rules with compressors that fit every length: these hold nothing."""
    up, down = Link(Float32(), phase.up.memory), Link(Float32(), phase.answer.memory)
    return replace(phase, up=up, down=down, prelude=None, length=None)


def _size(thing: Any, seen: set[int]) -> float:
    """The float32s that fit into all arrays within an object, each array once."""
    return sum(array.nbytes for array in _arrays(thing, seen)) / np.dtype(np.float32).itemsize


def _arrays(thing: Any, seen: set[int]) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(thing, np.ndarray):
        while isinstance(thing.base, np.ndarray):
            thing = thing.base
    if id(thing) in seen or isinstance(thing, type) or callable(thing):
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(thing, dict):
        for each in thing.values():
            yield from _arrays(each, seen)
    elif isinstance(thing, list | tuple | set | frozenset):
        for each in thing:
            yield from _arrays(each, seen)
    elif (inside := getattr(thing, "__dict__", None)) is not None:
        yield from _arrays(inside, seen)

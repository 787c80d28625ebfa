"""What this machine needs to encode and decode, measured in a few rounds of a shorter vector."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import unpack
from qsparse.ledger import Ledger
from qsparse.payload import Payload
from qsparse.planning.costs import Speeds, shrunk
from qsparse.rounds.coordinator import Coordinator
from qsparse.rounds.worker import WorkerEnd
from qsparse.seeds import Seed
from qsparse.triggers import Every
from qsparse.types import Layout, Vector

#: The length of the vector, unless the model's is shorter: more than the caches near a core hold.
ENTRIES: Final = 1 << 18
#: Workers of a round: an answer to a few is no answer to one.
_WORKERS: Final = 4
#: Rounds, of which the fastest counts; the first makes kernels ready.
_ROUNDS: Final = 4


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        speeds: seconds for each entry.
        entries: the length of the vector.
    """

    speeds: Speeds
    entries: int


def measured(algorithm: Algorithm, n: int, size: int, layout: Layout = ()) -> Measured:
    """Let a few workers report noise, and a coordinator answer; nothing is sent.

    Args:
        algorithm: the parts, without a prelude.
        n: the number of coordinates; of a longer vector the beginning stands for all.
        size: the number of ranks.
        layout: the model's layers.

    Raises:
        CompositionError, SettingError: a compressor does not fit a vector of this length.
    """
    entries, count = min(n, ENTRIES), max(1, min(size, _WORKERS))
    start = np.zeros(entries, np.float32)
    # Whether to speak takes little time, and some would not speak of noise.
    ours, layers = replace(algorithm, trigger=Every(1)).among(count), shrunk(layout, entries)
    ends = [WorkerEnd(ours, start, Seed(0, rank=rank), layers, Ledger(), True) for rank in range(count)]
    coordinator = Coordinator(ours, start, count, Seed(0), layers, Ledger())
    noise = _noise(entries, count)
    best = [float("inf")] * 3
    payloads: list[Payload] = []
    for t in range(1, _ROUNDS + 1):
        said, payloads = [], []
        for rank, end in enumerate(ends):
            begin = time.perf_counter()
            payloads.append(end.message(noise[(rank + t) % count], t, t, None, True))
            said.append(time.perf_counter() - begin)
        coordinator.take(payloads, t)
        taken = time.perf_counter()
        reply = coordinator.reply(t, coordinator.sender)
        replied = time.perf_counter()
        ends[0].hear([reply], t)
        heard = time.perf_counter()
        if t > 1:
            found = (min(said), replied - taken, heard - replied)
            best = [min(pair) for pair in zip(best, found, strict=True)]
    encode, answer, hear = (seconds / entries for seconds in best)
    # Two numbers of reports tell what grows with them from the step that follows.
    values = sum(piece.values.size for piece in unpack(payloads[0], np.float32, entries))
    few, many = payloads[:1], payloads[:1] * (_WORKERS + 1)
    one, more = (_fastest(partial(coordinator.take, each, _ROUNDS)) for each in (few, many))
    decode = max(0.0, more - one) / (_WORKERS * max(values, 1))
    absorb = max(0.0, one - decode * values) / entries
    return Measured(Speeds(encode, answer, decode, absorb, hear), entries)


def _noise(entries: int, count: int) -> list[Vector]:
    """Vectors of normal numbers; those after the first are the first, turned, as drawing takes longest."""
    first = np.random.default_rng(0).standard_normal(entries, np.float32)
    return [np.roll(first, rank * entries // count) for rank in range(count)]


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few."""
    seconds = []
    for _ in range(2 * _ROUNDS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)

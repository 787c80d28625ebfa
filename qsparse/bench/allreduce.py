"""One array's mean over the ranks: what it costs compressed, dense, and through torch's hooks."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from tabulate import tabulate

from qsparse.allreduce import CompressedAllreduce
from qsparse.bench.ranks import Measured, Place
from qsparse.errors import SettingError
from qsparse.ledger import ACTIVITIES
from qsparse.types import Vector

#: Calls with the same vectors after which the mean of the results is compared with the true mean.
FEEDBACK: Final = 20
#: The compressors that are measured unless others are given: one of few bytes, one of small errors.
COMPRESSORS: Final = ("topk(ratio=0.01) >> sign", "uniform(bits=10)")

DENSE: Final = "MPI Allreduce, dense"

_NOTE: Final = """\
ms: of the slowest rank, median of {rounds} rounds, methods in turn. MB: sent by a rank in a call.
error: of the mean of {feedback} results on the same vectors, where a method says later what it has not
said, else of one result."""


@dataclass
class Call:
    """One call on one rank: its seconds, those of its parts, bytes by ledger and by the link's counter."""

    seconds: float
    parts: dict[str, float] | None = None
    ledger: int | None = None
    counter: int = 0


class Method(ABC):
    """A way to compute the mean of one vector over the ranks."""

    name: str
    #: Whether it keeps what it has not sent, and sends it later.
    remembers = True

    def warm(self) -> None:
        """Do what happens once before normal use."""

    @abstractmethod
    def call(self) -> tuple[Call, Vector]:
        """Call it once: what it took, and the mean, (n,), which the next call of any method may overwrite."""


@dataclass
class _Mpi(Method):
    place: Place
    x: Vector
    out: Vector
    name: str = DENSE
    remembers = False

    def call(self) -> tuple[Call, Vector]:
        begin = time.perf_counter()
        self.place.wire.sum_dense(self.x, self.out)
        spent = time.perf_counter() - begin
        return Call(spent), np.divide(self.out, self.place.wire.size, out=self.out)


@dataclass
class _Gloo(Method):
    place: Place
    x: Vector
    out: Vector
    all_reduce: Callable[[Vector], None]
    name: str = "gloo all_reduce, dense"
    remembers = False

    def call(self) -> tuple[Call, Vector]:
        np.copyto(self.out, self.x)
        self.place.barrier()
        begin = time.perf_counter()
        self.all_reduce(self.out)
        spent = time.perf_counter() - begin
        return Call(spent), np.divide(self.out, self.place.wire.size, out=self.out)


@dataclass
class _Hook(Method):
    name: str
    hooked: Any  # of torch, which this package does not import
    dense_steps: int

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return "PowerSGD" in self.name

    def warm(self) -> None:
        for _ in range(self.dense_steps if self.remembers else 1):
            self.hooked()

    def call(self) -> tuple[Call, Vector]:
        mean = self.hooked()
        return Call(self.hooked.seconds), mean


@dataclass
class _Ours(Method):
    place: Place
    x: Vector
    out: Vector
    name: str
    allreduce: CompressedAllreduce = field(init=False)

    def __post_init__(self) -> None:
        self.allreduce = self._make()

    def _make(self) -> CompressedAllreduce:
        return CompressedAllreduce(self.place.wire, self.name, "errorfeedback")

    def warm(self) -> None:
        # Another object pays for the first call of this size, so the memory of the measured one stays empty.
        self._make()(self.x.copy())

    def call(self) -> tuple[Call, Vector]:
        ledger = self.allreduce.ledger
        before = ledger.snapshot()
        begin = time.perf_counter()
        self.allreduce(self.x, self.out)
        spent = time.perf_counter() - begin
        after = ledger.snapshot()
        parts = {part: after["seconds"][part] - before["seconds"][part] for part in ACTIVITIES[1:]}
        return Call(spent, parts, after["wire_bytes"]["up"] - before["wire_bytes"]["up"]), self.out


def measure(place: Place, n: int, rounds: int, compressors: Sequence[str], seed: int) -> Measured:
    """All methods on the same vectors, in turn; collective.

    Args:
        place: the place of this rank.
        n: coordinates of each rank's vector; each rank draws its own normal numbers.
        rounds: calls of each method that are timed.
        compressors: those of qsparse that are measured, with error feedback.
        seed: the seed of the vectors.
    """
    from qsparse.torch import ddp

    wire = place.wire
    x = np.random.default_rng([seed, wire.rank]).standard_normal(n, dtype=np.float32)
    exact, out = np.empty_like(x), np.empty_like(x)
    wire.sum_dense(x, exact)
    exact /= wire.size
    with ddp.gloo(place.folder, wire.rank, wire.size, place.interface):
        broken = {name: ddp.why_not(name) for name in ddp.HOOKS}
        methods: list[Method] = [
            _Mpi(place, x, out),
            _Gloo(place, x, out, ddp.all_reduce),
            *(
                _Hook(name, ddp.HookedVector(x, make), ddp.DENSE_STEPS)
                for name, make in ddp.HOOKS.items()
                if broken[name] is None
            ),
            *(_Ours(place, x, out, spelling) for spelling in compressors),
        ]
        rows = _in_turn(place, methods, rounds, exact)
    return {
        "broken": {name: reason for name, reason in broken.items() if reason is not None},
        "methods": rows,
    }


def _in_turn(place: Place, methods: Sequence[Method], rounds: int, exact: Vector) -> list[Measured]:
    for method in methods:
        method.warm()
        place.say(f"ready: {method.name}")
    idle = _idle_bytes(place)
    calls: list[list[Call]] = [[] for _ in methods]
    sums: list[Vector | None] = [None] * len(methods)
    for t in range(max(rounds, FEEDBACK)):
        for i, method in enumerate(methods):
            if t >= rounds and not (method.remembers and t < FEEDBACK):
                continue
            place.barrier()
            before = place.sent()
            call, mean = method.call()
            place.barrier()
            call.counter = place.sent() - before - idle
            calls[i].append(call)
            if t == 0:
                sums[i] = mean.copy()
            elif method.remembers and t < FEEDBACK:
                total = sums[i]
                assert total is not None
                total += mean
        place.say(f"round {t + 1}")
    scale = float(np.linalg.norm(exact))
    rows = []
    for method, mine, total in zip(methods, calls, sums, strict=True):
        assert total is not None
        if method.remembers:
            total /= FEEDBACK
        total -= exact
        error = float(np.linalg.norm(total)) / scale
        everybody = place.gather([vars(call) for call in mine])
        if place.wire.rank == 0:
            rows.append({"name": method.name, "error": error, **_summary(everybody, rounds)})
    if rows:
        place.check_limited(exact.nbytes, rows[0]["counter"])
    return rows


def _idle_bytes(place: Place) -> int:
    """The bytes that the link sends for the barrier of a measurement, which do not belong to the method."""
    found = []
    for _ in range(9):
        place.barrier()
        before = place.sent()
        place.barrier()
        found.append(place.sent() - before)
    return int(statistics.median(found))


def _summary(everybody: Sequence[Sequence[dict[str, Any]]], rounds: int) -> Measured:
    """Medians over the calls: of the slowest rank's seconds, and of the ranks' mean parts and bytes."""
    together = list(zip(*everybody, strict=True))
    timed = together[:rounds]

    def middle(pick: Callable[[Sequence[dict[str, Any]]], float], calls: Sequence[Any] = together) -> float:
        return statistics.median(pick(call) for call in calls)

    parts = timed[0][0]["parts"]
    found: Measured = {
        "all_seconds": [max(each["seconds"] for each in call) for call in timed],
        "seconds": middle(lambda call: max(each["seconds"] for each in call), timed),
        "counter": middle(lambda call: statistics.mean(each["counter"] for each in call)),
        "parts": None,
        "ledger": None,
    }
    if parts is not None:

        def part_of(name: str) -> Callable[[Sequence[dict[str, Any]]], float]:
            return lambda call: statistics.mean(each["parts"][name] for each in call)

        found["parts"] = {name: middle(part_of(name), timed) for name in parts}
        found["ledger"] = middle(lambda call: statistics.mean(each["ledger"] for each in call))
    return found


def table(measured: Measured) -> str:
    """The table of what was measured, as text."""
    settings, rows = measured["settings"], measured["methods"]
    dense = next(row["seconds"] for row in rows if row["name"] == DENSE)
    link = f"links of {settings['rate']}" if settings["rate"] else "shared memory"
    head = ["", "ms", "× dense", "encode", "wire", "decode", "error", "MB, ledger"]
    lines = []
    for row in rows:
        parts = row["parts"] or {}
        line = [row["name"], f"{1e3 * row['seconds']:,.1f}", f"{row['seconds'] / dense:.3f}"]
        line += [f"{1e3 * parts[part]:,.1f}" if parts else "" for part in ACTIVITIES[1:]]
        line += [f"{row['error']:.2g}", "" if row["ledger"] is None else f"{row['ledger'] / 1e6:,.3f}"]
        if settings["rate"]:
            line.append(f"{row['counter'] / 1e6:,.3f}")
        lines.append(line)
    if settings["rate"]:
        head.append("MB, link")
    body = tabulate(
        lines, head, tablefmt="simple", disable_numparse=True, colalign=("left", *["right"] * (len(head) - 1))
    )
    notes = [
        _NOTE.format(rounds=settings["rounds"], feedback=FEEDBACK),
        *(f"{name} does not run here: {reason}" for name, reason in measured["broken"].items()),
    ]
    cores = measured["versions"]["cores"]
    title = f"{settings['ranks']} ranks, {settings['n']:,} float32 each, {link}, {cores} cores"
    return "\n".join([title, "", body, "", *notes])


def check(n: int, rounds: int) -> None:
    """Refuse numbers with which nothing would be measured."""
    for option, value in (("--n", n), ("--rounds", rounds)):
        if value < 1:
            raise SettingError(f"{option} must be at least 1, not {value}")

"""One synchronization as ranks grow: every exchange with several links, beside MPI's dense Allreduce."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tabulate import tabulate

from qsparse.algorithm import Algorithm
from qsparse.bench.ranks import Measured, Place
from qsparse.errors import DisagreementError, SettingError
from qsparse.exchange import Exchange
from qsparse.ledger import ACTIVITIES
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import ErrorFeedback, Innovation, Stateless
from qsparse.planning import Links, exchange_for, links_for
from qsparse.registry import build, spell
from qsparse.rounds.node import Node
from qsparse.rounds.warming import warm_algorithm
from qsparse.rules import check as check_composition
from qsparse.seeds import Seed
from qsparse.types import Vector

EXCHANGES: Final = ("server", "tree", "allgather", "sharded")
#: How reports are said unless others are given, with error feedback.
UP: Final = ("topk(ratio=0.01) >> sign",)
#: How models are said unless others are given, with memory innovation, beside the two exact ways.
DOWN: Final = ("blockwise(sign, size=512)", "topk(ratio=0.01) >> sign")
#: The row that is marked is that of this preset.
PRESET: Final = "qsparse-local-sgd"
#: Rounds of each method before the timed ones.
WARM: Final = 2

DENSE: Final = "MPI Allreduce, dense"

#: The exchange that divides the model among all ranks, which is also measured with dense vectors.
_DIVIDES: Final = "sharded"

_NOTE: Final = """\
ms: of the slowest rank, median of {rounds} rounds, methods in turn. × dense: that over MPI's dense Allreduce.
MB sent: by the rank that sends most, {counted}. CPU ms: of a rank, mean of the ranks.
up with error feedback; down float32: the whole model; changes: what has changed of it, exactly; others
with memory innovation. *: what qsparse train takes for {preset}{told}."""


@dataclass(frozen=True)
class Method:
    """An exchange, and an algorithm that is synchronized over it.

    Args:
        exchange: how payloads travel.
        algorithm: its two links are what is measured; the coordinator subtracts the mean report.
    """

    exchange: Exchange
    algorithm: Algorithm

    @property
    def up(self) -> str:
        """How reports are said, for a table."""
        return spell(self.algorithm.up.compressor)

    @property
    def down(self) -> str:
        """How models are said, for a table; nothing where every rank makes the model."""
        if not self.exchange.claims.answers:
            return ""
        link = self.algorithm.answer
        if link.memory.claims.exact:
            return spell(link.memory)
        # Without its memory it would be named as the whole model is.
        whole = link.compressor.claims.lossless and link.memory.claims.remembers
        return link.spelling() if whole else spell(link.compressor)

    @property
    def name(self) -> str:
        """Exchange and links on one line."""
        return f"{spell(self.exchange)}, up {self.up}" + (f", down {self.down}" if self.down else "")

    @property
    def exact(self) -> bool:
        """Whether every rank ends with the coordinator's own model."""
        return self.algorithm.answer.exact

    def picked(self, n: int, ranks: int, links: Links) -> bool:
        """Whether ``qsparse train`` takes this for preset `PRESET`, with so many ranks and such links."""
        row = build(PRESET, "algorithm")
        same = self.algorithm.up == row.up and self.algorithm.answer == row.answer
        return same and self.exchange == exchange_for(row, n, ranks, links=links)


def methods(exchanges: Sequence[str], ups: Sequence[str], downs: Sequence[str]) -> list[Method]:
    """All that is measured beside the dense Allreduce.

    Args:
        exchanges: their spellings.
        ups: compressors of reports, with error feedback.
        downs: compressors of models, with memory innovation; the exact answers come before them.
    """
    found: dict[tuple[str, str], Method] = {}
    for method in _methods(exchanges, ups, downs):
        found.setdefault((spell(method.exchange), method.algorithm.spelling()), method)
    return list(found.values())


def _methods(exchanges: Sequence[str], ups: Sequence[str], downs: Sequence[str]) -> Iterator[Method]:
    answers = [Link(), None, *(Link(build(down, "compressor"), Innovation()) for down in downs)]
    for exchange in (build(text, "exchange") for text in exchanges):
        for compressor in (build(up, "compressor") for up in ups):
            up = Link(compressor, Stateless() if compressor.claims.lossless else ErrorFeedback())
            for down in answers if exchange.claims.answers else [None]:
                yield Method(exchange, Algorithm(SGD(1.0), up=up, down=down))
    if _DIVIDES in exchanges:
        yield Method(build(_DIVIDES, "exchange"), Algorithm(SGD(1.0), up=Link(), down=Link()))


def measure(
    place: Place,
    n: int,
    rounds: int,
    exchanges: Sequence[str],
    ups: Sequence[str],
    downs: Sequence[str],
    seed: int,
    rate: str | None,
) -> Measured:
    """All methods on the same vectors, in turn; collective.

    Args:
        place: the place of this rank.
        n: coordinates of the vector; each rank draws its own normal numbers, new ones every round.
        rounds: synchronizations of each method that are timed.
        exchanges, ups, downs: as of `methods`.
        seed: the seed of the vectors, and of compressors that draw.
        rate: of the links, for which the choice of ``qsparse train`` is told; the usual one unless given.

    Raises:
        DisagreementError: models that must be the same are not.
    """
    wire, start = place.wire, np.zeros(n, np.float32)
    chosen = methods(exchanges, ups, downs)
    for method in chosen:
        warm_algorithm(method.algorithm, start, (), wire.rank)
    nodes = [
        Node(method.algorithm, method.exchange, wire, start, Seed(seed), (), wire.ledger) for method in chosen
    ]
    place.say(f"{wire.size} ranks: {len(nodes)} methods are ready")
    calls, models = _in_turn(place, nodes, rounds, seed)
    digests = place.gather([_digest(model) for model in models])
    everybody = place.gather(calls)
    if wire.rank:
        return {}
    reason = difference(chosen, digests)
    if reason is not None:
        raise DisagreementError(reason)
    heads: list[Measured] = [
        {"name": DENSE, "exchange": DENSE, "up": "", "down": "", "picked": False, "model": None},
        *(
            {
                "name": method.name,
                "exchange": spell(method.exchange),
                "up": method.up,
                "down": method.down,
                "picked": method.picked(n, wire.size, links_for(rate)),
                "model": digest,
            }
            for method, digest in zip(chosen, digests[0], strict=True)
        ),
    ]
    rows = [
        {**head, **_summary([mine[i] for mine in everybody], place.interface is not None)}
        for i, head in enumerate(heads)
    ]
    if place.interface is not None:
        place.check_limited(start.nbytes, rows[0]["sent"])
    return {"methods": rows}


def _in_turn(
    place: Place, nodes: Sequence[Node], rounds: int, seed: int
) -> tuple[list[list[Measured]], list[Vector]]:
    """This rank's timed calls of the dense Allreduce and of each node, and the nodes' last models."""
    wire, n = place.wire, nodes[0].stretches[-1].stop
    x, total = np.empty(n, np.float32), np.empty(n, np.float32)
    models = [x] * len(nodes)

    def dense() -> None:
        wire.sum_dense(x, total)

    def meeting(i: int) -> Callable[[], None]:
        def meet() -> None:
            model = nodes[i].meet(x, t)
            assert model is not None, "the server rule moves the model, so there is an answer"
            models[i] = model

        return meet

    acts = [dense, *map(meeting, range(len(nodes)))]
    # The barriers around a call send bytes, too, which are not the method's.
    idle = [_call(place, lambda: None) for _ in range(9)]
    own = {name: int(statistics.median(call[name] for call in idle)) for name in ("sent", "received")}
    calls: list[list[Measured]] = [[] for _ in acts]
    for t in range(1, 1 + WARM + rounds):
        np.random.default_rng([seed, wire.rank, t]).standard_normal(out=x, dtype=np.float32)
        for act, mine in zip(acts, calls, strict=True):
            call = _call(place, act)
            if t > WARM:
                mine.append({**call, **{name: call[name] - own[name] for name in own}})
        place.say(f"{wire.size} ranks: round {t} of {WARM + rounds}")
    return calls, models


def _call(place: Place, act: Callable[[], None]) -> Measured:
    """Do it once, all ranks at the same time: what it took this rank.

    The counters are read before the barrier, because a rank may get bytes as soon as it has come.
    """
    before = _counted(place)
    place.barrier()
    begin, cpu = time.perf_counter(), time.process_time()
    act()
    spent = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    place.barrier()
    after = _counted(place)
    return {**spent, **{name: after[name] - before[name] for name in after}}


def _counted(place: Place) -> dict[str, float]:
    """What the link and the ledger have counted up to now; an activity's seconds under its name."""
    ledger = place.wire.ledger
    wire_bytes, link_bytes = ledger.wire_bytes, ledger.link_bytes
    sent = wire_bytes["up"] + wire_bytes["down"]
    return {
        "sent": place.sent(),
        "received": place.received(),
        "ledger_sent": sent,
        "ledger_received": link_bytes["up"] + link_bytes["down"] - sent,
        **{part: ledger.seconds[part] for part in ACTIVITIES[1:]},
    }


def _digest(model: Vector) -> str:
    return hashlib.blake2b(model.tobytes(), digest_size=16).hexdigest()


def difference(chosen: Sequence[Method], digests: Sequence[Sequence[str]]) -> str | None:
    """Why models that must be the same are not; None where they are.

    Args:
        chosen: the methods.
        digests: by rank, of each method's last model.
    """
    first: dict[str, tuple[str, str]] = {}
    for i, method in enumerate(chosen):
        for rank, mine in enumerate(digests):
            if mine[i] != digests[0][i]:
                return f"ranks 0 and {rank} end with different models under {method.name}"
        if method.exact:
            name, digest = first.setdefault(method.up, (method.name, digests[0][i]))
            if digests[0][i] != digest:
                return f"answers are exact and models differ: those of {method.name} and of {name}"
    return None


def _summary(everybody: Sequence[Sequence[Measured]], limited: bool) -> Measured:
    """Of one method: medians over the rounds, of the rank that has most and of the mean of the ranks."""
    together = list(zip(*everybody, strict=True))

    def middle(pick: Callable[[list[float]], float], name: str) -> float:
        return float(statistics.median(pick([each[name] for each in call]) for call in together))

    return {
        "seconds": middle(max, "seconds"),
        "all_seconds": [max(each["seconds"] for each in call) for call in together],
        "cpu": middle(statistics.mean, "cpu"),
        "cpu_most": middle(max, "cpu"),
        "sent": middle(max, "sent") if limited else None,
        "received": middle(max, "received") if limited else None,
        "ledger_sent": middle(max, "ledger_sent"),
        "ledger_received": middle(max, "ledger_received"),
        "parts": {part: middle(statistics.mean, part) for part in ACTIVITIES[1:]},
        "parts_most": {part: middle(max, part) for part in ACTIVITIES[1:]},
    }


def table(measured: Measured) -> str:
    """The table of one number of ranks, as text."""
    settings, rows = measured["settings"], measured["methods"]
    link = f"links of {settings['rate']}" if settings["rate"] else "shared memory"
    title = (
        f"{settings['ranks']} ranks, {settings['n']:,} float32, {link}, {measured['versions']['cores']} cores"
    )
    head = ["", "up", "down", "ms", "× dense", "MB sent", "CPU ms"]
    lines = []
    for row in rows:
        sent = row["sent"] if settings["rate"] else row["ledger_sent"]
        line = [
            row["exchange"] + " *" * row["picked"],
            row["up"],
            row["down"],
            f"{1e3 * row['seconds']:,.1f}",
        ]
        line += [f"{_ratio(rows, row):.3f}", f"{sent / 1e6:,.3f}" if sent else ""]
        lines.append([*line, f"{1e3 * row['cpu']:,.1f}"])
    align = (*["left"] * 3, *["right"] * 4)
    return f"{title}\n\n{tabulate(lines, head, tablefmt='simple', disable_numparse=True, colalign=align)}\n"


def notes(jobs: Sequence[Measured]) -> str:
    """What the columns are, and a sentence on what all jobs have found."""
    settings = jobs[0]["settings"]
    counted = "by the link's counter" if settings["rate"] else "by the ledger"
    told = f", told --link-rate {settings['rate']}" if settings["rate"] else ""
    return "\n".join(
        [
            _NOTE.format(rounds=settings["rounds"], counted=counted, preset=PRESET, told=told),
            "",
            sentence(jobs),
        ]
    )


def sentence(jobs: Sequence[Measured]) -> str:
    """What a synchronization costs as ranks grow: what is picked, and what is fastest."""
    picked, fastest = [], []
    for job in jobs:
        rows, ranks = job["methods"], job["settings"]["ranks"]
        mine = [row for row in rows if row["picked"]]
        picked += [f"{_ratio(rows, row):.3g} at {ranks} ranks ({row['exchange']})" for row in mine]
        best = min(rows[1:], key=lambda row: row["seconds"])
        fastest.append(f"{_ratio(rows, best):.3g} at {ranks} ranks ({best['name']})")
    takes = f"a synchronization as qsparse train does it (*) takes {', '.join(picked)}; " if picked else ""
    return f"Where MPI's dense Allreduce takes 1, {takes}the fastest takes {', '.join(fastest)}."


def _ratio(rows: Sequence[Measured], row: Measured) -> float:
    return float(row["seconds"]) / float(rows[0]["seconds"])


def check(
    n: int,
    rounds: int,
    ranks: Sequence[int],
    exchanges: Sequence[str],
    ups: Sequence[str],
    downs: Sequence[str],
) -> None:
    """Refuse what cannot be measured.

    Args:
        n, rounds: as of `measure`.
        ranks: the numbers of ranks.
        exchanges, ups, downs: as of `methods`.
    """
    for option, value, least in (("--n", n, 1), ("--rounds", rounds, 1), ("--ranks", min(ranks), 2)):
        if value < least:
            raise SettingError(f"{option} must be at least {least}, not {value}")
    for method in methods(exchanges, ups, downs):
        method.algorithm.up.compressor.check(n)
        for size in ranks:
            check_composition(method.algorithm, method.exchange, size)
            for stretch in method.exchange.stretches(n, size):
                method.algorithm.answer.compressor.check(stretch.size)

"""What this rank said: paper bits, wire bytes, messages, skips and seconds; and how stale it was.

Paper bits are counted where a message is committed (up, once per speaking worker) or received
(down, once per listening worker), as the papers count them. Wire bytes are counted where a frame is
handed to the wire, headers and forwarded copies included; greetings, reports and errors are counted
apart ("control"). So is what ranks of one machine send each other where one of them speaks for all
(`Ledger.indoors`). What a rank sends and what it receives crosses its link; the link that carried most is
the one that a run waits for. Bits and bytes are never mixed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from qsparse.payload import Kind, Payload, Way

#: What seconds are spent on.
ACTIVITIES: Final = ("compute", "encode", "exchange", "decode")

#: The ways by their numbers: the names of an enum are slow to look up, and this is done for each frame.
_WAYS: Final = tuple(way.name.lower() for way in Way)

#: Counters that earlier releases have saved under another name.
_RENAMED: Final = {"beside": "control"}

Snapshot = dict[str, Any]


class Clock:
    """The time that a rank lives in: that of this machine. Every wire is one, and may keep another time."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass for this rank."""
        time.sleep(seconds)

    def worked(self, activity: str, amount: float) -> None:
        """Hear that a piece of work is done; time that does not pass by itself passes here.

        Args:
            activity: one of `ACTIVITIES`.
            amount: of work. ``compute``: gradients of a batch; ``encode``: values of the vector; ``decode``:
                bytes of the payloads.
        """


class _Blocks(threading.local):
    """Of each thread, the seconds of the blocks inside the one that is being timed."""

    within = 0.0


class Ledger:
    """Counters of one rank, from its first message on.

    Attributes:
        clock: by which seconds are counted. A wire that keeps a time of its own sets itself.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.paper_bits = {"up": 0, "down": 0}
        self.wire_bytes = {"up": 0, "down": 0, "control": 0}
        #: Sent and received by this rank, by way of the message; both directions of its link together.
        self.link_bytes = {"up": 0, "down": 0}
        #: What ranks of one machine have sent each other, which crosses no link; not in the two before.
        self.machine_bytes = {"up": 0, "down": 0, "control": 0}
        self.messages = {"up": 0, "down": 0}
        self.skips = 0
        #: Skips to which the errors of a compressor forced the trigger, however much there was to say.
        self.starved = 0
        #: How often a report was so many other reports old when it was taken.
        self.staleness: Counter[int] = Counter()
        #: Told of each report that came when it liked: rank, its step, what about, staleness.
        self.on_arrival: Callable[[int, int, int, int], None] | None = None
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._indoors = False
        self._blocks = _Blocks()

    def count_message(self, *parts: Payload) -> None:
        """Count a message in the papers' bits: called by who commits it up or hears it down.

        Args:
            *parts: the message; one that came in parts, from several ranks, counts once.
        """
        first = parts[0]
        if first.kind is Kind.SKIP:
            self.skips += first.way is Way.UP
            return
        way = first.way.name.lower()
        self.paper_bits[way] += sum(part.nbits for part in parts)
        self.messages[way] += 1

    def count_forwarded(self, payloads: Iterable[Payload]) -> None:
        """Count down the messages of others that this rank read itself, where no answer travels."""
        for payload in payloads:
            if payload.kind is Kind.DATA:
                self.paper_bits["down"] += payload.nbits
                self.messages["down"] += 1

    def count_bytes(self, payload: Payload) -> None:
        """Count the bytes of a frame that was handed to the wire: called by the wire."""
        counter = self.machine_bytes if self._indoors else self.wire_bytes
        counter[_WAYS[payload.way]] += len(payload)
        self.received(payload)

    def received(self, payload: Payload) -> None:
        """Count the bytes of a frame that came: called by the wire."""
        if payload.way is not Way.CONTROL and not self._indoors:
            self.link_bytes[_WAYS[payload.way]] += len(payload)

    @contextmanager
    def indoors(self) -> Iterator[None]:
        """What is sent and received in the block stays within a machine."""
        before, self._indoors = self._indoors, True
        try:
            yield
        finally:
            self._indoors = before

    def arrived(self, rank: int, step: int, about: int, staleness: int) -> None:
        """Note a report that came when it liked: called by the coordinator that took it.

        Args:
            rank: who reported.
            step: its own step.
            about: 0 for the model, 1 for what is averaged beside it.
            staleness: how many reports about the model were taken since that rank was told one.
        """
        if about == 0:
            self.staleness[staleness] += 1
        if self.on_arrival is not None:
            self.on_arrival(rank, step, about, staleness)

    @contextmanager
    def timed(self, activity: str, amount: float = 0) -> Iterator[None]:
        """Add the seconds of the block to an activity; a block within takes its own from it.

        Args:
            activity: one of `ACTIVITIES`.
            amount: how much work the block does, which the clock is told (`Clock.worked`).
        """
        clock = self.clock
        begin = clock.now()
        within, self._blocks.within = self._blocks.within, 0.0
        try:
            yield
            if amount:
                clock.worked(activity, amount)
        finally:
            spent = clock.now() - begin
            self.seconds[activity] += spent - self._blocks.within
            self._blocks.within = within + spent

    @contextmanager
    def apart(self) -> Iterator[None]:
        """The block's seconds are nobody's, not even those of an activity around it."""
        begin, within = self.clock.now(), self._blocks.within
        try:
            yield
        finally:
            self._blocks.within = within + self.clock.now() - begin

    def snapshot(self) -> Snapshot:
        """The counters as plain data."""
        return {
            "paper_bits": dict(self.paper_bits),
            "wire_bytes": dict(self.wire_bytes),
            "link_bytes": dict(self.link_bytes),
            **({"machine_bytes": dict(self.machine_bytes)} if any(self.machine_bytes.values()) else {}),
            "messages": dict(self.messages),
            "skips": self.skips,
            "starved": self.starved,
            "staleness": {str(age): count for age, count in sorted(self.staleness.items())},
            "seconds": dict(self.seconds),
        }

    def resume(self, snapshot: Snapshot) -> None:
        """Count on from what a rank had counted before it was ended."""
        for name in ("paper_bits", "wire_bytes", "link_bytes", "machine_bytes", "messages", "seconds"):
            counters = getattr(self, name)
            for key, value in snapshot.get(name, {}).items():
                counters[_RENAMED.get(key, key)] += value
        self.skips += snapshot["skips"]
        self.starved += snapshot.get("starved", 0)
        self.staleness.update({int(age): count for age, count in snapshot["staleness"].items()})


def combine(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The counters of a whole job: sums over the ranks, seconds as means, the bytes of the busiest link."""
    parts = list(snapshots)

    def total(name: str) -> dict[str, int]:
        having = [part[name] for part in parts if name in part]
        return {way: sum(each[way] for each in having) for way in having[0]}

    indoors = any("machine_bytes" in part for part in parts)
    return {
        "paper_bits": total("paper_bits"),
        "wire_bytes": total("wire_bytes"),
        "link_bytes": max((part["link_bytes"] for part in parts), key=lambda link: sum(link.values())),
        **({"machine_bytes": total("machine_bytes")} if indoors else {}),
        "messages": total("messages"),
        "skips": sum(part["skips"] for part in parts),
        "starved": sum(part.get("starved", 0) for part in parts),
        "seconds": {
            activity: sum(part["seconds"][activity] for part in parts) / len(parts) for activity in ACTIVITIES
        },
    }


#: One way, or both together.
Gains = dict[str, float | None]


def link_bytes(counted: Mapping[str, Any]) -> Mapping[str, int]:
    """The bytes of the busiest link by way, of a line of a history or a summary.

    Files from before links were counted have the sum over the ranks, which is what the coordinator's link
    carried where all talk to it.
    """
    found: Mapping[str, int] = counted.get("link_bytes") or counted["wire_bytes"]
    return found


def dense_link_bytes(summary: Mapping[str, Any]) -> Mapping[str, float]:
    """What plain SGD in float32 would have had cross the busiest link, by way; for old files as above."""
    if "dense_link_bytes" in summary:
        found: Mapping[str, float] = summary["dense_link_bytes"]
        return found
    crossed = (summary["ranks"] - 1) / summary["workers"] / 8
    return {way: crossed * bits for way, bits in summary["dense_bits"].items()}


def ring_link_bytes(summary: Mapping[str, Any]) -> Mapping[str, float]:
    """What dense SGD over a ring Allreduce has cross every link in as many steps, half up and half down.

    2·(R − 1)/R times the model is sent by each of R workers in a step, and as much received (Patarasuk and
    Yuan, 2009): the least that an exact sum can take. Older files do not say it, so it is told from the bits.
    """
    found: Mapping[str, float] | None = summary.get("ring_link_bytes")
    if found is not None:
        return found
    if "dense_bits" not in summary:
        return dense_link_bytes(summary)
    workers = summary["workers"]
    return {way: 2 * (workers - 1) / workers**2 / 8 * bits for way, bits in summary["dense_bits"].items()}


def gains(dense: Mapping[str, float], sent: Mapping[str, float]) -> Gains:
    """How many times less was sent than dense: in ``all``, ``up`` and ``down`` together, and each way.

    None where nothing was sent.

    >>> gains({"up": 80, "down": 80}, {"up": 1, "down": 15})
    {'all': 10.0, 'up': 80.0, 'down': 5.333333333333333}
    """
    pairs = {way: (dense[way], sent[way]) for way in ("up", "down")}
    pairs = {"all": (dense["up"] + dense["down"], sent["up"] + sent["down"]), **pairs}
    return {name: much / little if little else None for name, (much, little) in pairs.items()}

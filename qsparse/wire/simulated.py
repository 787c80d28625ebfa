"""Ranks as threads of one process, over a network that is simulated: real messages, virtual seconds.

Payloads and algorithm are the real ones, and a run has the bits of one over threads. What is simulated is
time: how long messages take over links of a given rate, and how long a rank works. See `simulated_hub` for
the rules, and `simulated_links` for links that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from qsparse.errors import SettingError
from qsparse.payload import Payload
from qsparse.registry import register, spell
from qsparse.wire.base import ANY, Ranks, T, Wire
from qsparse.wire.hub import HubWire, run_at
from qsparse.wire.simulated_hub import Content, SimulatedHub
from qsparse.wire.simulated_links import Link, bytes_per_second, links_of, seconds

#: Charge what a rank's thread takes.
MEASURED: Final = "measured"


class SimulatedWire(HubWire):
    """The wire of one rank of a simulated network.

    What is received is shared by all ranks that the sender has told the same, and cannot be written to.
    No wait has a limit of real time: one that cannot end is found at once.

    Args:
        hub: of all ranks.
        rank: this one.
        part: says what work costs.
    """

    _hub: SimulatedHub
    #: A rank is one thread, which has the time of the rank.
    threaded = False

    def __init__(self, hub: SimulatedHub, rank: int, part: Simulated) -> None:
        super().__init__(hub, rank)
        self.ledger.clock = self
        self.simulates = spell(part)
        self.links = hub.slowest
        compute = part.compute if isinstance(part.compute, int | float) else 0.0
        #: Seconds for each unit of work.
        self._prices = {"compute": compute, "encode": part.encode / 1e6, "decode": part.decode / 1e6}
        #: What was sent last: until `flush` the sender leaves a frame alone, so one copy serves all ranks.
        self._last: tuple[Payload, Content] | None = None

    def now(self) -> float:
        """Virtual seconds since the ranks began."""
        return self._hub.now(self.rank)

    def sleep(self, seconds: float) -> None:
        """Let so many virtual seconds pass for this rank."""
        if seconds > 0:
            self._hub.clocks[self.rank] = self._hub.now(self.rank) + seconds

    def worked(self, activity: str, amount: float) -> None:
        """Charge what the work costs, on a rank of this pace."""
        if price := self._prices.get(activity, 0.0):
            self.sleep(amount * price * self._hub.slowness[self.rank])

    def send(self, payloads: Sequence[Payload], dest: int) -> None:
        self._check_message(payloads, dest)
        if self._last is not None and len(payloads) == 1 and payloads[0] is self._last[0]:
            content = self._last[1]
        else:
            content = Content(b"".join([payload.frame for payload in payloads]))
            self._last = (payloads[0], content) if len(payloads) == 1 else None
        self._hub.post(self.rank, dest, content)
        self._count(payloads)

    def receive(self, source: int = ANY) -> tuple[int, list[Payload]]:
        if source != ANY:
            self._check(source)
        self._check(self.rank)
        source, content = self._hub.take(self.rank, source)
        if content.payloads is None:
            content.payloads = self._parsed(content.data, source)
        return source, self._took(list(content.payloads))

    def flush(self) -> None:
        """Wait until this rank's way out is free."""
        self._check(self.rank)
        self._last = None
        self.sleep(self._hub.free[self.rank] - self.now())


@register("simulated")
@dataclass(frozen=True)
class Simulated(Ranks):
    """Ranks are threads that take turns, over a simulated network; seconds are virtual.

    Every rank has one link to a switch, which carries both ways at once. What is waited for is the way out of
    the sender and the way in of the receiver, each a queue. Headers of a network, losses and switches that
    are too slow are left out.

    Args:
        rate: of a link each way: bytes per second, or text such as ``"1gbit"`` or ``"100mbit"``.
        latency: seconds that a message takes beside its bytes.
        compute: seconds that the gradient of a batch takes; ``"measured"``: all work of a rank takes the
            processor time of its thread here, which no run repeats bit for bit.
        encode: seconds for encoding a million values of a vector.
        decode: seconds for decoding a million bytes of payloads.
        links: a TOML file with ``rate``, ``latency`` and ``compute`` (times as long) of ranks that differ.
    """

    rate: float | str = "1gbit"
    latency: float = 1e-4
    compute: float | str = 0.0
    encode: float = 0.0
    decode: float = 0.0
    links: str = ""
    launched: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bytes_per_second(self.rate, "wire simulated")
        for name in ("latency", "encode", "decode"):
            seconds(getattr(self, name), f"{name} of wire simulated")
        if self.compute != MEASURED:
            if isinstance(self.compute, str):
                raise SettingError(
                    f"compute of wire simulated is {self.compute!r}: write seconds, or 'measured'"
                )
            seconds(self.compute, "compute of wire simulated")
        elif self.encode or self.decode:
            raise SettingError(
                "compute='measured' measures encoding and decoding, too: leave out encode and decode"
            )
        if not isinstance(self.links, str):
            raise SettingError(f"links of wire simulated is {self.links!r}: write the path of a file")

    def run(self, ranks: int, body: Callable[[Wire], T]) -> T:
        """With `run_simulated`."""
        return run_simulated(ranks, body, self)[0]


def run_simulated(
    size: int, body: Callable[[Wire], T], part: Simulated = Simulated(), *, timeout: float | None = None
) -> list[T]:
    """Run a body on ranks of a simulated network; return the results in the order of the ranks.

    Errors are those of `qsparse.wire.threads.run_threads`.

    Args:
        size: number of ranks.
        body: what each rank does.
        part: says how fast links and ranks are.
        timeout: real seconds for the whole run; None waits for ever.

    >>> def hello(wire: Wire) -> float:
    ...     wire.send([Payload.build([bytes(976)])], 1 - wire.rank)
    ...     wire.receive()
    ...     return wire.now()
    >>> run_simulated(2, hello, Simulated(rate=1024, latency=0.5))
    [1.5, 1.5]
    """
    usual = Link(bytes_per_second(part.rate, "wire simulated"), part.latency)
    hub = SimulatedHub(links_of(part.links, usual, size), part.compute == MEASURED)
    return run_at(hub, [SimulatedWire(hub, rank, part) for rank in range(size)], body, timeout)

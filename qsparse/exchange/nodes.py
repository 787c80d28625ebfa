"""One rank of each machine speaks for all of them, so bytes between machines do not grow with their ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from qsparse.errors import SettingError, WireError
from qsparse.exchange.base import Cost, Exchange, ExchangeClaims, Post, Stretch, raise_error, receive_one
from qsparse.exchange.notes import bundle, opened, same_step
from qsparse.payload import Payload
from qsparse.registry import register, spell
from qsparse.wire.base import Wire
from qsparse.wire.subwire import SubWire


class _Machine(NamedTuple):
    """A rank's machine.

    Attributes:
        ranks: those of it; the first speaks.
        home: the wire between them.
        outer: the wire between those that speak; None on all other ranks.
    """

    ranks: range
    home: Wire
    outer: Wire | None

    @property
    def others(self) -> range:
        """The numbers at home of those that do not speak."""
        return range(1, self.home.size)


@register("nodes")
@dataclass(frozen=True)
class Nodes(Exchange):
    """The lowest rank of a machine speaks for it to the others, with the mean of its ranks' reports.

    Machine m with r_m of R ranks on M machines reports (M/R)·Σ v_r over its ranks, formed in float32 in rank
    order, so the mean over the machines is that over the ranks. Compressor, memory and trigger are those of
    the machine, and the answer is passed on to its ranks as it came. Messages that are not about a vector
    take the same way, those of a machine in one frame.

    Args:
        outer: the exchange between the machines, in which every rank works.
        ranks: how many ranks each machine has, of which the numbers follow each other: one number, where
            the last machine may have fewer, or a list with a number for each machine; none: what the wire
            finds.
        recompress: the ranks of a machine compress their reports, too, each with an error memory of its own,
            and who speaks decodes them and compresses their mean once more; for links within a machine that
            are slow. Else the mean is exact.
    """

    outer: Exchange
    ranks: int | tuple[int, ...] | None = None
    recompress: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.outer, Exchange) or self.outer.claims.groups:
            raise SettingError(
                "exchange nodes: outer is the exchange between the machines, such as server, tree, "
                "allgather or sharded"
            )
        numbers = self.ranks if isinstance(self.ranks, tuple) else (self.ranks,)
        fine = all(type(each) is int and each > 0 for each in numbers) and len(numbers) > 0
        if self.ranks is not None and not fine:
            raise SettingError(
                f"{spell(self)}: ranks is the number of ranks of a machine, at least 1, or a list with that "
                "of each machine"
            )

    @property
    def claims(self) -> ExchangeClaims:
        """Those of the exchange between the machines, and that machines have one voice each."""
        return replace(
            self.outer.claims,
            broadcasts_to_some=False,
            serves=False,
            groups=True,
            recompresses=self.recompress,
        )

    def check(self, size: int) -> None:
        """Refuse machines that do not have all ranks, and an exchange between them that does not fit."""
        if self.ranks is None:
            return
        if isinstance(self.ranks, tuple) and sum(self.ranks) != size:
            raise SettingError(
                f"{spell(self)}: these machines have {sum(self.ranks)} ranks together, and there are {size}"
            )
        machines = len(self.machines(size))
        try:
            self.outer.check(machines)
        except SettingError as error:
            raise SettingError(f"{spell(self)}, between {machines} machines: {error}") from None
        if len(self.outer.workers(machines)) < machines:
            raise SettingError(
                f"{spell(self)}: a rank that only serves has no report, so it cannot speak for its machine: "
                f"use an outer exchange in which every rank works, not {spell(self.outer)}"
            )

    def on(self, wire: Wire) -> Exchange:
        """With the numbers of ranks that the wire has found on each machine, unless they were given."""
        if self.ranks is not None:
            return self
        if wire.machines is None:
            raise SettingError(
                f"{spell(self)}: this wire does not know which ranks are on one machine: say how many a "
                f"machine has, e.g. nodes(outer={spell(self.outer)}, ranks=4)"
            )
        found = [len(list(those)) for _, those in itertools.groupby(wire.machines)]
        if len(found) > len(set(wire.machines)):
            raise SettingError(
                f"{spell(self)}: the numbers of a machine's ranks must follow each other, and the lowest "
                f"ranks on the machines of all are {list(wire.machines)}: have the launcher fill one machine "
                "after the other (mpiexec -ppn N, mpirun --map-by core, srun --distribution=block)"
            )
        # As few numbers as say it, so that the text is the same for machines that are alike.
        alike = len(set(found[:-1])) <= 1 and found[-1] <= found[0]
        return replace(self, ranks=found[0] if alike else tuple(found))

    def machines(self, size: int) -> list[range]:
        """The ranks of each machine.

        Raises:
            SettingError: it is left to be found.
        """
        if self.ranks is None:
            raise SettingError(f"{spell(self)}: how many ranks a machine has is not known yet: give it ranks")
        if isinstance(self.ranks, int):
            return [range(first, min(first + self.ranks, size)) for first in range(0, size, self.ranks)]
        ends = list(itertools.accumulate(self.ranks))
        return [range(stop - count, stop) for stop, count in zip(ends, self.ranks, strict=True)]

    def post(self, wire: Wire) -> Post:
        """A machine of one rank has no home: its rank speaks for itself."""
        machines = self.machines(wire.size)
        here = self._machine(wire)
        divisor = wire.size / len(machines)
        alone = divisor == len(here.ranks) == 1
        home = None if alone else here.home
        # Where there is nobody to tell, compressing twice would lose for nothing.
        compressed = self.recompress and len(here.ranks) > 1
        return Post(self.outer, here.outer, len(machines), home, divisor, compressed)

    def weighs(self, size: int) -> bool:
        """Whether the machines have different numbers of ranks."""
        return self.ranks is not None and len({len(ranks) for ranks in self.machines(size)}) > 1

    def coordinates(self, rank: int) -> bool:
        """Whether it speaks for a machine that coordinates in the exchange between the machines."""
        # The machines up to this rank's do not depend on how many ranks come after it.
        for number, ranks in enumerate(self.machines(rank + 1)):
            if rank in ranks:
                return rank == ranks[0] and self.outer.coordinates(number)
        return False

    def cost(self, up: float, down: float, size: int) -> Cost:
        """That of the exchange between the machines, and two hops at home, whose bytes cross no link."""
        machines = [range(size)] if self.ranks is None else self.machines(size)
        cost = self.outer.cost(up, down, len(machines))
        others = max(map(len, machines)) - 1
        return cost._replace(hops=cost.hops + 2 * (others > 0), messages=cost.messages + 2 * others)

    def stretches(self, n: int, size: int) -> list[Stretch]:
        """Those of the exchange between the machines, coordinated by who speaks for them."""
        machines = self.machines(size)
        return [
            each if each.owner is None else each._replace(owner=machines[each.owner][0])
            for each in self.outer.stretches(n, len(machines))
        ]

    def gather(self, wire: Wire, message: Payload | None) -> list[Payload] | None:
        """Send to who speaks, who hands in those of its machine together."""
        assert message is not None
        here = self._machine(wire)
        if here.outer is None:
            here.home.send([message], 0)
            return None
        together = [message, *(receive_one(here.home, other)[1] for other in here.others)]
        payloads = self.outer.gather(here.outer, bundle(together))
        return None if payloads is None else same_step(opened(payloads))

    def broadcast(self, wire: Wire, reply: Payload | None) -> Payload:
        """Who speaks passes the answer on to its machine."""
        here = self._machine(wire)
        if here.outer is None:
            return receive_one(here.home, 0)[1]
        answer = self.outer.broadcast(here.outer, reply)
        _pass_on(here, [answer])
        return answer

    def gather_parts(
        self, wire: Wire, parts: Sequence[Payload] | None, stretches: Sequence[Stretch]
    ) -> list[Payload] | None:
        """Send the parts to who speaks, who hands in those of its machine about each stretch together."""
        assert parts is not None
        here = self._machine(wire)
        if here.outer is None:
            here.home.send(parts, 0)
            return None
        those = [parts, *(_received(here.home, other, len(stretches)) for other in here.others)]
        bundles = [bundle(about) for about in zip(*those, strict=True)]
        payloads = self.outer.gather_parts(here.outer, bundles, self._outer_stretches(wire, stretches))
        return None if payloads is None else same_step(opened(payloads))

    def broadcast_parts(
        self, wire: Wire, reply: Payload | None, stretches: Sequence[Stretch]
    ) -> list[Payload]:
        """Who speaks passes the answers on to its machine."""
        here = self._machine(wire)
        if here.outer is None:
            return _received(here.home, 0, len(stretches))
        answers = self.outer.broadcast_parts(here.outer, reply, self._outer_stretches(wire, stretches))
        _pass_on(here, answers)
        return answers

    def relays(self, rank: int) -> bool:
        """True for every rank that speaks, because its machine waits for it alone."""
        return any(rank == ranks[0] for ranks in self.machines(rank + 1))

    def fail(self, wire: Wire, error: Payload) -> None:
        """Tell who speaks; who speaks tells its machine, and the other machines what they do not know yet."""
        here = self._machine(wire)
        if here.outer is None:
            here.home.send([error], 0)
            return
        for other in here.others:
            here.home.send([error], other)
        if error.origin in here.ranks or self.outer.relays(here.outer.rank):
            self.outer.fail(here.outer, error)

    def _machine(self, wire: Wire) -> _Machine:
        machines = self.machines(wire.size)
        ranks = next(each for each in machines if wire.rank in each)
        speaks = wire.rank == ranks[0]
        outer = SubWire(wire, [each[0] for each in machines]) if speaks else None
        return _Machine(ranks, SubWire(wire, ranks, indoors=True), outer)

    def _outer_stretches(self, wire: Wire, stretches: Sequence[Stretch]) -> list[Stretch]:
        return self.outer.stretches(stretches[-1].stop, len(self.machines(wire.size)))


def _pass_on(here: _Machine, answers: Sequence[Payload]) -> None:
    for other in here.others:
        here.home.send(answers, other)
    here.home.flush()


def _received(home: Wire, source: int, count: int) -> list[Payload]:
    """A message of so many frames, of one rank of this machine; an ERROR is raised as RankError."""
    _, payloads = home.receive(source)
    raise_error(payloads[0])
    if len(payloads) != count:
        raise WireError(
            f"rank {home.origin} got {len(payloads)} frames of its machine where {count} were expected"
        )
    return payloads

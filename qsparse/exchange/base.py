"""Patterns of sends over a wire: they move payloads and never look inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from qsparse.errors import CompositionError, RankError, SettingError, WireError
from qsparse.exchange.notes import error_of, one_each, same_step
from qsparse.payload import Kind, Payload
from qsparse.registry import spell
from qsparse.wire.base import ANY, Wire


class Stretch(NamedTuple):
    """Coordinates start … stop − 1 of a vector, and the rank that coordinates them.

    Attributes:
        owner: None where whoever coordinates the exchange does.
    """

    start: int
    stop: int
    owner: int | None = None

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return self.stop - self.start


class Cost(NamedTuple):
    """What a round costs with reports and answers of given numbers of bytes; see `Exchange.cost`.

    Attributes:
        sent: the bytes that the rank sends which sends most.
        received: those that the rank receives which receives most.
        serial: the bytes that cross one link one after another, on the longest way from reports to models.
        hops: how many messages wait for each other on that way.
        messages: the messages of the busiest rank.
        merges: how many whole reports the busiest coordinator adds up.
        answers: how much of an answer it makes, from 0 to 1.
    """

    sent: float
    received: float
    serial: float
    hops: int
    messages: int
    merges: float
    answers: float


class Post(NamedTuple):
    """Where a rank stands when reports are exchanged; see `Exchange.post`.

    Attributes:
        exchange: brings reports and answers to and from those that speak.
        wire: between them; None on a rank that another one speaks for.
        size: how many speak.
        home: between the ranks for which one of them speaks, who has number 0 there; None where every rank
            speaks for itself.
        divisor: what is said for them is the sum of their reports divided by this.
        compressed: they say their reports at home in the words of the up link, and not as they are.
    """

    exchange: Exchange
    wire: Wire | None
    size: int
    home: Wire | None = None
    divisor: float = 1.0
    compressed: bool = False


@dataclass(frozen=True)
class ExchangeClaims:
    """What an exchange promises; the rules of composition go by it, and laws hold it.

    Attributes:
        answers: the answer travels; where every rank coordinates, it does not.
        broadcasts_to_some: `broadcast_to` answers some workers, and sends the others a SKIP.
        serves: rank 0 coordinates and only serves; all other ranks work.
        divides: each rank coordinates a stretch of the vector; see `Exchange.stretches`.
        groups: one rank speaks for several, with the mean of their reports; see `Exchange.post`.
        recompresses: what the ranks of a group say to the one that speaks is compressed, and so is their mean
            once more.
    """

    answers: bool = True
    broadcasts_to_some: bool = False
    serves: bool = False
    divides: bool = False
    groups: bool = False
    recompresses: bool = False


class Exchange(ABC):
    """Brings the workers' payloads to the coordinator, and the answer back.

    One round is one `gather` and one `broadcast` on every rank. Where ranks coordinate a stretch of the
    vector each, it is one `gather_parts` and one `broadcast_parts`, with a payload for each stretch. An
    exchange has settings and no state; every call is given the wire.
    """

    kind: ClassVar[str] = "exchange"
    registered_name: ClassVar[str]

    @property
    def claims(self) -> ExchangeClaims:
        """What this exchange promises."""
        return ExchangeClaims()

    def check(self, size: int) -> None:
        """Refuse a number of ranks that the settings do not fit."""

    def on(self, wire: Wire) -> Exchange:
        """This exchange on the ranks of a wire, with the settings that were left to be found there.

        Raises:
            SettingError: the wire does not know them.
        """
        return self

    def post(self, wire: Wire) -> Post:
        """Where this rank stands when reports are exchanged: it speaks for itself unless said otherwise."""
        return Post(self, wire, wire.size)

    def weighs(self, size: int) -> bool:
        """Whether reports of several ranks are said with a weight of their own, as their number differs."""
        return False

    def workers(self, size: int) -> list[int]:
        """The ranks that are workers."""
        return list(range(size))

    def coordinates(self, rank: int) -> bool:
        """Whether this rank merges reports and makes the answer."""
        return True

    def cost(self, up: float, down: float, size: int) -> Cost:
        """What a round costs; unless said otherwise, that of one root which all others talk to.

        Args:
            up: bytes of a report, header included.
            down: bytes of an answer.
            size: the number of ranks.
        """
        others = size - 1
        return Cost(
            sent=max(others * down, up),
            received=max(others * up, down),
            serial=others * (up + down),
            hops=2,
            messages=2 * others,
            merges=len(self.workers(size)),
            answers=1,
        )

    def stretches(self, n: int, size: int) -> list[Stretch]:
        """The stretches of a vector of n coordinates that have a coordinator of their own, in order.

        Among ``size`` ranks; together they are the vector, and none of several is empty.
        """
        return [Stretch(0, n)]

    def gather_parts(
        self, wire: Wire, parts: Sequence[Payload] | None, stretches: Sequence[Stretch]
    ) -> list[Payload] | None:
        """Hand in a payload for each stretch (None from a rank that is not a worker).

        Returns:
            The payloads of all workers, in rank order, for the stretch that this rank coordinates; None
            where it coordinates none.

        Raises:
            RankError: as of `gather`.
        """
        return self.gather(wire, None if parts is None else parts[0])

    def broadcast_parts(
        self, wire: Wire, reply: Payload | None, stretches: Sequence[Stretch]
    ) -> list[Payload]:
        """Bring the answers about all stretches, in their order, to every rank.

        Args:
            wire: between the ranks.
            reply: about the stretch that this rank coordinates; None where it coordinates none.
            stretches: as of `gather_parts`.

        Raises:
            RankError: as of `broadcast`.
        """
        return [self.broadcast(wire, reply)]

    @abstractmethod
    def gather(self, wire: Wire, message: Payload | None) -> list[Payload] | None:
        """Hand in this rank's payload (None from a rank that is not a worker).

        Returns:
            The payloads of all workers in rank order where this rank coordinates, else None.

        Raises:
            RankError: a rank sent an ERROR in place of its payload.
        """

    @abstractmethod
    def broadcast(self, wire: Wire, reply: Payload | None) -> Payload:
        """Bring the coordinator's answer to every rank; ``reply`` is None where no rank coordinates.

        Raises:
            RankError: the coordinator sent an ERROR in place of its answer.
        """

    def broadcast_to(self, wire: Wire, reply: Payload | None, asked: Sequence[bool] | None) -> Payload:
        """Bring the answer to some of the workers only; the others get a SKIP.

        Args:
            wire, reply: as for `broadcast`.
            asked: for each worker in rank order, whether it gets the answer; None where no rank coordinates.

        Raises:
            CompositionError: this exchange sends all ranks the same answer.
        """
        raise CompositionError(f"{spell(self)} answers all ranks alike: use exchange server")

    @abstractmethod
    def fail(self, wire: Wire, error: Payload) -> None:
        """Send an ERROR to the ranks that wait for this one, in place of the payload that they expect."""

    def relays(self, rank: int) -> bool:
        """Whether a rank that was told of an error must tell the others."""
        return False

    def notify(self, wire: Wire, error: BaseException, step: int) -> None:
        """Send an error the same way as the data; a rank that gives up calls this before it raises.

        A round that another thread of the rank is in comes to its end first, however it ends.
        """
        wire.settle()
        if not isinstance(error, RankError) or self.relays(wire.rank):
            self.fail(wire, error_of(error, wire.rank, step))


class Rooted(Exchange):
    """An exchange with one coordinator, the root; payloads go to it directly unless said otherwise."""

    root: int

    def check(self, size: int) -> None:
        """Refuse a root that is not a rank, and an exchange without workers."""
        if not 0 <= self.root < size:
            raise SettingError(f"{spell(self)}: there is no rank {self.root} among {size} ranks")
        if not self.workers(size):
            raise SettingError(f"{spell(self)}: with {size} rank nobody is left to work; start more ranks")

    def coordinates(self, rank: int) -> bool:
        """Whether this rank is the root, which merges reports and makes the answer."""
        return rank == self.root

    def gather(self, wire: Wire, message: Payload | None) -> list[Payload] | None:
        """Send this worker's payload to the root, which receives in rank order."""
        if wire.rank != self.root:
            assert message is not None
            wire.send([message], self.root)
            return None
        payloads = []
        for rank in self.workers(wire.size):
            if rank == self.root:
                assert message is not None
                payloads.append(message)
            else:
                payloads.append(receive_one(wire, rank)[1])
        return same_step(payloads)

    def relays(self, rank: int) -> bool:
        """Whether this rank is the root, which must tell the others of an error."""
        return rank == self.root

    def fail(self, wire: Wire, error: Payload) -> None:
        """Send the ERROR from the root to all others, or from another rank to the root."""
        told = range(wire.size) if wire.rank == self.root else (self.root,)
        for rank in told:
            if rank != wire.rank:
                wire.send([error], rank)


class Peers(Exchange):
    """An exchange without a root: a message goes from every rank to every other, and all coordinate."""

    def gather(self, wire: Wire, message: Payload | None) -> list[Payload]:
        """Send to the ranks after this one in turn, so that not all ranks send to the same rank first.

        An error is raised only when all payloads have come, so that nothing is left over for the next round.
        """
        assert message is not None
        for step in range(1, wire.size):
            wire.send([message], (wire.rank + step) % wire.size)
        payloads: list[Payload] = []
        for rank in range(wire.size):
            payloads += [message] if rank == wire.rank else wire.receive(rank)[1]
        wire.flush()
        for payload in payloads:
            raise_error(payload)
        return one_each(wire, payloads)

    def say(self, wire: Wire, make: Callable[[], Payload], step: int = 0) -> list[Payload]:
        """Gather what ``make`` returns on each rank; where it raises, an ERROR is sent in its place.

        That rank raises the error of ``make``, the others raise RankError, and nothing is left over for the
        next round.
        """
        try:
            message = make()
        except Exception as error:
            with suppress(RankError):
                self.gather(wire, error_of(error, wire.rank, step))
            raise
        return self.gather(wire, message)

    def broadcast(self, wire: Wire, reply: Payload | None) -> Payload:
        """Return the answer without a message: every rank has made the same one."""
        assert reply is not None
        return reply

    def fail(self, wire: Wire, error: Payload) -> None:
        """Send the ERROR to every other rank."""
        for rank in range(wire.size):
            if rank != wire.rank:
                wire.send([error], rank)


def receive_one(wire: Wire, source: int = ANY) -> tuple[int, Payload]:
    """Receive the next message, which holds one frame; an ERROR is raised as RankError."""
    rank, payload = receive_any_kind(wire, source)
    raise_error(payload)
    return rank, payload


def receive_any_kind(wire: Wire, source: int = ANY) -> tuple[int, Payload]:
    """Receive the next message, which holds one frame; an ERROR is returned like any other."""
    rank, payloads = wire.receive(source)
    if len(payloads) != 1:
        raise WireError(
            f"rank {wire.rank} got {len(payloads)} frames from rank {rank} where one was expected"
        )
    return rank, payloads[0]


def raise_error(payload: Payload) -> None:
    """Raise RankError if the payload is an ERROR."""
    if payload.kind is Kind.ERROR:
        raise RankError(payload.origin, payload.step, payload.text)

"""One round whose result is the mean, or the sum, of what the ranks bring: no model, and no server rule.

Up, each rank says its array over a link. Whoever the exchange says merges what was said about a stretch, as a
coordinator does, and where the result has to travel it is said down: exactly, or over a link of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from qsparse.compressors.changes import compress_changes
from qsparse.compressors.cutting import cut
from qsparse.compressors.reports import REPORTS, bundle, bundle_size, handed_on
from qsparse.errors import NotFinite, RankError, WireError
from qsparse.exchange.base import Exchange, raise_error
from qsparse.exchange.notes import error_of, wrapped, wrapped_error
from qsparse.link import Link, Receiver, Sender
from qsparse.memory import Draft
from qsparse.payload import Kind, Payload, Way
from qsparse.rounds.machine import Machine
from qsparse.seeds import COORDINATOR, Seed
from qsparse.types import State, Vector
from qsparse.wire.base import Wire

#: Returns what a rank brings, (n,), and where the result goes, (n,), which may share its memory.
Bring = Callable[[], tuple[Vector, Vector]]


class _Ends(NamedTuple):
    """The hearing ends for one stretch of the array.

    Attributes:
        place: the stretch.
        reports: merges what the ranks have said about it.
        answer: hears what the result of that is.
    """

    place: slice
    reports: Receiver
    answer: Receiver


class _Call:
    """What this rank has in one round."""

    def __init__(self) -> None:
        #: Where the results of the stretches go.
        self.places: list[Vector] = []
        #: Where they may be formed, as another pass over memory takes as long as decoding: in their places,
        #: unless the array lies there, which an error must leave alone.
        self.targets: list[Vector | None] = []
        #: What is said; the memory learns of it when the round is over.
        self.draft: Draft | None = None
        self.error: Exception | None = None
        #: What this rank has merged itself, by the number of the stretch.
        self.results: dict[int, Vector] = {}


class Reduction:
    """A rank's place in the rounds of one array.

    What a rank cannot bring, or say, is told to all as data, so that the round runs to its end: every rank
    raises, no memory has moved, and the next round finds all as it was. What fails later ends this object, on
    every rank.

    Args:
        link: how a rank says its array.
        down: how the result is said where it travels; None: exactly.
        exchange: brings what is said to who merges it, and the result to all.
        wire: between the ranks.
        start: zeros like the array, (n,).
        seed: of the random parts.
        summed: the result is the sum, not the mean.
    """

    def __init__(
        self,
        link: Link,
        down: Link | None,
        exchange: Exchange,
        wire: Wire,
        start: Vector,
        seed: Seed,
        summed: bool,
    ) -> None:
        self.exchange, self.wire, self.ledger = exchange, wire, wire.ledger
        post = self._post = exchange.post(wire)
        self._pattern = post.exchange
        number = None if post.wire is None else post.wire.rank
        mine = seed.at(rank=wire.rank)
        self._seed = mine.at(use="up")
        self.machine = None
        if post.home is not None:
            divisor = 1.0 if summed else post.divisor
            at_home = link if post.compressed else Link()
            self.machine = Machine(post.home, divisor, at_home, start, mine, (), self.ledger)
        self.sender = None if number is None else Sender(link, start)
        self.stretches = self._pattern.stretches(start.size, post.size)
        #: The number of the stretch that this rank merges.
        self.own: int | None = None
        if number is not None and self._pattern.coordinates(number):
            owners = [stretch.owner for stretch in self.stretches]
            self.own = next((k for k, owner in enumerate(owners) if owner in (None, number)), None)
        # Whether a result goes to another rank.
        self._travels = self._pattern.claims.answers or self.machine is not None
        adds_nothing = link.memory.claims.adds_nothing
        exact = down is None and self._travels
        # A sum in float64 is no float32, and exactly said by what it is the sum of. Then all ranks merge, and
        # a memory that adds something has its state on all of them.
        self._hands_on = exact and start.dtype != np.float32
        self._may_hand_on = exact and adds_nothing
        # A result that cannot be said has moved nothing then.
        self._traceless = down is None and adds_nothing
        self.ends = []
        for k, stretch in enumerate(self.stretches):
            place = slice(stretch.start, stretch.stop)
            merging = link if k == self.own or self._hands_on else Link()
            reports = Receiver(merging, start[place], 1 if summed else post.size)
            self.ends.append(_Ends(place, reports, Receiver(down or Link(), start[place])))
        self._down = down
        #: Says the result of the own stretch, where it is compressed.
        self.answerer: Sender | None = None
        self._answer_seed = seed.at(rank=COORDINATOR, use="down")
        #: With which an exact result is compared, to say what is not zero.
        self._zeros = start if self.own is None else start[self.ends[self.own].place]
        if self.own is not None:
            place = self.ends[self.own].place
            self.answerer = None if down is None else Sender(down, start[place])
            if len(self.ends) > 1:  # stretches draw numbers of their own
                self._answer_seed = self._answer_seed.child(place.start)
        self._ended: BaseException | None = None

    @property
    def like(self) -> Vector:
        """A vector of the type of the array."""
        return self.ends[0].reports.like

    @property
    def size(self) -> int:
        """The number of entries of the array."""
        return self.stretches[-1].stop

    @property
    def answers(self) -> bool:
        """Whether results are said at all: to other ranks, or with a loss that all ranks have."""
        return self._travels or self._down is not None

    def meet(self, bring: Bring, t: int) -> None:
        """One round, on every rank: bring an array, and get the result.

        Args:
            bring: called once; what it raises is raised here, and told to all others.
            t: the number of the round.

        Raises:
            RankError: with what was raised on another rank.
            WireError, DisagreementError: ranks are gone, or in another call.
        """
        if self._ended is not None:
            raise self._ended
        call = _Call()
        try:
            with self.ledger.timed("exchange"):
                if self.machine is None:
                    replies = self._outside(call, lambda: self._brought(call, bring), t)
                else:
                    replies = self._as_one(self.machine, call, bring, t)
        except BaseException as error:
            self._give_up(error, t)
            raise
        self._refuse(call, replies)
        heard = sum(len(reply) for number, reply in enumerate(replies) if number not in call.results)
        with self.ledger.timed("decode", heard):
            # Only now has everybody spoken, and been answered: a round that failed has left all as it was.
            if self.machine is not None:
                self.machine.commit()
            if self.sender is not None and call.draft is not None:
                self.sender.commit(call.draft)
                self.ledger.count_message(call.draft.payload)
            self._hear(call, replies)

    def memories(self) -> list[tuple[str, State]]:
        """What this rank remembers, by the beginning of its name; states that never move are left out."""
        found = [] if self.sender is None else [("sender.", self.sender.state)]
        if self.machine is not None:
            found.append(("home.sender.", self.machine.sender.state))
        if self.answerer is not None:
            found.append(("answer.sender.", self.answerer.state))
        for number, each in enumerate(self.ends):
            name = "" if len(self.ends) == 1 else f"{number}."
            if number == self.own or self._hands_on:
                found.append((f"receiver.{name}", each.reports.state))
            if self._down is not None:
                found.append((f"answer.receiver.{name}", each.answer.state))
        return found

    # --- up --------------------------------------------------------------------------------------

    def _brought(self, call: _Call, bring: Bring) -> Vector:
        v, out = bring()
        call.places = [out[each.place] for each in self.ends]
        shared = np.may_share_memory(v, out)
        call.targets = [None if shared else place for place in call.places]
        return v

    def _told(self, call: _Call, make: Callable[[], list[Payload]], count: int, t: int) -> list[Payload]:
        """What ``make`` returns; where it raises, or this rank has failed before, so many wrapped errors."""
        if call.error is None:
            try:
                return make()
            except Exception as error:
                call.error = error
        return [wrapped(error_of(call.error, self.wire.rank, t), Way.UP)] * count

    def _as_one(self, machine: Machine, call: _Call, bring: Bring, t: int) -> list[Payload]:
        """The round of a machine for which one rank speaks; returns the answers."""
        (mine,) = self._told(call, lambda: [machine.report(self._brought(call, bring), t)], 1, t)
        together = machine.gather(mine, t)
        if together is None:
            return machine.hear(t, len(self.stretches))[0]

        def mean() -> Vector:
            wrong = wrapped_error(together)
            if wrong is not None:
                raise_error(wrong)
            return machine.mean(together)

        replies = self._outside(call, mean, t)
        machine.tell(replies[0], replies, True)
        return replies

    def _outside(self, call: _Call, make: Callable[[], Vector], t: int) -> list[Payload]:
        """The round of those that speak; returns the answers."""
        wire, sender = self._post.wire, self.sender
        assert wire is not None
        assert sender is not None

        def say() -> list[Payload]:
            v = make()
            with self.ledger.timed("encode", v.size):
                call.draft = sender.draft(v, self._seed.at(step=t))
                bounds = [(stretch.start, stretch.stop) for stretch in self.stretches]
                return cut(call.draft.payload, bounds)

        said = self._told(call, say, len(self.stretches), t)
        payloads = self._pattern.gather_parts(wire, said, self.stretches)
        reply = None if payloads is None else self._reply(call, payloads, t)
        replies = self._pattern.broadcast_parts(wire, reply, self.stretches)
        if self._pattern.claims.answers and wrapped_error(replies) is None:
            self.ledger.count_message(*replies)
        return replies

    # --- down ------------------------------------------------------------------------------------

    def _reply(self, call: _Call, payloads: Sequence[Payload], t: int) -> Payload:
        """Merge what was said about the own stretch, and answer with the result."""
        wrong = wrapped_error(payloads)
        if wrong is not None:
            return wrapped(wrong, Way.UP)
        assert self.own is not None
        try:
            with self.ledger.timed("decode", sum(map(len, payloads))):
                result = self.ends[self.own].reports.merge(payloads, call.targets[self.own])
            return self._answer(call, self.own, result, payloads, self._answer_seed.at(step=t))
        except Exception as error:
            call.error = error
            return wrapped(error_of(error, self.wire.rank, t), Way.UP if self._traceless else Way.DOWN)

    def _answer(
        self, call: _Call, own: int, result: Vector, payloads: Sequence[Payload], seed: Seed
    ) -> Payload:
        if self.answerer is not None:
            with self.ledger.timed("encode", result.size):
                draft = self.answerer.draft(result, seed)
                self.answerer.commit(draft)
            return draft.payload
        call.results[own] = result
        if not self._travels:
            return Payload.build(
                kind=Kind.SKIP, way=Way.DOWN, origin=seed.rank, step=seed.step, n=result.size
            )
        if self._hands_on:
            return bundle(payloads, result.size, seed)
        with self.ledger.timed("encode", result.size):
            try:
                # What is not zero, or all, whichever is shorter.
                answer = compress_changes(result, self._zeros, seed)
            except NotFinite:
                first = int(np.flatnonzero(~np.isfinite(result))[0])
                element = self.ends[own].place.start + first
                raise NotFinite(
                    f"call {seed.step}: element {element} of the result is {result[first]}, and cannot be "
                    "sent to the other ranks: bring smaller numbers, or use exchange allgather, where every "
                    "rank forms the result",
                    element,
                ) from None
        if self._may_hand_on and bundle_size(payloads) < len(answer.body):
            return bundle(payloads, result.size, seed)
        # In what travels a zero has no sign, so here neither: a mean may have underflowed to −0.
        np.add(result, 0, out=result)
        return answer

    def _hear(self, call: _Call, replies: Sequence[Payload]) -> None:
        """Put the results of all stretches into their places."""
        for number, (each, reply) in enumerate(zip(self.ends, replies, strict=True)):
            target, place = call.targets[number], call.places[number]
            if number in call.results:
                result = call.results[number]
            elif reply.codec == REPORTS:
                result = each.reports.merge(handed_on(reply), target)
            else:
                result = each.answer.merge([reply], target)
            if result is not place:
                np.copyto(place, result)

    # --- what goes wrong -------------------------------------------------------------------------

    def _refuse(self, call: _Call, replies: Sequence[Payload]) -> None:
        """Raise what was told in place of an answer."""
        wrong = wrapped_error(replies)
        if wrong is None:
            return
        error = call.error or RankError(wrong.origin, wrong.step, wrong.text)
        if wrong.way is Way.DOWN:
            self._ended = error
        raise error

    def _give_up(self, error: BaseException, t: int) -> None:
        """Tell the ranks that would wait; where every rank hears every other one, none has to be told."""
        if self._travels:
            self._ended = error
            with suppress(WireError):
                self.exchange.notify(self.wire, error, t)

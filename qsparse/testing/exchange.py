"""Laws of exchanges, held over threads, and of meetings."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from qsparse.algorithm import Algorithm
from qsparse.errors import DisagreementError, QsparseError, RankError, SettingError
from qsparse.exchange.base import Exchange, Stretch
from qsparse.local import SGD
from qsparse.meeting import Meeting
from qsparse.payload import Kind, Payload, Way
from qsparse.testing.algorithm import one_round
from qsparse.testing.base import Broken, hold, law
from qsparse.triggers import Every
from qsparse.types import Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

_SIZES: Final = (1, 2, 3, 5)
_ROUNDS: Final = 3
_TIMEOUT: Final = 30.0


def _fitting(part: Exchange) -> Iterator[int]:
    """Numbers of ranks that the settings fit."""
    found = False
    for size in (*_SIZES, *range(6, 10)):
        try:
            part.check(size)
        except SettingError:
            continue
        if size <= max(_SIZES) or not found:
            found = True
            yield size
    hold(found, "its settings fit no number of ranks up to 9")


def _together(size: int, body: Callable[[Wire], Any], *, leftovers: bool = False) -> list[Any]:
    """Run ranks as threads; a message that nobody receives breaks the law unless told otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if leftovers else "error", RuntimeWarning)
        try:
            return run_threads(size, body, timeout=_TIMEOUT)
        except Exception as error:
            raise Broken(f"over {size} ranks: {type(error).__name__}: {error}") from None


def _news(rank: int, step: int) -> Payload:
    return Payload.build([bytes([rank]) * (3 * rank + step)], origin=rank, step=step, n=rank, nbits=8 * rank)


def _answer(step: int) -> Payload:
    return Payload.build([b"answer %d" % step], way=Way.DOWN, step=step)


def _handed_in(part: Exchange, wire: Wire, step: int) -> Payload | None:
    return _news(wire.rank, step) if wire.rank in part.workers(wire.size) else None


@law("workers", "exchange", once=True)
def _workers(part: Exchange, name: str, x: Vector) -> bool:
    """The workers are ranks, in order, at least one; where it claims to serve, all but rank 0."""
    for size in _fitting(part):
        workers = part.workers(size)
        fine = bool(workers) and workers == sorted(set(workers) & set(range(size)))
        hold(fine, f"among {size} ranks the workers are {workers}")
        only = workers == list(range(1, size)) and part.coordinates(0)
        hold(only or not part.claims.serves, "it claims that rank 0 only serves, and all others work")
    return True


@law("gather", "exchange", once=True)
def _gather(part: Exchange, name: str, x: Vector) -> bool:
    """Who coordinates gets the payloads of all workers in rank order, every round; nobody else does."""

    def body(wire: Wire) -> list[list[bytes] | None]:
        got = []
        for step in range(_ROUNDS):
            payloads = part.gather(wire, _handed_in(part, wire, step))
            got.append(None if payloads is None else [bytes(payload.frame) for payload in payloads])
            part.broadcast(wire, None if payloads is None else _answer(step))
        return got

    for size in _fitting(part):
        ranks = _together(size, body)
        coordinators = [rank for rank in range(size) if ranks[rank][0] is not None]
        alone = part.claims.answers and not part.claims.divides
        wanted = 1 if alone else sum(part.coordinates(rank) for rank in range(size))
        hold(len(coordinators) == wanted, f"of {size} ranks {coordinators} coordinate, not {wanted}")
        for step in range(_ROUNDS):
            frames = [bytes(_news(rank, step).frame) for rank in part.workers(size)]
            for rank in range(size):
                due = frames if rank in coordinators else None
                what = f"round {step}, rank {rank} of {size}"
                hold(ranks[rank][step] == due, f"{what}: not the workers' payloads in rank order")
    return True


@law("broadcast", "exchange", once=True)
def _broadcast(part: Exchange, name: str, x: Vector) -> bool:
    """Every rank gets the coordinator's answer of this round, byte for byte."""

    def body(wire: Wire) -> list[bytes]:
        got = []
        for step in range(_ROUNDS):
            payloads = part.gather(wire, _handed_in(part, wire, step))
            reply = None if payloads is None else _answer(step)
            got.append(bytes(part.broadcast(wire, reply).frame))
        return got

    wanted = [bytes(_answer(step).frame) for step in range(_ROUNDS)]
    for size in _fitting(part):
        for rank, got in enumerate(_together(size, body)):
            hold(got == wanted, f"rank {rank} of {size} got another answer than was given")
    return True


@law("some", "exchange", once=True)
def _some(part: Exchange, name: str, x: Vector) -> bool:
    """Where it is claimed, broadcast_to answers the workers that are asked, and sends the others a SKIP."""
    if not part.claims.broadcasts_to_some:
        return False

    def body(wire: Wire) -> list[bool]:
        got = []
        for step in range(_ROUNDS):
            payloads = part.gather(wire, _handed_in(part, wire, step))
            asked = None if payloads is None else [k % 2 == step % 2 for k in range(len(payloads))]
            reply = None if payloads is None else _answer(step)
            answer = part.broadcast_to(wire, reply, asked)
            full = bytes(answer.frame) == bytes(_answer(step).frame)
            hold(full or answer.kind is Kind.SKIP, f"rank {wire.rank} got neither the answer nor a SKIP")
            got.append(full)
        return got

    for size in _fitting(part):
        ranks = _together(size, body)
        for k, rank in enumerate(part.workers(size)):
            wanted = [k % 2 == step % 2 for step in range(_ROUNDS)]
            hold(ranks[rank] == wanted, f"rank {rank} of {size} was answered, or not, against what was asked")
    return True


@law("error", "exchange", once=True)
def _error(part: Exchange, name: str, x: Vector) -> bool:
    """Whoever fails, before gathering or with the answer in hand: every other rank raises RankError."""

    def body(wire: Wire, failing: int, late: bool) -> Exception | None:
        step = 0
        try:
            for step in (1, 2):
                if step == 2 and wire.rank == failing and not late:
                    raise ValueError("no luck")
                payloads = part.gather(wire, _handed_in(part, wire, step))
                if step == 2 and wire.rank == failing and late and payloads is not None:
                    raise ValueError("no luck")
                part.broadcast(wire, None if payloads is None else _answer(step))
        except (RankError, ValueError) as error:
            part.notify(wire, error, step)
            return error
        return None

    for size in _fitting(part):
        for failing in range(size):
            for late in (False, True):
                ranks = _together(size, partial(body, failing=failing, late=late), leftovers=True)
                # Late is what only a rank that coordinates can be; one whose answer does not travel
                # owes nothing any more.
                travels = part.claims.answers and not part.claims.divides
                if late and (ranks[failing] is None or not travels):
                    continue
                for rank, error in enumerate(ranks):
                    what = f"rank {failing} of {size} failed {'late' if late else 'early'}: rank {rank}"
                    if rank == failing:
                        hold(type(error) is ValueError, f"{what} itself raised {error!r}")
                        continue
                    told = isinstance(error, RankError) and (error.rank, error.step) == (failing, 2)
                    hold(told and "no luck" in str(error), f"{what} raised {error!r}")
    return True


def _pieces(part: Exchange, wire: Wire, n: int, step: int) -> tuple[list[Stretch], list[Payload] | None]:
    """The stretches of n coordinates, and what a worker hands in about them."""
    stretches = part.stretches(n, wire.size)
    works = wire.rank in part.workers(wire.size)
    made = [
        Payload.build([bytes([wire.rank, place])], origin=wire.rank, step=step, n=stretch.size)
        for place, stretch in enumerate(stretches)
    ]
    return stretches, made if works else None


def _about(place: int, step: int) -> Payload:
    return Payload.build([b"about %d" % place], way=Way.DOWN, step=step)


@law("stretches", "exchange", once=True)
def _stretches(part: Exchange, name: str, x: Vector) -> bool:
    """Stretches make up the vector; the coordinator of each gets all parts of it, and answers all ranks."""

    def body(wire: Wire, n: int) -> list[tuple[list[bytes] | None, list[bytes]]]:
        got = []
        for step in range(_ROUNDS):
            stretches, pieces = _pieces(part, wire, n, step)
            payloads = part.gather_parts(wire, pieces, stretches)
            mine = [k for k, stretch in enumerate(stretches) if stretch.owner in (None, wire.rank)]
            reply = None if payloads is None else _about(mine[0], step)
            answers = part.broadcast_parts(wire, reply, stretches)
            heard = None if payloads is None else [bytes(each.frame) for each in payloads]
            got.append((heard, [bytes(each.frame) for each in answers]))
        return got

    for size in _fitting(part):
        for n in (1, size + 1, 4099):
            stretches = part.stretches(n, size)
            edges = [0, *(stretch.stop for stretch in stretches)]
            joined = [stretch.start for stretch in stretches] == edges[:-1] and edges[-1] == n
            hold(
                joined and all(stretch.size for stretch in stretches), f"{stretches} are not {n} coordinates"
            )
            owners = [stretch.owner for stretch in stretches]
            divided = len(set(owners)) == len(owners) and set(owners) <= set(range(size))
            hold(
                owners == [None] or (part.claims.divides and divided), f"the owners of {size} ranks: {owners}"
            )
            ranks = _together(size, partial(body, n=n))
            workers = part.workers(size)
            for step in range(_ROUNDS):
                answers = [bytes(_about(place, step).frame) for place in range(len(stretches))]
                for rank in range(size):
                    what = f"round {step}, rank {rank} of {size}, {n} coordinates"
                    heard, replies = ranks[rank][step]
                    hold(replies == answers, f"{what}: not the answers about all stretches, in order")
                    if owners != [None]:
                        hold((heard is not None) == (rank in owners), f"{what}: coordinates, or not")
                    if heard is None:
                        continue
                    place = owners.index(rank) if rank in owners else 0
                    due = [(each, place, stretches[place].size) for each in workers]
                    found = [
                        (*bytes(frame.body), frame.n) for frame in (Payload.parse(each) for each in heard)
                    ]
                    hold(found == due, f"{what}: not the workers' parts of its stretch, in rank order")
    return True


@law("posts", "exchange", once=True)
def _posts(part: Exchange, name: str, x: Vector) -> bool:
    """Who speaks for others says what makes the mean of those that speak the mean of all workers.

    Without the claim `groups` every rank speaks for itself. With the claim `recompresses` those that are told
    by others hear compressed reports.
    """

    def body(wire: Wire) -> tuple[int | None, int, int | None, list[int], float, bool]:
        post = part.post(wire)
        home = post.home
        together = [wire.rank]
        if home is not None:
            for other in range(home.size):
                if other != home.rank:
                    home.send([_news(wire.rank, 1)], other)
            others = (home.receive(other) for other in range(home.size) if other != home.rank)
            together += [payloads[0].origin for _, payloads in others]
        number = None if post.wire is None else post.wire.rank
        place = None if home is None else home.rank
        return number, post.size, place, sorted(together), post.divisor, post.compressed

    for size in _fitting(part):
        posts = _together(size, body)
        workers = part.workers(size)
        speakers = [rank for rank in range(size) if posts[rank][0] is not None]
        numbers = [posts[rank][0] for rank in speakers]
        hold(numbers == list(range(len(speakers))), f"of {size} ranks {speakers} speak, as {numbers}")
        hold({post[1] for post in posts} == {len(speakers)}, "the ranks do not know how many speak")
        if not part.claims.groups:
            alone = speakers == list(range(size)) and all(post[2] is None and not post[5] for post in posts)
            hold(alone, f"of {size} ranks {speakers} speak, and no groups are claimed")
            continue
        for rank, (number, _, place, together, divisor, compressed) in enumerate(posts):
            what = f"rank {rank} of {size}"
            hold((number is None) == (place not in (None, 0)), f"{what} speaks, or not, against its place")
            hold(
                all(posts[other][3] == together for other in together),
                f"{what} is with others than these say",
            )
            twice = part.claims.recompresses and len(together) > 1
            hold(compressed == twice, f"{what}: reports at home are compressed, or not, against the claim")
            fair = abs(divisor * len(speakers) - len(workers)) < 1e-9 * size
            hold(fair, f"{what} divides by {divisor}, and {len(workers)} workers have {len(speakers)} voices")
    return True


@law("error about stretches", "exchange", once=True)
def _error_about_stretches(part: Exchange, name: str, x: Vector) -> bool:
    """Where ranks coordinate a stretch each, an error reaches every rank, also those that coordinate none."""
    if not part.claims.divides:
        return False

    def body(wire: Wire, n: int, failing: int, late: bool) -> Exception | None:
        try:
            stretches, pieces = _pieces(part, wire, n, 1)
            if wire.rank == failing and not late:
                raise ValueError("no luck")
            payloads = part.gather_parts(wire, pieces, stretches)
            if wire.rank == failing and payloads is not None:
                raise ValueError("no luck")
            part.broadcast_parts(wire, None if payloads is None else _about(0, 1), stretches)
        except (RankError, ValueError) as error:
            part.notify(wire, error, 1)
            return error
        return None

    for size in _fitting(part):
        for n, failing, late in itertools.product((1, 2, 4099), range(size), (False, True)):
            if late and failing not in [stretch.owner for stretch in part.stretches(n, size)]:
                continue  # it owes nobody an answer
            errors = _together(size, partial(body, n=n, failing=failing, late=late), leftovers=True)
            for rank, error in enumerate(errors):
                what = f"rank {failing} of {size} failed, {n} coordinates: rank {rank} raised {error!r}"
                hold(isinstance(error, ValueError if rank == failing else RankError), what)
    return True


@law("steps", "exchange", once=True)
def _steps(part: Exchange, name: str, x: Vector) -> bool:
    """Ranks that stand at different steps are found out: DisagreementError, and RankError elsewhere."""

    def body(wire: Wire) -> QsparseError | None:
        ahead = wire.rank == max(part.workers(wire.size))
        try:
            payloads = part.gather(wire, _handed_in(part, wire, 4 + ahead))
            part.broadcast(wire, None if payloads is None else _answer(4))
        except (DisagreementError, RankError) as error:
            part.notify(wire, error, 4)
            return error
        return None

    for size in _fitting(part):
        if len(part.workers(size)) > 1:
            errors = _together(size, body, leftovers=True)
            unaware = [rank for rank, error in enumerate(errors) if error is None]
            hold(not unaware, f"ranks {unaware} of {size} noticed nothing")
            hold(any(isinstance(error, DisagreementError) for error in errors), "no rank says what is wrong")
    return True


@law("meet", "meeting")
def _meet(part: Meeting, name: str, x: Vector) -> bool:
    """One round of three workers, who all end with one model."""
    gap = Every(part.claims.delay + 1)
    algorithm = replace(Algorithm(local=SGD(0.1)), trigger=gap, meeting=part)
    return one_round(algorithm, x)

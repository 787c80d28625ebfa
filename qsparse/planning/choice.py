"""The exchange over which a round takes the fewest seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from qsparse.algorithm import Algorithm
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import AllGather, Exchange, ParameterServer, Sharded
from qsparse.planning.costs import Estimate, Links, estimate, in_parts, messages
from qsparse.rules import check, natural_exchange
from qsparse.types import Layout

#: Another exchange takes the place of the algorithm's own where it saves this part of a round.
_PART: Final = 0.2
#: And at least so many seconds.
_SECONDS: Final = 5e-3
#: Where its answers are rounded in another way, which makes another model.
_OTHER_MODEL: Final = 5e-2


def candidates(algorithm: Algorithm, size: int, own: Exchange | None = None) -> Iterator[Exchange]:
    """The exchanges over which an algorithm may run, its own first.

    Args:
        algorithm: the parts.
        size: the number of ranks.
        own: the exchange that stays unless another one is faster; the algorithm's unless given.
    """
    natural = natural_exchange(algorithm)
    yield (own := own or natural)
    if natural != ParameterServer():
        return  # it needs a coordinator that only serves
    delayed = algorithm.meeting.claims.delay > 0 and not algorithm.answer.exact
    for exchange in (ParameterServer(), AllGather(), Sharded()):
        if exchange == own:
            continue
        if delayed and not exchange.claims.answers:
            continue  # each rank would make the answer, to save a hop that steps hide
        try:
            for phase in filter(None, (algorithm, algorithm.prelude)):
                check(replace(phase, prelude=None, length=None), exchange, size)
        except (CompositionError, SettingError):
            continue
        yield exchange


def best(estimates: Iterable[Estimate], lossless: bool) -> Estimate:
    """The first, unless another one is faster by more than what is hardly seen.

    Args:
        estimates: of the candidates, the algorithm's own exchange first.
        lossless: answers are exact, so that the model is the same over all of them.
    """
    own, *others = estimates

    def saves(each: Estimate) -> bool:
        least = _OTHER_MODEL if each.exchange.claims.divides and not lossless else _SECONDS
        return own.seconds - each.seconds >= max(least, _PART * own.seconds)

    return min(filter(saves, others), key=lambda each: each.seconds, default=own)


def exchange_for(
    algorithm: Algorithm,
    n: int,
    size: int,
    layout: Layout = (),
    links: Links = Links(),
    own: Exchange | None = None,
) -> Exchange:
    """The exchange over which a round of this algorithm is fastest.

    Its own, a parameter server, stays unless another one saves a fifth and some milliseconds.

    Args:
        algorithm: the parts.
        n: the number of coordinates.
        size: the number of ranks.
        layout: the model's layers.
        links: of the ranks.
        own: the exchange that stays in place of the algorithm's.

    >>> from qsparse.registry import build
    >>> row = build("qsparse-local-sgd", "algorithm")
    >>> [exchange_for(row, n, 4) for n in (8_000, 4_000_000)]
    [ParameterServer(root=0, works=True), AllGather()]
    """
    choice = list(candidates(algorithm, size, own))
    if size < 2 or len(choice) == 1:
        return choice[0]
    sent = messages(algorithm, n, size, layout)
    found = (estimate(each, in_parts(sent, algorithm, each, n, size), n, size, links) for each in choice)
    return best(found, algorithm.answer.exact).exchange

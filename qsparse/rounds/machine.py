"""The ranks of a machine for which one of them speaks: their mean report, and the answer on its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from qsparse.compressors.totals import add_up
from qsparse.errors import WireError
from qsparse.exchange import ParameterServer
from qsparse.exchange.base import raise_error
from qsparse.ledger import Ledger
from qsparse.link import Link, Sender
from qsparse.memory import Draft
from qsparse.payload import Payload, Way
from qsparse.seeds import Seed
from qsparse.types import Layout, Vector
from qsparse.wire.base import Wire

#: What is said at home has random numbers of its own, as who speaks draws for the machine at the same step.
_AT_HOME: Final = -1


class Machine:
    """This rank's place on its machine, in the rounds of one node.

    Args:
        home: the wire between the ranks of the machine; number 0 speaks for them.
        divisor: what is said is the sum of the reports divided by this.
        link: how reports are said at home; a receiver takes the decoded total as it is.
        start: the common starting point, (n,).
        seed: of the run, with this rank.
        layout: the model's layers, for messages.
        ledger: where seconds are counted.
    """

    def __init__(
        self,
        home: Wire,
        divisor: float,
        link: Link,
        start: Vector,
        seed: Seed,
        layout: Layout,
        ledger: Ledger,
    ) -> None:
        self.home, self.divisor, self.ledger = home, divisor, ledger
        self.seed = seed.at(use="up").child(_AT_HOME)
        #: Says this rank's reports at home, and keeps what they leave unsaid.
        self.sender = Sender(link, np.zeros_like(start), layout)
        self._draft: Draft | None = None
        self._pooled = np.empty_like(start) if home.rank == 0 else None

    def report(self, v: Vector, t: int, signal: int = 0) -> Payload:
        """This rank's report at step t, marked with the signal by which it was asked to stop."""
        with self.ledger.timed("encode", v.size):
            self._draft = self.sender.draft(v, self.seed.at(step=t))
            return self._draft.payload.asking(signal)

    def commit(self) -> None:
        """The report was said: only now the memory moves. Without a report nothing does."""
        draft, self._draft = self._draft, None
        if draft is not None:
            self.sender.commit(draft)

    def pool(self, mine: Payload, t: int) -> tuple[Vector, int] | None:
        """Bring the reports of the machine together.

        Returns:
            What is to be said for the machine, as of `mean`, and the signal by which one of its ranks was
            asked to stop; None on a rank that does not speak.

        Raises:
            DisagreementError, RankError: as of `gather`.
        """
        payloads = self.gather(mine, t)
        if payloads is None:
            return None
        return self.mean(payloads), max(payload.asked for payload in payloads)

    def gather(self, mine: Payload, t: int) -> list[Payload] | None:
        """The reports of the machine in rank order; None on a rank that does not speak.

        Raises:
            DisagreementError: not all of them report, or not at one step.
            RankError: one of them has failed.
        """
        with self.ledger.timed("exchange"), self.home.at(f"the reports of its machine at step {t}"):
            return ParameterServer().gather(self.home, mine)

    def mean(self, payloads: Sequence[Payload]) -> Vector:
        """What is to be said for the machine, (n,), of its reports; overwritten by the next meeting."""
        assert self._pooled is not None, "a rank that does not speak has nothing to say for others"
        with self.ledger.timed("decode", sum(map(len, payloads))):
            return add_up(payloads, self._pooled, self.divisor)

    def tell(self, said: Payload, replies: Sequence[Payload], sent: bool) -> None:
        """Pass the answers on to the other ranks, after a SKIP where the report was not sent."""
        message = list(replies) if sent else [said, *replies]
        with self.ledger.timed("exchange"):
            for rank in range(1, self.home.size):
                self.home.send(message, rank)
            self.home.flush()

    def hear(self, t: int, count: int) -> tuple[list[Payload], bool]:
        """The answers about so many stretches, and whether what the machine had to say was sent.

        Raises:
            RankError: who speaks has failed, or was told that another rank has.
        """
        with self.ledger.timed("exchange"), self.home.at(f"the answers of step {t}"):
            _, payloads = self.home.receive(0)
        raise_error(payloads[0])
        sent = payloads[0].way is not Way.UP
        replies = payloads if sent else payloads[1:]
        if len(replies) != count:
            raise WireError(
                f"rank {self.home.origin} got {len(replies)} answers at step {t} where {count} were expected"
            )
        return replies, sent

"""Which worker waits for which: a meeting takes a rank through its steps, by the loops that there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from qsparse.errors import SettingError
from qsparse.registry import register, spell


@dataclass(frozen=True)
class MeetingClaims:
    """What a meeting promises; the rules of composition go by it.

    Attributes:
        waits: all workers meet at the same steps, and everybody waits for everybody; else the coordinator
            only serves, and answers each report when it comes.
        delay: where they wait, the local steps between a report and its answer.
        ahead: where nobody waits, a worker this many meetings ahead of the slowest is answered only when that
            one has caught up by one; None: never wait.
    """

    waits: bool = True
    delay: int = 0
    ahead: int | None = None


class Loops(Protocol):
    """What a rank can do with the steps of a phase; a meeting chooses, and each yields what happens."""

    def together(self, delay: int) -> Iterator[Any]:
        """Take the steps; all ranks meet at the same ones, and adopt the answer ``delay`` steps later."""

    def by_arrival(self, ahead: int | None) -> Iterator[Any]:
        """Take the steps, or serve those who do: each report is answered when it comes, up to the bound."""


class Meeting:
    """Which worker waits for which."""

    kind: ClassVar[str] = "meeting"
    registered_name: ClassVar[str]

    @property
    def claims(self) -> MeetingClaims:
        """What this meeting promises."""
        return MeetingClaims()

    def drive(self, loops: Loops) -> Iterator[Any]:
        """Take a rank through the steps of a phase, by its loops; what happens is yielded on.

        The loop is the one that the claims say, unless a meeting drives otherwise.
        """
        claims = self.claims
        return loops.together(claims.delay) if claims.waits else loops.by_arrival(claims.ahead)


@register("synchronous")
@dataclass(frozen=True)
class Sync(Meeting):
    """All workers meet at the same steps, and everybody waits for everybody.

    With a delay the answer to the report of step t is adopted at step t + delay, and what a worker has done
    since is kept: x ← answer + (x − x at step t). Frames travel while the local steps go on. Results are the
    same in every run. The next report comes with the answer adopted, however long the delay, and the last
    one waits for its answer.

    Args:
        delay: local steps between report and answer; 0: wait.
    """

    delay: int = 0

    def __post_init__(self) -> None:
        if type(self.delay) is not int or self.delay < 0:
            raise SettingError(f"{spell(self)}: delay must be a whole number of at least 0")

    @property
    def claims(self) -> MeetingClaims:
        """Everybody waits, at the report or later."""
        return MeetingClaims(delay=self.delay)


# "async" would be a keyword of the grammar that spells parts.
@register("asynchronous")
@dataclass(frozen=True)
class Async(Meeting):
    """Each worker meets the coordinator at steps of its own and waits for nobody else.

    Basu et al., 2019, Algorithm 2. The coordinator, rank 0, only serves.

    Args:
        ahead: a worker this many meetings ahead of the slowest is answered only when that one has
            caught up by one; None: never wait.
    """

    ahead: int | None = None

    def __post_init__(self) -> None:
        if self.ahead is not None and (not isinstance(self.ahead, int) or self.ahead < 0):
            raise SettingError(f"{spell(self)}: ahead must be a whole number of at least 0")

    @property
    def claims(self) -> MeetingClaims:
        """Nobody waits, up to the bound."""
        return MeetingClaims(waits=False, ahead=self.ahead)

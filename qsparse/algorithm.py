"""An algorithm is one choice per axis of the design space."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from qsparse.errors import SettingError
from qsparse.link import Link
from qsparse.local import Local
from qsparse.memory import Changes, Stateless
from qsparse.registry import register, spell
from qsparse.schedules import among, over
from qsparse.server import Descend, ServerRule
from qsparse.triggers import Every, Trigger


class Meeting:
    """Who waits for whom; the loops of `qsparse.rounds` know what each means."""

    kind: ClassVar[str] = "meeting"
    registered_name: ClassVar[str]


@register("synchronous")
@dataclass(frozen=True)
class Sync(Meeting):
    """All workers meet at the same steps, and everybody waits for everybody."""


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


@dataclass(frozen=True)
class Algorithm:
    """What every rank does in every round: one choice per axis, for a whole run or for a phase of it.

    Args:
        local: what a worker does between meetings, and what it reports.
        trigger: when it speaks.
        up: how reports are said.
        server: what the coordinator does with their mean.
        down: how models are said; None: exactly, see `answer`.
        meeting: who waits for whom.
        prelude: another phase, which comes before this one and again after every ``length`` steps.
        length: steps of a worker in this phase; None: all that remain.
    """

    local: Local
    trigger: Trigger = Every(1)
    up: Link = Link()
    server: ServerRule = Descend()
    down: Link | None = None
    meeting: Meeting = Sync()
    prelude: Algorithm | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        length = self.length
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise SettingError(f"a phase takes a whole number of at least 1 steps, not {length}")

    @property
    def answer(self) -> Link:
        """How models are said: ``down``, or else exactly, as float32.

        Sparse reports move a model in few coordinates, so then what has changed is said, with memory changes.
        """
        if self.down is not None:
            return self.down
        few = self.up.compressor.sparse and not (self.up.memory.skip_repeats or self.server.moves_all)
        return Link(memory=Changes() if few and not self.trigger.asks else Stateless())

    @property
    def replays(self) -> bool:
        """Whether a worker can take the coordinator's step by itself, if it is told the reports of all.

        Then it is told these where they are smaller than what they change.
        """
        plain = self.up.memory.adds_nothing and self.server.replayable
        return self.answer.memory.exact and plain and isinstance(self.meeting, Sync)

    def phases(self, steps: int) -> Iterator[tuple[Algorithm, int]]:
        """The phases of a run of so many steps, each with its number of steps: walked in a circle."""
        circle = [self] if self.prelude is None else [self.prelude, self]
        for phase in itertools.cycle(circle):
            taken = steps if phase.length is None else min(phase.length, steps)
            if taken == 0:
                return
            yield phase, taken
            steps -= taken

    def axes(self) -> dict[str, str]:
        """The choice on each axis as text; those of the prelude under ``prelude …``."""
        prelude = {} if self.prelude is None else self.prelude.axes()
        length = {} if self.length is None else {"length": str(self.length)}
        return {
            "local": spell(self.local),
            "trigger": spell(self.trigger),
            "compressor": spell(self.up.compressor),
            "memory": spell(self.up.memory),
            "server": spell(self.server),
            "down": spell(self.answer.compressor),
            "down_memory": spell(self.answer.memory),
            "meeting": spell(self.meeting),
            **length,
            **{f"prelude {axis}": text for axis, text in prelude.items()},
        }

    def over(self, steps: int) -> Algorithm:
        """The algorithm for a run of so many steps: schedules without a length get this one."""
        parts = {axis: over(getattr(self, axis), steps) for axis in ("local", "trigger", "server")}
        prelude = None if self.prelude is None else self.prelude.over(steps)
        return replace(self, prelude=prelude, **parts)

    def among(self, workers: int) -> Algorithm:
        """The algorithm for so many workers: rates that are theirs together become those of their mean."""
        prelude = None if self.prelude is None else self.prelude.among(workers)
        return replace(
            self,
            prelude=prelude,
            local=among(self.local, workers),
            server=among(self.server, workers),
        )

    def spelling(self) -> str:
        """All axes on one line."""
        return ", ".join(f"{axis} {text}" for axis, text in self.axes().items())

"""An algorithm is one choice per axis of the design space."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

from qsparse.errors import SettingError
from qsparse.link import Link
from qsparse.local import SGD, Local
from qsparse.meeting import Async, Meeting, MeetingClaims, Sync
from qsparse.memory import Changes, Innovation, Stateless
from qsparse.participation import Everyone, Participation
from qsparse.registry import AXES, build, spell, unknown_setting
from qsparse.schedules import among, over
from qsparse.server import Descend, ServerRule
from qsparse.triggers import Every, Trigger

__all__ = ["Algorithm", "Async", "Meeting", "MeetingClaims", "Sync"]

#: Where the part of each axis lies in an algorithm.
_PLACES: Final[dict[str, tuple[str, ...]]] = {
    "local": ("local",),
    "trigger": ("trigger",),
    "participation": ("participation",),
    "compressor": ("up", "compressor"),
    "memory": ("up", "memory"),
    "server": ("server",),
    "down": ("down", "compressor"),
    "down_memory": ("down", "memory"),
    "meeting": ("meeting",),
}
#: What an algorithm has besides the parts on its axes.
_PHASES: Final = ("prelude", "length")


@dataclass(frozen=True)
class Algorithm:
    """What every rank does in every round: one choice per axis, for a whole run or for a phase of it.

    Args:
        local: what a worker does between meetings, and what it reports; unless given, SGD whose learning rate
            is open.
        trigger: when it speaks.
        up: how reports are said.
        server: what the coordinator does with their mean.
        down: how models are said; None: exactly, see `answer`.
        meeting: who waits for whom.
        participation: which workers take part in a round.
        prelude: another phase, which comes before this one and again after every ``length`` steps.
        length: steps of a worker in this phase; None: all that remain.
    """

    local: Local = SGD()
    trigger: Trigger = Every(1)
    up: Link = Link()
    server: ServerRule = Descend()
    down: Link | None = None
    meeting: Meeting = Sync()
    participation: Participation = Everyone()
    prelude: Algorithm | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        length = self.length
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise SettingError(f"a phase takes a whole number of at least 1 steps, not {length}")

    @property
    def answer(self) -> Link:
        """How models are said: ``down``, or else exactly, as float32.

        Sparse reports move a model in few coordinates, and a rule that goes by signs moves them all alike, so
        then what has changed is said, with memory changes.
        """
        if self.down is not None:
            return self.down
        few = self.up.compressor.sparse and not (
            self.up.memory.claims.skip_repeats or self.server.claims.moves_all
        )
        little = (few or self.server.claims.moves == "signs") and not self.participation.claims.chooses
        return Link(memory=Changes() if little else Stateless())

    @property
    def replays(self) -> bool:
        """Whether a worker can take the coordinator's step by itself, if it is told the mean report."""
        exact = self.answer.memory.claims.exact
        return exact and self.server.claims.replayable and self.meeting.claims.waits

    @property
    def hands_on(self) -> bool:
        """Whether the reports of all spell the mean report: they are the answer where they are shorter."""
        return self.replays and self.up.memory.claims.adds_nothing

    @property
    def votes(self) -> bool:
        """Whether the signs of the mean report are all that the step goes by: these are the answer then."""
        return self.replays and self.server.claims.moves == "signs"

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
        """The choice on each axis as text; those of the prelude under ``prelude …``.

        Participation is an axis of it where workers may be left out.
        """
        prelude = {} if self.prelude is None else self.prelude.axes()
        length = {} if self.length is None else {"length": str(self.length)}
        silent = () if self.participation.claims.chooses else ("participation",)
        return {
            **{axis: spell(self.part(axis)) for axis in AXES if axis not in silent},
            **length,
            **{f"prelude {axis}": text for axis, text in prelude.items()},
        }

    @classmethod
    def of(cls, axes: Mapping[str, str]) -> Algorithm:
        """The algorithm of choices as text: the inverse of `axes`.

        Args:
            axes: text by axis, those of a prelude under ``prelude …``; without an axis it has its default.

        Raises:
            SettingError: there is no such axis, or no such part.

        >>> row = Algorithm.of({"trigger": "every(H=8)", "compressor": "topk(k=9)"})
        >>> row.axes()["down_memory"], Algorithm.of(row.axes()) == row
        ('changes', True)
        """
        before = {axis.removeprefix("prelude "): axes[axis] for axis in axes if axis.startswith("prelude ")}
        own = {axis: text for axis, text in axes.items() if not axis.startswith("prelude ")}
        for axis in own:
            if axis not in AXES and axis != "length":
                raise unknown_setting("an algorithm", axis, [*AXES, "length"])
        length = own.pop("length", None)
        if length is not None and not length.isdecimal():
            raise SettingError(f"a phase takes a whole number of at least 1 steps, not {length}")
        parts = {axis: build(text, AXES[axis]) for axis, text in own.items()}
        made = cls(
            prelude=cls.of(before) if before else None, length=None if length is None else int(length)
        ).with_(**parts)
        silent = replace(made, down=None)
        return silent if silent.answer == made.answer else made

    def with_(self, **settings: Any) -> Algorithm:
        """This algorithm with other parts, or other settings of its parts.

        The name of an axis (`axes`), ``prelude`` or ``length`` takes another part for it. Every other name is
        a setting, and goes to the first part that has it, in the order of the axes; where workers report
        gradients the server rule, which takes the step then, comes first. Parts within a part come after it.

        Args:
            **settings: parts and values by name. A new ``down`` comes with memory innovation, unless the link
                has a memory that belongs to the algorithm.

        Raises:
            SettingError: no part has such a setting, or the part refuses the value.

        >>> row = Algorithm(SGD(), Every(4)).with_(lr=0.1, H=8, compressor=build("topk(k=9)", "compressor"))
        >>> row.with_(ratio=0.01, momentum=0.9).spelling()[:79]
        'local sgd(lr=0.1, momentum=0.9), trigger every(H=8), compressor topk(ratio=0.01'
        """
        parts = {name: value for name, value in settings.items() if name in AXES or name in _PHASES}
        made = self._with_parts(parts)
        homes = made._homes()
        changes: dict[tuple[str, ...], dict[str, Any]] = {}
        for name, value in settings.items():
            if name in parts:
                continue
            if name not in homes:
                raise unknown_setting(f"the algorithm of {made.spelling()}", name, made.settings())
            changes.setdefault(homes[name], {})[name] = value
        for path, values in changes.items():
            made = _put(made, path, values)
        return made

    def settings(self) -> list[str]:
        """The names that `with_` takes: the settings of the parts, then the axes.

        >>> Algorithm().settings()[:4]
        ['lr', 'momentum', 'nesterov', 'weight_decay']
        """
        return list(dict.fromkeys([*self._homes(), *AXES]))

    def axis_of(self, setting: str) -> str:
        """The axis on which the part lies that gets a setting from `with_`.

        >>> Algorithm().axis_of("lr"), Algorithm().axis_of("H")
        ('local', 'trigger')
        """
        path = self._homes()[setting]
        return next(axis for axis, place in _PLACES.items() if path[: len(place)] == place)

    def part(self, axis: str) -> Any:
        """The part on an axis.

        >>> Algorithm().part("down")
        Float32()
        """
        return _at(replace(self, down=self.answer), _PLACES[axis])

    def _with_parts(self, parts: Mapping[str, Any]) -> Algorithm:
        if getattr(parts.get("trigger"), "kind", None) == "participation":  # as earlier releases had it
            parts = {**parts, "participation": parts["trigger"], "trigger": Every(1)}
        for axis, part in parts.items():
            if axis in AXES and getattr(part, "kind", None) != AXES[axis]:
                raise SettingError(
                    f"{axis} must be a {AXES[axis]}, made by build(…, {AXES[axis]!r}), not {part!r}"
                )
        own = {name: part for name, part in parts.items() if name in _PHASES or len(_PLACES[name]) == 1}
        made = replace(self, **own)
        up = {axis: parts[axis] for axis in ("compressor", "memory") if axis in parts}
        made = replace(made, up=replace(made.up, **up))
        if "down" in parts:
            # A memory of the algorithm's own is a rule of it, such as the precision that AsyLPG asks for.
            kept = Stateless() if made.down is None else made.down.memory
            memory = kept if kept.claims.remembers else Innovation()
            made = replace(made, down=Link(parts["down"], memory))
        if "down_memory" in parts:
            made = replace(made, down=replace(made.answer, memory=parts["down_memory"]))
        return made

    def _homes(self) -> dict[str, tuple[str, ...]]:
        """Each setting of the parts, and where the first part lies that has it."""
        order = [axis for axis in AXES if self.down is not None or not axis.startswith("down")]
        if self.local.claims.reports_gradient:
            order.sort(key="server".__ne__)
        homes: dict[str, tuple[str, ...]] = {}
        for axis in order:
            for where, names in _settings_within(_at(self, _PLACES[axis]), _PLACES[axis]):
                for name in names:
                    homes.setdefault(name, where)
        if self.local.claims.reports_gradient and self.trigger.claims.always_due:
            homes.pop("H", None)  # a gradient is reported when it is made: a longer gap would lose some
        return homes

    def closed(self) -> Algorithm:
        """The algorithm with a learning rate: a local step that was left open takes its usual one.

        >>> Algorithm(SGD(momentum=0.5)).closed().local
        SGD(lr=0.1, momentum=0.5, nesterov=False, weight_decay=0.0, decoupled=False, decay_on='all')
        """
        return replace(self, local=self.local.closed())

    def over(self, steps: int) -> Algorithm:
        """The algorithm for a run of so many steps: closed, and schedules without a length get this one."""
        closed = self.closed()
        parts = {
            axis: over(getattr(closed, axis), steps)
            for axis in ("local", "trigger", "participation", "server")
        }
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


def _at(owner: Any, path: tuple[str, ...]) -> Any:
    """What lies at a path within something."""
    return functools.reduce(getattr, path, owner)


def _settings_within(part: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Of the part at a path, and of those within it: where it lies, and the settings that it has."""
    if not is_dataclass(part):
        return
    inner = _parts_within(part)
    yield path, [field.name for field in fields(part) if field.init and field.name not in inner]
    for name in inner:
        yield from _settings_within(getattr(part, name), (*path, name))


def _parts_within(part: Any) -> list[str]:
    """The settings of a part that are parts of its own kind."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return [name for name, value in values.items() if getattr(value, "kind", None) == part.kind]


def _put(owner: Any, path: tuple[str, ...], values: Mapping[str, Any]) -> Any:
    """A part with other settings of the part at a path within it."""
    if path:
        return replace(owner, **{path[0]: _put(getattr(owner, path[0]), path[1:], values)})
    # One of several ways to say a thing takes the place of the others.
    ways: frozenset[str] = getattr(owner, "one_of", frozenset())
    others = ways - values.keys() if ways & values.keys() else ()
    defaults = {field.name: field.default for field in fields(owner) if field.name in others}
    try:
        return replace(owner, **defaults, **values)
    except TypeError:
        said = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise SettingError(f"{spell(owner)} does not take {said}: one has the wrong type") from None

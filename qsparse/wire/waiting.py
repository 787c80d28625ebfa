"""Waiting for other ranks: asleep, with warnings, and not for ever.

A wait that has lasted a while says on standard error for which ranks it waits. It says so again after twice
the time, after four times, and so on. After a longer time it ends, with `WaitTimeout`. Both times can be set:

* ``QSPARSE_WAIT_WARN``: seconds until the first line; 60 unless set, 0 is never.
* ``QSPARSE_WAIT_END``: seconds until the end; 1800 unless set, 0 is never. Ranks that only wait for the
  others to end, with nothing left to send them, wait for ever unless it is set, because what the others do
  then is not known here.

The time counts from the last message that has moved.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from qsparse.errors import SettingError, WaitTimeout
from qsparse.payload import Kind, Payload, Way

_WARN, _END = "QSPARSE_WAIT_WARN", "QSPARSE_WAIT_END"
_DEFAULTS: Final = {_WARN: 60.0, _END: 1800.0}

#: The first sleep between two looks, and the longest.
_SHORT, _LONG = 20e-6, 1e-3
#: The same where nobody is kept waiting.
_EASY, _LAZY = 200e-6, 1e-2


class Limits(NamedTuple):
    """How long a rank waits, in seconds; infinity means never.

    Attributes:
        warn: seconds until it says that it waits.
        end: seconds until it gives up.
        leave: seconds until it gives up waiting for others to end, when it has ended itself.
    """

    warn: float
    end: float
    leave: float

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Limits:
        """The limits that the environment sets.

        Raises:
            SettingError: a variable that is not a number of seconds.
        """
        warn, end = _seconds(environ, _WARN), _seconds(environ, _END)
        return cls(warn, end, end if environ.get(_END) else math.inf)


def _seconds(environ: Mapping[str, str], name: str) -> float:
    text = environ.get(name)
    if not text:
        return _DEFAULTS[name]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise SettingError(
            f"{name} is {text!r}, which is not a number of seconds: set it to 0 (never) or more, or unset it "
            f"({_DEFAULTS[name]:.0f})"
        )
    return seconds or math.inf


class Patience:
    """Waiting that leaves the core to others: polls without sleeping at first, then with growing sleeps.

    Args:
        hurry: given where the rank computes meanwhile, and set when it comes to wait, too. Until then sleeps
            grow faster, because a poll takes time from what the rank computes.
    """

    def __init__(self, hurry: threading.Event | None = None) -> None:
        self._hurry = hurry
        self._polls, self._pause = 0, 0.0
        self._begin()

    def rest(self, moved: bool) -> None:
        """Sleep if it is time to; called after each poll, and ``moved`` says whether that found work."""
        if moved:
            self._begin()
        elif self._hurry is not None:
            if self._hurry.wait(self._pause):
                self._hurry = None
                self._begin()
            else:
                # Half of the wait so far may be overslept.
                self._pause = min(1.5 * self._pause, _LAZY)
        elif self._polls < 20:
            self._polls += 1
        else:
            time.sleep(self._pause)
            # A sleep grows by a tenth each time, so it is a tenth of the wait so far: little is overslept.
            self._pause = min(1.1 * self._pause, _LONG)

    def _begin(self) -> None:
        self._polls, self._pause = 0, _SHORT if self._hurry is None else _EASY


class Alarm:
    """Tells of a wait in which nothing moves, and ends it when it is too long.

    Args:
        rank: the rank that waits.
        warn, end: seconds, as in `Limits`.
        describe: says what it waits for, of which ranks, and what is known: ``"for a message of rank 1: …"``.
    """

    def __init__(self, rank: int, warn: float, end: float, describe: Callable[[], str]) -> None:
        self.since = time.monotonic()
        self._rank = rank
        self._next, self._end = warn, end
        self._describe = describe

    def left(self) -> float:
        """Seconds until a warning or the end is due; infinity means never."""
        return max(min(self._next, self._end) - self.waited(), 0.0)

    def waited(self) -> float:
        """Seconds in which nothing has moved."""
        return time.monotonic() - self.since

    def look(self) -> None:
        """Print the warning that is due, if any.

        Raises:
            WaitTimeout: the wait has lasted too long.
        """
        waited = self.waited()
        if waited >= self._end:
            raise WaitTimeout(
                f"rank {self._rank} has waited {waited:.0f} s {self._describe()}. Find out what keeps "
                f"it; {_END} sets after how many seconds a wait ends the job (0: never)"
            )
        if waited >= self._next:
            while self._next <= waited:
                self._next *= 2
            ends = "" if math.isinf(self._end) else f"; ends the job after {self._end:.0f} s ({_END})"
            text = f"[rank {self._rank}] has waited {waited:.0f} s {self._describe()}{ends}\n"
            if sys.stderr is not None:
                sys.stderr.write(text)
                sys.stderr.flush()


class Wait(Patience):
    """Patience with an alarm, which is made only when the sleeps have become long; a short wait needs none.

    Args:
        alarm: makes the alarm.
        consult: called about every tenth of a second once the sleeps are long; may raise.
        hurry: as of `Patience`.
    """

    def __init__(
        self,
        alarm: Callable[[], Alarm],
        consult: Callable[[float], None] | None = None,
        hurry: threading.Event | None = None,
    ) -> None:
        super().__init__(hurry)
        self._make = alarm
        self._alarm: Alarm | None = None
        self._consult = consult
        self._due = 0.0

    def rest(self, moved: bool) -> None:
        """Sleep as `Patience` does, and look at the alarm."""
        super().rest(moved)
        if moved:
            self._alarm = None
        elif self._pause >= _LONG:
            now = time.monotonic()
            if self._alarm is None:
                self._alarm, self._due = self._make(), now
            if now >= self._due:
                self._due = now + 0.1
                if self._consult is not None:
                    self._consult(self._alarm.waited())
                self._alarm.look()


class Heard(NamedTuple):
    """The last message of a rank."""

    at: float
    kind: Kind
    way: Way
    step: int

    @classmethod
    def now(cls, payload: Payload) -> Heard:
        """The message with this payload, which has just come."""
        return cls(time.monotonic(), payload.kind, payload.way, payload.step)

    def __str__(self) -> str:
        what = {Way.UP: "report", Way.DOWN: "answer", Way.CONTROL: "note"}[self.way]
        if self.kind is not Kind.DATA:
            what = self.kind.name.lower()
        step = f" of step {self.step}" if self.step or self.way is not Way.CONTROL else ""
        return f"last heard of {time.monotonic() - self.at:.0f} s ago ({what}{step})"


def named(ranks: Sequence[int]) -> str:
    """Ranks in words; of many only the first few.

    >>> named([3]), named([0, 2]), named(range(20)), named([])
    ('rank 3', 'ranks 0, 2', 'ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more', 'no other rank')
    """
    if not ranks:
        return "no other rank"
    shown = ", ".join(map(str, ranks[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' * (len(ranks) > 1)} {shown}{more}"


def last_heard(ranks: Sequence[int], heard: Mapping[int, Heard]) -> str:
    """In words, when each rank was last heard of; of many only the first few."""
    told = (str(heard[rank]) if rank in heard else "not heard of yet" for rank in ranks[:8])
    return ", ".join(f"rank {rank} {each}" for rank, each in zip(ranks, told, strict=False))

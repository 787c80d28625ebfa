"""Two ranks that wait for each other: found out in seconds, without being wrong.

A rank waits for a message of another on one wire, the other for one of the first, mostly on another
wire: objects that are called in another order on each rank. Neither can know alone. But each knows how
many messages it has sent the other, so when it is told of the other's wait and how many of them the
other has had there, it knows whether anything but a message of its own can end that wait. It says so in
a note of its own. A rank that has seen that of the other's wait, and is told that the other has seen it
of this very wait, knows that both last for ever.

All of that holds only where nobody else sends in a rank's name, so nothing is concluded in processes of
several threads, nor of ranks that wait for one of several. Their waits end by time.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final

from qsparse.errors import DisagreementError
from qsparse.wire.mpi_channel import Channel, Note, Received, channels, notes, take_notes

if TYPE_CHECKING:
    from qsparse.wire.mpi import MpiWire

#: A wait of so many seconds is told to those for whom it is, unless the first warning comes earlier.
TELLING: Final = 5.0

_serials = itertools.count(1)


class Inquiry:
    """What a rank that waits to receive says to others, and hears of theirs.

    Args:
        wire: on which it waits.
        rank: for whom, if for one rank only.
        waits: in words, for what.
    """

    def __init__(self, wire: MpiWire, rank: int | None, waits: Callable[[], str]) -> None:
        self._wire, self._rank, self._waits = wire, rank, waits
        self._serial = next(_serials)
        self._said: dict[Hashable, tuple[int, int]] = {}
        take_notes()
        self._begin = time.monotonic()

    def look(self) -> None:
        """Take in notes, and say what they change.

        Raises:
            DisagreementError: the rank for whom this one waits waits for this one.
        """
        take_notes()
        channel = self._wire.channel
        # Another thread of this process could send, also one that has not yet done so.
        single = threading.active_count() == 1
        partner = None if self._rank is None else channel.world[self._rank]
        if partner is not None:
            assert self._rank is not None
            came = notes.get(partner)
            seen = came.note.serial if came is not None and single and _stuck(came) else 0
            if came is not None and seen and came.note.seen == self._serial:
                raise DisagreementError(self._sentence(self._rank, came))
            self._say(channel, self._rank, partner, came, single, seen)
        # Whoever waits for this rank learns what that waits for.
        for other, came in list(notes.items()):
            if other != partner and came.channel in channels:
                self._say(came.channel, came.source, other, came, False, 0)

    def told(self, ranks: list[int]) -> str:
        """What ranks have said of waits of theirs since this one began, in words."""
        lines = []
        for rank in ranks[:8]:
            came = notes.get(self._wire.channel.world[rank])
            if came is not None and came.at >= self._begin:
                ago = time.monotonic() - came.at
                lines.append(f"; rank {rank} said {ago:.0f} s ago that it waits {came.note.waits} itself")
        return "".join(lines)

    def _say(
        self, channel: Channel, dest: int, who: Hashable, came: Received | None, alone: bool, seen: int
    ) -> None:
        state = 0 if came is None else came.note.serial, seen
        if self._said.get(who) == state:
            return
        self._said[who] = state
        wire = self._wire
        # What it has had is asked of those only for whom this rank waits, on the wire's own channel.
        had = wire.had[dest] if channel is wire.channel else 0
        channel.post(dest, Note(self._serial, wire.number, had, alone, seen, self._waits())._asdict())

    def _sentence(self, rank: int, came: Received) -> str:
        own = self._wire
        same = came.channel is own.channel and came.note.wire == own.number
        return (
            f"rank {own.rank} waits {self._waits()}, and rank {rank} waits {came.note.waits}: each waits for "
            "the other, and nothing is under way. "
            + (
                "They are at different places of the program: let all ranks make the same calls"
                if same
                else "Call the objects in the same order on all ranks"
            )
        )


def _stuck(came: Received) -> bool:
    """Can nothing but a message of this rank end the wait that was told?"""
    wire = came.channel.wires.get(came.note.wire)
    return came.note.alone and wire is not None and wire.sent[came.source] == came.note.had

"""Two ranks that wait for each other find this out in seconds, and never by mistake.

One rank waits for a message of another on one wire, and the other waits for a message of the first, mostly
on another wire, because objects are called in another order on each rank. Neither can know this alone. But
each knows how many messages it has sent the other. When it is told of the other's wait, and how many
messages the other has received there, it knows whether anything but its own message can end that wait. It
says so in a note. A rank that has seen this of the other's wait, and is told that the other has seen it of
its own present wait, knows that both waits last for ever.

This holds only where no other thread sends in a rank's name. So nothing is concluded in processes of several
threads, nor for ranks that wait for any of several ranks. Their waits end by the limits of time.
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

#: After so many seconds a wait is told to the ranks that it is for, unless the first warning comes earlier.
TELLING: Final = 5.0

_serials = itertools.count(1)


class Inquiry:
    """What a rank that waits to receive tells others of its wait, and hears of theirs.

    Args:
        wire: the wire on which it waits.
        rank: the rank for which it waits, if for one only.
        waits: in words, for what it waits.
    """

    def __init__(self, wire: MpiWire, rank: int | None, waits: Callable[[], str]) -> None:
        self._wire, self._rank, self._waits = wire, rank, waits
        self._serial = next(_serials)
        self._said: dict[Hashable, tuple[int, int]] = {}
        take_notes()
        self._begin = time.monotonic()

    def look(self) -> None:
        """Receive notes, and send what follows from them.

        Raises:
            DisagreementError: this rank waits for another, which waits for this one.
        """
        take_notes()
        channel = self._wire.channel
        # Another thread of this process could send, even if it has not yet done so.
        single = threading.active_count() == 1
        partner = None if self._rank is None else channel.world[self._rank]
        if partner is not None:
            assert self._rank is not None
            came = notes.get(partner)
            seen = came.note.serial if came is not None and single and _stuck(came) else 0
            if came is not None and seen and came.note.seen == self._serial:
                raise DisagreementError(self._sentence(self._rank, came))
            self._say(channel, self._rank, partner, came, single, seen)
        # Ranks that wait for this one learn what it waits for.
        for other, came in list(notes.items()):
            if other != partner and came.channel in channels:
                self._say(came.channel, came.source, other, came, False, 0)

    def told(self, ranks: list[int]) -> str:
        """In words, what ranks have said of their waits since this one began."""
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
        # The number of received messages counts only for ranks that this one waits for, on its channel.
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
    """Whether only a message of this rank can end the wait that the note describes."""
    wire = came.channel.wires.get(came.note.wire)
    return came.note.alone and wire is not None and wire.sent[came.source] == came.note.had

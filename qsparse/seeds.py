"""Randomness by name: who draws, when and for what decides the numbers, nothing else does.

No generator is shared and none is advanced, so results depend neither on the number of threads nor
on which rank asks first, and a receiver can repeat what a sender drew.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

#: The rank in the seeds (and frames) of the coordinator, whichever rank plays it.
COORDINATOR = 0xFFFF_FFFF


@dataclass(frozen=True)
class Seed:
    """Names one stream of random numbers.

    Args:
        run: the seed of the whole run.
        rank: who draws; ``COORDINATOR`` for the coordinator's stream.
        step: when.
        use: for what, e.g. ``"up"``, ``"down"``, ``"batch"``.
        path: further numbers, e.g. the block within a vector.

    >>> Seed(7, rank=1, step=3, use="up").key == Seed(7, rank=1, step=3, use="up").key
    True
    >>> Seed(7).at(step=3) == Seed(7, step=3)
    True
    """

    run: int
    rank: int = 0
    step: int = 0
    use: str = ""
    path: tuple[int, ...] = ()

    @property
    def key(self) -> int:
        """A 64-bit key for the counter-based generator (Philox4x32-10)."""
        numbers = (self.run, self.rank, self.step, *self.path)
        text = struct.pack(f"<{len(numbers)}q", *(n & 0x7FFF_FFFF_FFFF_FFFF for n in numbers))
        digest = hashlib.blake2b(self.use.encode() + b"\0" + text, digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def at(self, *, rank: int | None = None, step: int | None = None, use: str | None = None) -> Seed:
        """The same stream at another rank, step or use."""
        # Every message asks for one: `dataclasses.replace` takes longer.
        return Seed(
            self.run,
            self.rank if rank is None else rank,
            self.step if step is None else step,
            self.use if use is None else use,
            self.path,
        )

    def child(self, number: int) -> Seed:
        """An independent stream below this one, e.g. for one block of a vector."""
        return Seed(self.run, self.rank, self.step, self.use, (*self.path, number))

    def generator(self) -> np.random.Generator:
        """A NumPy generator that starts at this stream, for what is not worth a kernel."""
        return np.random.Generator(np.random.Philox(key=self.key))

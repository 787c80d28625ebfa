"""What is kept of what was not said.

A link has one memory and both its ends keep a state of it. The sender asks for the `addend` before it
compresses and calls `commit` once a message was really sent; the receiver asks `restore` once per merge.
Nothing else moves the state, so a message that was skipped or failed leaves no trace.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from qsparse.compressors.base import Compressor
from qsparse.compressors.decoding import subtract_from, unpack
from qsparse.compressors.sums import Sum
from qsparse.compressors.totals import add_up
from qsparse.kernels import vector
from qsparse.payload import Payload
from qsparse.seeds import Seed
from qsparse.types import State, Vector


class Draft(NamedTuple):
    """A message that may be sent.

    Attributes:
        payload: what it spells.
        total: what was compressed, and in its ``out`` the sum, or the rest of it that is not said.
        clock: how far the run is; schedules go by it.
        change: ‖·‖² of what is new in it, where the local step has its own measure of that.
    """

    payload: Payload
    total: Sum
    clock: int = 0
    change: float | None = None

    @property
    def target(self) -> Vector:
        """What the message stands for, (n,), until it is committed."""
        return self.total.formed()

    @property
    def rest(self) -> Vector:
        """target − sent, (n,): what is wrong with the message."""
        total = self.total
        if total.rest and total.out is not None:
            return total.out
        return total.minus(unpack(self.payload, total.dtype, self.payload.n))

    def norms(self) -> tuple[float, float]:
        """‖sent‖² and ‖target − sent‖²: how much is said, and how much of it is wrong."""
        pieces = unpack(self.payload, self.total.dtype, self.payload.n)
        sent = sum(vector.squared_norm(piece.values) for piece in pieces)
        return float(sent), float(vector.squared_norm(self.rest))


@dataclass(frozen=True)
class MemoryClaims:
    """What a memory promises; the rules of composition go by it, and laws hold it.

    Attributes:
        keeps_error: what a message leaves unsaid is added to the next one; it is left in place of the sum.
        decay: the part of an error that is added to the next message, from 0 to 1.
        resets: steps after which what was kept until then is dropped.
        skip_repeats: both ends know one vector, the sum of what was sent, so that a round without a message
            stands for what was said last.
        remembers: there is a state; without one every message stands for itself.
        per_receiver: a sender remembers what it has said to one receiver.
        adds_nothing: the receiver takes the decoded total as it is.
        needs_precision: a message has to keep within a tolerance.
        hands_on: vectors are handed on and exchanged, never looked into, so they may be tensors of a device.
        exact: a model is told exactly; it goes with float32, on the down link.
    """

    keeps_error: bool = False
    decay: float = 1.0
    resets: tuple[int, ...] = ()
    skip_repeats: bool = False
    remembers: bool = True
    per_receiver: bool = True
    adds_nothing: bool = False
    needs_precision: bool = False
    hands_on: bool = False
    exact: bool = False


class Memory(ABC):
    """What one end of a link remembers."""

    kind: ClassVar[str] = "memory"
    registered_name: ClassVar[str]

    @property
    def claims(self) -> MemoryClaims:
        """What this memory promises."""
        return MemoryClaims()

    @abstractmethod
    def init(self, start: Vector) -> State:
        """The state before the first message; ``start`` is what both ends know, (n,)."""

    @abstractmethod
    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """What is added when something is to be said at step t of the run: a factor and a vector, (n,).

        None: nothing. Changes no state.
        """

    def compress(self, state: State, compressor: Compressor, total: Sum, seed: Seed) -> Payload:
        """Spell what is to be said, the addend included, and leave the rest where ``total`` wants it.

        Changes no state; errors as of `Compressor.compress`.
        """
        if not self.claims.needs_precision:
            return compressor.compress_sum(total, seed)
        x = total.add()
        payload = compressor.within(x, self.tolerance(state, x)).compress(x, seed)
        if total.rest and total.out is not None:
            subtract_from(payload, total.out)
        return payload

    @abstractmethod
    def commit(self, state: State, draft: Draft) -> Vector | None:
        """The draft was sent.

        A state may take over the vector that the sum, or the rest, was left in. It then returns another
        one like it, which is no part of it any more, for drafts to come; else None.
        """

    def enter(self, state: State, start: Vector) -> None:
        """A phase begins at a model that both ends know; asked of the down link only."""

    def tolerance(self, state: State, target: Vector) -> float:
        """The E‖C(target) − target‖² that a message may have, for memories that claim `needs_precision`."""
        return math.inf

    def shared(self, state: State) -> Vector:
        """What both ends know, (n,); asked of memories that claim `skip_repeats` or `exact`."""
        known: Vector = state["known"]
        return known

    def subtract(self, state: State, by: Vector) -> None:
        """Both ends subtract a vector, (n,), from what they know, without a message."""

    @abstractmethod
    def restore(self, state: State, total: Vector) -> Vector:
        """What the receiver makes of the decoded total of one round."""

    def merge(self, state: State, payloads: Sequence[Payload], out: Vector, senders: int) -> Vector:
        """What the receiver makes of the messages of one round, in the order given.

        Args:
            state: of the receiver.
            payloads: of those that spoke, each of as many values as ``out``.
            out: (n,); overwritten, and perhaps what is returned.
            senders: the result is a mean over so many, silent ones included.
        """
        return self.restore(state, add_up(payloads, out, senders))

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

import numpy as np

from qsparse.compressors.base import Compressor, Sum, accumulate_into, subtract_from, unpack
from qsparse.compressors.changes import compress_changes, put_changes
from qsparse.compressors.totals import add_up
from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.payload import Payload
from qsparse.registry import register, spell
from qsparse.schedules import momentum_weight
from qsparse.seeds import Seed
from qsparse.types import State, Vector, aligned


class Draft(NamedTuple):
    """A message that may be sent.

    Attributes:
        payload: what it spells.
        total: what was compressed, and in its ``out`` the sum, or the rest of it that is not said.
        clock: how far the run is; schedules go by it.
        news: how much news it is, where the local step has its own measure of that.
    """

    payload: Payload
    total: Sum
    clock: int = 0
    news: float | None = None

    @property
    def target(self) -> Vector:
        """What the message stands for, (n,), until it is committed."""
        total = self.total
        if total.y is None or total.out is None:
            return total.x
        # Where the rest was left in its place, the sum is formed again.
        return total._replace(out=np.empty_like(total.out)).add() if total.rest else total.out

    @property
    def rest(self) -> Vector:
        """target − sent, (n,): what is wrong with the message."""
        if self.total.rest and self.total.out is not None:
            return self.total.out
        return subtract_from(self.payload, self.target.copy())

    def norms(self) -> tuple[float, float]:
        """‖sent‖² and ‖target − sent‖²: how much is said, and how much of it is wrong."""
        pieces = unpack(self.payload, self.total.x.dtype, self.payload.n)
        sent = sum(vector.squared_norm(piece.values) for piece in pieces)
        return float(sent), float(vector.squared_norm(self.rest))


class Memory(ABC):
    """What one end of a link remembers."""

    kind: ClassVar[str] = "memory"
    registered_name: ClassVar[str]
    #: Does a round without a message stand for what was said last?
    repeats: ClassVar[bool] = False
    #: Does a sender remember what it has said to one receiver?
    personal: ClassVar[bool] = True
    #: Does it keep what a message leaves unsaid? Then that is left in place of the sum.
    keeps_rest: ClassVar[bool] = False
    #: Does the receiver take the total as it is?
    adds_nothing: ClassVar[bool] = False
    #: Does it tell a model exactly? Then it goes with float32, on the down link.
    exact: ClassVar[bool] = False

    @property
    def demanding(self) -> bool:
        """Whether a message has to keep within a tolerance."""
        return type(self).tolerance is not Memory.tolerance

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
        if not self.demanding:
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
        """The E‖C(target) − target‖² that a message may have, for compressors that go by it."""
        return math.inf

    def known(self, state: State) -> Vector:
        """What both ends know, (n,); asked of memories that `repeats` or are `exact`."""
        known: Vector = state["known"]
        return known

    def shift(self, state: State, by: Vector) -> None:
        """Both ends subtract a vector, (n,), from what they know, without a message."""

    @abstractmethod
    def restore(self, state: State, total: Vector) -> Vector:
        """What the receiver makes of the decoded total of one round."""

    def merge(self, state: State, payloads: Sequence[Payload], out: Vector, speakers: int) -> Vector:
        """What the receiver makes of the messages of one round, in the order given.

        Args:
            state: of the receiver.
            payloads: of those that spoke, each of as many values as ``out``.
            out: (n,); overwritten, and perhaps what is returned.
            speakers: the result is a mean over so many, silent ones included.
        """
        return self.restore(state, add_up(payloads, out, speakers))


@register("stateless")
@dataclass(frozen=True)
class Stateless(Memory):
    """Remembers nothing."""

    adds_nothing: ClassVar[bool] = True
    personal: ClassVar[bool] = False

    def init(self, start: Vector) -> State:
        """No state."""
        return {}

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """Nothing."""
        return None

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """Nothing to do."""
        return None

    def restore(self, state: State, total: Vector) -> Vector:
        """The total itself."""
        return total


@register("errorfeedback")
@dataclass(frozen=True)
class ErrorFeedback(Memory):
    """m ← (v + decay·m) − C(v + decay·m): what was not said is said later.

    Seide et al., 2014; Stich et al., 2018; with net local updates Basu et al., 2019, Algorithm 1.

    Args:
        decay: 1 keeps everything, less forgets.
        reset: the speaker's own steps after which what was kept until then is dropped, such as those
            where a learning rate falls (the authors' code of Basu et al., 2019).
    """

    adds_nothing: ClassVar[bool] = True
    keeps_rest: ClassVar[bool] = True
    decay: float = 1.0
    reset: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise SettingError(f"{spell(self)}: decay must lie in (0, 1]")
        if not isinstance(self.reset, tuple) or not all(isinstance(t, int) for t in self.reset):
            raise SettingError(f"{spell(self)}: reset must be a list of steps")

    def init(self, start: Vector) -> State:
        """No error yet."""
        return {"residual": aligned(start), "since": 0}

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """decay·m, or 0·m where a reset lies between m and now."""
        gone = any(state["since"] <= boundary < t for boundary in self.reset)
        return 0.0 if gone else self.decay, state["residual"]

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """m = target − sent, where that lies; what lay m in is free."""
        free: Vector = state["residual"]
        state["residual"] = draft.rest
        state["since"] = draft.clock
        return free

    def restore(self, state: State, total: Vector) -> Vector:
        """The total itself."""
        return total


@register("innovation")
@dataclass(frozen=True)
class Innovation(Memory):
    """Both ends keep what is known; only the news v − known is said, and added by both.

    Going up it is LAQ's quantized gradient (Sun et al., 2019); going down, from the model on, it is
    the server's error memory of dist-EF-SGD (Zheng et al., 2019).
    """

    repeats: ClassVar[bool] = True

    def init(self, start: Vector) -> State:
        """Both ends know ``start``."""
        return {"known": start.copy()}

    def enter(self, state: State, start: Vector) -> None:
        """Both ends know the model."""
        np.copyto(state["known"], start)

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """−known."""
        return -1.0, state["known"]

    def shift(self, state: State, by: Vector) -> None:
        """known −= by."""
        np.subtract(state["known"], by, out=state["known"])

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """known += sent."""
        accumulate_into(draft.payload, state["known"])
        return None

    def restore(self, state: State, total: Vector) -> Vector:
        """known += total."""
        np.add(state["known"], total, out=state["known"])
        known: Vector = state["known"]
        return known


@register("changes")
@dataclass(frozen=True)
class Changes(Memory):
    """Both ends keep the model; the entries that are not what they were are said, with their new values.

    Exact, and as small as what has changed: the answer to sparse reports, of which a model moves in at most
    as many coordinates as all workers spoke of. Where that is no smaller, all entries are said.
    """

    exact: ClassVar[bool] = True

    def init(self, start: Vector) -> State:
        """Both ends have ``start``; its zeros lose their signs, as those of whole models do."""
        return {"known": start + start.dtype.type(0)}

    def enter(self, state: State, start: Vector) -> None:
        """Both ends have the model."""
        np.add(start, 0, out=state["known"])

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """Nothing."""
        return None

    def compress(self, state: State, compressor: Compressor, total: Sum, seed: Seed) -> Payload:
        """What has changed."""
        return compress_changes(total.x, state["known"], seed)

    def shift(self, state: State, by: Vector) -> None:
        """known −= by."""
        np.subtract(state["known"], by, out=state["known"])

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """Both ends have it."""
        put_changes(draft.payload, state["known"])
        return None

    def restore(self, state: State, total: Vector) -> Vector:
        """The whole of it."""
        np.copyto(state["known"], total)
        known: Vector = state["known"]
        return known

    def merge(self, state: State, payloads: Sequence[Payload], out: Vector, speakers: int) -> Vector:
        """Put what has changed into what is there."""
        for payload in payloads:
            put_changes(payload, state["known"])
        known: Vector = state["known"]
        return known


@register("snapshot")
@dataclass(frozen=True)
class Snapshot(Memory):
    """Keeps the model x̃ with which the phase began, and sends x with an error that is small beside its way.

    E‖Q(x) − x‖² ≤ μ‖x − x̃‖², times θₛ = 2/(s + 2) in phase s where ``accelerated`` (Yu et al., 2019,
    eqs. 2 and 4): the compressor takes as many bits as that needs.

    Args:
        mu: μ.
        accelerated: the condition of Acc-AsyLPG.
    """

    personal: ClassVar[bool] = False
    mu: float = 0.5
    accelerated: bool = False

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise SettingError(f"{spell(self)}: mu must be positive")

    def init(self, start: Vector) -> State:
        """The start is the first snapshot."""
        return {"snapshot": start.copy(), "phase": -1}

    def enter(self, state: State, start: Vector) -> None:
        """A new snapshot."""
        np.copyto(state["snapshot"], start)
        state["phase"] += 1

    def addend(self, state: State, t: int) -> tuple[float, Vector] | None:
        """Nothing."""
        return None

    def tolerance(self, state: State, target: Vector) -> float:
        """μ‖x − x̃‖²."""
        weight = momentum_weight(state["phase"]) if self.accelerated else 1.0
        way = np.subtract(target, state["snapshot"])
        return self.mu * weight * float(vector.squared_norm(way))

    def commit(self, state: State, draft: Draft) -> Vector | None:
        """Nothing to do."""
        return None

    def restore(self, state: State, total: Vector) -> Vector:
        """The total itself."""
        return total

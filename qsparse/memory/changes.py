"""Both ends keep the model, and exactly the entries that changed are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsparse.compressors.base import Compressor
from qsparse.compressors.changes import compress_changes, put_changes
from qsparse.compressors.sums import Sum
from qsparse.memory.base import Draft, Memory, MemoryClaims
from qsparse.payload import Payload
from qsparse.registry import register
from qsparse.seeds import Seed
from qsparse.types import State, Vector


@register("changes")
@dataclass(frozen=True)
class Changes(Memory):
    """Both ends keep the model; the entries that are not what they were are said, with their new values.

    Exact, and as small as what has changed: the answer to sparse reports, of which a model moves in at most
    as many coordinates as all workers spoke of. Where that is no smaller, all entries are said.
    """

    @property
    def claims(self) -> MemoryClaims:
        """Models are told exactly."""
        return MemoryClaims(exact=True)

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

    def subtract(self, state: State, by: Vector) -> None:
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

    def merge(self, state: State, payloads: Sequence[Payload], out: Vector, senders: int) -> Vector:
        """Put what has changed into what is there."""
        for payload in payloads:
            put_changes(payload, state["known"])
        known: Vector = state["known"]
        return known

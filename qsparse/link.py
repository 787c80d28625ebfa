"""A link is a compressor and a memory; up and down are the same thing the other way round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qsparse.compressors import Compressor, Float32
from qsparse.compressors.sums import Sum
from qsparse.errors import DisagreementError, Imprecise, NotFinite, SettingError
from qsparse.memory import Draft, Memory, Stateless
from qsparse.payload import Kind, Payload
from qsparse.promises import doubt
from qsparse.registry import spell
from qsparse.seeds import COORDINATOR, Seed
from qsparse.types import Layout, Vector, aligned, layer_at


@dataclass(frozen=True)
class Link:
    """How vectors are said one way."""

    compressor: Compressor = Float32()
    memory: Memory = Stateless()

    @property
    def exact(self) -> bool:
        """Whether what is heard is what was said, bit for bit in float32."""
        memory = self.memory.claims
        return self.compressor.claims.lossless and (memory.exact or not memory.remembers)

    def spelling(self) -> str:
        """``compressor | memory``, for messages and fingerprints."""
        return f"{spell(self.compressor)} | {spell(self.memory)}"


class Sender:
    """The speaking end of a link.

    Args:
        link: compressor and memory.
        start: what both ends know before the first message, (n,).
        layout: the model's layers, for compressors that go by them and for messages.
    """

    def __init__(self, link: Link, start: Vector, layout: Layout = ()) -> None:
        self.memory = link.memory
        self.compressor = link.compressor.bind(layout) if layout else link.compressor
        self.compressor.check(start.size)
        self.layout = layout
        self.state = link.memory.init(start)
        #: What is said as a compressor is given it; sums of vectors on a device have another form.
        self.form: Callable[..., Sum] = Sum
        self._spare = aligned(start)
        self._open: Sum | None = None
        #: Told of a draft that is sent, before the memory moves; for who watches. It changes nothing.
        self.watch: Callable[[Draft], None] | None = None

    def draft(self, v: Vector, seed: Seed, change: float | None = None, clock: int | None = None) -> Draft:
        """Compress what v and the memory amount to; changes nothing.

        The draft is good until the next one, which overwrites its sum; ``change`` is passed on with it.
        ``clock`` says how far the run is, unless that is the seed's step.

        Raises:
            NotFinite: with the rank, the step and the parameter.
            Imprecise: with the rank and the step; the memory asks for more precision than there is.
        """
        clock = seed.step if clock is None else clock
        added = self.memory.addend(self.state, clock)
        keeps_error = self.memory.claims.keeps_error
        total = self.form(v) if added is None else self.form(v, *added, self._spare, keeps_error)
        self._open = total
        try:
            payload = self.memory.compress(self.state, self.compressor, total, seed)
            return Draft(payload, total, clock, change)
        except (Imprecise, NotFinite) as error:
            who = "the coordinator" if seed.rank == COORDINATOR else f"rank {seed.rank}"
            if isinstance(error, Imprecise):
                raise Imprecise(f"at {who}, step {seed.step}: {error}") from None
            where = f"{layer_at(self.layout, error.index)} of " if error.index >= 0 else ""
            word = doubt(self.compressor, self.memory, total.size)
            raise NotFinite(
                f"at {who}, step {seed.step}, in {where}the update: {error}; "
                + ("lower the learning rate or look at the data" if word is None else word),
                error.index,
            ) from None

    def commit(self, draft: Draft) -> None:
        """The draft was handed to the exchange: only now the memory moves."""
        if draft.total is not self._open:
            raise SettingError("this draft was committed before, or another one has been made since")
        self._open = None
        if self.watch is not None:
            self.watch(draft)
        free = self.memory.commit(self.state, draft)
        # A memory gives one in exchange for ours, where the sum was left in ours.
        if free is not None and draft.total.out is not None:
            self._spare = free


class Receiver:
    """The listening end of a link.

    Args:
        link: the memory's settings; how a payload is decoded stands in the payload.
        start: what both ends know before the first message, (n,).
        senders: how many speak; merged reports are means over all of them, silent ones included.
    """

    def __init__(self, link: Link, start: Vector, senders: int = 1) -> None:
        self.memory = link.memory
        self.state = link.memory.init(start)
        self.senders = senders
        self._total = np.empty_like(start)

    @property
    def like(self) -> Vector:
        """A vector of the size and type of all others."""
        return self._total

    def merge(self, payloads: Sequence[Payload], out: Vector | None = None) -> Vector:
        """Decode, add in the order given (rank order), divide by the number of senders, restore.

        The sum is formed in ``out``, (n,), where given. The result is overwritten by the next merge.
        """
        total = self._total if out is None else out
        spoken = [payload for payload in payloads if payload.kind is not Kind.SKIP]
        for payload in spoken:
            if payload.n != total.size:
                raise DisagreementError(
                    f"rank {payload.origin} sent {payload.n} values at step {payload.step} where "
                    f"{total.size} were expected: the models differ"
                )
        return self.memory.merge(self.state, spoken, total, self.senders)

"""Models on a GPU: what is done there, and what is copied.

The report and what error feedback keeps are tensors of the model's device. Top-k is found there, and only
the k entries are copied; from then on the code that spells them is the same as for vectors of the host, so
the bytes are the same. Who needs the whole vector gets a copy of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from qsparse.algorithm import Algorithm
from qsparse.compressors import Composed, Compressor, Quantizer
from qsparse.compressors.blockwise import Piecewise
from qsparse.compressors.composed import FLOAT32, Kept, Selector, SelectorClaims
from qsparse.compressors.decoding import unpack
from qsparse.compressors.positions import index_width
from qsparse.compressors.sums import LARGEST, Sum
from qsparse.errors import NotFinite, SettingError
from qsparse.link import Sender
from qsparse.memory import Draft
from qsparse.seeds import Seed
from qsparse.types import Vector

#: The type that magnitudes are compared in, and the bits of the largest one that can be sent.
_BITS: Final = {
    torch.float32: (torch.int32, int(np.float32(LARGEST).view(np.int32))),
    torch.float64: (torch.int64, int(np.float64(LARGEST).view(np.int64))),
}


def elsewhere(tensor: torch.Tensor) -> bool:
    """Whether it lies where NumPy cannot read it."""
    return tensor.device.type != "cpu"


def largest(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k entries of largest magnitude of each row; among equals those of lowest index.

    Args:
        x: (rows, size), float32 or float64, contiguous.
        k: at least 1, less than size.

    Returns:
        Indices within the rows, ascending, and values, (rows, k) each.

    Raises:
        NotFinite: x holds NaN, infinity or what float32 cannot hold.
    """
    # Magnitudes of finite floats are ordered like their bits, and no hardware takes denormals for zeros.
    kind, most = _BITS[x.dtype]
    magnitudes = x.view(kind) & torch.iinfo(kind).max
    found = magnitudes.topk(k, sorted=False).values
    if int(found.max()) > most:
        raise NotFinite("the update holds what cannot be sent", -1)
    # Which of several equals `topk` takes, nobody has promised; the least of them is certain.
    least = found.amin(1, keepdim=True)
    kept = magnitudes >= least
    if int(kept.sum()) > found.numel():
        above = magnitudes > least
        equal = kept ^ above
        kept = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    indices = kept.nonzero()[:, 1].reshape(-1, k).contiguous()
    return indices, x.gather(1, indices)


@dataclass(frozen=True)
class Chosen(Selector):
    """What was found where the vector lies, in place of the selector that would look for it here."""

    kept: Kept

    def claims_for(self, n: int) -> SelectorClaims:
        """As many entries as were found."""
        k = self.kept.values.size
        return SelectorClaims(unbiased=False, gamma=None, omega=None, kept=k, index_bits=k * index_width(n))

    def select(self, x: Vector, seed: Seed) -> Kept:
        """What was found, whatever the vector is."""
        return self.kept

    def select_sum(self, total: Sum, seed: Seed) -> Kept:
        """What was found, whatever the sum is."""
        return self.kept


#: A size, the compressor of a stretch of this size, and how many of them are neighbours.
Run = tuple[int, Compressor, int]


class Cut(Piecewise):
    """Stretches whose compressors are known one by one."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)

    def check(self, n: int) -> None:
        """What it was cut from has been checked."""

    def runs(self, n: int) -> list[Run]:
        """As they are."""
        return self._runs


def choose(part: Compressor, x: torch.Tensor, there: Vector, count: int = 1) -> list[Run]:
    """Compressors that spell of ``there`` what ``part`` would of x, with choices made where x lies.

    Args:
        part: the compressor of each stretch.
        x: all of them, (n,).
        there: like x, on the host; is given those entries that somebody will look at.
        count: into how many equal stretches x is cut.

    Raises:
        NotFinite: as `largest`.
    """
    size = x.numel() // count
    halves = _halves(part, size)
    if halves is not None and (k := halves[0]) < size:
        rows = zip(*(found.cpu().numpy() for found in largest(x.view(count, size), k)), strict=True)
        return [(size, Composed(Chosen(Kept(*row)), halves[1]), 1) for row in rows]
    if isinstance(part, Piecewise):
        runs: list[Run] = []
        for first in range(0, x.numel(), size):
            within: list[Run] = []
            start = first
            for length, inner, times in part.runs(size):
                stop = start + length * times
                within += choose(inner, x[start:stop], there[start:stop], times)
                start = stop
            runs.append((size, Cut(within), 1))
        return runs
    torch.from_numpy(there).copy_(x)
    return [(size, part, count)]


def _halves(part: Compressor, n: int) -> tuple[int, Quantizer] | None:
    """How many of the largest of n entries are kept, and what writes their values; None: others are."""
    selector, quantizer = getattr(part, "selector", part), getattr(part, "quantizer", FLOAT32)
    if not isinstance(selector, Selector):
        return None
    claims = selector.claims_for(n)
    return (claims.kept or 0, quantizer) if claims.largest else None


def _chooses(part: Compressor, n: int) -> bool:
    """Is there a choice to be made in a vector of n entries, so that not all of them need be copied?"""
    halves = _halves(part, n)
    if halves is not None:
        return halves[0] < n
    return isinstance(part, Piecewise) and any(_chooses(inner, size) for size, inner, _ in part.runs(n))


class _Draft(Draft):
    """A draft whose target is a tensor."""

    @functools.cached_property
    def rest(self) -> Any:
        """target − sent, (n,), in place of the target; made when it is first asked for."""
        left: Any = self.total.x
        for piece in unpack(self.payload, _numpy_type(left), self.payload.n):
            stretch = left[piece.start : piece.stop]
            said = torch.from_numpy(piece.values).to(left.device)
            if piece.indices is None:
                stretch -= said
            else:
                stretch[torch.from_numpy(piece.indices).to(left.device)] -= said
        return left


class DeviceSender(Sender):
    """The speaking end of a link whose reports, and what is kept of them, are tensors on a device.

    Args:
        host: the sender whose place it takes; asked for the sentence where something cannot be sent.
        like: of the reports' device and type, (n,).
    """

    def __init__(self, host: Sender, like: torch.Tensor) -> None:
        self.memory, self.compressor, self.layout = host.memory, host.compressor, host.layout
        self.state = {name: moved(value, like.device) for name, value in host.state.items()}
        self._host = host
        # Memory that nobody touches takes no room.
        self._there = np.empty(like.numel(), _numpy_type(like))
        self._open: Draft | None = None
        self.watch = None

    @staticmethod
    def serves(sender: Sender, algorithm: Algorithm, n: int) -> bool:
        """Whether there is something to do on the device, and nobody who asks for the vector on the host."""
        trigger = algorithm.trigger
        alone = trigger.claims.may_skip or algorithm.participation.claims.chooses
        return sender.memory.claims.hands_on and not alone and _chooses(sender.compressor, n)

    def draft(self, v: Any, seed: Seed, change: float | None = None, clock: int | None = None) -> Draft:
        """As of any sender, for a tensor v, (n,)."""
        clock = seed.step if clock is None else clock
        added = self.memory.addend(self.state, clock)
        total: Any = v if added is None else _plus(v, *added)
        try:
            ((_, compressor, _),) = choose(self.compressor, total, self._there)
            payload = compressor.compress(self._there, seed)
        except NotFinite:
            for name, value in self.state.items():
                self._host.state[name] = value.cpu().numpy() if isinstance(value, torch.Tensor) else value
            self._host.draft(v.cpu().numpy(), seed, change, clock)
            raise
        self._open = _Draft(payload, Sum(total), clock, change)
        return self._open

    def commit(self, draft: Draft) -> None:
        """As of any sender."""
        if draft is not self._open:
            raise SettingError("this draft was committed before, or another one has been made since")
        self._open = None
        if self.watch is not None:
            self.watch(draft)
        self.memory.commit(self.state, draft)


def _plus(x: torch.Tensor, scale: float, y: Any) -> Any:
    """x + scale·y, rounded as `Sum.add` does: product and sum in float64, each by itself."""
    if scale == 1:
        return x + y
    return (x.double() + y.double() * scale).to(x.dtype)


def on_host(value: Any) -> Any:
    """A state with arrays in place of tensors; of those of the host they are views."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if isinstance(value, dict):
        return {name: on_host(each) for name, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: on_host(getattr(value, each.name)) for each in fields(value)})
    return value


def moved(value: Any, device: torch.device) -> Any:
    """A state's value with a tensor of the device in place of an array."""
    return torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value


def _numpy_type(tensor: torch.Tensor) -> np.dtype[Any]:
    return np.dtype(str(tensor.dtype).removeprefix("torch."))

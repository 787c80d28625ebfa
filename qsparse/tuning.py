"""The cheapest compressor for a contraction γ: in each family of operators, the settings (s, k).

"For a given γ and H, find an (s, k) from the family of operators corresponding to the γ that
minimises the total number of bits" (Basu et al., 2019). T steps take T/H messages, so H only scales:
what is searched for is the message of fewest paper bits with γ(s, k) ≥ γ, or of the least of another price.

A family is a quantizer, alone or behind a selector that keeps k of n coordinates; s is the number of
steps of the quantizer's grid. All s that take b bits cost the same, so s = 2ᵇ − 1, the finest, stands
for them. k goes from 1 to n − 1, since with k = n the quantizer is alone.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from qsparse.compressors import Compressor, Float32, Quantizer, subtract_from
from qsparse.compressors.composed import FLOAT32
from qsparse.compressors.sums import LARGEST
from qsparse.compressors.topk import KeepsK
from qsparse.errors import NotFinite, SettingError
from qsparse.kernels import vector
from qsparse.registry import find, names, spell
from qsparse.seeds import Seed
from qsparse.types import Vector

#: How often a random compressor is run on a probe.
DRAWS: Final = 8
#: A random compressor reaches γ where its mean does less this many standard errors.
MARGIN: Final = 3.0
#: To which share of k a random compressor's k is searched; its γ is not known better.
RESOLUTION: Final = 1 / 256

#: What is searched in a quantizer: variants, each a list of (s, settings); others have their defaults.
_GRIDS: Final[dict[str, list[list[tuple[int | None, dict[str, Any]]]]]] = {
    "sign": [[(None, {"norm": 1})], [(None, {"norm": 2})]],
    "qsgd": [
        [(2**b - 1, {"levels": 2**b - 1, "scaled": scaled}) for b in range(1, 16)] for scaled in (False, True)
    ],
    "minmax": [[(2**b - 1, {"levels": 2**b - 1}) for b in range(1, 17)]],
    "uniform": [[(2**b - 1, {"bits": b}) for b in range(1, 17)]],
    "lowprecision": [[(2**b - 1, {"bits": b}) for b in range(2, 17)]],
}


#: Tells what is to be least of a compressor.
Price = Callable[[Compressor], float]


@dataclass(frozen=True)
class Family:
    """Compressors that differ in s and k only.

    Attributes:
        name: how it is written, with (s) and (k) where a setting is searched.
        selector: what keeps k coordinates, or None.
        quantizers: (s or None, quantizer), coarsest first.
    """

    name: str
    selector: type[KeepsK] | None
    quantizers: tuple[tuple[int | None, Quantizer], ...]

    def at(self, quantizer: Quantizer, k: int) -> Compressor:
        """The member with this quantizer and k; k says nothing where there is no selector."""
        if self.selector is None:
            return quantizer
        selector = self.selector(k=k)
        return selector if quantizer.claims.lossless else selector >> quantizer


@dataclass(frozen=True)
class Tuned:
    """What became of a family.

    Attributes:
        family: its name.
        reason: why no member reaches γ; empty where one does.
        compressor: the cheapest that does, None with a reason; so are all below.
        s: steps of its quantizer's grid, None where it has none.
        k: coordinates that it keeps, None where all.
        gamma: the bound, or on a probe the mean measured.
        bits: paper bits of a message.
        price: what was least: these bits unless another price was asked for.
        wire_bytes: of a message on the probe, header included, mean measured; None without a probe.
        draws: how many runs the measured means are of; 0 without a probe.
    """

    family: str
    reason: str = ""
    compressor: Compressor | None = None
    s: int | None = None
    k: int | None = None
    gamma: float | None = None
    bits: int | None = None
    price: float | None = None
    wire_bytes: float | None = None
    draws: int = 0


def families() -> list[Family]:
    """Each registered quantizer, alone and behind each selector that keeps k coordinates.

    Quantizers with settings that have no defaults are left out, and so are selectors without a k.
    """
    classes = [find(name, "compressor") for name in names("compressor")]
    selectors = [c for c in classes if isinstance(c, type) and issubclass(c, KeepsK)]
    found = []
    for quantizer in classes:
        if not (isinstance(quantizer, type) and issubclass(quantizer, Quantizer)):
            continue
        for settings in _GRIDS.get(quantizer.registered_name, _defaults(quantizer)):
            members = tuple((s, quantizer(**setting)) for s, setting in settings)
            text = _name(*members[0])
            found.append(Family(text, None, members))
            for selector in selectors:
                front = f"{selector.registered_name}(k)"
                name = front if quantizer is Float32 else f"{front} >> {text}"
                found.append(Family(name, selector, members))
    return found


def _defaults(quantizer: Any) -> list[list[tuple[int | None, dict[str, Any]]]]:
    fields = dataclasses.fields(quantizer)
    return [] if any(field.default is dataclasses.MISSING for field in fields) else [[(None, {})]]


def _name(s: int | None, quantizer: Quantizer) -> str:
    if s is None:
        return spell(quantizer)
    scaled = ", scaled=true" if getattr(quantizer, "scaled", False) else ""
    return f"{quantizer.registered_name}(s{scaled})"


def tune(
    gamma: float, n: int | None = None, probe: Vector | None = None, price: Price | None = None
) -> list[Tuned]:
    """The cheapest member of each family that reaches γ; the cheapest first, then those without one.

    Minimises paper bits B(s, k) subject to γ(s, k) ≥ γ (Basu et al., 2019). Without a probe γ(s, k) is
    what the compressor claims for all vectors of n. With one it is measured by running the compressor,

        γ(s, k) = 1 − E‖x − C(x)‖²/‖x‖²,

    once where nothing is drawn; otherwise as the mean of `DRAWS` draws, which must exceed γ by
    `MARGIN` standard errors, and then k is exact to `RESOLUTION` only.

    γ(s, k) need not rise in k: (1 − β(k, s))·k/n falls again where β grows. But γ(s, k)/k, what is kept
    for each value sent, falls. Bounds show it, and so does ‖v‖₁²/(k²‖x‖²) of top-k signs; on a
    probe it is supposed from k = 64 on. So the search goes up in jumps that cannot pass the smallest k.

    Args:
        gamma: what is to be reached, in (0, 1].
        n: length of the vector; the probe's where None.
        probe: x, (n,), finite and not zero; rounded to float32, as values travel.
        price: what is to be least of a compressor, which must rise in k; the paper bits of a message unless
            given.

    Raises:
        SettingError: γ, n or the probe's type, shape or size is none of these.
        NotFinite: the probe holds NaN, infinity or what float32 cannot hold.

    >>> best = tune(0.5, n=8)[0]
    >>> spell(best.compressor), best.bits
    ('lowprecision(bits=3)', 56)
    """
    if not 0 < gamma <= 1:
        raise SettingError(f"gamma must lie in (0, 1], not {gamma:g}: it is the share of ‖x‖² that is kept")
    if n is not None and n < 1:
        raise SettingError(f"n must be at least 1, not {n}")
    gauge: _Gauge
    if probe is not None:
        gauge = _Probe(gamma, _as_probe(probe, n))
    elif n is not None:
        gauge = _Bound(gamma, n)
    else:
        raise SettingError("give n, the length of the vector, or a probe, which has one")
    rows = [_cheapest(family, gauge, price) for family in families()]
    return sorted(rows, key=lambda row: math.inf if row.price is None else row.price)


def orders_of_h(gamma: float, steps: int, workers: int, batch: int) -> tuple[float, float]:
    """How H may grow without changing the rate, for non-convex functions and up to unknown constants.

    Synchronous γ·T^(1/4)/(bR)^(3/4), asynchronous √γ·T^(1/8)/(bR)^(3/8) (Basu et al., 2019,
    Corollary 1 and Theorem 3), with T steps, R workers and batches of b.
    """
    if min(steps, workers, batch) < 1:
        raise SettingError(f"steps, workers and batch must be at least 1, not {steps}, {workers} and {batch}")
    both = batch * workers
    return gamma * steps**0.25 / both**0.75, math.sqrt(gamma) * steps**0.125 / both**0.375


@dataclass(frozen=True)
class _Reading:
    """γ of a compressor; ``sure`` is the mean less `MARGIN` standard errors, or the bound itself."""

    gamma: float
    sure: float
    wire_bytes: float | None = None
    draws: int = 0


class _Gauge(ABC):
    """Reads γ of compressors for vectors of n; ``goal`` is what they should reach."""

    def __init__(self, goal: float, n: int) -> None:
        self.goal = goal
        self.n = n
        #: The smallest k at which a selector reaches the goal with exact values, None where none does.
        self.alone: dict[type[KeepsK], int | None] = {}

    def draws(self, family: Family) -> int:
        """How often a member is run; more than once means that it is random."""
        return 1

    @abstractmethod
    def read(self, part: Compressor, draws: int, hurry: bool = False) -> _Reading:
        """γ of a compressor, ``draws`` times measured; in a hurry only as well as the goal needs."""

    @abstractmethod
    def reason(self) -> str:
        """Why no member of a family reaches the goal."""


class _Bound(_Gauge):
    """γ by the claims, for all vectors."""

    def read(self, part: Compressor, draws: int, hurry: bool = False) -> _Reading:
        gamma = part.claims.gamma(self.n) or 0.0
        return _Reading(gamma, gamma)

    def reason(self) -> str:
        return f"bound: γ ≥ {self.goal:g} does not hold for all vectors; try --probe"


class _Probe(_Gauge):
    """γ on a vector, by running the compressor."""

    def __init__(self, goal: float, x: Vector) -> None:
        super().__init__(goal, x.size)
        self.x = x
        self.norm = vector.squared_norm(x)
        self.rest = np.empty_like(x)

    def draws(self, family: Family) -> int:
        return DRAWS if _is_random(family) else 1

    def read(self, part: Compressor, draws: int, hurry: bool = False) -> _Reading:
        kept, sent = [], []
        for draw in range(draws):
            payload = part.compress(self.x, Seed(0, step=draw, use="up"))
            np.copyto(self.rest, self.x)
            subtract_from(payload, self.rest)
            kept.append(1 - vector.squared_norm(self.rest) / self.norm)
            sent.append(len(payload))
            # Three draws suffice where they lie far from the goal on one side.
            if hurry and draw == 2 and abs(np.mean(kept) - self.goal) > 10 * _standard_error(kept):
                break
        gamma = float(np.mean(kept))
        return _Reading(gamma, gamma - MARGIN * _standard_error(kept), float(np.mean(sent)), len(kept))

    def reason(self) -> str:
        return f"probe: γ ≥ {self.goal:g} was not measured"


def _cheapest(family: Family, gauge: _Gauge, price: Price | None) -> Tuned:
    n = gauge.n
    if family.selector is not None and n == 1:
        return Tuned(family.name, "nothing can be left out of a vector of 1")
    draws = gauge.draws(family)
    longest = 1 if family.selector is None else n - 1
    found: tuple[int | None, Quantizer, int] | None = None
    fewest = math.inf
    for s, quantizer in _likely_first(family.quantizers):

        def cost(k: int, quantizer: Quantizer = quantizer) -> float:
            member = family.at(quantizer, k)
            if price is not None:
                return price(member)
            count = member.claims.bits(n)
            # What depends on the vector cannot be compared.
            return math.inf if count is None else count

        # With k < n prices rise in k: only what is cheaper than the best so far is looked at. A formula tells
        # bits at once; another price may take as long as a look, so it is asked for the smallest k only.
        high = _last_below(cost, fewest, longest) if price is None else longest
        least = gauge.alone.get(family.selector) if family.selector is not None else 1
        if price is not None and found is not None and cost(least or 1) >= fewest:
            continue
        k = _smallest(family, quantizer, high, draws, gauge)
        if k is not None and (costs := cost(k)) < fewest:
            found, fewest = (s, quantizer, k), costs
    if found is None:
        return Tuned(family.name, gauge.reason())
    s, quantizer, k = found
    part = family.at(quantizer, k)
    reading = gauge.read(part, draws)
    kept = None if family.selector is None else k
    return Tuned(
        family.name, "", part, s, kept, reading.gamma, part.claims.bits(n), fewest, reading.wire_bytes,
        reading.draws,
    )  # fmt: skip


def _smallest(family: Family, quantizer: Quantizer, high: int, draws: int, gauge: _Gauge) -> int | None:
    """The smallest k of 1 … high that reaches the goal, or None."""
    share = RESOLUTION if draws > 1 else 0.0

    def read(k: int, hurry: bool = True) -> _Reading:
        return gauge.read(family.at(quantizer, k), draws, hurry)

    def reaches(k: int) -> bool:
        return read(k).sure >= gauge.goal

    low = 1
    if family.selector is not None:
        if quantizer.claims.lossless:
            # The more is kept exactly, the less is lost.
            if high < 1 or not reaches(high):
                return None
            low = _first(reaches, 0, high, share)
        else:
            # A quantizer adds its error to what is dropped:
            # ‖x − Q(S(x))‖² = ‖x − S(x)‖² + ‖S(x) − Q(S(x))‖², so no smaller k can do.
            if family.selector not in gauge.alone:
                plain = Family("", family.selector, ((None, FLOAT32),))
                alone = _smallest(plain, FLOAT32, gauge.n - 1, gauge.draws(plain), gauge)
                gauge.alone[family.selector] = alone
            low = gauge.alone[family.selector] or high + 1
    below, k = low - 1, low
    while k <= high:
        reading = read(k)
        if reading.sure >= gauge.goal:
            k = _first(reaches, below, k, share)
            # A hurried reading may have been wrong.
            step = max(1, round(share * k))
            while k <= high and read(k, hurry=False).sure < gauge.goal:
                k, step = k + step, 2 * step
            return k if k <= high else None
        if k >= _EACH and reading.gamma <= 0:
            break
        # γ(k)/k falls, so nothing before k·γ/γ(k) can do.
        pace = max(reading.sure, reading.gamma / 2)
        jump = math.ceil(k * gauge.goal / pace) if k >= _EACH else k + 1
        below, k = k, max(k + max(1, round(share * k)), jump)
        if below < high < k:
            k = high
    return None


def _likely_first(
    quantizers: tuple[tuple[int | None, Quantizer], ...],
) -> list[tuple[int | None, Quantizer]]:
    """The finest, which reaches γ if any does, then from 5 bits outwards: most others need no look then."""
    *others, finest = quantizers
    order = sorted(range(len(others)), key=lambda place: abs(place - 4))
    return [finest, *(others[place] for place in order)]


def _last_below(bits: Callable[[int], float], limit: float, high: int) -> int:
    return high if bits(high) < limit else _first(lambda k: bits(k) >= limit, 0, high) - 1


def _first(holds: Callable[[int], bool], below: int, high: int, share: float = 0.0) -> int:
    """The smallest k in below + 1 … high that holds, where all above it do; ``high`` must.

    Less exactly with a share: too large by less than ``share·k``.
    """
    while high - below > max(1, share * high):
        middle = (below + high) // 2
        if holds(middle):
            high = middle
        else:
            below = middle
    return high


#: Up to this k each is looked at; few values can meet a grid by chance.
_EACH: Final = 64


def _is_random(family: Family) -> bool:
    """Whether what its finest member makes of a fixed vector depends on the seed."""
    part = family.at(family.quantizers[-1][1], 32)
    x = np.cos(np.arange(64)).astype(np.float32)
    return len({bytes(part.compress(x, Seed(0, step=draw)).body) for draw in range(4)}) > 1


def _standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _as_probe(probe: Vector, n: int | None) -> Vector:
    if not isinstance(probe, np.ndarray) or probe.dtype not in (np.float32, np.float64) or probe.ndim != 1:
        what = type(probe).__name__
        if isinstance(probe, np.ndarray):
            what = f"{probe.dtype} array of shape {probe.shape}"
        raise SettingError(f"a probe is one flat float32 or float64 vector, not a {what}")
    if probe.size == 0:
        raise SettingError("the probe is empty: give a vector of at least 1 coordinate")
    if n is not None and n != probe.size:
        raise SettingError(f"n is {n} and the probe has {probe.size} coordinates: leave n out")
    large = np.flatnonzero(~(np.abs(probe) <= LARGEST))
    if large.size:
        index = int(large[0])
        raise NotFinite(f"element {index} of the probe is {probe[index]}, which cannot be sent", index)
    x = probe.astype(np.float32)
    norm = math.sqrt(vector.squared_norm(x))
    if norm == 0:
        raise SettingError("the probe is zero, and of zero nothing can be kept: give a vector of a real run")
    if norm > LARGEST / 2:
        raise NotFinite(f"the probe's Euclidean norm {norm:.3g} is beyond float32: scale it down", -1)
    return x

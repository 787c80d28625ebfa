"""Laws about values: what comes out against what went in."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qsparse.compressors import Compressor, accumulate_into, decompress, subtract_from
from qsparse.errors import CompositionError, Imprecise, NotFinite, SettingError
from qsparse.testing.base import HUGE, SEED, Broken, decoded, hold, is_random, law, same
from qsparse.types import Vector

#: Where float32 holds fewer than 24 bits, a step that is a float32 may be off by this times a code.
_LEAST: Final = 2.0**-133
_ROUNDING: Final = 2.0**-22
#: ln(2/δ) for statistical bounds that fail with probability δ = 1e-6.
_CONFIDENCE: Final = 14.5


@law("finite")
def _finite(part: Compressor, name: str, x: Vector) -> bool:
    """Decoded values are finite; where that cannot be, NotFinite says so before anything is sent."""
    try:
        payload = part.compress(x, SEED)
    except NotFinite as error:
        hold(bool(np.max(np.abs(x)) > HUGE), f"refused a vector of moderate values: {error}")
        # −1: no entry is too large, but the vector is.
        hold(-1 <= error.index < x.size, f"NotFinite names element {error.index} of {x.size}")
        return True
    values = decoded(payload)
    hold(bool(np.all(np.isfinite(values))), "a decoded value is not finite")
    return True


@law("refusal")
def _refusal(part: Compressor, name: str, x: Vector) -> bool:
    """NaN and infinity are refused by their index, other types and shapes by SettingError."""
    poisoned = x.dtype.kind == "f" and not np.all(np.isfinite(x))
    expected = NotFinite if poisoned else SettingError
    for array in (x, x.astype(np.float64)) if poisoned else (x,):
        try:
            part.compress(array, SEED)
        except expected as error:
            if isinstance(error, NotFinite):
                first = int(np.flatnonzero(~np.isfinite(array))[0])
                hold(error.index == first, f"NotFinite names element {error.index}, not {first}")
        else:
            raise Broken(f"accepted what {expected.__name__} should refuse")
    return True


@law("homogeneity")
def _homogeneity(part: Compressor, name: str, x: Vector) -> bool:
    """C(a·x) = a·C(x) bit for bit, for powers of two, where claimed and nothing leaves the normal range."""
    spoken = np.abs(x[x != 0])
    if not part.claims.homogeneous or not np.all((spoken > 2.0**-108) & (spoken < 2.0**100)):
        return False
    plain = decoded(part.compress(x, SEED))
    for factor in (np.float32(0.25), np.float32(8)):
        scaled = decoded(part.compress(x * factor, SEED))
        same(scaled, plain * factor, f"C({factor}·x) against {factor}·C(x)")
    return True


@law("contraction")
def _contraction(part: Compressor, name: str, x: Vector) -> bool:
    """E‖x − C(x)‖² ≤ (1 − γ)‖x‖², where γ is claimed."""
    gamma = part.claims.gamma(x.size) if x.size else None
    return gamma is not None and _loses_at_most(1 - gamma, part, x)


@law("largest error")
def _largest_error(part: Compressor, name: str, x: Vector) -> bool:
    """‖x − C(x)‖∞ ≤ (1 − γ)‖x‖∞, where γ is claimed in the maximum norm."""
    gamma = part.claims.gamma_max(x.size) if x.size else None
    if gamma is None:
        return False
    most = float(np.max(np.abs(x)))
    off = float(np.max(np.abs(x - decoded(part.compress(x, SEED)).astype(np.float64))))
    hold(off <= (1 - gamma + _ROUNDING) * most + _LEAST, f"off by {off:g}, more than {1 - gamma:g}·{most:g}")
    return True


@law("variance")
def _variance(part: Compressor, name: str, x: Vector) -> bool:
    """E‖C(x) − x‖² ≤ ω‖x‖², where ω is claimed."""
    omega = part.claims.omega(x.size) if x.size else None
    return omega is not None and _loses_at_most(omega, part, x)


@law("within")
def _within(part: Compressor, name: str, x: Vector) -> bool:
    """`within` gives E‖C(x) − x‖² ≤ tolerance, and a smaller tolerance never costs fewer bits.

    What is exact may cost less: float32 has no scale. A tolerance that is refused is less than what the part
    loses as it is, and one of any precision refuses none.
    """
    norm, cost, claims = float(np.sum(x.astype(np.float64) ** 2)), 0, part.claims
    for share in (0.25, 1e-3, 0.0):
        try:
            fitted = part.within(x, share * norm)
        except CompositionError as error:
            hold(not (claims.any_precision or claims.checks_precision), f"finds no precision: {error}")
            return False
        except Imprecise as error:
            hold(claims.checks_precision, f"refuses a tolerance, and does not claim that it may: {error}")
            if x.size and _measurable(x):
                lost = _draw(part, x).loss.mean() / norm
                hold(lost > 0.9 * share, f"refuses {share:g} of ‖x‖², and loses {lost:.3g}")
            continue
        if x.size:
            _loses_at_most(share, fitted, x)
        bits = fitted.claims.bits(x.size)
        if bits is not None and not fitted.claims.lossless:
            hold(bits >= cost, f"{share:g} of ‖x‖² costs {bits} bits, and a larger tolerance {cost}")
            cost = bits
    return True


@law("unbiasedness")
def _unbiasedness(part: Compressor, name: str, x: Vector) -> bool:
    """E C(x) = x, where claimed: by coordinate, and along x for long vectors."""
    if not part.claims.unbiased or not _measurable(x):
        return False
    draws = _draw(part, x)
    if x.size <= _SHORT:
        # 6 standard errors, and what a value of probability below 14.5/m may hide unseen.
        slack = 6 * draws.deviation / np.sqrt(draws.seeds) + 2 * _CONFIDENCE * draws.largest / draws.seeds
        if draws.seeds == 1:
            slack = np.zeros(x.size)
        off = np.abs(draws.mean - x) - slack - 8 * _ROUNDING * draws.largest - _LEAST
        worst = int(np.argmax(off))
        hold(off[worst] <= 0, f"the mean of element {worst} is {draws.mean[worst]:.6g}, it is {x[worst]:.6g}")
    along = draws.along / draws.norm
    slack = 6 * along.std() / np.sqrt(draws.seeds) + 8 * _ROUNDING
    if x.size > _SHORT:
        hold(abs(along.mean() - 1) <= slack, f"C(x) is {along.mean():.6g} times x along x, in the mean")
    return True


@law("accumulation")
def _accumulation(part: Compressor, name: str, x: Vector) -> bool:
    """accumulate_into and subtract_from do what decompress and an addition do."""
    payload = part.compress(x, SEED)
    for kind in (np.float32, np.float64):
        values: Vector = decompress(payload, np.empty(x.size, kind))
        base: Vector = np.sin(np.arange(x.size)).astype(kind)
        same(accumulate_into(payload, base.copy()), base + values, "accumulate_into")
        same(subtract_from(payload, base.copy()), base - values, "subtract_from")
    return True


@law("float64")
def _float64(part: Compressor, name: str, x: Vector) -> bool:
    """float64 in and out agrees with float32 within rounding."""
    short = decoded(part.compress(x, SEED))
    wide = part.compress(x.astype(np.float64), SEED)
    values = decompress(wide, np.empty(x.size, np.float64))
    off = np.abs(values - short)
    most = 4 * _ROUNDING * np.max(np.abs(short), initial=0) + _LEAST
    hold(bool(np.all(off <= most)), f"float64 differs by {off.max(initial=0):.3g}")
    return True


class _Draws(NamedTuple):
    """C(x) over seeds: by coordinate mean and deviation; by draw loss ‖x − C(x)‖² and ⟨C(x), x⟩."""

    seeds: int
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    largest: float
    loss: npt.NDArray[np.float64]
    along: npt.NDArray[np.float64]
    norm: float


#: Up to here vectors are drawn often enough to look at single coordinates and rare events.
_SHORT: Final = 256
_memo: dict[str, Any] = {}


def _draw(part: Compressor, x: Vector) -> _Draws:
    """Many draws of a random part, one of another; the last result is kept, as laws ask in a row."""
    key = (id(part), x.tobytes())
    if _memo.get("key") == key:
        return _memo["draws"]  # type: ignore[no-any-return]
    count = (2000 if x.size <= 16 else 400 if x.size <= _SHORT else 16) if is_random(part) else 1
    exact = x.astype(np.float64)
    total, squares = np.zeros(x.size), np.zeros(x.size)
    loss, along = np.zeros(count), np.zeros(count)
    values = np.empty(x.size, np.float64)
    largest = 0.0
    for number in range(count):
        decompress(part.compress(x, SEED.at(step=number)), values)
        off = values - exact
        total += off
        squares += off * off
        loss[number] = off @ off
        along[number] = values @ exact
        largest = max(largest, float(np.max(np.abs(values))))
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    draws = _Draws(count, exact + mean, deviation, largest, loss, along, float(exact @ exact))
    _memo.update(key=key, draws=draws, part=part)
    return draws


def _loses_at_most(share: float, part: Compressor, x: Vector) -> bool:
    """Holds E‖x − C(x)‖² ≤ share·‖x‖² up to rounding and an empirical Bernstein bound."""
    if not np.any(x):
        hold(not np.any(decoded(part.compress(x, SEED))), "zeros do not stay zeros")
        return True
    if not _measurable(x):
        return False
    draws = _draw(part, x)
    rounding = np.sqrt(x.size) * _LEAST + _ROUNDING * np.sqrt(draws.norm)
    ratio = np.maximum(np.sqrt(draws.loss) - rounding, 0) ** 2 / draws.norm
    margin = 0.0
    if draws.seeds > 1 and x.size <= _SHORT:
        most = max(1.0, float(ratio.max()))
        margin = np.sqrt(2 * ratio.var() * _CONFIDENCE / draws.seeds)
        margin += 7 * most * _CONFIDENCE / (3 * (draws.seeds - 1))
    elif draws.seeds > 1:
        margin = 6 * ratio.std() / np.sqrt(draws.seeds) + 1e-3 * share
    hold(
        ratio.mean() <= share * (1 + 1e-5) + margin,
        f"the mean loss is {ratio.mean():.6g} of ‖x‖², claimed are at most {share:.6g}",
    )
    return True


def _measurable(x: Vector) -> bool:
    """Few draws of a long vector say something only where no coordinate decides alone."""
    if x.size <= _SHORT:
        return bool(np.any(x))
    squares = x.astype(np.float64) ** 2
    return bool(0 < 100 * squares.max() < squares.sum())

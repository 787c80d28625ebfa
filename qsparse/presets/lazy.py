"""Lazily aggregated gradients: LAG, LAQ, their stochastic kin, and the baselines of both.

The papers sum over M workers, and their step size α is one on that sum. Here reports are averaged, so that
``lr`` is ᾱ = M·α: ``alpha`` takes the papers' own, and is multiplied by M when the run begins.
"""

from __future__ import annotations

from dataclasses import replace

from qsparse.algorithm import Algorithm
from qsparse.compressors import Blockwise, Uniform
from qsparse.errors import SettingError
from qsparse.link import Link
from qsparse.local import LASG, Gradient
from qsparse.memory import Innovation
from qsparse.participation import Ask
from qsparse.registry import register, spell
from qsparse.schedules import PerWorker, Rate
from qsparse.server import Descend
from qsparse.triggers import Lazy


@register("gd", "algorithm")
def gd(lr: Rate | None = None, alpha: Rate | None = None) -> Algorithm:
    """θ ← θ − ᾱ·(1/M)Σ_m ∇f_m(θ), ∇f_m over a worker's whole share: the baseline of LAG and LAQ.

    ᾱ is lr, 0.03 unless given, or M·alpha: the papers sum over M workers, so their α is lr/M.
    With whole=false, a setting of local step gradient, gradients are those of batches.
    """
    return Algorithm(local=Gradient(whole=True), server=_descend(lr, alpha))


@register("qgd", "algorithm")
def qgd(lr: Rate | None = None, alpha: Rate | None = None, published: bool = False) -> Algorithm:
    """θ ← θ − ᾱ·(1/M)Σ_m Q_m, Q_m ← Q_m + Uniform_b(∇f_m(θ) − Q_m): gd with quantized innovations.

    LAQ without skipping (Sun et al., 2019). A radius for each layer; with published=true one for the
    whole vector, as in the paper. lr and alpha are those of gd.
    """
    return replace(gd(lr=lr, alpha=alpha), up=_quantized(published))


@register("lag-wk", "algorithm")
def lag_wk(lr: Rate | None = None, alpha: Rate | None = None) -> Algorithm:
    """As gd, but a worker sends ∇f_m(θ) − (what it sent last) only where that is worth it; see lazy.

    LAG, rule of the worker (Chen et al., 2018). lr is M·α; lr and alpha are those of gd.
    """
    return replace(gd(lr=lr, alpha=alpha), trigger=Lazy(), up=Link(memory=Innovation()))


@register("laq", "algorithm")
def laq(lr: Rate | None = None, alpha: Rate | None = None, published: bool = False) -> Algorithm:
    """As qgd, but a worker sends its quantized innovation only where that is worth it; see lazy. lr is M·α.

    Lazily aggregated quantized gradients (Sun et al., 2019, Algorithm 2). With one radius for the whole
    vector the errors of a network's gradients outweigh whatever there is to say, and nobody speaks. So
    there is a radius for each layer, and the errors count for at most half of the news;
    ``published`` is the paper's rule as it stands. lr and alpha are those of gd.
    """
    return replace(qgd(lr=lr, alpha=alpha, published=published), trigger=Lazy(most=_most(published)))


@register("lag-ps", "algorithm")
def lag_ps(
    lr: Rate | None = None,
    alpha: Rate | None = None,
    D: int = 10,
    xi: float | None = None,
    smoothness: float | tuple[float, ...] | None = None,
) -> Algorithm:
    """As gd, but the coordinator asks only those workers whose gradient may have changed; see ask.

    LAG, rule of the parameter server (Chen et al., 2018), whose ξ of 10/D goes with a smoothness that is
    known. Without one it is guessed from what was seen, which is too low for a network: ξ is 2/D then, and
    a worker is asked after ``patience`` rounds at the latest (the experiments of Sun et al., 2019, have 100).
    lr is M·α; lr and alpha are those of gd.
    """
    if xi is None and smoothness is None:
        xi = 2 / D
    chosen = Ask(D, xi, patience=5, smoothness=smoothness)
    return replace(gd(lr=lr, alpha=alpha), participation=chosen, up=Link(memory=Innovation()))


@register("slaq", "algorithm")
def slaq(lr: Rate | None = None, alpha: Rate | None = None, published: bool = False) -> Algorithm:
    """As laq with gradients of batches and the rule of the authors' stochastic runs; see lazy. lr is M·α.

    A worker skips while ‖δQ‖² < (1/ᾱ²)Σ_d ξ_d‖Δθ‖² + 1.5(‖ε‖² + ‖ε̂‖²) + floor, d as the code of Sun et al.
    (2019) goes through its buffer of moves: the D − 1 newest, once D are known (``rolling``). lr is 0.08
    unless it or alpha is given. ``published`` is one radius for the whole vector, 3 bits, the errors in full
    and a floor of 0.2, which fits the paper's problem: a smaller gradient is never news, so that the floor
    is 0 otherwise. A convolutional network learns too slowly with 3 bits, so there are 4.
    """
    rule = Lazy(errors=1.5, floor=0.2 if published else 0.0, rolling=True, most=_most(published))
    row = replace(qgd(lr=_default(lr, alpha, 0.08), alpha=alpha, published=published), trigger=rule)
    return row.with_(whole=False, bits=3 if published else 4)


@register("lasg-wk1", "algorithm")
def lasg_wk1(lr: Rate | None = None, alpha: Rate | None = None, D: int = 10) -> Algorithm:
    """As lag-wk with gradients of batches: news is ‖δ^k − δ̂‖², δ^k = ∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̃; ξ^k); see lasg.

    LASG-WK1 (Chen et al., 2020); the snapshot θ̃ is renewed every D steps. lr is M·α, and 0.1 unless it or
    alpha is given.
    """
    return replace(
        lag_wk(lr=_default(lr, alpha, 0.1), alpha=alpha), local=LASG(1, D), trigger=Lazy(D, patience=10)
    )


@register("lasg-wk2", "algorithm")
def lasg_wk2(
    lr: Rate | None = None, alpha: Rate | None = None, D: int = 10, xi: float | None = None
) -> Algorithm:
    """As lag-wk with gradients of batches: news is ‖∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̂; ξ^k)‖²; see lasg.

    LASG-WK2 (Chen et al., 2020): the same batch at the model and at that of the last upload. lr is as for
    lasg-wk1, and ξ is 0.4/D unless given: with the 0.8/D of lag-wk a convolutional network hears too little.
    """
    trigger = Lazy(D, 0.4 / D if xi is None else xi, patience=10)
    return replace(lag_wk(lr=_default(lr, alpha, 0.1), alpha=alpha), local=LASG(2), trigger=trigger)


def _default(lr: Rate | None, alpha: Rate | None, rate: float) -> Rate | None:
    return rate if lr is None and alpha is None else lr


def _descend(lr: Rate | None, alpha: Rate | None) -> Descend:
    """The server's step on the mean of the workers: lr, or as many times α as there are workers."""
    if lr is not None and alpha is not None:
        raise SettingError(
            "lr is the step on the mean of the workers, M times alpha, the papers' step on their sum: give "
            f"one of them, not lr={_text(lr)} and alpha={_text(alpha)}"
        )
    if alpha is not None:
        return Descend(PerWorker(alpha))
    return Descend(0.03 if lr is None else lr)


def _text(rate: Rate) -> str:
    return str(rate) if isinstance(rate, float | int) else spell(rate)


def _quantized(published: bool) -> Link:
    """Quantized innovations, of 4 bits: of each layer, or of the whole vector as published."""
    grid = Uniform(4)
    return Link(grid if published else Blockwise(grid, layers=True), Innovation())


def _most(published: bool) -> float | None:
    return None if published else 0.5

"""Lazily aggregated gradients: LAG, LAQ, their stochastic kin, and the baselines of both."""

from __future__ import annotations

from dataclasses import replace

from qsparse.algorithm import Algorithm
from qsparse.compressors import Uniform
from qsparse.link import Link
from qsparse.local import LASG, Gradient
from qsparse.memory import Innovation
from qsparse.registry import register
from qsparse.schedules import Rate
from qsparse.server import Descend
from qsparse.triggers import Ask, Lazy


@register("gd", "algorithm")
def gd(lr: Rate = 0.2) -> Algorithm:
    """θ ← θ − ᾱ·(1/M)Σ_m ∇f_m(θ), with workers that report gradients: the baseline of LAG and LAQ.

    ᾱ is the papers' α times M, since they sum over the workers.
    """
    return Algorithm(local=Gradient(), server=Descend(lr))


@register("qgd", "algorithm")
def qgd(lr: Rate = 0.2, bits: int = 4) -> Algorithm:
    """θ ← θ − ᾱ·(1/M)Σ_m Q_m, Q_m ← Q_m + Uniform_b(∇f_m(θ) − Q_m): quantized innovations.

    LAQ without skipping (Sun et al., 2019).
    """
    return Algorithm(local=Gradient(), up=Link(Uniform(bits), Innovation()), server=Descend(lr))


@register("lag-wk", "algorithm")
def lag_wk(lr: Rate = 0.2, D: int = 10, xi: float | None = None, patience: int = 100) -> Algorithm:
    """As gd, but a worker sends ∇f_m(θ) − (what it sent last) only where that is worth it; see lazy.

    LAG, rule of the worker (Chen et al., 2018).
    """
    up = Link(memory=Innovation())
    return Algorithm(local=Gradient(), trigger=Lazy(D, xi, patience), up=up, server=Descend(lr))


@register("laq", "algorithm")
def laq(
    lr: Rate = 0.2, bits: int = 4, D: int = 10, xi: float | None = None, patience: int = 100
) -> Algorithm:
    """As qgd, but a worker sends its quantized innovation only where that is worth it; see lazy.

    Lazily aggregated quantized gradients (Sun et al., 2019, Algorithm 2).
    """
    up = Link(Uniform(bits), Innovation())
    return Algorithm(local=Gradient(), trigger=Lazy(D, xi, patience), up=up, server=Descend(lr))


@register("lag-ps", "algorithm")
def lag_ps(
    lr: Rate = 0.2,
    D: int = 10,
    xi: float | None = None,
    patience: int = 100,
    smoothness: float | tuple[float, ...] | None = None,
) -> Algorithm:
    """As gd, but the coordinator asks only those workers whose gradient may have changed; see ask.

    LAG, rule of the parameter server (Chen et al., 2018).
    """
    trigger = Ask(D, xi, patience, smoothness=smoothness)
    return Algorithm(local=Gradient(), trigger=trigger, up=Link(memory=Innovation()), server=Descend(lr))


@register("slaq", "algorithm")
def slaq(
    lr: Rate = 0.08,
    bits: int = 3,
    D: int = 10,
    xi: float | None = None,
    patience: int = 100,
    floor: float = 0.2,
) -> Algorithm:
    """As laq with stochastic gradients and the rule of the authors' stochastic runs; see lazy.

    A worker skips while ‖δQ‖² < (1/ᾱ²)Σ_{d=2…D} ξ_d‖Δθ‖² + 1.5(‖ε‖² + ‖ε̂‖²) + floor (Sun et al., 2019; code).
    """
    row = laq(lr, bits)
    return replace(row, trigger=Lazy(D, xi, patience, errors=1.5, floor=floor, newest=2))


@register("lasg-wk1", "algorithm")
def lasg_wk1(lr: Rate = 0.1, D: int = 10, xi: float | None = None, patience: int = 10) -> Algorithm:
    """As lag-wk with stochastic gradients: news is ‖δ^k − δ̂‖², δ^k = ∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̃; ξ^k); see lasg.

    LASG-WK1 (Chen et al., 2020); the snapshot θ̃ is renewed every D steps.
    """
    return replace(lag_wk(lr, D, xi, patience), local=LASG(1, D))


@register("lasg-wk2", "algorithm")
def lasg_wk2(lr: Rate = 0.1, D: int = 10, xi: float | None = None, patience: int = 10) -> Algorithm:
    """As lag-wk with stochastic gradients: news is ‖∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̂; ξ^k)‖²; see lasg.

    LASG-WK2 (Chen et al., 2020): the same batch at the model and at that of the last upload.
    """
    return replace(lag_wk(lr, D, xi, patience), local=LASG(2))

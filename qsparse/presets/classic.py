"""SGD, local SGD, and compressed SGD by their usual names."""

from __future__ import annotations

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Blockwise, Sign, Ternary
from qsparse.link import Link
from qsparse.local import Gradient
from qsparse.memory import ErrorFeedback
from qsparse.presets.base import local_steps, top
from qsparse.registry import register
from qsparse.schedules import Rate
from qsparse.server import Majority
from qsparse.triggers import Every
from qsparse.triggers.periodic import Gap


@register("sgd", "algorithm")
def sgd(
    lr: Rate = 0.1, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Algorithm:
    """x ← x − η·(1/R)Σ_r ∇f_r(x), dense, at every step: the baseline of all others.

    With momentum each worker keeps its own, which equals one common momentum up to rounding.
    """
    return local_steps(lr, momentum, nesterov, weight_decay, Link())


@register("local-sgd", "algorithm")
def local_sgd(
    lr: Rate = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    H: Gap = 4,
) -> Algorithm:
    """H steps of SGD on each worker, then x ← x − (1/R)Σ_r (x − x̂_r): the models are averaged.

    Stich, 2019; the special case C = identity of Basu et al., 2019.
    """
    return local_steps(lr, momentum, nesterov, weight_decay, Link(), Every(H))


@register("topk-sgd", "algorithm")
def topk_sgd(
    lr: Rate = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    k: int | None = None,
    ratio: float | None = None,
) -> Algorithm:
    """g_r = Top_k(m_r + η∇f_r(x)); m_r ← m_r + η∇f_r(x) − g_r; x ← x − (1/R)Σ g_r.

    Stich et al., 2018. k = 1 % of the coordinates unless given.
    """
    up = Link(top(k, ratio), ErrorFeedback())
    return local_steps(lr, momentum, nesterov, weight_decay, up)


@register("ef-signsgd", "algorithm")
def ef_signsgd(
    lr: Rate = 0.1, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Algorithm:
    """g_r = (‖u‖₁/d)·sign(u) per layer with u = m_r + η∇f_r(x); m_r ← u − g_r; x ← x − (1/R)Σ g_r.

    Karimireddy et al., 2019.
    """
    up = Link(Blockwise(Sign(), layers=True), ErrorFeedback())
    return local_steps(lr, momentum, nesterov, weight_decay, up)


@register("signtopk-sgd", "algorithm")
def signtopk_sgd(
    lr: Rate = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    k: int | None = None,
    ratio: float | None = None,
    norm: int = 1,
) -> Algorithm:
    """As topk-sgd with the signs of the kept values times ‖·‖_m/k (Basu et al., 2019, Lemma 3)."""
    up = Link(top(k, ratio) >> Sign(norm), ErrorFeedback())
    return local_steps(lr, momentum, nesterov, weight_decay, up)


@register("qsgd", "algorithm")
def qsgd(
    lr: Rate = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    levels: int = 15,
) -> Algorithm:
    """x ← x − (1/R)Σ_r Q_s(η∇f_r(x)) per layer, unbiased, without memory (Alistarh et al., 2017)."""
    up = Link(Blockwise(QSGD(levels), layers=True))
    return local_steps(lr, momentum, nesterov, weight_decay, up)


@register("terngrad", "algorithm")
def terngrad(
    lr: Rate = 0.1, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Algorithm:
    """x ← x − (1/R)Σ_r s_r·sign(g_r)∘b_r per layer, g_r = η∇f_r(x), s_r = ‖g_r‖∞.

    Without the clipping of gradients (Wen et al., 2017).
    """
    up = Link(Blockwise(Ternary(), layers=True))
    return local_steps(lr, momentum, nesterov, weight_decay, up)


@register("signum-majority", "algorithm")
def signum_majority(lr: Rate = 0.001, momentum: float = 0.9) -> Algorithm:
    """m_r ← βm_r + ∇f_r(x); x ← x − η·sign(Σ_r sign(m_r)) (Bernstein et al., 2018).

    The paper's factor 1 − β before the gradient changes no sign.
    """
    up = Link(Sign(norm=None))
    return Algorithm(local=Gradient(momentum), up=up, server=Majority(lr))

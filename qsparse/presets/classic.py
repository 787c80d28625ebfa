"""SGD, local SGD, and compressed SGD by their usual names."""

from __future__ import annotations

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Blockwise, Sign, Ternary, TopK
from qsparse.link import Link
from qsparse.local import Gradient
from qsparse.memory import ErrorFeedback
from qsparse.registry import register
from qsparse.server import Majority
from qsparse.triggers import Every
from qsparse.triggers.periodic import Gap


@register("sgd", "algorithm")
def sgd() -> Algorithm:
    """x ← x − η·(1/R)Σ_r ∇f_r(x), dense, at every step: the baseline of all others.

    With momentum each worker keeps its own, which equals one common momentum up to rounding.
    """
    return Algorithm()


@register("local-sgd", "algorithm")
def local_sgd(H: Gap = 4) -> Algorithm:
    """H steps of SGD on each worker, then x ← x − (1/R)Σ_r (x − x̂_r): the models are averaged.

    Stich, 2019; the special case C = identity of Basu et al., 2019.
    """
    return Algorithm(trigger=Every(H))


@register("topk-sgd", "algorithm")
def topk_sgd() -> Algorithm:
    """g_r = Top_k(m_r + η∇f_r(x)); m_r ← m_r + η∇f_r(x) − g_r; x ← x − (1/R)Σ g_r.

    Stich et al., 2018. k = 1 % of the coordinates unless given.
    """
    return Algorithm(up=Link(TopK(ratio=0.01), ErrorFeedback()))


@register("ef-signsgd", "algorithm")
def ef_signsgd() -> Algorithm:
    """g_r = (‖u‖₁/d)·sign(u) per layer with u = m_r + η∇f_r(x); m_r ← u − g_r; x ← x − (1/R)Σ g_r.

    Karimireddy et al., 2019.
    """
    return Algorithm(up=Link(Blockwise(Sign(), layers=True), ErrorFeedback()))


@register("signtopk-sgd", "algorithm")
def signtopk_sgd() -> Algorithm:
    """As topk-sgd with the signs of the kept values times ‖·‖_m/k (Basu et al., 2019, Lemma 3)."""
    return Algorithm(up=Link(TopK(ratio=0.01) >> Sign(), ErrorFeedback()))


@register("qsgd", "algorithm")
def qsgd() -> Algorithm:
    """x ← x − (1/R)Σ_r Q_s(η∇f_r(x)) per layer, unbiased, without memory (Alistarh et al., 2017)."""
    return Algorithm(up=Link(Blockwise(QSGD(), layers=True)))


@register("terngrad", "algorithm")
def terngrad() -> Algorithm:
    """x ← x − (1/R)Σ_r s_r·sign(g_r)∘b_r per layer, g_r = η∇f_r(x), s_r = ‖g_r‖∞.

    Without the clipping of gradients (Wen et al., 2017).
    """
    return Algorithm(up=Link(Blockwise(Ternary(), layers=True)))


@register("signum-majority", "algorithm")
def signum_majority() -> Algorithm:
    """m_r ← βm_r + ∇f_r(x); x ← x − η·sign(Σ_r sign(m_r)), η = 0.001, β = 0.9 (Bernstein et al., 2018).

    The paper's factor 1 − β before the gradient changes no sign. The vote goes down as it is: in one bit for
    each value where the number of workers is odd, else in log2 3, as votes may tie.
    """
    return Algorithm(local=Gradient(0.9), up=Link(Sign(norm=None)), server=Majority(0.001))

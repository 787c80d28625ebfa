"""Published algorithms as rows of the design space.

Each is a function of a few lines that picks parts; its docstring states the update in the paper's
symbols. ``qsparse list algorithms`` prints them, ``build("name(setting=value)", "algorithm")``
makes one.
"""

from __future__ import annotations

from dataclasses import replace

from qsparse.algorithm import Algorithm, Async
from qsparse.compressors import (
    QSGD,
    Blockwise,
    Compressor,
    LowPrecision,
    RandSparse,
    Sign,
    Ternary,
    TopK,
    Uniform,
)
from qsparse.link import Link
from qsparse.local import SGD, SVRG, Gradient
from qsparse.memory import ErrorFeedback, Innovation, Memory, Snapshot
from qsparse.registry import register
from qsparse.schedules import Rate
from qsparse.server import Accelerated, Descend, Hold, Majority, ProxSVRG, ServerRule
from qsparse.triggers import Every, Lazy, RandomGap, Trigger


def _local_sgd(
    lr: Rate,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    up: Link,
    trigger: Trigger | None = None,
) -> Algorithm:
    """Workers run SGD and report the net update; the coordinator subtracts its mean."""
    local = SGD(lr, momentum, nesterov, weight_decay)
    return Algorithm(local=local, trigger=trigger or Every(1), up=up)


@register("sgd", "algorithm")
def sgd(
    lr: Rate = 0.1, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Algorithm:
    """x ← x − η·(1/R)Σ_r ∇f_r(x), dense, at every step: the baseline of all others.

    With momentum each worker keeps its own, which equals one common momentum up to rounding.
    """
    return _local_sgd(lr, momentum, nesterov, weight_decay, Link())


@register("local-sgd", "algorithm")
def local_sgd(
    lr: Rate = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    H: int = 4,
) -> Algorithm:
    """H steps of SGD on each worker, then x ← x − (1/R)Σ_r (x − x̂_r): the models are averaged.

    Stich, 2019; the special case C = identity of Basu et al., 2019.
    """
    return _local_sgd(lr, momentum, nesterov, weight_decay, Link(), Every(H))


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
    up = Link(_top(k, ratio), ErrorFeedback())
    return _local_sgd(lr, momentum, nesterov, weight_decay, up)


@register("ef-signsgd", "algorithm")
def ef_signsgd(
    lr: Rate = 0.1, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Algorithm:
    """g_r = (‖u‖₁/d)·sign(u) per layer with u = m_r + η∇f_r(x); m_r ← u − g_r; x ← x − (1/R)Σ g_r.

    Karimireddy et al., 2019.
    """
    up = Link(Blockwise(Sign(), layers=True), ErrorFeedback())
    return _local_sgd(lr, momentum, nesterov, weight_decay, up)


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
    up = Link(_top(k, ratio) >> Sign(norm), ErrorFeedback())
    return _local_sgd(lr, momentum, nesterov, weight_decay, up)


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
    return _local_sgd(lr, momentum, nesterov, weight_decay, up)


@register("terngrad", "algorithm")
def terngrad(
    lr: Rate = 0.1, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Algorithm:
    """x ← x − (1/R)Σ_r s_r·sign(g_r)∘b_r per layer, g_r = η∇f_r(x), s_r = ‖g_r‖∞.

    Without the clipping of gradients (Wen et al., 2017).
    """
    up = Link(Blockwise(Ternary(), layers=True))
    return _local_sgd(lr, momentum, nesterov, weight_decay, up)


@register("signum-majority", "algorithm")
def signum_majority(lr: Rate = 0.001, momentum: float = 0.9) -> Algorithm:
    """m_r ← βm_r + ∇f_r(x); x ← x − η·sign(Σ_r sign(m_r)) (Bernstein et al., 2018).

    The paper's factor 1 − β before the gradient changes no sign.
    """
    up = Link(Sign(norm=None))
    return Algorithm(local=Gradient(momentum), up=up, server=Majority(lr))


@register("qsparse-local-sgd", "algorithm")
def qsparse_local_sgd(
    lr: Rate = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    H: int = 8,
    compressor: Compressor | None = None,
    memory: Memory | None = None,
    random_gaps: bool = False,
) -> Algorithm:
    """u_r = m_r + x − x̂_r after H local steps; g_r = C(u_r); m_r ← u_r − g_r; x ← x − (1/R)Σ_r g_r.

    Qsparse-local-SGD, synchronous (Basu et al., 2019, Algorithm 1). C is Top_1% >> Sign unless
    given; ``random_gaps`` draws the synchronisation set with gaps of 1 … H.
    """
    up = Link(compressor or TopK(ratio=0.01) >> Sign(), memory or ErrorFeedback())
    trigger = RandomGap(H) if random_gaps else Every(H)
    return _local_sgd(lr, momentum, nesterov, weight_decay, up, trigger)


@register("qsparse-local-sgd-async", "algorithm")
def qsparse_local_sgd_async(
    lr: Rate = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    H: int = 8,
    compressor: Compressor | None = None,
    memory: Memory | None = None,
    ahead: int | None = None,
) -> Algorithm:
    """As qsparse-local-sgd, but worker r meets at steps of its own: x ← x − (1/R)·g_r, told to r alone.

    Qsparse-local-SGD, asynchronous (Basu et al., 2019, Algorithm 2). The gaps of each worker are drawn
    from 1 … H; ``ahead`` bounds how many meetings a worker may be ahead of the slowest.
    """
    row = qsparse_local_sgd(lr, momentum, nesterov, weight_decay, H, compressor, memory, random_gaps=True)
    return replace(row, meeting=Async(ahead))


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


@register("dist-ef-sgd", "algorithm")
def dist_ef_sgd(lr: Rate = 0.1, compressor: Compressor | None = None) -> Algorithm:
    """Workers push Δ_i = C(η g_i + e_i), the server answers with C(mean Δ + ẽ); both keep their errors.

    dist-EF-SGD (Zheng et al., 2019, Algorithm 2), in units of the parameters: e here is the paper's
    error times η, so its factor η_{t−1}/η_t is gone. The server's error memory is the innovation
    memory of the down link. C is the scaled sign of the whole vector unless given.
    """
    return _dist_ef(SGD(lr), compressor or Sign())


@register("dist-ef-sgdm", "algorithm")
def dist_ef_sgdm(
    lr: Rate = 0.1, momentum: float = 0.9, nesterov: bool = True, compressor: Compressor | None = None
) -> Algorithm:
    """As dist-ef-sgd with m_i = μm_i + g_i and g_i + μm_i in place of g_i, on the workers only."""
    return _dist_ef(SGD(lr, momentum, nesterov), compressor or Sign())


@register("dist-ef-blocksgd", "algorithm")
def dist_ef_blocksgd(lr: Rate = 0.1, size: int | None = None, bucket: int | None = None) -> Algorithm:
    """As dist-ef-sgd with (‖v_b‖₁/d_b)·sign(v_b) for each layer, block of a size, or bucket of layers.

    The authors' code takes layers for CIFAR, and for ImageNet buckets of 50 MiB, bucket=13107200.
    """
    return _dist_ef(SGD(lr), _blocks(size, bucket))


@register("dist-ef-blocksgdm", "algorithm")
def dist_ef_blocksgdm(
    lr: Rate = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    size: int | None = None,
    bucket: int | None = None,
) -> Algorithm:
    """As dist-ef-sgdm with (‖v_b‖₁/d_b)·sign(v_b) for the blocks of dist-ef-blocksgd."""
    return _dist_ef(SGD(lr, momentum, nesterov), _blocks(size, bucket))


@register("asylpg", "algorithm")
def asylpg(
    lr: Rate = 0.1,
    bits: int = 8,
    mu: float = 0.5,
    inner: int = 100,
    l1: float = 0.0,
    l2: float = 0.0,
    ahead: int | None = None,
) -> Algorithm:
    """x ← prox_{ηh}(x − η(Q_b(α) + ∇f(x̃))), α = ∇f_B(Q(x)) − ∇f_B(x̃), with workers that do not wait.

    AsyLPG (Yu et al., 2019, Algorithm 1): gradients and models are quantized, models with as few bits
    as E‖Q(x) − x‖² ≤ μ‖x − x̃‖² allows. After ``inner`` steps of a worker x̃ ← x, and the full gradient
    there is made by all workers together. h(x) = l1·‖x‖₁ + (l2/2)·‖x‖².
    """
    down = Link(LowPrecision(2), Snapshot(mu))
    return _variance_reduced(ProxSVRG(lr, l1, l2), Link(LowPrecision(bits)), down, inner, ahead)


@register("sparse-asylpg", "algorithm")
def sparse_asylpg(
    lr: Rate = 0.1,
    budget: float | None = None,
    mu: float = 0.5,
    inner: int = 100,
    l1: float = 0.0,
    l2: float = 0.0,
    ahead: int | None = None,
) -> Algorithm:
    """As asylpg with Q_b(β) for Q_b(α): β_i = Z_iα_i/p_i, Z_i = 1 with probability p_i = φ|α_i|/‖α‖₁.

    Sparse-AsyLPG (Yu et al., 2019, Algorithm 2), φ = ‖α‖₁/‖α‖∞ unless a smaller ``budget`` is given. All
    kept values have one magnitude, so a sign for each is what Q_b makes of them for any b.
    """
    up, down = Link(RandSparse(budget) >> Sign()), Link(LowPrecision(2), Snapshot(mu))
    return _variance_reduced(ProxSVRG(lr, l1, l2), up, down, inner, ahead)


@register("acc-asylpg", "algorithm")
def acc_asylpg(
    lr: Rate = 0.1,
    bits: int = 8,
    mu: float = 0.5,
    inner: int = 100,
    l1: float = 0.0,
    l2: float = 0.0,
    ahead: int | None = None,
) -> Algorithm:
    """As asylpg with y ← prox(y − (η/θₛ)(Q_b(α) + ∇f(x̃))), x ← θₛy + (1 − θₛ)x̃, θₛ = 2/(s + 2).

    Acc-AsyLPG (Yu et al., 2019, Algorithm 3); the model's error is bounded by θₛμ‖x − x̃‖².
    """
    down = Link(LowPrecision(2), Snapshot(mu, accelerated=True))
    return _variance_reduced(Accelerated(lr, l1, l2), Link(LowPrecision(bits)), down, inner, ahead)


@register("asyfpg", "algorithm")
def asyfpg(
    lr: Rate = 0.1, inner: int = 100, l1: float = 0.0, l2: float = 0.0, ahead: int | None = None
) -> Algorithm:
    """As asylpg with float32 both ways: its baseline."""
    return _variance_reduced(ProxSVRG(lr, l1, l2), Link(), Link(), inner, ahead)


@register("acc-asyfpg", "algorithm")
def acc_asyfpg(
    lr: Rate = 0.1, inner: int = 100, l1: float = 0.0, l2: float = 0.0, ahead: int | None = None
) -> Algorithm:
    """As acc-asylpg with float32 both ways: its baseline."""
    return _variance_reduced(Accelerated(lr, l1, l2), Link(), Link(), inner, ahead)


@register("qsvrg", "algorithm")
def qsvrg(
    lr: Rate = 0.1,
    bits: int = 8,
    inner: int = 100,
    l1: float = 0.0,
    l2: float = 0.0,
    ahead: int | None = None,
) -> Algorithm:
    """As asylpg with quantized gradients only: models are float32 (after Alistarh et al., 2017)."""
    return _variance_reduced(ProxSVRG(lr, l1, l2), Link(LowPrecision(bits)), Link(), inner, ahead)


def _variance_reduced(server: ServerRule, up: Link, down: Link, inner: int, ahead: int | None) -> Algorithm:
    snapshot = Algorithm(local=Gradient(whole=True), server=Hold(), length=1)
    return Algorithm(
        local=SVRG(), up=up, server=server, down=down, meeting=Async(ahead), prelude=snapshot, length=inner
    )


def _dist_ef(local: SGD, compressor: Compressor) -> Algorithm:
    return Algorithm(local=local, up=Link(compressor, ErrorFeedback()), down=Link(compressor, Innovation()))


def _blocks(size: int | None, bucket: int | None) -> Blockwise:
    return Blockwise(Sign(), size, layers=size is None and bucket is None, bucket=bucket)


def _top(k: int | None, ratio: float | None) -> TopK:
    return TopK(k, 0.01 if k is None and ratio is None else ratio)

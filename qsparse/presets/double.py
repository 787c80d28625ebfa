"""Double quantization: AsyLPG, its kin, and their baselines."""

from __future__ import annotations

from qsparse.algorithm import Algorithm, Async
from qsparse.compressors import LowPrecision, RandSparse, Sign
from qsparse.link import Link
from qsparse.local import SVRG, Gradient
from qsparse.memory import Snapshot
from qsparse.registry import register
from qsparse.schedules import Rate
from qsparse.server import Accelerated, Hold, ProxSVRG, ServerRule


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
    lr: Rate = 0.02,
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
    Few are kept, so the noise is large: with asylpg's lr of 0.1 a network of MNIST diverges.
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

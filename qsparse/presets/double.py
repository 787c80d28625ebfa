"""Double quantization: AsyLPG, its kin, and their baselines."""

from __future__ import annotations

from qsparse.algorithm import Algorithm
from qsparse.compressors import LowPrecision, RandSparse, Sign
from qsparse.link import Link
from qsparse.local import SVRG, Gradient
from qsparse.meeting import Async
from qsparse.memory import Snapshot
from qsparse.registry import register
from qsparse.server import Accelerated, Hold, ProxSVRG, ServerRule


@register("asylpg", "algorithm")
def asylpg(inner: int = 100) -> Algorithm:
    """x ← prox_{ηh}(x − η(Q_b(α) + ∇f(x̃))), α = ∇f_B(Q(x)) − ∇f_B(x̃), with workers that do not wait.

    AsyLPG (Yu et al., 2019, Algorithm 1): gradients and models are quantized, models with as few bits
    as E‖Q(x) − x‖² ≤ μ‖x − x̃‖² allows. After ``inner`` steps of a worker x̃ ← x, and the full gradient
    there is made by all workers together. h(x) = l1·‖x‖₁ + (l2/2)·‖x‖², b is ``bits`` of the up link and η
    lr of the server rule: 0.02, with which a convolutional network learns too; with 0.1 it hardly does. It is
    the step size of one report, so R workers move the model R times while each takes a step.
    """
    down = Link(LowPrecision(2), Snapshot())
    return _variance_reduced(ProxSVRG(0.02), Link(LowPrecision(8)), down, inner)


@register("sparse-asylpg", "algorithm")
def sparse_asylpg(inner: int = 100) -> Algorithm:
    """As asylpg with Q_b(β) for Q_b(α): β_i = Z_iα_i/p_i, Z_i = 1 with probability p_i = φ|α_i|/‖α‖₁.

    Sparse-AsyLPG (Yu et al., 2019, Algorithm 2), φ = ‖α‖₁/‖α‖∞ unless a smaller ``budget`` is given. All
    kept values have one magnitude, so a sign for each is what Q_b makes of them for any b.
    Few are kept, so the noise is large: lr is 0.01. With 0.05 a convolutional network diverges.
    """
    up, down = Link(RandSparse() >> Sign()), Link(LowPrecision(2), Snapshot())
    return _variance_reduced(ProxSVRG(0.01), up, down, inner)


@register("acc-asylpg", "algorithm")
def acc_asylpg(inner: int = 100) -> Algorithm:
    """As asylpg with y ← prox(y − (η/θₛ)(Q_b(α) + ∇f(x̃))), x ← θₛy + (1 − θₛ)x̃, θₛ = 2/(s + 2).

    Acc-AsyLPG (Yu et al., 2019, Algorithm 3); the model's error is bounded by θₛμ‖x − x̃‖². lr is 0.05.
    """
    down = Link(LowPrecision(2), Snapshot(accelerated=True))
    return _variance_reduced(Accelerated(0.05), Link(LowPrecision(8)), down, inner)


@register("asyfpg", "algorithm")
def asyfpg(inner: int = 100) -> Algorithm:
    """As asylpg with float32 both ways: its baseline."""
    return _variance_reduced(ProxSVRG(0.02), Link(), Link(), inner)


@register("acc-asyfpg", "algorithm")
def acc_asyfpg(inner: int = 100) -> Algorithm:
    """As acc-asylpg with float32 both ways: its baseline."""
    return _variance_reduced(Accelerated(0.05), Link(), Link(), inner)


@register("qsvrg", "algorithm")
def qsvrg(inner: int = 100) -> Algorithm:
    """As asylpg with quantized gradients only: models are float32 (after Alistarh et al., 2017)."""
    return _variance_reduced(ProxSVRG(0.02), Link(LowPrecision(8)), Link(), inner)


def _variance_reduced(server: ServerRule, up: Link, down: Link, inner: int) -> Algorithm:
    snapshot = Algorithm(local=Gradient(whole=True), server=Hold(), length=1)
    return Algorithm(
        local=SVRG(), up=up, server=server, down=down, meeting=Async(), prelude=snapshot, length=inner
    )

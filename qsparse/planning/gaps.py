"""How many local steps the theory of Qsparse-local-SGD allows between two meetings, with its constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qsparse.errors import SettingError
from qsparse.tuning import orders_of_h


@dataclass(frozen=True)
class Loss:
    """What the theory has to know of a loss f = (1/R)·Σf_r for constants in place of orders.

    Args:
        gap: f(x₀) − f*, what there is to descend.
        smoothness: L, by which gradients change: ‖∇f_r(x) − ∇f_r(y)‖ ≤ L‖x − y‖.
        noise: σ, of the gradient of one example: E‖∇f_i(x) − ∇f_r(x)‖² ≤ σ².
        gradient: G, the largest of a batch: E‖∇f_B(x)‖² ≤ G².
    """

    gap: float
    smoothness: float
    noise: float
    gradient: float

    def __post_init__(self) -> None:
        for name in ("gap", "smoothness", "noise", "gradient"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingError(f"{name} of a loss must be positive, not {getattr(self, name):g}")


def largest_h(gamma: float, steps: int, workers: int, batch: int, loss: Loss) -> tuple[float, float]:
    """The largest H with which compression and local steps at most double SGD's bound, and its step size.

    Synchronous, not convex, with a constant step size η ≤ 1/L; derived in docs/tuning.md in the manner of
    Basu et al. (2019), Theorem 1:

        (1/T)·Σ_t E‖∇f(x_t)‖² ≤ 4(f(x₀) − f*)/(ηT) + 2ηLσ²/(bR) + 8cL²η²G²H²,  c = 1 + 2(1 − γ)(2 − γ)/γ².

    η makes the first two terms, those of SGD without compression, least; H makes the third as large as both
    together: H = γT^(1/4)/(bR)^(3/4) · √(σ³/(2G²√(2L(f(x₀) − f*))))/√(cγ²), where cγ² is between 1 and 4.

    Args:
        gamma: γ of the compressor, in (0, 1].
        steps: T.
        workers: R.
        batch: b, of each worker.
        loss: its figures.

    Raises:
        SettingError: a figure is none of these, or T is too small for η ≤ 1/L.

    >>> h, lr = largest_h(0.5, 10**8, 4, 8, Loss(gap=2, smoothness=1, noise=4, gradient=4))
    >>> round(h, 2), round(lr, 5)
    (2.81, 0.00028)
    """
    if not 0 < gamma <= 1:
        raise SettingError(f"gamma must lie in (0, 1], not {gamma:g}: it is the share of ‖x‖² that is kept")
    orders_of_h(gamma, steps, workers, batch)  # refuses what is no number of these
    both, wild = batch * workers, loss.noise**2
    lr = math.sqrt(2 * loss.gap * both / (loss.smoothness * wild * steps))
    if lr * loss.smoothness > 1:
        least = math.ceil(2 * loss.gap * loss.smoothness * both / wild)
        raise SettingError(
            f"{steps:,} steps are too few for this bound, whose step size {lr:.3g} must not exceed 1/L = "
            f"{1 / loss.smoothness:.3g}: it speaks of {least:,} steps or more"
        )
    c = 1 + 2 * (1 - gamma) * (2 - gamma) / gamma**2
    return math.sqrt(wild / (2 * c * loss.smoothness * lr * both)) / loss.gradient, lr

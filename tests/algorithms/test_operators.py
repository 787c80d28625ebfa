"""What the papers prove of compressors and of what is kept, held to vectors on which it could fail.

Bounds are written out here from the papers, and compared with what parts claim and with what is lost.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from qsparse.compressors import Compressor, decompress
from qsparse.link import Link, Sender
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.registry import build
from qsparse.seeds import Seed

#: Length of the vectors.
N = 600
_DRAW = np.random.default_rng(1)
#: Vectors that put different things to the test: the same size everywhere, tails, and two scales.
VECTORS = {
    "gaussian": _DRAW.standard_normal(N),
    "flat": _DRAW.choice([-1.0, 1.0], N),
    "heavy": _DRAW.standard_t(1.5, N),
    "two scales": _DRAW.standard_normal(N) * np.repeat([1e-3, 1.0], N // 2),
}


def part(text: str) -> Compressor:
    compressor: Compressor = build(text, "compressor")
    return compressor


def spelled(compressor: Compressor, x: np.ndarray, step: int = 0) -> np.ndarray:
    out: np.ndarray = decompress(compressor.compress(x, Seed(5, step=step, use="up")), np.empty(x.size))
    return out


def kept(text: str, x: np.ndarray, draws: int = 1) -> tuple[float, float]:
    """1 − ‖x − C(x)‖²/‖x‖², the mean over draws, and its standard error."""
    found = [1 - np.sum((x - spelled(part(text), x, t)) ** 2) / np.sum(x**2) for t in range(draws)]
    return float(np.mean(found)), float(np.std(found) / math.sqrt(draws))


def largest(x: np.ndarray, k: int) -> np.ndarray:
    return x[np.argsort(-np.abs(x), kind="stable")[:k]]


def variance(k: int, s: int) -> float:
    """β of QSGD with s levels on k values."""
    return min(k / s**2, math.sqrt(k) / s)


@pytest.mark.parametrize("x", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize(("k", "s"), [(20, 15), (300, 15), (300, 31)])
def test_top_k_and_qsgd_keep_what_lemmas_1_and_2_say(k: int, s: int, x: np.ndarray) -> None:
    """(1 − β)k/d, and k/(d(1 + β)) if scaled: that is claimed, and no less is kept."""
    beta = variance(k, s)
    text = f"topk(k={k}) >> qsgd(levels={s}"
    for whole, gamma in ((f"{text})", (1 - beta) * k / N), (f"{text}, scaled=true)", k / (N * (1 + beta)))):
        claimed = part(whole).claims.gamma(N)
        assert claimed == (pytest.approx(gamma) if gamma > 0 else None)
        mean, error = kept(whole, x, draws=20)
        assert mean >= max(gamma, 0) - 4 * error


def test_scaling_helps_the_bound_and_may_cost() -> None:
    """1/(1 + β) > 1 − β; but on a gaussian vector, whose variance is below β, not scaled keeps more."""
    plain, scaled = "topk(k=50) >> qsgd(levels=15)", "topk(k=50) >> qsgd(levels=15, scaled=true)"
    bounds = [part(text).claims.gamma(N) or 0.0 for text in (plain, scaled)]
    assert bounds[1] > bounds[0] > 0
    (one, error), (other, _) = (kept(text, VECTORS["gaussian"], draws=60) for text in (plain, scaled))
    assert one > other + 4 * error


@pytest.mark.parametrize("x", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("s", [1, 4, 31])
def test_the_variance_of_qsgd(s: int, x: np.ndarray) -> None:
    """E‖Q(x) − x‖² ≤ min(d/s², √d/s)‖x‖²."""
    lost = [np.sum((x - spelled(part(f"qsgd(levels={s})"), x, t)) ** 2) for t in range(30)]
    mean, error = np.mean(lost), np.std(lost) / math.sqrt(len(lost))
    assert part("qsgd").claims.omega(N) == pytest.approx(variance(N, 15))
    assert 0 < mean <= variance(N, s) * np.sum(x**2) + 4 * error


@pytest.mark.parametrize("x", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("k", [1, 30, N])
@pytest.mark.parametrize("norm", [1, 2])
def test_signs_of_top_k_keep_what_lemma_3_says(norm: int, k: int, x: np.ndarray) -> None:
    """‖v‖₁²/(k‖x‖²) with norm 1, exactly; with norm 2 what follows by hand; both at least 1/d."""
    v = largest(x, k)
    if norm == 1:
        exact = np.sum(np.abs(v)) ** 2 / (k * np.sum(x**2))
        squared = np.linalg.norm(v, 1) / (math.sqrt(N) * np.linalg.norm(v))
        assert exact >= k / N * squared**2 - 1e-12, "the paper's form of the lemma is weaker"
    else:
        scale = np.linalg.norm(v) / k
        exact = (2 * scale * np.sum(np.abs(v)) - k * scale**2) / np.sum(x**2)
    found, _ = kept(f"topk(k={k}) >> sign(norm={norm})", x)
    assert found == pytest.approx(exact, abs=1e-6)
    assert found >= 1 / N - 1e-6


@pytest.mark.parametrize("x", VECTORS.values(), ids=VECTORS)
def test_blocks_keep_what_the_worst_of_them_keeps(x: np.ndarray) -> None:
    """δ ≥ φ(v) = min_b ‖v_b‖₁²/(d_b‖v_b‖²); of two scales blocks keep twice what the whole vector does."""
    blocks = x.reshape(2, -1)
    phi = min(np.sum(np.abs(b)) ** 2 / (b.size * np.sum(b**2)) for b in blocks)
    (delta, _), (whole, _) = kept(f"blockwise(sign, size={N // 2})", x), kept("sign", x)
    assert delta >= phi - 1e-6
    if x is VECTORS["two scales"]:
        assert delta > 1.9 * whole
    small, large = part("topk(k=3)"), part(f"blockwise(topk(k=3), size={N // 2})")
    assert large.claims.gamma(N) == small.claims.gamma(N // 2) == 3 / (N // 2)


@pytest.mark.parametrize("x", VECTORS.values(), ids=VECTORS)
def test_what_sparse_asylpg_sends_has_one_magnitude(x: np.ndarray) -> None:
    """±‖α‖₁/φ: one sign a value loses nothing; φ = ‖α‖₁/‖α‖∞ values are sent on average."""
    phi = np.sum(np.abs(x)) / np.max(np.abs(x))
    sent = []
    for t in range(50):
        values = spelled(part("randsparse"), x, t)
        assert np.unique(np.abs(values)).size <= 2, "zero and one more"
        assert np.max(np.abs(values), initial=0) in (0, pytest.approx(np.max(np.abs(x)), rel=1e-6))
        np.testing.assert_allclose(spelled(part("randsparse >> sign"), x, t), values, rtol=1e-6)
        sent.append(np.count_nonzero(values))
    assert np.mean(sent) == pytest.approx(phi, abs=1e-9 + 4 * np.std(sent) / math.sqrt(50))


def test_an_error_memory_stays_within_its_bound() -> None:
    """‖m‖² ≤ 4(1 − γ²)/γ²·(largest update)², with one step size (Basu et al., 2019)."""
    for text in ("topk(k=60)", "topk(k=300) >> qsgd(levels=31, scaled=true)", "topk(k=30) >> sign"):
        sender = Sender(Link(part(text), ErrorFeedback()), np.zeros(N))
        gamma, most = part(text).claims.gamma(N), 0.0
        assert gamma is not None
        for t in range(100):
            v = _DRAW.standard_normal(N)
            sender.commit(sender.draft(v / np.linalg.norm(v), Seed(1, step=t, use="up")))
            most = max(most, float(np.sum(sender.state["residual"] ** 2)))
        assert 0.1 < most <= 4 * (1 - gamma**2) / gamma**2


def test_both_errors_of_dist_ef_stay_within_their_bound() -> None:
    """‖ẽ + (1/M)Σe_i‖² ≤ 8(1 − δ)G²/δ²·(1 + 16/δ²) (Zheng et al., 2019), with G = 1."""
    C, M = part("blockwise(sign, size=60)"), 2
    workers = [Sender(Link(C, ErrorFeedback()), np.zeros(N)) for _ in range(M)]
    down, x = Sender(Link(C, Innovation()), np.zeros(N)), np.zeros(N)
    delta, most = C.claims.gamma(N), 0.0
    assert delta is not None
    for t in range(60):
        for rank, sender in enumerate(workers):
            v = _DRAW.standard_normal(N)
            draft = sender.draft(v / np.linalg.norm(v), Seed(1, rank=rank, step=t, use="up"))
            x -= decompress(draft.payload, np.empty(N)) / M
            sender.commit(draft)
        down.commit(down.draft(x, Seed(1, step=t, use="down")))
        errors = down.state["known"] - x + sum(sender.state["residual"] for sender in workers) / M
        most = max(most, float(np.sum(errors**2)))
    assert 0.01 < most <= 8 * (1 - delta) / delta**2 * (1 + 16 / delta**2)

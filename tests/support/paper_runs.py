"""Presets whose workers wait, run beside their transcriptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import transcriptions as paper
import transcriptions_lazy as lazy

from qsparse.algorithm import Algorithm
from qsparse.exchange import Exchange
from qsparse.kernels import random
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.rules import check, natural_exchange
from qsparse.schedules import rate_at
from qsparse.seeds import Seed
from qsparse.server import ServerRule
from qsparse.types import Layer
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

WORKERS, STEPS, RUN = 3, 160, 11


SIZES = (24, 6, 1, 25, 4)


BOUNDS = np.cumsum((0, *SIZES))


TRANSCRIPTIONS = paper.TRANSCRIPTIONS | lazy.TRANSCRIPTIONS


LAYOUT = tuple(Layer(f"layer{i}", int(a), int(b)) for i, (a, b) in enumerate(pairwise(BOUNDS)))


LAYERS = [slice(layer.start, layer.stop) for layer in LAYOUT]


N = int(BOUNDS[-1])


def _least_squares() -> tuple[np.ndarray, np.ndarray]:
    """Different data on each worker; columns of different lengths, so that magnitudes spread."""
    rng = np.random.default_rng(3)
    A = rng.normal(size=(WORKERS, 40, N)) * np.geomspace(0.2, 1.0, N)[rng.permutation(N)]
    b = A @ rng.normal(size=N) + 0.1 * rng.normal(size=(WORKERS, 40))
    return A, b


A, B = _least_squares()


START = np.random.default_rng(4).normal(size=N).astype(np.float32).astype(np.float64)


def gradient(r: int, x: np.ndarray, t: int) -> np.ndarray:
    """Of worker r's mean squared error over the ten examples of step t."""
    rows = np.random.default_rng((5, r, t)).choice(40, 10, replace=False)
    slope: np.ndarray = A[r, rows].T @ (A[r, rows] @ x - B[r, rows]) / 10
    return slope


def uniforms(r: int, t: int, path: tuple[int, ...], n: int) -> np.ndarray:
    """What worker r draws at step t, from the stream that qsparse has for it."""
    out = np.empty(n)
    random.uniforms(*random.halves(Seed(RUN, rank=r, step=t, use="up", path=path).key), 0, out)
    return out


class Case(NamedTuple):
    """A preset as text, and the settings of its transcription; ``still``: gradients are of the whole share.

    That share is the batch of step 1, also where a preset takes no batches.
    """

    text: str
    settings: dict[str, Any]
    eta: str | float = 0.05
    still: bool = False

    @property
    def name(self) -> str:
        return self.text.partition("(")[0]


def _set(H: int) -> set[int]:
    return {t for t in range(1, STEPS + 1) if t % H == 0} | {STEPS}


def _top(k: int) -> Callable[..., np.ndarray]:
    return lambda v, r, t: paper.top_k(v, k)


def _sign_top(k: int) -> Callable[..., np.ndarray]:
    return lambda v, r, t: paper.sign_top_k(v, k)


def _qsgd_top(k: int, s: int, scaled: bool) -> Callable[..., np.ndarray]:
    return lambda v, r, t: paper.q_s_top_k(v, k, s, uniforms(r, t, (1,), k), scaled)


NESTEROV = {"momentum": 0.6, "nesterov": True, "weight_decay": 0.01}


FALLING = "steps(start=0.08, after=[40, 90], factor=0.3)"


COSINE = "cosine(0.08, warmup=20, floor=0.01)"


CASES = [
    Case("sgd(lr=0.05)", {}),
    Case("sgd(lr=0.05, momentum=0.6, nesterov=true, weight_decay=0.01)", NESTEROV),
    Case("local-sgd(lr=0.05)", {"H": 4}),
    Case("local-sgd(lr=0.05, H=7, momentum=0.6)", {"H": 7, "momentum": 0.6}),
    Case("topk-sgd(lr=0.05)", {"k": 1}),
    Case("topk-sgd(lr=0.05, k=7, momentum=0.6, nesterov=true, weight_decay=0.01)", {"k": 7, **NESTEROV}),
    Case(f"topk-sgd(lr={COSINE}, ratio=0.1)", {"k": 6}, COSINE),
    Case("ef-signsgd(lr=0.02)", {}, 0.02),
    Case(f"ef-signsgd(lr={COSINE}, momentum=0.5)", {"momentum": 0.5}, COSINE),
    Case("signtopk-sgd(lr=0.03, k=9)", {"k": 9}, 0.03),
    Case("signtopk-sgd(lr=0.03, k=9, norm=2)", {"k": 9, "norm": 2}, 0.03),
    Case("qsgd(lr=0.02)", {"levels": 15}, 0.02),
    Case("qsgd(lr=0.02, levels=3, weight_decay=0.1)", {"levels": 3, "weight_decay": 0.1}, 0.02),
    Case("terngrad(lr=0.01)", {}, 0.01),
    Case("terngrad(lr=0.01, momentum=0.5)", {"momentum": 0.5}, 0.01),
    Case("signum-majority(lr=0.01)", {}, 0.01),
    Case("signum-majority(lr=0.01, momentum=0.0)", {"momentum": 0.0}, 0.01),
    Case("qsparse-local-sgd(lr=0.05)", {"meetings": _set(8), "C": _sign_top(1)}),
    Case("qsparse-local-sgd(lr=0.05, H=3, compressor=topk(k=9) >> sign, momentum=0.5)",
         {"meetings": _set(3), "C": _sign_top(9), "momentum": 0.5}),
    Case("qsparse-local-sgd(lr=0.04, H=4, compressor=topk(k=9) >> qsgd(levels=7, scaled=true))",
         {"meetings": _set(4), "C": _qsgd_top(9, 7, True)}, 0.04),
    Case("qsparse-local-sgd(lr=0.04, H=4, compressor=topk(k=9) >> qsgd(levels=7), random_gaps=true)",
         {"meetings": None, "C": _qsgd_top(9, 7, False)}, 0.04),
    Case("qsparse-local-sgd(lr=0.05, H=steps(start=2.0, after=[40, 100], factor=2.0), compressor=topk(k=9))",
         {"meetings": {*range(2, 41, 2), *range(44, 101, 4), *range(108, 161, 8), STEPS}, "C": _top(9)}),
    Case(f"qsparse-local-sgd(lr={FALLING}, H=4, compressor=topk(k=2) >> sign, reset_memory=true)",
         {"meetings": _set(4), "C": _sign_top(2), "wiped": (40, 90)}, FALLING),
    Case("qsparse-local-sgd-2way(lr=0.05, H=3, compressor=topk(k=9), down=topk(k=20) >> sign, momentum=0.5)",
         {"meetings": _set(3), "C": _top(9), "D": _sign_top(20), "momentum": 0.5}),
    Case("qsparse-local-sgd-2way(lr=0.05)", {"meetings": _set(8), "C": _sign_top(1), "D": _sign_top(1)}),
    Case("gd(lr=0.05)", {}, still=True),
    Case("gd(lr=0.05, whole=false)", {}),
    Case("qgd(lr=0.04, whole=false)", {}, 0.04),
    Case("qgd(lr=0.05, published=true, whole=false)", {"published": True}),
    Case(f"qgd(lr={COSINE}, bits=2, whole=false)", {"bits": 2}, COSINE),
    Case(f"qgd(lr={COSINE}, bits=2, published=true, whole=false)", {"bits": 2, "published": True}, COSINE),
    Case("lag-wk(lr=0.05)", {}, still=True),
    Case("lag-wk(lr=0.05, D=3, xi=0.1, patience=4)", {"D": 3, "xi": 0.1, "tbar": 4}, still=True),
    Case("laq(lr=0.05)", {}, still=True),
    Case("laq(alpha=0.015625)", {}, WORKERS * 0.015625, still=True),
    Case("laq(lr=0.05, published=true)", {"published": True}, still=True),
    Case("laq(lr=0.05, spread=false, published=true)", {"published": True, "printed": True}, still=True),
    Case("laq(lr=0.05, D=3, xi=0.1, published=true, whole=false)", {"D": 3, "xi": 0.1, "published": True}),
    Case(f"laq(lr={COSINE}, bits=3, D=5, patience=7, whole=false)", {"bits": 3, "D": 5, "tbar": 7}, COSINE),
    Case(f"laq(lr={COSINE}, bits=3, D=5, patience=7, published=true, whole=false)",
         {"bits": 3, "D": 5, "tbar": 7, "published": True}, COSINE),
    Case("lag-ps(lr=0.05, patience=100)", {"xi": 0.2}, still=True),
    Case("lag-ps(lr=0.05, xi=1.0, patience=100)", {}, still=True),
    Case("lag-ps(lr=0.05, D=4, xi=0.5, patience=5, smoothness=2.5)",
         {"D": 4, "xi": 0.5, "tbar": 5, "L": 2.5}, still=True),
    Case("lag-ps(lr=0.03, patience=100, smoothness=[1.0, 5.0, 2.0])",
         {"L": [1.0, 5.0, 2.0]}, 0.03, still=True),
    Case("slaq(lr=0.05)", {"bits": 4}),
    Case("slaq(lr=0.05, published=true)", {"ade": 0.2, "published": True}),
    Case("slaq(lr=0.05, bits=3, floor=2.0)", {"ade": 2.0}),
    Case("slaq(lr=0.05, floor=2.0, published=true)", {"ade": 2.0, "published": True}),
    Case("slaq(lr=0.05, bits=4, D=3, xi=0.4, patience=5, floor=1.0, published=true)",
         {"bits": 4, "D": 3, "xi": 0.4, "tbar": 5, "ade": 1.0, "published": True}),
    Case("lasg-wk1(lr=0.05)", {}),
    Case(f"lasg-wk1(lr={COSINE}, D=4, xi=0.01, patience=6)", {"D": 4, "xi": 0.01, "tbar": 6}, COSINE),
    Case("lasg-wk2(lr=0.05)", {"xi": 0.04}),
    Case("lasg-wk2(lr=0.05, D=4, xi=0.01, patience=5)", {"D": 4, "xi": 0.01, "tbar": 5}),
    Case("dist-ef-sgd(lr=0.02)", {}, 0.02),
    Case(f"dist-ef-sgd(lr={COSINE}, weight_decay=0.1)", {"weight_decay": 0.1}, COSINE),
    Case("dist-ef-sgdm(lr=0.01, momentum=0.5, weight_decay=0.1)",
         {"momentum": 0.5, "weight_decay": 0.1}, 0.01),
    Case("dist-ef-blocksgd(lr=0.02, weight_decay=0.1)", {"weight_decay": 0.1}, 0.02),
    Case(f"dist-ef-blocksgdm(lr={COSINE}, momentum=0.5, nesterov=false, weight_decay=0.1, size=9)",
         {"momentum": 0.5, "nesterov": False, "weight_decay": 0.1, "size": 9}, COSINE),
    Case(f"dist-ef-sgdm(lr={COSINE}, momentum=0.5)", {"momentum": 0.5}, COSINE),
    Case(f"dist-ef-blocksgd(lr={COSINE}, size=7)", {"size": 7}, COSINE),
    Case(f"dist-ef-blocksgdm(lr={COSINE}, momentum=0.5)", {"momentum": 0.5}, COSINE),
    Case("dist-ef-blocksgd(lr=0.02, bucket=20)", {"bucket": 20}, 0.02),
    Case(f"dist-ef-blocksgdm(lr={COSINE}, momentum=0.5, bucket=31)", {"momentum": 0.5, "bucket": 31}, COSINE),
    Case("dist-ef-blocksgdm(lr=0.01, momentum=0.5, nesterov=false)",
         {"momentum": 0.5, "nesterov": False}, 0.01),
]  # fmt: skip


def one_of_each(cases: Sequence[Any]) -> list[Any]:
    """The last case of each preset."""
    return list({case.name: case for case in cases}.values())


def made(case: Case, steps: int = STEPS) -> Algorithm:
    algorithm: Algorithm = build(case.text, "algorithm")
    return algorithm.among(WORKERS).over(steps)


def trained(
    wire: Wire, algorithm: Algorithm, exchange: Exchange, still: bool = False, steps: int = STEPS
) -> dict[int, np.ndarray]:
    """{t: this rank's model after the meeting of step t}."""
    check(algorithm, exchange, wire.size)
    workers = exchange.workers(wire.size)
    x = START.copy()
    node = Node(algorithm, exchange, wire, x, Seed(RUN), LAYOUT, wire.ledger)

    def oracle(x: np.ndarray, t: int | None, out: np.ndarray) -> float:
        out[...] = gradient(workers.index(wire.rank), x, 1 if still or t is None else t)
        return 0.0

    models = {}
    for t, _, met in rounds(node, x, steps, oracle, lambda t: t):
        if met:
            models[t] = x.copy()
    return models


def expected(case: Case, meetings: set[int], steps: int = STEPS) -> dict[int, np.ndarray]:
    eta = build(case.eta, "schedule").over(steps) if isinstance(case.eta, str) else case.eta
    settings = dict(case.settings)
    if "meetings" in settings and settings["meetings"] is None:
        # The set is drawn; that it is a legal one is another test's business.
        assert set(np.diff(sorted({0, *meetings}))) == {1, 2, 3, 4}
        settings["meetings"] = meetings
    transcription = TRANSCRIPTIONS[case.name]
    models: dict[int, np.ndarray] = transcription(
        START,
        lambda r, x, t: gradient(r, x, 1 if case.still else t),
        steps,
        WORKERS,
        LAYERS,
        uniforms,
        lambda t: rate_at(eta, t),
        **settings,
    )
    return models


def compare(case: Case, models: dict[int, np.ndarray], steps: int = STEPS) -> None:
    wanted = expected(case, set(models), steps)
    assert models.keys() == wanted.keys()
    for t, model in models.items():
        assert np.max(np.abs(model - wanted[t])) < 2e-6, f"{case.text}: apart from step {t} on"
    moved = np.max(np.abs(models[steps] - START))
    assert moved > 0.1, "a run that stands still proves nothing"


def counted(text: str, still: bool = True) -> tuple[np.ndarray, int, int]:
    """The last model of an algorithm, and how many messages and skips all workers made of it."""

    algorithm = build(text, "algorithm").over(STEPS)
    star = natural_exchange(algorithm)

    def body(wire: Wire) -> tuple[np.ndarray, int, int]:
        last = trained(wire, algorithm, star, still)[STEPS]
        return last, wire.ledger.messages["up"], wire.ledger.skips

    models, spoken, skipped = zip(*run_threads(WORKERS + (not star.works), body, timeout=60), strict=True)
    return models[0], sum(spoken), sum(skipped)


class Still(ServerRule):
    """A rule without a step size."""

    registered_name = "still"

    def absorb(self, state: Any, u: Any, t: int) -> None:
        """Nothing."""

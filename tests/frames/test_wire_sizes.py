"""What messages come to on the wire, against what must be sent: positions and codes, header included."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qsparse.compressors import TopK, Uniform, decompress
from qsparse.link import Link, Receiver, Sender
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.payload import HEADER_BYTES
from qsparse.registry import build
from qsparse.seeds import Seed

RESNET50 = 25_557_032


def positions_bits(n, k):
    """log2 C(n, k): what k positions of n cost on the average, whatever the code."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


@pytest.fixture(scope="module")
def gaussian():
    return np.random.default_rng(0).standard_normal(RESNET50, dtype=np.float32)


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("topk(ratio=0.01) >> sign", 340),
        ("topk(ratio=0.01) >> uniform(bits=2)", 305),
        ("topk(ratio=0.01) >> qsgd(levels=1)", 305),
    ],
)
def test_a_hundredth_of_resnet50(gaussian, text, times):
    sent = len(build(text, "compressor").compress(gaussian, Seed(1)))
    assert sent * times <= 4 * RESNET50


def residual(steps=150, ratio=0.01):
    """Residual and update of a network that learns digits with top-k under error feedback."""
    from qsparse.data import load
    from qsparse.torch.problem import Classification

    problem = Classification(load("digits"), "mlp", 16, 0, 1, "random", Seed(0))
    x = problem.vector
    sender = Sender(Link(TopK(ratio=ratio), ErrorFeedback()), x, problem.layout)
    for step in range(1, steps + 1):
        problem.gradient(x, problem.batch(step), problem.gradient_vector)
        draft = sender.draft(np.float32(0.1) * problem.gradient_vector, Seed(0, step=step, use="up"))
        target = draft.target.copy()
        sender.commit(draft)
        x -= decompress(draft.payload, np.empty_like(x))
    assert problem.evaluate().accuracy > 0.8
    return target


def test_positions_of_a_trained_networks_residual():
    x = residual()
    for k in (172, 1723):
        part = TopK(k=k)
        kept = len(part.compress(x, Seed(0))) - HEADER_BYTES - 4 * k
        # Two bytes for the coding and the quantizer, two for k, two for the length.
        assert 8 * (kept - 6) <= 1.02 * positions_bits(x.size, k)


def test_codes_of_laqs_innovations():
    from qsparse.data import load
    from qsparse.torch.problem import Classification

    bits, step_size = 4, np.float32(0.1)
    problem = Classification(load("digits"), "mlp(32)", 16, 0, 1, "random", Seed(0))
    x = problem.vector
    link = Link(Uniform(bits, coder="ans"), Innovation())
    sender, receiver = Sender(link, np.zeros_like(x)), Receiver(link, np.zeros_like(x))
    sent = []
    for step in range(1, 151):
        problem.gradient(x, problem.batch(step), problem.gradient_vector)
        draft = sender.draft(problem.gradient_vector, Seed(0, step=step, use="up"))
        sender.commit(draft)
        # Behind the codes of the positions and of the quantizer, the bits and the radius.
        sent.append(8 * (len(draft.payload.body) - 7) / x.size)
        x -= step_size * receiver.merge([draft.payload])
    assert problem.evaluate().accuracy > 0.8
    assert np.mean(sent) <= 0.6 * bits

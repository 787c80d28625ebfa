"""LAQ on MNIST as its authors ran it (Sun et al., 2019): ten workers, softmax regression, full batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qsparse.data import load
from qsparse.exchange import ParameterServer
from qsparse.ledger import Ledger
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

WORKERS, SHARE, STEPS = 10, 6000, 21
#: Iteration → mean loss before it, and uploads of all workers up to its end, from a run that starts at
#: zero with α = 0.02, D = 10, ξ = 0.08, b = 4: measured with the authors' rule written out in NumPy.
WANTED = {
    0: (2.302585, 10),
    1: (2.096516, 10),
    2: (1.914054, 10),
    3: (1.756277, 10),
    5: (1.512346, 10),
    10: (1.132824, 26),
    20: (0.842482, 46),
}


def test_the_first_iterations(data_dir: Path) -> None:
    data = load("mnist", data_dir)
    pixels = np.rint((data.train_x[:].reshape(-1, 784) * 0.3081 + 0.1307) * 255).astype(np.float32) / 255
    classes = np.eye(10, dtype=np.float32)[data.train_y]
    # The coordinator takes the mean of the workers where the authors take their sum.
    algorithm = build("laq(lr=0.2, published=true)", "algorithm").over(STEPS)

    def body(wire: Wire) -> list[tuple[float, int]]:
        mine = slice(SHARE * wire.rank, SHARE * (wire.rank + 1))
        X, Y = pixels[mine], classes[mine]
        x = np.zeros(7850, np.float32)

        def oracle(x: np.ndarray, batch: None, out: np.ndarray) -> float:
            scores = X @ x[:7840].reshape(784, 10) + x[7840:]
            scores -= scores.max(axis=1, keepdims=True)
            odds = np.exp(scores)
            total = odds.sum(axis=1, keepdims=True)
            slope = (odds / total - Y) / SHARE
            out[:7840] = (X.T @ slope).ravel()
            out[7840:] = slope.sum(axis=0)
            out += np.float32(0.01) * x
            entropy = np.log(total).mean(dtype=np.float64) - (scores * Y).sum(dtype=np.float64) / SHARE
            return float(entropy + 0.005 * (x.astype(np.float64) ** 2).sum())

        node = Node(algorithm, ParameterServer(), wire, x, Seed(0), (), Ledger())
        return [
            (loss or 0.0, node.ledger.messages["up"])
            for _, loss, _ in rounds(node, x, STEPS, oracle, lambda t: None)
        ]

    histories = run_threads(WORKERS, body, timeout=120)
    for k, (loss, uploads) in WANTED.items():
        assert abs(np.mean([history[k][0] for history in histories]) - loss) < 5e-6, k
        assert sum(history[k][1] for history in histories) == uploads, k

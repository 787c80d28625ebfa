"""A loop under `attach` whose answers are adopted some steps after their reports."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import mpi_run

import qsparse
from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Sign, TopK
from qsparse.data import load
from qsparse.exchange import AllGather, Exchange, ParameterServer, Sharded
from qsparse.kernels import vector
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.meeting import Sync
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.run.config import RunConfig
from qsparse.seeds import Seed
from qsparse.triggers import Every, RandomGap
from qsparse.types import Layer
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

import transcriptions as paper  # noqa: E402
from loops import (  # noqa: E402
    batch,
    flat,
    net,
    no_round_is_left,  # noqa: F401
    normed,
    on_threads,
    statistics_of,
    step,
)
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from qsparse.torch import attach  # noqa: E402
from qsparse.torch.models import build_model  # noqa: E402
from qsparse.torch.problem import Classification  # noqa: E402

RANKS, LR, MOMENTUM = 3, 0.2, 0.5


# --- what it computes ----------------------------------------------------------------------------


def slope(rank: int, x: np.ndarray, t: int) -> np.ndarray:
    """A rank's gradient at x in step t, with a model of its own."""
    model = net()
    nn.utils.vector_to_parameters(torch.from_numpy(x.copy()), model.parameters())
    examples, labels = batch(rank, t)
    loss = functional.cross_entropy(model(examples), labels)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy()


def transcribed(steps: int, H: int, delay: int, C: Callable[[Any], Any]) -> tuple[np.ndarray, np.ndarray]:
    """Each rank's model after each step, (steps, ranks, n), and the last: straight from the definition."""
    common, due, seen = flat(net(1)), 0, []
    x, anchor = [common] * RANKS, [common] * RANKS
    moment, error = [0 * common] * RANKS, [0 * common] * RANKS

    def report() -> np.ndarray:
        total = 0 * common
        for r in range(RANKS):
            u = anchor[r] - x[r] + error[r]
            error[r] = u - C(u)
            anchor[r] = x[r]
            total = total + C(u) / RANKS
        return common - total

    def land() -> None:
        for r in range(RANKS):
            x[r] = common + (x[r] - anchor[r])
            anchor[r] = common

    for t in range(1, steps + 1):
        for r in range(RANKS):
            moment[r] = MOMENTUM * moment[r] + slope(r, x[r], t)
            x[r] = x[r] - LR * moment[r]
        if due and (t == due or t % H == 0):
            land()
            due = 0
        if t % H == 0:
            common, due = report(), t + delay
        seen.append(list(x))
    if due:
        land()
    if steps % H:
        common = report()
        land()
    return np.array(seen), x[0]


@pytest.mark.parametrize(("steps", "H", "delay"), [(19, 5, 3), (20, 5, 3), (22, 5, 3), (15, 4, 1)])
@pytest.mark.parametrize("compressor", ["float32", "topk(k=9) >> sign"])
def test_it_is_the_definition(steps: int, H: int, delay: int, compressor: str) -> None:
    """At every step of every rank, and at the end, wherever that finds the round."""
    exact = compressor == "float32"
    preset = f"local-sgd(H={H}" if exact else f"qsparse-local-sgd(H={H}, compressor={compressor}"
    wanted, last = transcribed(steps, H, delay, (lambda u: u) if exact else lambda u: paper.sign_top_k(u, 9))

    def body(wire: Wire) -> tuple[list[np.ndarray], np.ndarray]:
        model, seen = net(1), []
        optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
        with attach(model, optimizer, f"{preset}, delay={delay})", wire):
            for t in range(1, steps + 1):
                step(model, optimizer, batch(wire.rank, t))
                seen.append(flat(model))
        return seen, flat(model)

    for rank, (seen, model) in enumerate(on_threads(RANKS, body)):
        np.testing.assert_allclose(seen, wanted[:, rank], rtol=0, atol=2e-6)
        np.testing.assert_allclose(model, last, rtol=0, atol=2e-6)


N = 301
STEP = SGD(0.05, momentum=0.5)
TWO_WAYS = {
    "trigger": Every(5),
    "up": Link(TopK(k=40) >> QSGD(3), ErrorFeedback()),
    "down": Link(Sign(), Innovation()),
}


def towards(rank: int, x: np.ndarray, t: int, out: np.ndarray) -> float:
    """The gradient at x for a target of this rank and step."""
    out[...] = x - np.random.default_rng((rank, t)).normal(size=N).astype(np.float32)
    return 0.0


class Numpys(torch.optim.Optimizer):
    """The local step of ``qsparse train``, as an optimizer of torch."""

    def __init__(self, weight: nn.Parameter, rank: int) -> None:
        super().__init__([weight], {})
        self.weight, self.rank, self.t = weight, rank, 0
        self.kept = STEP.init(np.zeros(N, np.float32))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.t += 1
        self.kept["x"] = self.weight.data.numpy()
        STEP.advance(self.kept, lambda x, t, out: towards(self.rank, x, t, out), self.t, self.t)


def start() -> np.ndarray:
    return np.linspace(-1, 1, N).astype(np.float32)


def attached(wire: Wire, row: Algorithm, exchange: Exchange, steps: int, still: bool = False) -> bytes:
    """The model of a user's loop; if ``still``, each round has ended before anything else is done."""
    model = nn.ParameterDict({"weight": torch.from_numpy(start())})
    optimizer = Numpys(model["weight"], wire.rank)
    with attach(model, optimizer, row, wire, exchange=exchange, seed=3):
        for _ in range(steps):
            optimizer.step()
            if still:
                wire.settle()
    return model["weight"].detach().numpy().tobytes()


def trained(wire: Wire, row: Algorithm, exchange: Exchange, steps: int) -> bytes:
    """The model of the loop that ``qsparse train`` runs."""
    x = start()
    node = Node(row.with_(local=STEP), exchange, wire, x, Seed(3), (Layer("weight", 0, N, 1),), Ledger())
    for _ in rounds(
        node, x, steps, lambda x, t, out: towards(wire.rank, x, t, out), lambda t: t,
        delay=row.meeting.claims.delay,
    ):  # fmt: skip
        pass
    return x.tobytes()


@pytest.mark.parametrize("exchange", [ParameterServer(), AllGather(), Sharded()], ids=str)
@pytest.mark.parametrize("steps", [25, 26, 28, 29])
def test_it_is_the_loop_of_qsparse_train(exchange: Exchange, steps: int) -> None:
    """Bit for bit, wherever the end finds the round, and whichever is faster."""
    row = Algorithm(SGD(), **TWO_WAYS, meeting=Sync(3))
    wanted = on_threads(RANKS, lambda wire: trained(wire, row, exchange, steps))
    assert len(set(wanted)) == 1
    for still in (False, True):
        assert on_threads(RANKS, lambda wire, s=still: attached(wire, row, exchange, steps, s)) == wanted
    at_once = row.with_(delay=0)
    assert on_threads(RANKS, lambda wire: attached(wire, at_once, exchange, steps)) != wanted


def test_a_run_on_real_data_makes_the_same_model(tmp_path: Path) -> None:
    """A user's loop over the batches of a run, and the run."""
    algorithm = "qsparse-local-sgd-2way(H=5, delay=3)"
    settings: dict[str, Any] = {"algorithm": algorithm, "model": "mlp(30)", "ranks": RANKS, "steps": 23}
    run = qsparse.run(RunConfig(data="digits", wire="threads", lr=0.1, out=str(tmp_path), **settings))
    data = load("digits", None)

    class Plain(torch.optim.Optimizer):
        """x −= lr·g, rounded as a run does."""

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                x, gradient = p.data.view(-1).numpy(), p.grad.view(-1).numpy()
                vector.add_scaled(x, -0.1, gradient, x)

    def body(wire: Wire) -> str:
        problem = Classification(data, "mlp(30)", 16, wire.rank, RANKS, "random", Seed(0))
        model = build_model("mlp(30)", data.shape, data.classes, Seed(0))
        optimizer = Plain(model.parameters(), {})
        with attach(model, optimizer, algorithm, wire):
            for t in range(1, 24):
                step(model, optimizer, problem.batch(t))
        return hashlib.sha256(flat(model).tobytes()).hexdigest()

    assert set(on_threads(RANKS, body)) == {run.summary["model_sha256"]}


def test_gaps_may_be_shorter_than_the_delay() -> None:
    """Where they are drawn; then the answer is adopted before the next report."""
    row = Algorithm(SGD(), RandomGap(4), TWO_WAYS["up"], meeting=Sync(3))
    wanted = on_threads(RANKS, lambda wire: trained(wire, row, AllGather(), 40))
    assert on_threads(RANKS, lambda wire: attached(wire, row, AllGather(), 40)) == wanted


def statistics(wire: Wire) -> str:
    """A loop with batch statistics, messages compressed both ways, and a round under way at its end."""
    model = normed(wire.rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with attach(model, optimizer, "qsparse-local-sgd-2way(H=4, delay=2, k=9, down_memory=innovation)", wire):
        for t in range(13):
            step(model, optimizer, batch(wire.rank, t, torch.float32))
        own = statistics_of(model)
    assert np.abs(own - statistics_of(model)).max() > 1e-3
    return (flat(model).tobytes() + statistics_of(model).tobytes()).hex()


def test_processes_train_as_threads_do() -> None:
    """Ten times over threads, and over processes, one of which computes for longer."""
    pytest.importorskip("mpi4py")
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import test_attach_delay as t
        from qsparse.wire.mpi import MpiWire
        t.torch.set_num_threads(1)
        wire = MpiWire()
        own = t.step
        def slow(*args):
            own(*args)
            wire.sleep(0.02 * (wire.rank == 1))
        t.step = slow
        print(t.statistics(wire), flush=True)
        wire.close()
    """
    seen = {each for _ in range(10) for each in on_threads(RANKS, statistics)}
    assert len(seen) == 1
    printed = mpi_run(RANKS, program, Path(__file__).parent, timeout=60).stdout.split()
    assert len(printed) == RANKS
    assert set(printed) == seen


def test_two_loops_on_one_wire_take_turns() -> None:
    """Each makes the model that it makes alone, whose round is under way when the other one reports."""
    rows = [Algorithm(SGD(), **TWO_WAYS, meeting=Sync(delay)) for delay in (3, 4)]
    alone = [on_threads(RANKS, lambda wire, row=row: attached(wire, row, AllGather(), 22)) for row in rows]

    def body(wire: Wire) -> list[bytes]:
        models = [nn.ParameterDict({"weight": torch.from_numpy(start())}) for _ in rows]
        optimizers = [Numpys(model["weight"], wire.rank) for model in models]
        loops = [
            attach(model, optimizer, row, wire, exchange=AllGather(), seed=3)
            for model, optimizer, row in zip(models, optimizers, rows, strict=True)
        ]
        for _ in range(22):
            for optimizer in optimizers:
                optimizer.step()
        for loop in loops:
            loop.finish()
        return [model["weight"].detach().numpy().tobytes() for model in models]

    assert on_threads(RANKS, body) == [list(each) for each in zip(*alone, strict=True)]


# --- checkpoints ---------------------------------------------------------------------------------


def saving(
    wire: Wire, folder: Path, steps: int, at: Callable[[int], bool], text: str = "qsparse-local-sgd-2way"
) -> Any:
    """A loop that goes on where it was saved, if it was: where that was, its model, what it has counted."""
    model = normed(wire.rank)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with attach(model, optimizer, f"{text}(H=6, delay=4)", wire, exchange="server") as link:
        begin = link.resume(folder).get("t", 0)
        for t in range(begin + 1, steps + 1):
            step(model, optimizer, batch(wire.rank, t, torch.float32))
            if at(t):
                link.save(folder, keep=40, t=t)
    counted = link.ledger.snapshot()
    return begin, flat(model).tobytes() + statistics_of(model).tobytes(), counted["paper_bits"]


def test_a_loop_goes_on_from_any_step(tmp_path: Path) -> None:
    """With a round under way or not, to the bits of a loop that was never saved."""
    whole = on_threads(2, lambda wire: saving(wire, tmp_path / "none", 21, lambda t: False))
    saved = tmp_path / "saved"
    assert on_threads(2, lambda wire: saving(wire, saved, 21, lambda t: t in range(11, 18))) == whole
    for t in range(11, 18):
        (found,) = saved.glob(f"*-step-{t}")
        shutil.copytree(found, tmp_path / str(t) / found.name)
        again = on_threads(2, lambda wire, t=t: saving(wire, tmp_path / str(t), 21, lambda t: False))
        assert [begin for begin, *_ in again] == [t, t]
        assert [rest for _, *rest in again] == [rest for _, *rest in whole], t


def test_other_ranks_go_on_with_the_same_sum(tmp_path: Path) -> None:
    """Three ranks are saved while a round is under way; what they have not said, two say at the end."""
    seen: list[np.ndarray] = []

    def body(wire: Wire) -> np.ndarray:
        model = net(1, torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with attach(model, optimizer, "local-sgd(H=6, delay=4)", wire) as link:
            if link.resume(tmp_path):
                link.finish()
                return flat(model)
            for t in range(1, 9):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
                if t == 6:
                    anchor = flat(model)
            link.save(tmp_path, t=8)
            seen.append(flat(model) - anchor)
            for t in (9, 10):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
                own = flat(model)
            wire.settle()
        return own

    on_threads(3, body)

    def answered(wire: Wire) -> np.ndarray:
        """What the report of step 6 is answered with: where the ranks meet there at once."""
        model = net(1, torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with attach(model, optimizer, "local-sgd(H=6)", wire):
            for t in range(1, 7):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
        return flat(model)

    wanted = on_threads(3, answered)[0] + sum(seen) / 2
    for model in on_threads(2, body):
        np.testing.assert_allclose(model, wanted, rtol=0, atol=1e-6)

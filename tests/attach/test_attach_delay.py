"""A loop under `attach` whose answers are adopted some steps after their reports."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import mpi_run

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Sign, TopK
from qsparse.errors import CompositionError, DisagreementError, NotFinite, RankError, SettingError
from qsparse.exchange import AllGather, Exchange, ParameterServer, Sharded
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.meeting import Sync
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.seeds import Seed
from qsparse.triggers import Every, RandomGap
from qsparse.types import Layer
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

import transcriptions as paper  # noqa: E402
from loops import LEFTOVERS, batch, flat, net, normed, on_threads, statistics_of, step  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from qsparse.torch import attach  # noqa: E402

RANKS, LR, MOMENTUM = 3, 0.2, 0.5


@pytest.fixture(autouse=True)
def no_round_is_left() -> Any:
    """Whatever has happened, no thread of a round lives on."""
    yield
    assert not [each for each in threading.enumerate() if each.name.startswith("round due")]


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


# --- what goes wrong -----------------------------------------------------------------------------


@LEFTOVERS
@pytest.mark.parametrize("exchange", ["server(root=1)", "tree", "allgather", "sharded"])
@pytest.mark.parametrize(("failing", "t", "last"), [(0, 3, 4), (1, 5, 8), (2, 6, 8)])
def test_an_exception_in_one_loop_reaches_the_others(exchange: str, failing: int, t: int, last: int) -> None:
    """Before a round, while one is under way, which ends first, and after."""

    def body(wire: Wire) -> tuple[str, int]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        link = attach(model, optimizer, "local-sgd(H=4, delay=2)", wire, exchange=exchange)
        try:
            with link:
                for now in range(20):
                    if wire.rank == failing and now == t:
                        raise KeyError("a label is missing")
                    if wire.rank != failing and now == 3:
                        wire.sleep(0.02)  # so the other one fails before these have reported
                    step(model, optimizer, batch(wire.rank, now))
        except (RankError, KeyError) as error:
            # Detached: the optimizer is the user's again, and its steps meet nobody.
            step(model, optimizer, batch(wire.rank, 0))
            return f"{type(error).__name__}: {error}", link.steps
        return "went on", link.steps

    seen = on_threads(3, body)
    assert seen.pop(failing) == ("KeyError: 'a label is missing'", t)
    assert seen == [(f"RankError: rank {failing}, step {t}: KeyError: 'a label is missing'", last)] * 2


@LEFTOVERS
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("call", ["steps", "save", "finish"])
def test_what_goes_wrong_in_a_round_is_raised_on_all_ranks(tmp_path: Path, call: str) -> None:
    """The sum of two reports that can be sent is none that can be answered with."""

    def body(wire: Wire) -> None:
        model = net(0, torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        link = attach(model, optimizer, "local-sgd(H=4, delay=2)", wire, exchange="server")
        for t in range(4):
            with torch.no_grad():
                model[2].bias[1] = 3e38 * (t == 3)
            optimizer.step()
        acts = {
            "steps": lambda: [step(model, optimizer, batch(wire.rank, t, torch.float32)) for t in range(9)],
            "save": lambda: link.save(tmp_path),
            "finish": link.finish,
        }
        for again in (acts[call], link.finish):
            with pytest.raises(
                (NotFinite, RankError), match=r"the coordinator, step 4, in parameter '2\.bias'"
            ):
                again()

    on_threads(2, body)


@LEFTOVERS
@pytest.mark.parametrize("more", [1, 2, 5])
@pytest.mark.parametrize("longer", [0, 1])
def test_loops_of_different_lengths_are_told(longer: int, more: int) -> None:
    def body(wire: Wire) -> str:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, "local-sgd(H=4, delay=2)", wire)
        try:
            for t in range(8 + more * (wire.rank == longer)):
                step(model, optimizer, batch(wire.rank, t))
            attached.finish()
        except (RankError, DisagreementError) as error:
            return str(error)
        return "went on"

    for text in on_threads(3, body):
        assert "different steps (rank: step) {" in text
        assert f"{longer}: {8 + min(more, 4)}" in text


@LEFTOVERS
@pytest.mark.parametrize("steps", [8, 9])
def test_what_moves_without_a_step_is_refused_at_the_end(steps: int) -> None:
    """It alone is named, while the round is under way; a step that comes later takes it along."""

    def body(wire: Wire, by: float) -> np.ndarray:
        model = net(1, torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "qsparse-local-sgd(H=4, delay=2)", wire):
            for t in range(8):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
            with torch.no_grad():
                model[2].weight[1, 2] += by * wire.rank
            for t in range(8, steps):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
        return flat(model)

    if steps == 9:
        one, other = on_threads(2, lambda wire: body(wire, 0.5))
        assert np.array_equal(one, other)
        return
    assert np.array_equal(*on_threads(2, lambda wire: body(wire, 0.0)))
    with pytest.raises(
        DisagreementError, match=r"on rank 1 parameter '2\.weight' has moved since the meeting at step 8"
    ):
        on_threads(2, lambda wire: body(wire, 0.5))


@LEFTOVERS
def test_what_cannot_be_attached_with_a_delay_is_refused() -> None:
    def refused(text: str, reason: str, exchange: str = "server", ranks: int = 2) -> None:
        def body(wire: Wire) -> None:
            model = net(0, torch.float32)
            before = flat(model)
            with pytest.raises((CompositionError, SettingError, RankError), match=reason):
                attach(model, torch.optim.SGD(model.parameters(), lr=0.1), text, wire, exchange=exchange)
            assert np.array_equal(flat(model), before)

        on_threads(ranks, body)

    refused("local-sgd(H=4, delay=4)", "use a delay of less than 4")
    refused("sgd(delay=1)", "use a delay of less than 1")
    refused("local-sgd(H=4, delay=2, trigger=every(H=4) & drift(delta=0.1))", "an answer to every report")
    refused("local-sgd(H=4, delay=2)", "wait for the one that speaks", "nodes(outer=server, ranks=2)", 4)

    def simulated(wire: Wire) -> None:
        model = net(0, torch.float32)
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "local-sgd(H=4, delay=2)", wire)

    with pytest.raises(SettingError, match="use delay=0, or wire threads or mpi"):
        build("simulated(compute=0.1)", "wire").run(2, simulated)


# --- over processes ------------------------------------------------------------------------------


def test_a_signal_is_told_with_the_answer(tmp_path: Path) -> None:
    """On all ranks at the step at which they adopt it, and what is saved there goes on."""
    pytest.importorskip("mpi4py")
    program = """
        import os, signal, sys
        import torch
        from mpi4py import MPI
        from qsparse.process.notice import listening
        from qsparse.torch import attach

        rank = MPI.COMM_WORLD.rank
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with listening(checkpoints=True), attach(model, optimizer, "local-sgd(H=4, delay=2)") as link:
            for t in range(1, 100):
                if t == 7 and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                model(torch.ones(2, 3)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                if rank == 0:
                    link.wire.settle()
                if link.asked_to_stop:
                    link.save(sys.argv[1], t=t)
                    break
            print(f"rank {rank} left at {t}\\n", end="")
    """
    finished = mpi_run(2, program, tmp_path / "saved", timeout=120)
    assert sorted(finished.stdout.splitlines()) == ["rank 0 left at 10", "rank 1 left at 10"], finished
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["000001-step-10"]


def test_a_script_that_fails_while_a_round_is_under_way_ends_with_its_traceback() -> None:
    """Without ``with``, and MPI moves messages in another thread."""
    pytest.importorskip("mpi4py")
    program = """
        import torch
        torch.set_num_threads(1)
        from qsparse.torch import attach
        from loops import batch, net, step

        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, "local-sgd(H=4, delay=3)")
        for t in range(1000):
            if attached.wire.rank == 1 and t == 9:
                raise KeyError("a label is missing")
            step(model, optimizer, batch(attached.wire.rank, t))
        attached.finish()
        print("went on")
    """
    finished = mpi_run(2, program, timeout=60, check=False)
    assert finished.returncode != 0
    assert finished.seconds < 50
    assert "KeyError: 'a label is missing'" in finished.stderr
    assert "went on" not in finished.stdout


def test_mpi_must_be_started_for_several_threads() -> None:
    """The user's program may call it while a round is under way; without a delay it need not be."""
    pytest.importorskip("mpi4py")
    program = """
        import mpi4py
        mpi4py.rc.thread_level = "serialized"
        import torch
        from qsparse.errors import SettingError
        from qsparse.torch import attach

        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=4)"):
            pass
        try:
            attach(model, optimizer, "local-sgd(H=4, delay=2)")
        except SettingError as error:
            print(error)
    """
    assert "mpi4py.rc.thread_level, must be 'multiple'" in mpi_run(1, program, timeout=60).stdout

"""A loop under `attach` with a delay: what goes wrong is told on all ranks, and no thread is left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mpirun import mpi_run

from qsparse.errors import CompositionError, DisagreementError, NotFinite, RankError, SettingError
from qsparse.registry import build
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, flat, net, no_round_is_left, on_threads, step  # noqa: E402, F401

from qsparse.torch import attach  # noqa: E402


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

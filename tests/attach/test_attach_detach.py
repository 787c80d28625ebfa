"""Where a loop ends, or cannot begin, the model and the optimizer are the user's again, whole."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mpirun import mpi_run

from qsparse.errors import DisagreementError, RankError, SettingError
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, fill, flat, normed, step  # noqa: E402
from torch import nn  # noqa: E402

from qsparse.torch import attach  # noqa: E402
from qsparse.torch.flat import FlatModel  # noqa: E402


def alone(body: Callable[[Wire], Any]) -> Any:
    return run_threads(1, body, timeout=60)[0]


def masked() -> Any:
    """Parameters, a frozen one, statistics, a counter of whole numbers, and a constant that has no mean."""
    model = normed(1)
    model[2].bias.requires_grad_(False)
    model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    return model


def tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def own_memory(model: nn.Module) -> bool:
    every = [*tensors(model), *(p.grad for p in model.parameters() if p.grad is not None)]
    return all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in every)


def written(value: Any) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return len(file.getvalue())


# --- memory of their own -------------------------------------------------------------------------


@LEFTOVERS
@pytest.mark.parametrize("end", ["finish", "with", "exception", "failure"])
def test_tensors_have_memory_of_their_own_again(end: str) -> None:
    """With the values that they had, gradients too; and the optimizer goes on with its moments."""

    def body(wire: Wire) -> None:
        model = masked()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        attached = attach(model, optimizer, "local-sgd(H=2)", wire)
        for t in range(4):
            step(model, optimizer, batch(wire.rank, t, torch.float32))
        assert not own_memory(model)
        if end == "failure" and wire.rank == 1:
            with torch.no_grad():
                model[0].weight[0] = float("nan")
        before = [t.clone() for t in tensors(model)[:4]]
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        moments = {id(p): optimizer.state[p]["exp_avg"].clone() for p in model[0].parameters()}
        if end == "finish":
            attached.finish()
        elif end == "with":
            with attached:
                pass
        elif end == "exception":
            with suppress(KeyError, RankError), attached:
                raise KeyError("a trial that diverged")
        else:
            with suppress(ArithmeticError, RankError), attached:
                for t in range(2):
                    step(model, optimizer, batch(wire.rank, t, torch.float32))
            gradients, moments, before = [], {}, []
        assert own_memory(model)
        assert attached.flat.values.numel() == 0, "a loop that has ended keeps no copy of the model"
        assert all(map(torch.equal, before, tensors(model)))
        assert all(map(torch.equal, gradients, (p.grad for p in model.parameters() if p.grad is not None)))
        assert all(
            torch.equal(optimizer.state[p]["exp_avg"], moments[id(p)])
            for p in model[0].parameters()
            if moments
        )
        kept = flat(model)
        optimizer.zero_grad()
        step(model, optimizer, batch(0, 9, torch.float32))
        assert (flat(model) != kept).any()

    run_threads(2, body, timeout=60)


def test_what_is_written_after_a_loop_takes_the_room_of_what_it_is(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Linear(300, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def body(wire: Wire) -> None:
        with attach(model, optimizer, "topk-sgd", wire):
            # Within, a part is written as the docs say: as a copy.
            state = {name: tensor.clone() for name, tensor in model[2].state_dict().items()}
            assert written(state) < 8_000 < 300_000 < written(model[2].state_dict())
            assert written(model.state_dict()) < 2 * 4 * 300 * 302, "the whole is written once"
            assert own_memory(nn.Sequential(*(copy.deepcopy(model[i]) for i in (0, 2)))), "copies stand alone"

    alone(body)
    assert written(model[2].state_dict()) < 8_000
    assert len(pickle.dumps(model[1])) < 20_000
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(model, tmp_path / "model.safetensors")
    fresh = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Linear(300, 1))
    safetensors.load_model(fresh, tmp_path / "model.safetensors")
    assert all(map(torch.equal, model.state_dict().values(), fresh.state_dict().values()))


def test_a_loop_that_has_ended_says_so(tmp_path: Path) -> None:
    def body(wire: Wire) -> None:
        model = normed()
        attached = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "sgd", wire)
        attached.finish()
        for call in (attached.save, attached.resume):
            with pytest.raises(SettingError, match=rf"ended: call {call.__name__}\(\) before finish\(\)"):
                call(tmp_path)

    alone(body)


# --- loops that cannot begin ---------------------------------------------------------------------


def looks(model: nn.Module, optimizer: Any) -> list[Any]:
    """What a loop changes when it begins."""
    places = [(t.data_ptr(), t.stride(), t.tolist()) for t in tensors(model)]
    grads = [None if p.grad is None else (p.grad.data_ptr(), p.grad.tolist()) for p in model.parameters()]
    return [places, grads, "zero_grad" in vars(optimizer), len(optimizer._optimizer_step_post_hooks)]


@LEFTOVERS
@pytest.mark.parametrize("reason", ["k", "seed", "other rank", "optimizer"])
def test_an_attach_that_fails_changes_nothing(reason: str) -> None:
    """Neither memory nor its layout, neither gradients nor hooks; and then the same model can be attached."""

    def body(wire: Wire) -> None:
        torch_format = {"memory_format": torch.channels_last}
        model = fill(nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 3)), wire.rank).to(
            **torch_format
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 3, 2, 2)).sum().backward()
        before = looks(model, optimizer)
        algorithm, given, seed = "topk-sgd(k=5)", optimizer, 0
        if reason == "k" or (reason == "other rank" and wire.rank == 1):
            algorithm = "topk-sgd(k=5000)"
        elif reason == "seed":
            seed = wire.rank
        elif reason == "optimizer":
            given = torch.optim.SGD(model[0].parameters(), lr=0.1)
        with pytest.raises((SettingError, RankError, DisagreementError)):
            attach(model, given, algorithm, wire, seed=seed)
        assert looks(model, optimizer) == before
        attach(model, optimizer, "sgd", wire).finish()

    run_threads(2, body, timeout=60)


# --- models that share a layer -------------------------------------------------------------------


def test_a_layer_goes_with_one_loop() -> None:
    """The second is refused at once with the parameter's name, and the first goes on unharmed."""

    def body(wire: Wire) -> None:
        encoder = fill(nn.Linear(6, 4), 0)
        actor, critic = (nn.Sequential(encoder, fill(nn.Linear(4, 3), 1)) for _ in range(2))
        first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (actor, critic))

        def refused(model: Any, optimizer: Any, reason: str) -> None:
            with pytest.raises(SettingError, match=reason):
                attach(model, optimizer, "topk-sgd", wire)

        attached = attach(actor, first, "topk-sgd", wire)
        again = "attached already, as this model is: end that loop first"
        other = "attached already, with another optimizer"
        refused(critic, second, rf"'0.weight' is {other}, as '0.weight' of another model")
        refused(actor, first, rf"'0.weight' is {again}")
        refused(actor, torch.optim.Adam(actor.parameters()), rf"'0.weight' is {again}")
        refused(torch.compile(actor, backend="eager"), first, rf"'0.weight' is {again}")
        refused(actor[1], torch.optim.SGD(actor[1].parameters(), 0.1), rf"'weight' is {other}, as '1.weight'")
        # Memory counts, not the object: this one is frozen, and would be given rank 0's values.
        student = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
        student[0].weight = nn.Parameter(encoder.weight.data, requires_grad=False)
        refused(student, torch.optim.SGD(student[1].parameters(), 0.1), rf"'0.weight' is {other}")
        step(actor, first, batch(0, 0, torch.float32))
        attached.finish()
        with attach(critic, second, "topk-sgd", wire):
            step(critic, second, batch(0, 1, torch.float32))

    alone(body)


def test_models_may_share_what_neither_trains() -> None:
    def body(wire: Wire) -> None:
        encoder = nn.Linear(6, 4).requires_grad_(False)
        models = [nn.Sequential(encoder, nn.Linear(4, 3)) for _ in range(2)]
        optimizers = [torch.optim.SGD(model[1].parameters(), lr=0.1) for model in models]
        with attach(models[0], optimizers[0], "sgd", wire), attach(models[1], optimizers[1], "sgd", wire):
            for model, optimizer in zip(models, optimizers, strict=True):
                step(model, optimizer, batch(0, 0, torch.float32))

    alone(body)


def test_a_loop_that_nobody_holds_any_more_holds_nothing() -> None:
    """Dropped without finish(), with its optimizer, in the circle that the two make."""
    model = normed()

    def drop(wire: Wire) -> None:
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "sgd", wire)

    alone(drop)
    alone(lambda wire: attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "sgd", wire).finish())
    held = FlatModel(model)
    with pytest.raises(SettingError, match=r"'0.weight' is attached already"):
        FlatModel(model)
    held.release()
    assert own_memory(model)


# --- over processes ------------------------------------------------------------------------------


def test_any_number_of_trials_may_fail() -> None:
    """Loops that an exception ends, and what could not be made, alone and on ranks that meet.

    Alone there are more than MPICH has communicators. Where ranks meet, trials fail on one rank or on all:
    all ranks hear of it, none waits for the others, and what was left is freed with a later trial.
    """
    pytest.importorskip("mpi4py")
    program = """
        import warnings
        warnings.simplefilter("error")
        import torch
        torch.set_num_threads(1)
        from mpi4py import MPI
        from qsparse import CompressedAllreduce
        from qsparse.errors import QsparseError
        from qsparse.torch import attach
        from qsparse.wire.mpi_end import wires_open
        from loops import batch, normed, step

        comm = MPI.COMM_WORLD
        # The other rank begins with what they do together, and waits.
        if comm.rank == 0:
            model = torch.nn.Linear(2, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            failed = 0
            for trial in range(2100):
                try:
                    if trial % 3 == 0:
                        CompressedAllreduce(MPI.COMM_SELF, "topk(k=0)")
                    with attach(model, optimizer, "sgd" if trial % 2 else "topk-sgd(k=9)", MPI.COMM_SELF):
                        raise FloatingPointError
                except (FloatingPointError, QsparseError):
                    failed += 1
            print(failed)

        model = normed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for trial in range(30):
            try:
                algorithm = "topk-sgd(k=9999)" if trial % 5 == comm.rank else "local-sgd(H=2)"
                with attach(model, optimizer, algorithm, comm):
                    for t in range(4):
                        step(model, optimizer, batch(comm.rank, t, torch.float32))
                        if trial % 3 == 2 or trial % 3 == comm.rank:
                            raise FloatingPointError
                assert False, trial
            except (FloatingPointError, QsparseError):
                pass
            comm.Barrier()
        with attach(model, optimizer, "local-sgd(H=2)", comm):
            for t in range(4):
                step(model, optimizer, batch(comm.rank, t, torch.float32))
        assert len(wires_open) < 3, wires_open
        if comm.rank == 0:
            print("done")
    """
    finished = mpi_run(2, program, timeout=150)
    assert finished.stdout.split() == ["2100", "done"]
    assert finished.stderr == ""

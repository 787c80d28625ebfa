"""What goes wrong with a loop under `attach` is said on all ranks, and no rank trains on by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qsparse.errors import CheckpointError, NotFinite, RankError, SettingError
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, fill, flat, normed, on_threads, step  # noqa: E402
from torch import nn  # noqa: E402

from qsparse.torch import attach  # noqa: E402


def take(model: nn.Module, optimizer: Any, wire: Wire, t: int) -> None:
    step(model, optimizer, batch(wire.rank, t, torch.float32))


# --- tensors that leave the vectors --------------------------------------------------------------


def half_frozen() -> Any:
    model = normed(1)
    model[0].bias.requires_grad_(False)
    return model


def cloned(model: Any) -> None:
    model[0].weight.data = model[0].weight.data.clone()


def assigned(model: Any) -> None:
    model.load_state_dict({name: each.clone() for name, each in model.state_dict().items()}, assign=True)


def replaced(model: Any) -> None:
    model[2] = fill(nn.Linear(5, 3), 2)


def averaged(model: Any) -> None:
    model[1].running_var = model[1].running_var * 2


def turned(model: Any) -> None:
    weight = model[2].weight
    weight.data = weight.data.as_strided(weight.shape, (1, 3))


def thawed(model: Any) -> None:
    model[0].bias.requires_grad_(True)


LEAVE: dict[Callable[[Any], None], str] = {
    cloned: r"parameter '0\.weight' has got other memory",
    assigned: r"parameter '0\.weight' has got other memory",
    replaced: r"parameter '2\.weight' has got other memory",
    turned: r"parameter '2\.weight' has got other memory",
    averaged: r"buffer '1\.running_var' has got other memory",
    thawed: r"parameter '0\.bias' needs a gradient and is not exchanged",
}


@LEFTOVERS
@pytest.mark.filterwarnings("ignore:grad and param do not obey:UserWarning")
@pytest.mark.parametrize("change", LEAVE)
@pytest.mark.parametrize("when", ["meeting", "finish", "save"])
def test_a_tensor_that_leaves_its_vector_is_noticed(
    tmp_path: Path, change: Callable[[Any], None], when: str
) -> None:
    """One rank's mistake, and all are told: at the next meeting, or where the loop is left or saved."""

    def body(wire: Wire) -> None:
        model = half_frozen()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, "local-sgd(H=4)", wire)

        def four_steps() -> None:
            for t in range(4):
                take(model, optimizer, wire, t)

        four_steps()
        if wire.rank == 1:
            change(model)
        act = {"meeting": four_steps, "finish": attached.finish, "save": lambda: attached.save(tmp_path)}[
            when
        ]
        with pytest.raises((SettingError, RankError), match=LEAVE[change]) as caught:
            act()
        assert type(caught.value) is (SettingError if wire.rank == 1 else RankError)

    on_threads(3, body)


def test_tensors_that_stay_are_left_alone() -> None:
    """Loading in place, freezing what was trained, and dropping gradients."""

    def body(wire: Wire) -> None:
        model = half_frozen()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=2)", wire):
            for t in range(4):
                model.load_state_dict(model.state_dict())
                take(model, optimizer, wire, t)
                model.zero_grad(set_to_none=True)
                model[2].weight.requires_grad_(t != 2)

    on_threads(2, body)


# --- buffers that have no mean -------------------------------------------------------------------


def masked(constant: float = float("-inf"), rank: int = 0) -> Any:
    model = normed(1)
    model.register_buffer("mask", torch.full((3, 3), constant).triu(1) + rank)
    return model


@pytest.mark.parametrize("constant", [float("inf"), float("-inf"), float("nan")])
def test_a_mask_is_not_averaged(tmp_path: Path, constant: float) -> None:
    """All ranks have that of rank 0, whatever they had; statistics beside it are averaged still."""

    def body(wire: Wire) -> Any:
        model = masked(constant if wire.rank == 0 else 7.0, wire.rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=2)", wire) as attached:
            begin = attached.resume(tmp_path).get("t", 0)
            for t in range(begin, 5):
                take(model, optimizer, wire, t)
                if t == 2:
                    attached.save(tmp_path, t=t + 1)
        assert torch.equal(model.mask.nan_to_num(), masked(constant).mask.nan_to_num())
        return begin, model[1].running_mean.tolist()

    first, again = on_threads(2, body), on_threads(2, body)
    assert [begin for begin, _ in (*first, *again)] == [0, 0, 3, 3]
    assert len({tuple(means) for _, means in (*first, *again)}) == 1


@LEFTOVERS
def test_a_statistic_that_is_not_finite_is_named() -> None:
    def body(wire: Wire) -> None:
        model = masked()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, "local-sgd(H=2)", wire)
        for t in range(4):
            take(model, optimizer, wire, t)
        if wire.rank == 1:
            model[1].running_var[2] = float("nan")
        with pytest.raises((NotFinite, RankError), match=r"rank 1, step 4.*'1\.running_var', element 2"):
            attached.finish()

    on_threads(2, body)


# --- errors that are caught ----------------------------------------------------------------------


def test_a_loop_outlives_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    """All ranks are told the same, and go on together, to the bits of a loop that saved nothing."""
    (tmp_path / "file").touch()

    def body(wire: Wire, saving: bool) -> Any:
        model = normed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=2)", wire) as attached:
            for t in range(7):
                take(model, optimizer, wire, t)
                if saving and t in (2, 3):
                    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint of step"):
                        attached.save(tmp_path / "file" / "below")
            if saving:
                attached.save(tmp_path / "whole")
        assert attached.steps == 7
        return flat(model).tobytes()

    models = {*on_threads(3, lambda wire: body(wire, True)), *on_threads(3, lambda wire: body(wire, False))}
    assert len(models) == 1


@LEFTOVERS
@pytest.mark.parametrize("failing", [0, 1])
def test_who_catches_the_error_of_a_meeting_does_not_train_on_alone(tmp_path: Path, failing: int) -> None:
    def body(wire: Wire) -> None:
        model = normed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        own = optimizer.zero_grad
        attached = attach(model, optimizer, "local-sgd(H=2)", wire)
        take(model, optimizer, wire, 0)
        if wire.rank == failing:
            with torch.no_grad():
                model[0].weight[0] = float("nan")
        reason = rf"rank {failing}, step 2.*'0\.weight', element 0"
        again = [
            lambda: take(model, optimizer, wire, 1),
            lambda: take(model, optimizer, wire, 2),
            lambda: attached.save(tmp_path),
            lambda: attached.resume(tmp_path),
            attached.finish,
            attached.finish,
        ]
        for act in again:
            with pytest.raises((NotFinite, RankError), match=reason):
                act()
        assert not list(tmp_path.iterdir())
        # Only who has called finish() has the optimizer to himself.
        assert optimizer.zero_grad == own
        take(model, optimizer, wire, 3)

    on_threads(2, body)


@LEFTOVERS
def test_an_error_that_is_caught_within_is_raised_at_the_end() -> None:
    def body(wire: Wire) -> None:
        model = normed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd", wire):
            if wire.rank == 1:
                model[0].weight.data[0] = float("nan")
            with suppress(NotFinite, RankError):
                take(model, optimizer, wire, 0)

    def loop(wire: Wire) -> None:
        with pytest.raises((NotFinite, RankError), match="rank 1, step 1"):
            body(wire)

    on_threads(2, loop)


@LEFTOVERS
def test_who_leaves_after_a_checkpoint_that_was_not_written_tells_the_others(tmp_path: Path) -> None:
    """One rank does not catch it, the others do, and meet."""
    (tmp_path / "file").touch()

    def body(wire: Wire) -> None:
        model = normed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=2)", wire) as attached:
            with suppress(CheckpointError if wire.rank != 2 else KeyError):
                attached.save(tmp_path / "file" / "below")
            for t in range(4):
                take(model, optimizer, wire, t)

    def loop(wire: Wire) -> None:
        with pytest.raises((CheckpointError, RankError), match="cannot write"):
            body(wire)

    on_threads(3, loop)

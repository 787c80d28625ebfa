"""What goes wrong with a loop under `attach` is said on all ranks, and no rank trains on by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsparse.errors import RankError, SettingError
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

from test_torch_attach import LEFTOVERS, _one_thread, batch, fill, normed, on_threads, step  # noqa: E402, F401
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

"""Small models, their batches, and a step of an ordinary training loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

#: Ranks that give up leave behind what the others had sent them.
LEFTOVERS = pytest.mark.filterwarnings("ignore:.*sent and never received:RuntimeWarning")


@pytest.fixture(autouse=True)
def no_round_is_left() -> Iterator[None]:
    """In files that import it: whatever has happened, no thread of a round lives on."""
    yield
    assert not [each for each in threading.enumerate() if each.name.startswith("round due")]


def fill(model: nn.Module, seed: int) -> nn.Module:
    """Weights from a seed, without torch's global generator, which threads would share."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(np.asarray(rng.normal(size=tuple(p.shape)) * 0.5, np.float32)))
    return model


def net(seed: int = 0, dtype: Any = torch.float64) -> nn.Module:
    return fill(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), seed).to(dtype)


def normed(seed: int = 0) -> nn.Module:
    return fill(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), seed)


def batch(rank: int, t: int, dtype: Any = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng((rank, t))
    x = torch.from_numpy(rng.normal(size=(8, 6))).to(dtype)
    return x, (x[:, :3].argmax(1) + torch.from_numpy(rng.integers(0, 2, 8))) % 3


def flat(model: nn.Module) -> np.ndarray:
    values: np.ndarray = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()
    return values


def statistics_of(model: nn.Module) -> np.ndarray:
    values: np.ndarray = torch.cat([model[1].running_mean, model[1].running_var]).numpy().copy()  # type: ignore[index]
    return values


def step(model: nn.Module, optimizer: torch.optim.Optimizer, examples: Any) -> None:
    x, y = examples
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def on_threads(size: int, body: Callable[[Wire], Any]) -> list[Any]:
    return run_threads(size, body, timeout=60)


#: A tensor of each kind that is in none of the flat vectors, by what makes it of a rank.
REST: dict[str, Callable[[int], torch.Tensor]] = {
    "count": lambda r: torch.tensor(r + 1),
    "mask": lambda r: torch.tensor([True, False, r == 0]),
    "bfloat": lambda r: torch.full((2, 3), 1 / 3 + r, dtype=torch.bfloat16),
    "scale": lambda r: torch.full((3,), 1 / 3 + r, dtype=torch.float64),
    "phase": lambda r: torch.full((2,), 1 + 1j * r),
    "gaps": lambda r: torch.arange(12).add(100 * r).reshape(3, 4).t()[::2],
    "row": lambda r: torch.arange(4).add(r).expand(1, -1),
    "one": lambda r: torch.tensor(r + 7).expand(3),
    "none": lambda r: torch.empty(0, 3, dtype=torch.int8),
}


def frozen(rank: int) -> nn.Module:
    model = normed(rank)
    model[0].weight.requires_grad_(False)
    model[1].num_batches_tracked.fill_(rank + 5)
    for name, make in REST.items():
        model.register_buffer(name, make(rank), persistent=name != "mask")
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}

"""Small models, their batches, and a step of an ordinary training loop."""

from __future__ import annotations

from collections.abc import Callable
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

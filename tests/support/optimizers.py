"""Optimizers that are called in other ways than one step an iteration."""

from __future__ import annotations

from typing import Any

import torch
from loops import batch, step
from torch import nn
from torch.nn import functional

from qsparse.wire.base import Wire


def backward(model: nn.Module, wire: Wire, t: int, factor: float = 1.0) -> Any:
    model.zero_grad()
    x, y = batch(wire.rank, t, torch.float32)
    loss = functional.cross_entropy(model(x), y) * factor
    loss.backward()
    return loss


def take(model: nn.Module, optimizer: Any, wire: Wire, t: int) -> None:
    step(model, optimizer, batch(wire.rank, t, torch.float32))


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware: to a worse point nearby and back, and then a step of an optimizer within."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"rho": 0.05})
        self.inner = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["before"] = p.clone()
            p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["before"])
        self.inner.step()

    def step(self, closure: Any) -> None:  # type: ignore[override]
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


def in_two_calls(model: nn.Module, wire: Wire, t: int, optimizer: Any) -> None:
    backward(model, wire, t)
    optimizer.first_step()
    backward(model, wire, t)
    optimizer.second_step()


def groups(model: nn.Module) -> tuple[list[Any], list[Any]]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    return matrices, [p for p in model.parameters() if p.dim() != 2]


def two(model: nn.Module) -> list[Any]:
    matrices, others = groups(model)
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]

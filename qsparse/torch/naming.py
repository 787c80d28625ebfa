"""The names of a model's tensors, without what wrappers put into them, which says nothing about the model."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from qsparse.wrappers import REPLICATED, WRAPPED, plain_name


def named_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters in torch's order, with the names that they have in a model without wrappers."""
    prefix = _prefix(model)
    return [(plain_name(name).removeprefix(prefix), p) for name, p in model.named_parameters()]


def named_buffers(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The buffers, as `named_parameters`."""
    prefix = _prefix(model)
    return [(plain_name(name).removeprefix(prefix), b) for name, b in model.named_buffers()]


def _prefix(model: torch.nn.Module) -> str:
    """With what all plain names begin, where the model as a whole is wrapped in DataParallel."""
    inner: Any = model
    while True:
        if isinstance(inner, DataParallel | DistributedDataParallel):
            return REPLICATED
        wrapped = [name for name, _ in inner.named_children() if name in WRAPPED]
        if not wrapped:
            return ""
        inner = getattr(inner, wrapped[0])

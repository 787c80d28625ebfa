"""A model as one flat vector: parameters and gradients are views of it, nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qsparse.errors import SettingError
from qsparse.torch.data.pictures import Examples, Pictures
from qsparse.types import Layer, Layout, Vector


class FlatModel:
    """Moves a model's parameters, gradients and batch statistics into flat vectors.

    The module keeps working as before: ``parameter.data`` and ``parameter.grad`` become views of
    ``vector`` and ``gradient``, buffers of the parameters' type views of ``aside``. Parameters that
    need no gradient and other buffers stay where they are, and are listed in ``rest``.

    Args:
        model: all trained parameters on the CPU and of one type, float32 or float64.

    Attributes:
        vector: the parameters in the order of ``model.named_parameters()``, (n,).
        gradient: the gradients, alike.
        aside: buffers of the parameters' type, in the order of ``model.named_buffers()``.
        layout: names, places and dimensions of the parameters.
        rest: names and tensors of what is in none of the vectors.

    Raises:
        SettingError: a parameter on another device or of another type, no parameter at all, or a
            tensor without plain memory.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise SettingError("the model has no parameters that need a gradient")
        for name, p in named:
            if p.device.type != "cpu" or p.dtype not in (torch.float32, torch.float64):
                raise SettingError(
                    f"parameter {name!r} is {p.dtype} on {p.device}: parameters must be float32 or "
                    "float64 on the CPU"
                )
        kinds = {p.dtype for _, p in named}
        if len(kinds) > 1:
            raise SettingError(f"the parameters have several types ({kinds}): use one for all")
        dtype = kinds.pop()
        self.rest: list[tuple[str, torch.Tensor]] = [
            *((name, p) for name, p in model.named_parameters() if not p.requires_grad),
            *((name, b) for name, b in model.named_buffers() if b.dtype != dtype),
        ]
        for name, tensor in self.rest:
            if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
                raise SettingError(
                    f"{name!r} is {tensor.dtype}, {tensor.layout}, on {tensor.device}: it has no plain "
                    "memory, which the ranks need to have the same model"
                )
        self._parameters = [p for _, p in named]
        sizes = [p.numel() for p in self._parameters]
        # torch's memory starts at a multiple of 64 bytes on every rank: the same alignment of each
        # parameter, and so the same vector instructions and the same bits.
        flat = torch.empty(sum(sizes), dtype=dtype)
        slopes = torch.zeros(sum(sizes), dtype=dtype)
        layers, start = [], 0
        self._views = []
        with torch.no_grad():
            for (name, p), size in zip(named, sizes, strict=True):
                stretch = slice(start, start + size)
                flat[stretch].copy_(p.detach().reshape(-1))
                p.data = flat[stretch].view(p.shape)
                self._views.append(slopes[stretch].view(p.shape))
                layers.append(Layer(name, start, start + size, p.dim()))
                start += size
            buffers = [b for _, b in model.named_buffers() if b.dtype == dtype]
            beside = torch.empty(sum(b.numel() for b in buffers), dtype=dtype)
            start = 0
            for b in buffers:
                stretch = slice(start, start + b.numel())
                beside[stretch].copy_(b.reshape(-1))
                b.data = beside[stretch].view(b.shape)
                start += b.numel()
        self.layout: Layout = tuple(layers)
        self.vector: Vector = flat.numpy()
        self.gradient: Vector = slopes.numpy()
        self.aside: Vector = beside.numpy()
        self._slopes = slopes
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients in one sweep, whatever ``set_to_none`` says: they stay views."""
        self._slopes.zero_()
        for p, view in zip(self._parameters, self._views, strict=True):
            if p.grad is not view:
                p.grad = view

    def covers(self, parameters: list[Any]) -> bool:
        """Are these exactly the model's trained parameters?"""
        return {id(p) for p in parameters if p.requires_grad} == {id(p) for p in self._parameters}


def as_batch(x: Examples, y: np.ndarray, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples by index, in memory that torch has aligned."""
    labels = torch.from_numpy(y)[torch.from_numpy(indices)]
    if isinstance(x, Pictures):
        examples = torch.empty((len(indices), *x.shape[1:]))
        x.take(indices, examples.numpy())
        return examples, labels
    return torch.from_numpy(x)[torch.from_numpy(indices)], labels

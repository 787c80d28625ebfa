"""Modules with parameters that depend on the seed alone.

Every rank builds its model from the run's seed, and several ranks may be threads of one process, which share
torch's global generator: it is left as it was found.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

import torch
from torch import nn

from qsparse.errors import SettingError
from qsparse.seeds import Seed

#: Of torch's global generator, while a module is made that draws from it.
_DRAWING: Final = threading.Lock()


def initial(make: Callable[[], nn.Module], name: str, seed: Seed) -> nn.Module:
    """A new module, in which layers on torch's ``meta`` device have got memory, and He's weights.

    Args:
        make: makes it; what it draws from torch's global generator depends on the seed, too.
        name: of the model, for messages.
        seed: of the parameters.

    Raises:
        SettingError: it is no module, does not fit into memory, or has a layer without memory for which there
            are no weights here.
    """
    generator = torch.default_generator
    with _DRAWING:
        before = generator.get_state()
        generator.manual_seed(int(seed.generator().bit_generator.random_raw()))
        try:
            module = make()
        finally:
            generator.set_state(before)
    if not isinstance(module, nn.Module):
        raise SettingError(f"model {name!r} makes a {type(module).__name__}, not a torch.nn.Module")
    empty = {number for number, each in enumerate(module.modules()) if _has_no_memory(each)}
    try:
        for number, each in enumerate(module.modules()):
            if number in empty:
                _allocate(each)
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise SettingError(f"model {name!r} does not fit into the memory of this machine: {why}") from None
    _initialise(module, empty, seed)
    return module


def _has_no_memory(module: nn.Module) -> bool:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(tensor.is_meta for tensor in tensors)


def _allocate(module: nn.Module) -> None:
    """Give tensors on the meta device memory, with anything in it.

    `nn.Module.to_empty` does so as well, and loads symbolic shapes and SymPy for it: half a second.
    """
    for name, parameter in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@torch.no_grad()
def _initialise(model: nn.Module, empty: set[int], seed: Seed) -> None:
    modules = list(model.modules())
    last = max((i for i, module in enumerate(modules) if isinstance(module, nn.Linear)), default=-1)
    for number in sorted(empty):
        module = modules[number]
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.fill_(1)
            module.bias.fill_(0)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            bound = math.sqrt((1 if number == last else 6) / fan_in)
            _uniform(module.weight, bound, seed.child(number))
            if module.bias is not None:
                module.bias.fill_(0)
        else:
            raise SettingError(
                f"{type(module).__name__} has tensors on the device meta, and only Linear, Conv2d and "
                "BatchNorm2d get weights there: make it on the CPU"
            )


def _uniform(weight: torch.Tensor, bound: float, seed: Seed) -> None:
    # Uniform, not normal, and not from torch: only integers, a product and a difference are needed, so
    # processors of different make get the same bits. Torch's normal numbers depend on their vector
    # units, and its CPU generator keeps only 32 bits of a seed.
    values = seed.generator().random(weight.numel(), dtype="float32")
    values *= 2 * bound
    values -= bound
    weight.copy_(torch.from_numpy(values).view_as(weight))

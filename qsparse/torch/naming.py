"""The names of a model's tensors, without what wrappers put into them, which says nothing about the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

#: Under these names `torch.compile` and activation checkpointing keep the module that they wrap.
_WRAPPED: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
#: Under this name DataParallel keeps it. Models have modules of this name, too, so it is left out only
#: where the model as a whole is wrapped.
_REPLICATED: Final = "module."
#: The settings of a checkpoint that are lists of [name, ...].
_LISTS: Final = ("layers", "buffers", "rest")


def named_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters in torch's order, with the names that they have in a model without wrappers."""
    prefix = _prefix(model)
    return [(plain_name(name).removeprefix(prefix), p) for name, p in model.named_parameters()]


def named_buffers(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The buffers, as `named_parameters`."""
    prefix = _prefix(model)
    return [(plain_name(name).removeprefix(prefix), b) for name, b in model.named_buffers()]


def plain_name(name: str) -> str:
    """A name without those of wrappers.

    >>> plain_name("_orig_mod.layers.0._orig_mod.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def plain_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint with plain names, which earlier versions did not write.

    Args:
        theirs: as the checkpoint has them.
        ours: of the loop that goes on; their names are plain.
    """
    cleaned = {**theirs}
    for key in _LISTS:
        if isinstance(theirs.get(key), list):
            cleaned[key] = [[plain_name(name), *more] for name, *more in theirs[key]]
    if _all_replicated(cleaned) and not _all_replicated(ours):
        for key in _LISTS:
            cleaned[key] = [[name.removeprefix(_REPLICATED), *more] for name, *more in cleaned.get(key, [])]
    return cleaned


def _prefix(model: torch.nn.Module) -> str:
    """With what all plain names begin, where the model as a whole is wrapped in DataParallel."""
    inner: Any = model
    while True:
        if isinstance(inner, DataParallel | DistributedDataParallel):
            return _REPLICATED
        wrapped = [name for name, _ in inner.named_children() if name in _WRAPPED]
        if not wrapped:
            return ""
        inner = getattr(inner, wrapped[0])


def _all_replicated(settings: Mapping[str, Any]) -> bool:
    names = list(_names(settings))
    return bool(names) and all(name.startswith(_REPLICATED) for name in names)


def _names(settings: Mapping[str, Any]) -> Iterable[str]:
    return (entry[0] for key in _LISTS for entry in settings.get(key) or ())

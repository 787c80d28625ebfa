"""Whose memory a model's tensors have: their own, or a stretch of the vector of a loop, and of one only."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from qsparse.errors import SettingError


class Holder(Protocol):
    """What has put tensors of a model into vectors (`qsparse.torch.flat.FlatModel`)."""

    model: torch.nn.Module

    def vectors(self) -> Sequence[torch.Tensor]:
        """The vectors."""

    def name_of(self, tensor: torch.Tensor) -> str:
        """The name under which it holds a tensor that lies in one of them."""


#: Ranks as threads share them.
_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_lock = threading.Lock()


def hold(holder: Holder) -> None:
    """Note whose vectors tensors may lie in; forgotten with the holder."""
    with _lock:
        _holders.add(holder)


def refuse_held(model: torch.nn.Module, named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse tensors that lie in the vectors of another loop: moving them would tear them out of it.

    Raises:
        SettingError: with the tensor's name.
    """
    tensors = list(named)
    if _held(tensors) is None:
        return
    # A loop that was dropped without finish() lives on in a circle with its optimizer.
    gc.collect()
    found = _held(tensors)
    if found is None:
        return
    name, other, holder = found
    if {*map(id, holder.model.parameters())} == {*map(id, model.parameters())}:
        raise SettingError(
            f"{name!r} is attached already, as this model is: end that loop first, with finish() or by "
            "leaving its with block, and attach the model anew"
        )
    raise SettingError(
        f"{name!r} is attached already, with another optimizer, as {other!r} of another model: attach one "
        "model that holds both (torch.nn.ModuleList) with one optimizer, give this one a copy of its own "
        "(copy.deepcopy), or end the other loop first (finish)"
    )


def _held(named: Sequence[tuple[str, torch.Tensor]]) -> tuple[str, str, Holder] | None:
    with _lock:
        holders = list(_holders)
    places = {address_of(vector): holder for holder in holders for vector in holder.vectors()}
    places.pop(None, None)
    for name, tensor in named:
        holder = places.get(address_of(tensor))
        if holder is not None:
            return name, holder.name_of(tensor), holder
    return None


def address_of(tensor: torch.Tensor) -> tuple[str, int] | None:
    """Where the memory begins that a tensor is a view of; None: it has none."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    address = tensor.untyped_storage().data_ptr()
    return (str(tensor.device), address) if address else None


class Before:
    """What the tensors of a model were, so that an attach that fails leaves the model as it found it.

    Their first memory is kept as long as this is.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._data = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
        self._gradients = [(p, p.grad) for p in model.parameters()]

    def restore(self) -> None:
        """Give the tensors their memory back, and the parameters their gradients."""
        for tensor, data in self._data:
            tensor.data = data
        for p, gradient in self._gradients:
            p.grad = gradient

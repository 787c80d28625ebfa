"""A device that is none: tensors which NumPy cannot read and which do not mix with those of the host.

Where there is no GPU, this shows that whatever is computed from such tensors stays among them until it is
copied on purpose. The numbers are the CPU's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

#: The one kind of device that torch knows by name and leaves alone otherwise.
AWAY = torch.device("lazy", 0)

_TO, _COPY = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class Away(torch.Tensor):
    """A tensor that says it lies elsewhere; the numbers lie in ``inner``."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Away:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=AWAY
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """As long as it lasts, tensors can be moved to `AWAY` and back."""

    #: How many bytes were copied from there, and to it, and in how many copies.
    fetched = sent = copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = _done(func, args, kwargs or {})
        # A copy comes of the first, or goes into what is there.
        target, source = (made, args[0]) if func is _TO else (args[0], args[-1]) if func is _COPY else (0, 0)
        if isinstance(source, Away) and type(target) is torch.Tensor:
            self.fetched += target.nbytes
            self.copies += 1
        if isinstance(target, Away) and type(source) is torch.Tensor:
            self.sent += source.nbytes
            self.copies += 1
        return made


def _done(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    away = [isinstance(one, Away) for one in given]
    kwargs = dict(kwargs)
    device = kwargs.get("device")
    to_there = device is not None and torch.device(device).type == AWAY.type
    if to_there:
        kwargs["device"] = "cpu"
    # As with real devices, a scalar of the host may join.
    mixed = any(not there and one.dim() > 0 for there, one in zip(away, given, strict=True))
    if any(away) and mixed and func not in (_TO, _COPY):
        raise RuntimeError(f"{func}: tensors of two devices")
    plain_args, plain_kwargs = tree_map_only(Away, lambda one: one.inner, (tuple(args), kwargs))
    made = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable:
        return kwargs["out"] if "out" in kwargs else args[0]
    stays = to_there or (any(away) and device is None)
    return tree_map_only(torch.Tensor, Away, made) if stays else made

"""What wrappers put into the names of a model's tensors; it says nothing about the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

#: Under these names `torch.compile` and activation checkpointing keep the module that they wrap.
WRAPPED: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
#: Under this name DataParallel keeps it. Models have modules of this name, too, so it is left out only
#: where the model as a whole is wrapped.
REPLICATED: Final = "module."
#: The settings of a checkpoint that are lists of [name, ...].
_LISTS: Final = ("layers", "buffers", "rest")


def plain_name(name: str) -> str:
    """A name without those of wrappers.

    >>> plain_name("_orig_mod.layers.0._orig_mod.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


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
            cleaned[key] = [[name.removeprefix(REPLICATED), *more] for name, *more in cleaned.get(key, [])]
    return cleaned


def _all_replicated(settings: Mapping[str, Any]) -> bool:
    names = list(_names(settings))
    return bool(names) and all(name.startswith(REPLICATED) for name in names)


def _names(settings: Mapping[str, Any]) -> Iterable[str]:
    return (entry[0] for key in _LISTS for entry in settings.get(key) or ())

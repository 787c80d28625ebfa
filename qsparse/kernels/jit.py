"""The one way in which kernels are compiled, and what became of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])

_kernels: Final[list[Any]] = []
_troubles: Final[list[str]] = []


class _Cache(FunctionCache):
    """numba's cache of one kernel; a folder that is torn, full or read-only ends no run."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The machine code from the disk, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            # Whatever a torn file makes of unpickling.
            self._forget(f"a compiled kernel in {self.cache_path} cannot be read", error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the machine code to the disk, if that can be done."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            # An index without its data could find that of an older release.
            self._forget(f"no compiled kernel can be written to {self.cache_path}", error)

    def _forget(self, trouble: str, error: Exception) -> None:
        _troubles.append(f"{trouble} ({type(error).__name__}: {error}), so it is compiled anew")
        with contextlib.suppress(OSError):
            os.unlink(self._cache_file._index_path)


def _cached(function: F, **options: Any) -> F:
    made = numba.njit(nogil=True, **options)(function)
    if made is function:
        return function  # the JIT is off
    try:
        made._cache = _Cache(function)
    except RuntimeError:
        _troubles.append("no folder for compiled kernels can be written to, so every rank compiles its own")
    else:
        asked = os.environ.get("NUMBA_CACHE_DIR")
        if asked and not made.stats.cache_path.startswith(asked):
            _troubles.append(f"NUMBA_CACHE_DIR={asked} cannot be written to: {made.stats.cache_path} is used")
    _kernels.append(made)
    return cast(F, made)


def kernel(function: F) -> F:
    """Compile on first call, cache on disk, run without the GIL (ranks may be threads)."""
    return _cached(function)


def inlined(function: F) -> F:
    """A helper that kernels call in their inner loops."""
    return _cached(function, inline="always")


def get_ready() -> None:
    """Have numba load what it needs for its first kernel: nearly all of the time that a warm start takes."""
    for made in _kernels[:1]:
        made.targetctx.refresh()


def compiled() -> list[str]:
    """The kernels that this process has compiled, each with its types."""
    return _signatures("cache_misses")


def loaded() -> list[str]:
    """The kernels that this process has found on the disk, each with its types."""
    return _signatures("cache_hits")


def _signatures(counter: str) -> list[str]:
    found = (
        f"{made.py_func.__module__}.{made.py_func.__name__}{signature}"
        for made in _kernels
        for signature in getattr(made.stats, counter)
    )
    return sorted(found)


def folder() -> str | None:
    """Where compiled kernels are kept; None where they are not."""
    return next((made.stats.cache_path for made in _kernels), None)


def trouble() -> str | None:
    """What went wrong with the folder of compiled kernels since this was last asked, if anything."""
    found = _troubles[0] if _troubles else None
    _troubles.clear()
    return found and f"{found}; set NUMBA_CACHE_DIR to a folder of this machine that can be written to"

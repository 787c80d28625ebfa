"""The one way in which kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile on first call, cache on disk, run without the GIL (ranks may be threads)."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


def inlined(function: F) -> F:
    """A helper that kernels call in their inner loops."""
    return cast(F, numba.njit(cache=True, nogil=True, inline="always")(function))

"""The one way in which kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numba.core.config

if numba.core.config.DISABLE_JIT:  # type: ignore[attr-defined]
    from qsparse.kernels import simd_plain as simd
else:
    from qsparse.kernels import simd_llvm as simd  # type: ignore[no-redef]

__all__ = ["inlined", "kernel", "simd"]

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile on first call, cache on disk, run without the GIL (ranks may be threads)."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


def inlined(function: F) -> F:
    """A helper that kernels call in their inner loops."""
    return cast(F, numba.njit(cache=True, nogil=True, inline="always")(function))

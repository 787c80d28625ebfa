"""The one way in which kernels are compiled, and what became of them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import numba.core.config
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock

if numba.core.config.DISABLE_JIT:  # type: ignore[attr-defined]
    from qsparse.kernels import simd_plain as simd
else:
    from qsparse.kernels import simd_llvm as simd  # type: ignore[no-redef]

__all__ = [
    "compiled",
    "folder",
    "get_ready",
    "ill_from_the_start",
    "inlined",
    "kernel",
    "loaded",
    "simd",
    "trouble",
]

F = TypeVar("F", bound=Callable[..., Any])

_kernels: Final[list[Any]] = []
_troubles: Final[list[str]] = []
_ill: Final[list[str]] = []


@functools.cache
def _sources() -> bytes:
    """A hash of all kernels' sources: they are compiled into each other, across files."""
    digest = hashlib.blake2b(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


class _Files(IndexDataCacheFile):
    """One file for each kernel, its types, the processor and the sources; there is no index.

    Numba's own files are numbered, by an index that machines which share a folder may write at the
    same time; then a number can come to hold another one's machine code.
    """

    def save(self, key: Any, data: Any) -> None:
        """Write a file, whole or not at all."""
        self._save_data(self._file(key), data)

    def load(self, key: Any) -> Any:
        """What was saved, or None."""
        try:
            return self._load_data(self._file(key))
        except FileNotFoundError:
            return None

    def _file(self, key: Any) -> str:
        digest = hashlib.blake2b(repr(key).encode() + _sources(), digest_size=12).hexdigest()
        return f"{self._index_name.removesuffix('.nbi')}.{digest}.nbc"


class _Cache(FunctionCache):
    """numba's cache of one kernel; a folder that is torn, full or read-only ends no run."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, b"")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The machine code from the disk, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            # Whatever a torn file makes of unpickling.
            self._note("a compiled kernel cannot be read and is compiled anew", error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the machine code to the disk, if that can be done."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            self._note("no compiled kernel can be written, so others compile it too", error)

    def _note(self, trouble: str, error: Exception) -> None:
        _troubles.append(f"in {self.cache_path} {trouble} ({type(error).__name__}: {error})")


def _cached(function: F, **options: Any) -> F:
    made = numba.njit(nogil=True, **options)(function)
    if made is function:
        return function  # the JIT is off
    try:
        made._cache = _Cache(function)
    except RuntimeError:
        _ill.append("no folder for compiled kernels can be written to, so every rank compiles its own")
    else:
        asked = os.environ.get("NUMBA_CACHE_DIR")
        if asked and not made.stats.cache_path.startswith(asked):
            _ill.append(f"NUMBA_CACHE_DIR={asked} cannot be written to: {made.stats.cache_path} is used")
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
    with global_compiler_lock:  # ranks may be threads
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


def ill_from_the_start() -> bool:
    """Whether something was wrong with the folder of compiled kernels before one was compiled."""
    return bool(_ill)


def trouble() -> str | None:
    """What went wrong with the folder of compiled kernels since this was last asked, if anything."""
    found = next(iter([*_ill, *_troubles]), None)
    _troubles.clear()
    return found and f"{found}; set NUMBA_CACHE_DIR to a folder of this machine that can be written to"

"""Memory that a thread keeps for what it needs for a moment.

Fresh memory is cleared by the operating system, page by page, which takes longer than many a kernel.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


class _Kept(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[tuple[str, str], npt.NDArray[Any]] = {}


_kept = _Kept()


def scratch(use: str, size: int, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of any content, until this thread asks for the same use again.

    Only for what no other thread sees, and what is over before anything else can ask.
    """
    key = use, np.dtype(kind).char
    have = _kept.arrays.get(key)
    if have is None or have.size < size:
        # Sizes that vary a little need not grow each time.
        have = _kept.arrays[key] = np.empty(size + size // 8, kind)
    return have[:size]

"""Hostile vectors: what real training produces once in a million steps, by name."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qsparse.errors import NotFinite, QsparseError, SettingError

#: Vectors that every compressor must refuse, and with what.
REFUSED: Final[dict[str, type[QsparseError]]] = {
    "strided": SettingError,
    "integers": SettingError,
    "matrix": SettingError,
    "nan": NotFinite,
    "inf": NotFinite,
    "-inf": NotFinite,
}


def hostile() -> dict[str, npt.NDArray[Any]]:
    """New arrays by name, float32 and contiguous unless the name is in `REFUSED`.

    >>> hostile()["-0"]
    array([-0.,  0., -0.,  1., -0.], dtype=float32)
    """
    draw = np.random.default_rng(20190601)

    def gaussian(n: int) -> npt.NDArray[np.float32]:
        return draw.standard_normal(n, dtype=np.float32)

    most = np.finfo(np.float32).max
    least = np.float32(2.0**-149)
    one_zero_block = gaussian(48)
    one_zero_block[16:32] = 0
    spiky = (gaussian(100) * 1e-6).astype(np.float32)
    spiky[37] = -3e4
    readonly = gaussian(33)
    readonly.flags.writeable = False
    poisoned = {}
    for name, poison, at in (("nan", np.nan, 3), ("inf", np.inf, 0), ("-inf", -np.inf, 18)):
        poisoned[name] = gaussian(19)
        poisoned[name][at] = poison
    # The first of several is the one to be named.
    poisoned["nan"][7] = np.inf
    return {
        "empty": np.empty(0, np.float32),
        "one": np.array([-2.5], np.float32),
        "seven": gaussian(7),
        "eight": gaussian(8),
        "nine": gaussian(9),
        "large": gaussian(65_537),
        "zero": np.zeros(20, np.float32),
        "zero block": one_zero_block,
        "ties": np.array([0.5, -0.5] * 10 + [0.25, -0.25, 0.5], np.float32),
        "denormals": draw.integers(-200, 200, 24).astype(np.float32) * least,
        "max": np.array([1, -1, 0.5, -1, 1e-10, 1, 0, -0.25], np.float32) * most,
        "-0": np.array([-0.0, 0.0, -0.0, 1.0, -0.0], np.float32),
        "spiky": spiky,
        "tiny": (gaussian(30) * 1e-30).astype(np.float32),
        "readonly": readonly,
        "strided": gaussian(40)[::2],
        "integers": np.arange(10),
        "matrix": gaussian(12).reshape(3, 4),
        **poisoned,
    }

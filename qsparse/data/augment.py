"""Changes of pictures that leave their labels true: functions of a seed, without a state to save."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from qsparse.data.images import Floats
from qsparse.seeds import Seed

#: What `crop_flip` pads with, in pixels.
PAD: Final = 4


def crop_flip(x: Floats, seed: Seed) -> None:
    """Pad by 4 pixels, cut a picture of the old size out, mirror it or not; in place (He et al., 2016).

    The border is 0, the mean colour of standardised pictures. All 9 · 9 · 2 outcomes are equally likely, up
    to 2⁻¹⁶.

    Args:
        x: (n, channels, height, width).
        seed: of this batch.
    """
    n, channels, height, width = x.shape
    words: npt.NDArray[np.uint64] = np.asarray(seed.generator().bit_generator.random_raw(n))
    down, right = (((words >> shift & 0xFFFF) * (2 * PAD + 1) >> 16).astype(np.intp) for shift in (0, 16))
    mirrored = words >> 63 == 1
    padded = np.zeros((n, channels, height + 2 * PAD, width + 2 * PAD), x.dtype)
    padded[:, :, PAD:-PAD, PAD:-PAD] = x
    x[...] = sliding_window_view(padded, (height, width), axis=(2, 3))[np.arange(n), :, down, right]
    x[mirrored] = x[mirrored][..., ::-1]

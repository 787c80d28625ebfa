"""How a model is trained, whatever the algorithm."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from qsparse.errors import SettingError

#: Of a recipe.
AUGMENTATIONS: Final = ("none", "crop-flip", "resized-crop-flip")
PRECISIONS: Final = ("float32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """What is done to examples, loss and gradient; the same on all ranks.

    Args:
        augment: ``crop-flip`` changes the pictures of each batch (see `qsparse.data.augment`);
            ``resized-crop-flip`` takes other parts of pictures in files each time (see
            `qsparse.data.PictureFiles.take`). A gradient over a worker's whole share takes them as they are.
        label_smoothing: ε. The target of cross entropy is 1 − ε + ε/K for the label's class and ε/K for
            the others of K (Szegedy et al., 2016). Evaluations do without.
        clip: c. Of a gradient g = g·min(1, c/‖g‖₂) is left, before momentum and weight decay; ‖·‖ is over
            all parameters (Pascanu et al., 2013). None: all of it.
        precision: ``bf16`` has torch compute products and convolutions of training in bfloat16;
            parameters, gradients and evaluations stay float32.

    Raises:
        SettingError: a setting out of its range.
    """

    augment: str = "none"
    label_smoothing: float = 0.0
    clip: float | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (("augment", AUGMENTATIONS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise SettingError(f"{name} is {getattr(self, name)!r}: use {' or '.join(known)}")
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label smoothing must lie in [0, 1), not {self.label_smoothing}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise SettingError(f"gradients are clipped to a positive, finite norm, not to {self.clip}")

    def describe(self) -> str:
        """What differs from the plainest recipe, for ranks to compare.

        >>> Recipe(augment="crop-flip", clip=1.0).describe()
        "augment='crop-flip', clip=1.0"
        """
        told = ((field, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{field.name}={value!r}" for field, value in told if value != field.default)

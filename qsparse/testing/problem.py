"""Laws of what is trained on what: models, data sets, and shardings."""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np

from qsparse.data.base import Sharding, Source
from qsparse.errors import DataError, SettingError
from qsparse.seeds import Seed
from qsparse.testing.base import hold, law
from qsparse.types import Vector

_SHAPES: Final = ((3, 32, 32), (64,))
_CLASSES: Final = (7, 2)
_EXAMPLES: Final = 2
_SIZES: Final = (1, 2, 3, 7, 40)


@law("classes", "model", once=True)
def _classes(part: Any, name: str, x: Vector) -> bool:
    """A new module makes as many numbers of each example as there are classes; needs torch."""
    taken = 0
    for shape, classes in itertools.product(_SHAPES, _CLASSES):
        try:
            module = part.module(shape, classes)
        except ModuleNotFoundError:
            return False
        except SettingError:
            continue
        taken += 1
        weights = list(module.parameters())
        hold(bool(weights), "its module has no parameters")
        made = tuple(module(weights[0].new_zeros((_EXAMPLES, *shape))).shape)
        hold(made == (_EXAMPLES, classes), f"of {_EXAMPLES} examples it makes {made} for {classes} classes")
        hold(part.module(shape, classes) is not module, "it makes one module twice: ranks would share it")
    hold(taken > 0, f"it takes examples of none of the shapes {_SHAPES}")
    return True


@law("repetition", "data", once=True)
def _repetition(part: Source, name: str, x: Vector) -> bool:
    """Loaded twice, it is the same; tried where it lies on this machine and nothing is downloaded."""
    if part.downloads:
        return False
    try:
        once, again = part.load(None), part.load(None)
    except DataError:
        return False
    hold(once.describe() == again.describe(), f"{once.describe()} is loaded, then {again.describe()}")
    same = np.array_equal(once.train_x, again.train_x) and np.array_equal(once.test_x, again.test_x)
    hold(same, "loaded twice, it has other examples")
    return True


@law("dealing", "sharding", once=True)
def _dealing(part: Sharding, name: str, x: Vector) -> bool:
    """Every example goes to exactly one rank, every rank gets some, and the seed alone says which."""
    labels = np.arange(40) % 3
    for ranks in _SIZES:
        shares = part.deal(labels, ranks, Seed(1))
        hold(len(shares) == ranks, f"there are {len(shares)} shares for {ranks} ranks")
        hold(all(map(len, shares)), f"of {ranks} ranks one gets nothing")
        dealt = np.sort(np.concatenate(shares))
        hold(
            np.array_equal(dealt, np.arange(len(labels))), f"{ranks} ranks get {dealt.tolist()}, not all once"
        )
        part.deal(labels, ranks, Seed(2))
        again = part.deal(labels, ranks, Seed(1))
        hold(all(map(np.array_equal, shares, again)), "one seed deals in two ways")
    return True

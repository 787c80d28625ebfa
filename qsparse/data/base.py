"""What a data set by name is, and a way of dealing its examples to ranks: the protocols of the parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from qsparse.data.dataset import Dataset
from qsparse.seeds import Seed

Indices: TypeAlias = npt.NDArray[np.intp]


class Source(ABC):
    """Where a data set comes from."""

    kind: ClassVar[str] = "data"
    registered_name: ClassVar[str]
    #: Does it come over the network where it is not on disk?
    downloads: ClassVar[bool] = False

    @abstractmethod
    def load(self, data_dir: Path | None, *, progress: bool = False) -> Dataset:
        """The data set, the same on every rank and in every run.

        Args:
            data_dir: the folder to look in first.
            progress: show a bar while downloading.

        Raises:
            DataError: the data is nowhere, or malformed.
        """


class Sharding(ABC):
    """Who trains on what."""

    kind: ClassVar[str] = "sharding"
    registered_name: ClassVar[str]

    @abstractmethod
    def deal(self, labels: npt.NDArray[Any], ranks: int, seed: Seed) -> list[Indices]:
        """The indices of each rank, in the order of the ranks: a function of what it is given.

        Args:
            labels: the label of each example, shape ``(N,)``.
            ranks: how many ranks share them, from 1 to N.
            seed: one for all ranks.
        """

"""The mean report is kept, and the model stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsparse.registry import register
from qsparse.server.base import ServerClaims, ServerRule
from qsparse.types import State, Vector


@register("hold")
@dataclass(frozen=True)
class Hold(ServerRule):
    """Keeps the mean report and leaves the model alone: how a coordinator gets a full gradient."""

    @property
    def claims(self) -> ServerClaims:
        """The model stays, and the mean is kept."""
        return ServerClaims(holds=True, keeps_mean=True, by_coordinate=True)

    def init(self, start: Vector) -> State:
        """Nothing was heard."""
        return super().init(start) | {"mean": np.zeros_like(start)}

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """Keep it."""
        np.copyto(state["mean"], u)

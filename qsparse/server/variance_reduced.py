"""Server rules for local step svrg: the full gradient is added, and the prox of h is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.registry import register, spell
from qsparse.schedules import Rate, check_rate, momentum_weight, rate_at
from qsparse.server.base import ServerClaims, ServerRule
from qsparse.types import State, Vector


class VarianceReduced(ServerRule):
    """What server rules behind local step svrg share: v = α + G̃, and the prox of h.

    h(x) = l1·‖x‖₁ + (l2/2)·‖x‖², so prox_{ηh}(z) = (z − clip(z, −η·l1, η·l1))/(1 + η·l2).
    """

    lr: Rate
    l1: float
    l2: float

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)
        if not (self.l1 >= 0 and self.l2 >= 0):
            raise SettingError(f"{spell(self)}: l1 and l2 must not be negative")

    @property
    def claims(self) -> ServerClaims:
        """Each report is a step by itself, along the full gradient too."""
        return ServerClaims(
            rate=self.lr, per_arrival=True, moves_all=True, needs_mean=True, by_coordinate=True
        )

    def init(self, start: Vector) -> State:
        """No full gradient is known: a prelude with rule hold brings it."""
        return super().init(start) | {"mean": np.zeros_like(start)}

    def enter(self, state: State, model: Vector, before: State) -> None:
        """The full gradient G̃ at the model is the mean that rule hold has kept."""
        super().enter(state, model, before)
        np.copyto(state["mean"], before["mean"])

    def _descend(self, z: Vector, eta: float, u: Vector, mean: Vector) -> None:
        """z ← prox_{ηh}(z − η(u + G̃))."""
        vector.add_scaled(z, -eta, u, z)
        vector.add_scaled(z, -eta, mean, z)
        if self.l1:
            np.subtract(z, np.clip(z, -eta * self.l1, eta * self.l1), out=z)
        if self.l2:
            np.divide(z, 1 + eta * self.l2, out=z)


@register("proxsvrg")
@dataclass(frozen=True)
class ProxSVRG(VarianceReduced):
    """x ← prox_{ηh}(x − η(α + G̃)) at each report α (AsyLPG: Yu et al., 2019, Algorithm 1).

    Args:
        lr: η, the step size of one report: R workers that do not wait move the model R times while each takes
            a step, and a schedule goes by the steps of one.
        l1, l2: of h(x) = l1·‖x‖₁ + (l2/2)·‖x‖².
    """

    lr: Rate
    l1: float = 0.0
    l2: float = 0.0

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One step."""
        self._descend(state["x"], rate_at(self.lr, t), u, state["mean"])


@register("accelerated")
@dataclass(frozen=True)
class Accelerated(VarianceReduced):
    """y ← prox_{ηₛh}(y − ηₛ(α + G̃));  x ← θₛy + (1 − θₛ)x̃,  θₛ = 2/(s + 2), ηₛ = lr/θₛ in phase s = 0, 1, …

    Acc-AsyLPG (Yu et al., 2019, Algorithm 3). A phase ends with the mean of its x; y goes on.

    Args:
        lr: as of `ProxSVRG`, divided by θₛ.
        l1, l2: as of `ProxSVRG`.
    """

    lr: Rate
    l1: float = 0.0
    l2: float = 0.0

    @property
    def claims(self) -> ServerClaims:
        """As of its kin, but a phase ends with a mean."""
        return replace(super().claims, ends_elsewhere=True)

    def init(self, start: Vector) -> State:
        """x, y and the snapshot are one."""
        more = {"y": start.copy(), "snapshot": start.copy(), "sum": np.zeros_like(start)}
        return super().init(start) | more | {"taken": 0, "phase": -1}

    def enter(self, state: State, model: Vector, before: State) -> None:
        """A new snapshot."""
        super().enter(state, model, before)
        np.copyto(state["snapshot"], model)
        state["sum"][...] = 0
        state["taken"] = 0
        state["phase"] += 1

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One step."""
        theta = momentum_weight(state["phase"])
        self._descend(state["y"], rate_at(self.lr, t) / theta, u, state["mean"])
        np.multiply(state["y"], theta, out=state["x"])
        vector.add_scaled(state["x"], 1 - theta, state["snapshot"], state["x"])
        np.add(state["sum"], state["x"], out=state["sum"])
        state["taken"] += 1

    def leave(self, state: State) -> Vector:
        """The mean of this phase's x."""
        return state["sum"] / state["taken"] if state["taken"] else self.model(state)

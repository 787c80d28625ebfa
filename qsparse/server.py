"""What the coordinator does with what it heard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.registry import register, spell
from qsparse.schedules import Rate, check_rate, momentum_weight, rate_at
from qsparse.types import State, Vector


class ServerRule(ABC):
    """Makes models out of merged reports."""

    kind: ClassVar[str] = "server"
    registered_name: ClassVar[str]
    #: Is a report that comes alone taken whole, and not as the R-th part of a round?
    one_by_one: ClassVar[bool] = False
    #: Does the model never move, so that there is nothing to answer?
    silent: ClassVar[bool] = False
    #: Is x all that it remembers and goes by, so that any rank that has x can take the step as well?
    replayable: ClassVar[bool] = False
    #: Does a report move coordinates, too, that it says nothing of?
    moves_all: ClassVar[bool] = False

    def init(self, start: Vector) -> State:
        """The state at the common starting point."""
        return {"x": start.copy()}

    @abstractmethod
    def absorb(self, state: State, u: Vector, t: int) -> None:
        """Take the merged report of one round (or of one arrival), the mean over the workers.

        Args:
            state: of the rule.
            u: (n,), overwritten by the next round.
            t: the local step at which the workers reported; schedules go by it.
        """

    def model(self, state: State) -> Vector:
        """The model to answer with."""
        model: Vector = state["x"]
        return model

    def shift(self, state: State, by: Vector) -> None:
        """Every rank subtracts a vector, (n,), from the model by itself."""
        np.subtract(state["x"], by, out=state["x"])

    def leave(self, state: State) -> Vector:
        """The model with which a phase ends."""
        return self.model(state)

    def enter(self, state: State, model: Vector, before: State) -> None:
        """A phase begins at a model that all ranks have.

        Args:
            state: of the rule.
            model: (n,).
            before: the state of the rule of the phase before.
        """
        np.copyto(state["x"], model)


@register("descend")
@dataclass(frozen=True)
class Descend(ServerRule):
    """x −= lr·u. With reports in parameter units and lr = 1 it averages the workers' models."""

    replayable: ClassVar[bool] = True
    lr: Rate = 1.0

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One step."""
        vector.add_scaled(state["x"], -rate_at(self.lr, t), u, state["x"])


@register("majority")
@dataclass(frozen=True)
class Majority(ServerRule):
    """x −= lr·sign(u), sign(0) = 0: the majority of raw signs (Bernstein et al., 2018)."""

    replayable: ClassVar[bool] = True
    lr: Rate

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """One vote."""
        vector.sign_step(state["x"], rate_at(self.lr, t), u)


@register("hold")
@dataclass(frozen=True)
class Hold(ServerRule):
    """Keeps the mean report and leaves the model alone: how a coordinator gets a full gradient."""

    silent: ClassVar[bool] = True

    def init(self, start: Vector) -> State:
        """Nothing was heard."""
        return super().init(start) | {"mean": np.zeros_like(start)}

    def absorb(self, state: State, u: Vector, t: int) -> None:
        """Keep it."""
        np.copyto(state["mean"], u)


class VarianceReduced(ServerRule):
    """What server rules behind local step svrg share: v = α + G̃, and the prox of h.

    h(x) = l1·‖x‖₁ + (l2/2)·‖x‖², so prox_{ηh}(z) = (z − clip(z, −η·l1, η·l1))/(1 + η·l2).
    """

    one_by_one: ClassVar[bool] = True
    moves_all: ClassVar[bool] = True
    lr: Rate
    l1: float
    l2: float

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)
        if not (self.l1 >= 0 and self.l2 >= 0):
            raise SettingError(f"{spell(self)}: l1 and l2 must not be negative")

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
    """x ← prox_{ηh}(x − η(α + G̃)) at each report α (AsyLPG: Yu et al., 2019, Algorithm 1)."""

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
    """

    lr: Rate
    l1: float = 0.0
    l2: float = 0.0

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

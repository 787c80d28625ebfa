"""What several local steps share: momentum, weight decay, and two gradients on one batch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.local.base import Local, Oracle
from qsparse.registry import spell
from qsparse.schedules import Rate, check_rate, rate_at
from qsparse.types import Layout, State, Vector


class LearningRate(Local):
    """What local steps with a learning rate share: it is open until somebody gives it.

    Attributes:
        lr: the step size; None: whoever runs the algorithm gives it, as the user's optimizer does.
        usual: what a run takes where nobody has given one.
    """

    usual: ClassVar[float]
    lr: Rate | None

    def closed(self) -> Local:
        """With the usual learning rate where it is open."""
        return self if self.lr is not None else replace(self, lr=self.usual)  # type: ignore[type-var]

    def _check_lr(self) -> None:
        if self.lr is not None:
            check_rate(self, "lr", self.lr)

    def _lr(self, t: int) -> float:
        """The step size of step t."""
        if self.lr is None:
            raise SettingError(f"{spell(self)} has no learning rate: give it lr, or close the algorithm")
        return rate_at(self.lr, t)


class Momentum(Local):
    """What local steps with momentum share: m = μm + g; the direction is m, or g + μm with Nesterov."""

    momentum: float
    nesterov: bool

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """Momentum starts at zero."""
        state = super().init(x, gradient)
        if self.momentum:
            state["momentum"] = np.zeros_like(x)
        return state

    def _check_momentum(self) -> None:
        if not 0 <= self.momentum < 1:
            raise SettingError(f"{spell(self)}: momentum must lie in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise SettingError(f"{spell(self)}: nesterov needs a momentum")

    def _turn(self, state: State) -> None:
        """Turn the gradient in the state into the direction."""
        if self.momentum:
            g = state["gradient"]
            vector.momentum(g, state["momentum"], self.momentum, self.nesterov, g)


#: Stretches of a vector: the first coordinate, and one behind the last.
Stretches: TypeAlias = tuple[tuple[int, int], ...]


class WeightDecay(Local):
    """What local steps with weight decay share: λx of all parameters, or of some.

    Attributes:
        weight_decay: λ.
        decay_on: ``all`` parameters; ``weights``, those of two or more dimensions, so neither biases nor
            the scales and shifts of norms; or stretches of the vector, which a layout makes of ``weights``.
    """

    weight_decay: float
    decay_on: str | Stretches

    def bind(self, layout: Layout) -> Local:
        """Look up where the weights are."""
        if self.decay_on != "weights" or not self.weight_decay:
            return self
        if not layout or any(layer.dims is None for layer in layout):
            raise SettingError(
                f"{spell(self)} must know how many dimensions each parameter has: use decay_on='all'"
            )
        places = tuple((layer.start, layer.stop) for layer in layout if (layer.dims or 0) >= 2)
        return replace(self, decay_on=places)  # type: ignore[type-var]

    def part(self, start: int, stop: int) -> Local:
        """What decays of these coordinates, counted from the first of them."""
        if isinstance(self.decay_on, str):
            return self
        cut = ((max(lo, start) - start, min(hi, stop) - start) for lo, hi in self.decay_on)
        return replace(self, decay_on=tuple((lo, hi) for lo, hi in cut if lo < hi))  # type: ignore[type-var]

    def _check_decay(self) -> None:
        if not self.weight_decay >= 0:
            raise SettingError(f"{spell(self)}: weight_decay must not be negative")
        if isinstance(self.decay_on, str):
            known = self.decay_on in ("all", "weights")
        else:
            cuts = [0, *itertools.chain(*self.decay_on)]
            known = cuts == sorted(cuts) and all(len(stretch) == 2 for stretch in self.decay_on)
        if not known:
            raise SettingError(
                f"{spell(self)}: decay_on must be 'all', 'weights' or stretches of the vector one behind the "
                "other, such as [[0, 24], [30, 40]]"
            )

    def _decayed(self, n: int) -> Stretches:
        """What decays of a vector of n coordinates."""
        if not isinstance(self.decay_on, str):
            return self.decay_on
        if self.decay_on == "weights":
            raise SettingError(f"{spell(self)} does not know the model's layers: bind it to a layout")
        return ((0, n),)


def two_gradients(
    state: State, oracle: Oracle, batch: Any, other: Vector, here: Vector, change: Vector
) -> tuple[float, Vector]:
    """∇f_B(x) into ``here``, ∇f_B(x) − ∇f_B(other) into ``change``; returns the loss at x and ``change``."""
    x, g = state["x"], state["gradient"]
    loss = oracle(x, batch, g)
    np.copyto(here, g)
    # The oracle knows one vector, the model's own, so the other one is put there for a moment.
    np.copyto(state["here"], x)
    np.copyto(x, other)
    oracle(x, batch, g)
    np.copyto(x, state["here"])
    np.subtract(here, g, out=change)
    return loss, change

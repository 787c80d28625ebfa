"""What a worker does between two meetings, and what it reports."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from qsparse.errors import SettingError
from qsparse.kernels import vector
from qsparse.registry import register, spell
from qsparse.schedules import Rate, check_rate, rate_at
from qsparse.types import Layout, State, Vector


class Oracle(Protocol):
    """Gradients of the training loss."""

    def __call__(self, x: Vector, batch: Any, out: Vector) -> float:
        """Write the gradient at x on a batch into ``out``, (n,); returns the loss.

        Without a batch (None) it is the gradient on all of this rank's examples.
        """


class Local(ABC):
    """One worker's side of an algorithm: ``x`` is its model, ``anchor`` the last one it was sent.

    Reports are in the units of the parameters (anchor − x, step sizes inside) unless the part says
    otherwise, so that changing step sizes need no correction of an error memory.
    """

    kind: ClassVar[str] = "local"
    registered_name: ClassVar[str]
    #: Does each report stand for itself, so that one that is not sent may be left out?
    reports_afresh: ClassVar[bool] = False
    #: Does a step ask the oracle for one gradient, at its own x?
    asks_once: ClassVar[bool] = True

    @property
    def takes_all(self) -> bool:
        """Whether a step goes over all of a worker's examples, and not over a batch."""
        return False

    def bind(self, layout: Layout) -> Local:
        """The local step for a model of this layout; those that go by layers look theirs up."""
        return self

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """The state at the common starting point.

        Args:
            x: the worker's own vector, (n,), which is moved in place.
            gradient: where the oracle leaves gradients, (n,); made here unless given.
        """
        return {
            "x": x,
            "anchor": x.copy(),
            "gradient": np.zeros_like(x) if gradient is None else gradient,
        }

    @abstractmethod
    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """Step t = 1, 2, …; returns the loss."""

    def report(self, state: State, out: Vector) -> Vector:
        """What the coordinator should hear: anchor − x, into ``out``."""
        np.subtract(state["anchor"], state["x"], out=out)
        return out

    def adopt(self, state: State, model: Vector) -> None:
        """The coordinator has answered."""
        np.copyto(state["x"], model)
        np.copyto(state["anchor"], model)

    def follow(self, state: State, model: Vector) -> None:
        """The coordinator has answered, but not to this worker's report, which was skipped.

        x moves as the model did, so that what was not said is still anchor − x.
        """
        if self.reports_afresh:
            self.adopt(state, model)
            return
        state["x"] += model - state["anchor"]
        np.copyto(state["anchor"], model)

    def heard(self, state: State, model: Vector | None, spoke: bool) -> None:
        """After a meeting.

        Args:
            state: of this worker.
            model: what the coordinator answered, (n,); None: keep yours.
            spoke: whether the report was sent, and not skipped.
        """
        if model is not None:
            (self.adopt if spoke else self.follow)(state, model)

    def news(self, state: State) -> float | None:
        """How much news the report is, in the square of its units; None: as much as is sent."""
        return None

    def afresh(self, state: State) -> State:
        """What it goes on from where the coordinator knows another vector than what this worker said last."""
        return state

    def enter(self, state: State, model: Vector) -> None:
        """A phase begins again, at a model that all ranks have."""
        self.adopt(state, model)

    @property
    def shrinks(self) -> bool:
        """Whether every rank, the coordinator too, decays the model by itself at each meeting."""
        return False

    def shrinkage(self, state: State, model: Vector, t: int) -> Vector:
        """What is subtracted from the model at the meeting of step t, beside what is exchanged.

        Args:
            state: of this decay alone; empty at first.
            model: (n,), as all ranks had it before the meeting.
            t: schedules go by it.
        """
        raise NotImplementedError

    @property
    def scheduled(self) -> bool:
        """Whether the scale of the reports follows a schedule."""
        return not isinstance(getattr(self, "lr", 0.0), float | int)


class Heavy(Local):
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


class Decaying(Local):
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


@register("sgd")
@dataclass(frozen=True)
class SGD(Heavy, Decaying):
    """d = g + λx;  m = μm + d;  x −= lr·m, or lr·(d + μm) with Nesterov. As torch.optim.SGD.

    The momentum stays with the worker and is not exchanged.

    Args:
        lr: the step size.
        momentum, nesterov: μ.
        weight_decay: λ.
        decoupled: leave λx out of d; instead every rank applies it by itself at each meeting, with a
            momentum of its own: w = μw + λx;  x −= lr·w, or lr·(λx + μw) with Nesterov. So it is neither
            compressed nor kept as an error (the authors' code of dist-EF-SGDM: Zheng et al., 2019).
        decay_on: what decays: ``all`` or ``weights`` (see `Decaying`); λ is 0 for the others.
    """

    lr: Rate
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    decay_on: str | Stretches = "all"

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)
        self._check_momentum()
        self._check_decay()

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """One step."""
        x, g = state["x"], state["gradient"]
        loss = oracle(x, batch, g)
        if self.weight_decay and not self.decoupled:
            for first, behind in self._decayed(x.size):
                part = g[first:behind]
                vector.add_scaled(part, self.weight_decay, x[first:behind], part)
        self._turn(state)
        vector.add_scaled(x, -rate_at(self.lr, t), g, x)
        return loss

    @property
    def shrinks(self) -> bool:
        """With a decoupled weight decay."""
        return self.decoupled and self.weight_decay > 0

    def shrinkage(self, state: State, model: Vector, t: int) -> Vector:
        """lr·w, or lr·(λx + μw)."""
        decay = np.zeros_like(model)
        for first, behind in self._decayed(model.size):
            np.multiply(model[first:behind], self.weight_decay, out=decay[first:behind])
        if self.momentum:
            momentum = state.setdefault("decay", np.zeros_like(model))
            vector.momentum(decay, momentum, self.momentum, self.nesterov, decay)
        decay *= rate_at(self.lr, t)
        return decay


@register("adamw")
@dataclass(frozen=True)
class AdamW(Decaying):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019). As torch.optim.AdamW.

    Args:
        lr, beta1, beta2, eps, weight_decay: the paper's α, β₁, β₂, ε, λ.
        decay_on: what decays: ``all`` or ``weights`` (see `Decaying`); λ is 0 for the others.
    """

    lr: Rate
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_on: str | Stretches = "all"

    def __post_init__(self) -> None:
        check_rate(self, "lr", self.lr)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise SettingError(f"{spell(self)}: beta1, beta2 must lie in [0, 1), eps be positive")
        self._check_decay()

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """Both moments start at zero."""
        more = {"first": np.zeros_like(x), "second": np.zeros_like(x), "steps": 0}
        return super().init(x, gradient) | more

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """One step."""
        loss = oracle(state["x"], batch, state["gradient"])
        state["steps"] += 1
        vectors = [state[name] for name in ("x", "gradient", "first", "second")]
        at, n = 0, state["x"].size
        for first, behind in (*(self._decayed(n) if self.weight_decay else ()), (n, n)):
            # What lies before a stretch that decays does not.
            for start, stop, decay in ((at, first, 0.0), (first, behind, self.weight_decay)):
                if start < stop:
                    x, g, m, v = (each[start:stop] for each in vectors)
                    vector.adamw_step(
                        x, g, m, v, state["steps"], rate_at(self.lr, t), self.beta1, self.beta2, self.eps,
                        decay,
                    )  # fmt: skip
            at = behind
        return loss


@register("gradient")
@dataclass(frozen=True)
class Gradient(Heavy):
    """Reports the gradient, or its momentum m = μm + g, and leaves the step to the server rule.

    With Nesterov it reports g + μm.

    Args:
        momentum, nesterov: μ.
        whole: the gradient is that of the worker's whole share, not of a batch.
    """

    reports_afresh: ClassVar[bool] = True
    momentum: float = 0.0
    nesterov: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        self._check_momentum()

    @property
    def takes_all(self) -> bool:
        """As said."""
        return self.whole

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """The gradient at x, which stays where it is."""
        loss = oracle(state["x"], None if self.whole else batch, state["gradient"])
        self._turn(state)
        return loss

    def report(self, state: State, out: Vector) -> Vector:
        """The gradient or its momentum."""
        np.copyto(out, state["gradient"])
        return out


@register("lasg")
@dataclass(frozen=True)
class LASG(Local):
    """Reports a stochastic gradient, and measures how much of it is news rather than noise.

    Chen et al., 2020. Rule 2 (WK2): ‖∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̂; ξ^k)‖², the same batch at the model θ̂ of the last
    upload. Rule 1 (WK1): ‖δ^k − δ̂‖², δ^k = ∇ℓ(θ^k; ξ^k) − ∇ℓ(θ̃; ξ^k) and δ̂ its value at the last upload,
    where the snapshot θ̃ is renewed after every ``refresh`` steps. Both cost two gradients a step. The other
    side of the papers' rule is that of trigger lazy, (c/D)·Σ_d‖θ^{k+1−d} − θ^{k−d}‖² with c = Dξ/ᾱ².

    Args:
        rule: 1 or 2.
        refresh: of rule 1.
    """

    reports_afresh: ClassVar[bool] = True
    asks_once: ClassVar[bool] = False
    rule: int = 2
    refresh: int = 10

    def __post_init__(self) -> None:
        if self.rule not in (1, 2) or not isinstance(self.refresh, int) or self.refresh < 1:
            raise SettingError(f"{spell(self)}: rule must be 1 or 2, refresh a whole number of at least 1")

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """Everything is news at first."""
        more = {name: np.zeros_like(x) for name in ("here", "report", "change", "said")}
        return super().init(x, gradient) | more | {"then": x.copy(), "news": np.inf, "upto": 0}

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """Two gradients; x stays where it is."""
        if self.rule == 1 and t > state["upto"]:
            np.copyto(state["then"], state["x"])
            state["upto"] = t - 1 + self.refresh
        first = not np.isfinite(state["news"])
        loss, change = _two_gradients(state, oracle, batch, state["then"], state["report"], state["change"])
        if self.rule == 1:
            news = float(vector.squared_norm(change - state["said"]))
        else:
            news = float(vector.squared_norm(change))
        # At the first step nothing was said yet, and whatever there is must be.
        state["news"] = np.finfo(np.float64).max if first else news
        return loss

    def report(self, state: State, out: Vector) -> Vector:
        """The gradient at the model."""
        np.copyto(out, state["report"])
        return out

    def news(self, state: State) -> float | None:
        """By the rule."""
        return float(state["news"])

    def afresh(self, state: State) -> State:
        """Everything is news again."""
        return {**state, "news": np.inf}

    def heard(self, state: State, model: Vector | None, spoke: bool) -> None:
        """After an upload: where, or what, it was."""
        if spoke:
            np.copyto(*((state["said"], state["change"]) if self.rule == 1 else (state["then"], state["x"])))
        super().heard(state, model, spoke)


def _two_gradients(
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


@register("svrg")
@dataclass(frozen=True)
class SVRG(Local):
    """α = ∇f_B(x) − ∇f_B(x̃): the same batch B at the model and at the snapshot x̃, where the phase began.

    Johnson & Zhang, 2013; as the workers of AsyLPG report it (Yu et al., 2019). The server rule adds
    the full gradient at x̃.
    """

    reports_afresh: ClassVar[bool] = True
    asks_once: ClassVar[bool] = False

    def init(self, x: Vector, gradient: Vector | None = None) -> State:
        """The snapshot is where one is."""
        more = {"snapshot": x.copy(), "here": x.copy(), "difference": np.zeros_like(x)}
        return super().init(x, gradient) | more

    def enter(self, state: State, model: Vector) -> None:
        """A new snapshot."""
        self.adopt(state, model)
        np.copyto(state["snapshot"], model)

    def advance(self, state: State, oracle: Oracle, batch: Any, t: int) -> float:
        """Two gradients; x stays where it is."""
        difference = state["difference"]
        loss, _ = _two_gradients(state, oracle, batch, state["snapshot"], difference, difference)
        return loss

    def report(self, state: State, out: Vector) -> Vector:
        """α."""
        np.copyto(out, state["difference"])
        return out

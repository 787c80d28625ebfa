"""What a worker does between two meetings, and what it reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from qsparse.types import Layout, State, Vector


class Oracle(Protocol):
    """Gradients of the training loss."""

    def __call__(self, x: Vector, batch: Any, out: Vector) -> float:
        """Write the gradient at x on a batch into ``out``, (n,); returns the loss.

        Without a batch (None) it is the gradient on all of this rank's examples.
        """


@dataclass(frozen=True)
class LocalClaims:
    """What a local step promises; the rules of composition go by it, and laws hold it.

    Attributes:
        reports_gradient: each report stands for itself, so that one that is not sent may be left out, and x
            stays where it is for the server rule to move; else reports are anchor − x.
        momentum: reports are m = μm + g with this μ, or g + μm where ``nesterov``; None: not said.
        nesterov: see ``momentum``.
        asks_once: a step asks the oracle for one gradient, at its own x.
        takes_all: a step goes over all of a worker's examples, and not over a batch.
        decays: a step also moves x by itself, without a gradient, as weight decay does.
        scheduled: the scale of the reports follows a schedule.
        decoupled_decay: every rank, the coordinator too, decays the model by itself at each meeting.
        needs_mean: reports are differences, and a server rule adds the full gradient to them.
        measures: it says by itself how much news a report is; see `Local.change`.
    """

    reports_gradient: bool = False
    momentum: float | None = None
    nesterov: bool = False
    asks_once: bool = True
    takes_all: bool = False
    decays: bool = False
    scheduled: bool = False
    decoupled_decay: bool = False
    needs_mean: bool = False
    measures: bool = False


class Local(ABC):
    """One worker's side of an algorithm: ``x`` is its model, ``anchor`` the last one it was sent.

    Reports are in the units of the parameters (anchor − x, step sizes inside) unless the part says
    otherwise, so that changing step sizes need no correction of an error memory.
    """

    kind: ClassVar[str] = "local"
    registered_name: ClassVar[str]

    @property
    def claims(self) -> LocalClaims:
        """What this local step promises."""
        return LocalClaims()

    def bind(self, layout: Layout) -> Local:
        """The local step for a model of this layout; those that go by layers look theirs up."""
        return self

    def part(self, start: int, stop: int) -> Local:
        """The bound local step for coordinates start … stop − 1, to be asked for their `decoupled_decay`."""
        return self

    def closed(self) -> Local:
        """The local step with a learning rate, where it has one that is open; itself elsewhere."""
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
        if self.claims.reports_gradient:
            self.adopt(state, model)
            return
        state["x"] += model - state["anchor"]
        np.copyto(state["anchor"], model)

    def posted(self, state: State) -> None:
        """The report is under way and its answer comes later: what x does from here on is reported next."""
        np.copyto(state["anchor"], state["x"])

    def landed(self, state: State, model: Vector) -> None:
        """The answer to the report that was `posted` has come: x ← model + (x − x at the report).

        So x is the model, bit for bit, where it has not moved since.
        """
        state["x"] -= state["anchor"]
        state["x"] += model
        np.copyto(state["anchor"], model)

    def heard(self, state: State, model: Vector | None, sent: bool) -> None:
        """After a meeting.

        Args:
            state: of this worker.
            model: what the coordinator answered, (n,); None: keep yours.
            sent: whether the report was sent, and not skipped.
        """
        if model is not None:
            (self.adopt if sent else self.follow)(state, model)

    def change(self, state: State) -> float | None:
        """How much news the report is, in the square of its units; None: as much as is sent.

        A number is claimed by `measures`.
        """
        return None

    def afresh(self, state: State) -> State:
        """What it goes on from where the coordinator knows another vector than what this worker said last."""
        return state

    def enter(self, state: State, model: Vector) -> None:
        """A phase begins again, at a model that all ranks have."""
        self.adopt(state, model)

    def decoupled_decay(self, state: State, model: Vector, t: int) -> Vector:
        """What is subtracted from the model at the meeting of step t, beside what is exchanged.

        Asked of local steps that claim `decoupled_decay`.

        Args:
            state: of this decay alone; empty at first.
            model: (n,), as all ranks had it before the meeting.
            t: schedules go by it.
        """
        raise NotImplementedError

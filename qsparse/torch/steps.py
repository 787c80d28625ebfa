"""Which calls of which optimizers are the steps of an attached loop, and which are refused.

torch tells of every step of every optimizer, once for the process; each loop picks out what concerns its
own parameters. So a step is seen whoever takes it: an optimizer within another one, as in sharpness-aware
minimization and in wrappers that pass `step` on, and one that takes the place of another in a later phase.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.amp import GradScaler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from qsparse.errors import SettingError
from qsparse.torch.flat import FlatModel, not_exchanged
from qsparse.torch.given import optimizer_of
from qsparse.torch.naming import named_parameters

Optimizers = tuple[torch.optim.Optimizer, ...]


def as_optimizers(given: Any) -> Optimizers:
    """One optimizer, or several that step together, as a tuple.

    Raises:
        SettingError: none at all, what is no optimizer, a parameter that two of them step, or one that moves
            parameters outside of its ``step()``.
    """
    optimizers = tuple(map(optimizer_of, given if isinstance(given, list | tuple) else (given,)))
    if not optimizers:
        raise SettingError("an empty list of optimizers was given: attach needs those that step the model")
    for optimizer in optimizers:
        _refuse_modes(optimizer)
    if len(optimizers) > 1:
        stepped = [id(p) for p in parameters_of(*optimizers)]
        if len(stepped) > len(set(stepped)):
            raise SettingError(
                f"the optimizers ({names(optimizers)}) share a parameter: give each parameter to one of them"
            )
    return optimizers


def parameters_of(*optimizers: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All tensors in the groups of some optimizers; none of what is no optimizer."""
    groups = [group for each in optimizers for group in getattr(each, "param_groups", ())]
    return [p for group in groups for p in group["params"]]


def names(optimizers: Iterable[Any]) -> str:
    """Their classes, as text."""
    return ", ".join(type(each).__name__ for each in optimizers)


def _refuse_modes(optimizer: Any) -> None:
    """A schedule-free optimizer has two modes, and moves the parameters when it changes them."""
    inner = optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer  # A wrapper has the modes of what it wraps, if any.
    if isinstance(inner, torch.nn.Module):
        return
    if callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None)):
        raise SettingError(
            f"{type(inner).__name__} moves the parameters outside of step(), in train() and eval(), by what "
            "each rank keeps for itself, so the ranks would end with different models: use an optimizer "
            "that trains the parameters themselves, with a schedule of the learning rate"
        )


class Steps:
    """Counts the steps of a loop's optimizers.

    A step is counted when each optimizer has stepped once since the last step that was counted; one that
    steps twice meanwhile is refused. A step that `torch.amp.GradScaler` leaves out counts: it has changed
    nothing, and the rank stays in time with the others. Of optimizers that step within each other the
    outermost counts. An optimizer that was not given and steps the model's parameters takes the place of
    those that have stepped them; one that trains other tensors as well is refused.

    Args:
        optimizers: those that are attached, which hold the loop: the process does not.
        flat: the model.
        counted: called after each step that counts.
        refused: called with the error where a step is refused; raises it.

    Attributes:
        current: those whose steps are waited for.
        others: those that have stepped and were not given.
        seen: how many steps of optimizers were seen.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        flat: FlatModel,
        counted: Callable[[], None],
        refused: Callable[[SettingError], None],
    ) -> None:
        self.optimizers = self.current = optimizers
        self.others: list[torch.optim.Optimizer] = []
        self.seen = 0
        self._flat, self._counted, self._refused = flat, counted, refused
        self._parameters = {id(p) for p in flat.parameters}
        #: Those that have stepped since the last step that was counted.
        self._stepped: list[torch.optim.Optimizer] = []
        #: The outermost one that is in its step.
        self._running: torch.optim.Optimizer | None = None
        for optimizer in optimizers:
            self._bind(optimizer)
        _watch(self)

    def close(self) -> None:
        """Count no more."""
        _leave(self)
        for optimizer in (*self.optimizers, *self.others):
            vars(optimizer).pop("_qsparse_steps", None)

    @property
    def pending(self) -> str:
        """Which optimizers have stepped, and which have still to; "" between steps."""
        missing = [each for each in self.current if not _among(self._stepped, each)]
        return f"{names(self._stepped)} has stepped and {names(missing)} has not" if self._stepped else ""

    def unsaved(self, saved: Iterable[Any]) -> str:
        """The classes of those that have stepped and whose state is not among what is saved."""
        # A wrapper has the state of what it wraps.
        kept = [getattr(each, "state", each) for each in (*self.optimizers, *saved)]
        return names(each for each in self.others if not _among(kept, getattr(each, "state", each)))

    def steps(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer steps parameters of the loop."""
        return any(id(p) in self._parameters for p in parameters_of(optimizer))

    def began(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of any optimizer begins."""
        if self._running is None and self.steps(optimizer):
            self._running = optimizer

    def ended(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of any optimizer ends."""
        if self._running is optimizer:
            self._running = None
            self.took(optimizer)

    def took(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer of the loop's parameters has taken a step, or has left it out."""
        self.seen += 1
        try:
            self._refuse_strangers(optimizer)
            if not _among(self.current, optimizer):
                self._replace(optimizer)
            if _among(self._stepped, optimizer):
                raise SettingError(
                    f"{type(optimizer).__name__} has stepped twice in one step of the loop: {self.pending}. "
                    "A step of several optimizers is one step() of each; where they take turns for longer, "
                    "finish(), and attach the model with the one that steps"
                )
        except SettingError as error:
            self._refused(error)
        self._stepped.append(optimizer)
        if len(self._stepped) == len(self.current):
            self._stepped = []
            self._counted()

    def _replace(self, optimizer: torch.optim.Optimizer) -> None:
        _refuse_modes(optimizer)
        moved = {id(p) for p in parameters_of(optimizer)}
        stay = (each for each in self.current if not any(id(p) in moved for p in parameters_of(each)))
        self.current = (*stay, optimizer)
        self._stepped = [each for each in self._stepped if _among(self.current, each)]
        if not _among((*self.optimizers, *self.others), optimizer):
            self.others.append(optimizer)
            self._bind(optimizer)

    def _bind(self, optimizer: Any) -> None:
        optimizer._qsparse_steps = self

    def _refuse_strangers(self, optimizer: torch.optim.Optimizer) -> None:
        for p in parameters_of(optimizer):
            if p.requires_grad and id(p) not in self._parameters:
                named = (name for name, other in named_parameters(self._flat.model) if other is p)
                raise SettingError(not_exchanged(next(named, None), p))


def _among(things: Iterable[Any], thing: Any) -> bool:
    return any(each is thing for each in things)


# --- what is seen of all optimizers -------------------------------------------------------------

_LOCK = threading.Lock()
#: Replaced and never changed, because ranks may be threads.
_loops: tuple[weakref.ref[Steps], ...] = ()
_watching = False


def _watch(loop: Steps) -> None:
    global _loops, _watching
    with _LOCK:
        if not _watching:
            # For good: a hook that is removed could go while another thread walks through the hooks. An
            # exchange is a break in a compiled step; what says so takes seconds to import, and is there when
            # an optimizer has been made.
            register_optimizer_step_pre_hook(torch.compiler.disable(_began))
            register_optimizer_step_post_hook(torch.compiler.disable(_ended))
            GradScaler.step = _scaled(GradScaler.step)  # type: ignore[method-assign]
            _watching = True
        _loops = (*(each for each in _loops if each() is not None), weakref.ref(loop))


def _leave(loop: Steps) -> None:
    global _loops
    with _LOCK:
        _loops = tuple(each for each in _loops if each() not in (None, loop))


def _attached() -> list[Steps]:
    return [loop for each in _loops if (loop := each()) is not None]


def _began(optimizer: Any, args: Any, kwargs: Any) -> None:
    for loop in _attached():
        loop.began(optimizer)


def _ended(optimizer: Any, args: Any, kwargs: Any) -> None:
    for loop in _attached():
        loop.ended(optimizer)


def _scaled(own: Callable[..., Any]) -> Callable[..., Any]:
    """`GradScaler.step`, which tells nobody when it leaves a step out: none is seen within it then."""

    @functools.wraps(own)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        before = [(loop, loop.seen) for loop in _attached() if loop.steps(optimizer)]
        result = own(self, optimizer, *args, **kwargs)
        for loop, seen in before:
            if loop.seen == seen:
                loop.took(optimizer)
        return result

    return step

"""What loops of both kinds share: a model held in vectors, checkpoints, and an end that all ranks reach."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import numpy as np

from qsparse.errors import CheckpointError, DisagreementError, SettingError, WireError
from qsparse.exchange.collectives import agree
from qsparse.exchange.notes import note, same_call, with_own
from qsparse.files import named_path
from qsparse.rounds.node import Node
from qsparse.rounds.state import WalkState, plain
from qsparse.run.checkpoint import Checkpoints, find, save
from qsparse.run.folder import Hold
from qsparse.torch import compared
from qsparse.torch.given import model_of
from qsparse.torch.ownership import Before
from qsparse.torch.saving import LoopState, found_state, restore_torch, torch_of
from qsparse.torch.start import Parts, adopt_from_rank_0, shapes
from qsparse.torch.steps import Optimizers
from qsparse.types import State
from qsparse.wire.base import Wire

T = TypeVar("T")


class Held(ABC):
    """A model's place in the exchange, until `finish`.

    Args:
        model: what is trained.
        comm: an mpi4py communicator or a `Wire`; COMM_WORLD where it is None.
        prepare: called with the wire; makes the parts on this rank, and says on what the ranks must agree.

    Attributes:
        ledger: what this rank said.
    """

    def __init__(
        self, model: Any, comm: Any, prepare: Callable[[Wire], tuple[Parts, Mapping[str, Any]]]
    ) -> None:
        #: What was made here is closed here.
        self._own: Any = None
        if not isinstance(comm, Wire):
            from qsparse.wire.mpi import MpiWire

            comm = self._own = MpiWire(comm)
        self.wire: Wire = comm
        self.ledger = self.wire.ledger
        #: Folders of checkpoints that are this loop's until it ends.
        self._holds: dict[Path, Hold] = {}
        #: What ended the exchange before its time.
        self._failed: BaseException | None = None
        self._open = False
        before: Before | None = None

        def make() -> tuple[Parts, Mapping[str, Any]]:
            nonlocal before
            before = Before(model_of(model))
            return prepare(self.wire)

        try:
            self.algorithm, self.exchange, self.flat, self._settings = agree(self.wire, make, "attach()")
            self._start()
        except BaseException as error:
            # Ranks that disagree raise the same, so all of them come to close.
            self._let_go(together=isinstance(error, DisagreementError))
            if before is not None:
                before.restore()
            raise

    def _start(self) -> None:
        """Begin at rank 0's model; collective."""
        flat = self.flat
        for tensor in (flat.values, flat.buffer_values, *(tensor for _, tensor in flat.rest)):
            adopt_from_rank_0(self.wire, tensor)
        flat.spread()
        # Only now all ranks have the same buffers, by which this is decided.
        flat.leave_constants()
        self._settings |= shapes(flat)
        self._begin()
        self._open = True

    # --- what the kinds of loops do in their own ways ---

    @abstractmethod
    def _begin(self) -> None:
        """Stand at the common starting point."""

    @property
    @abstractmethod
    def _node(self) -> Node:
        """This rank's place in the synchronizations of the model."""

    @abstractmethod
    def _end(self) -> None:
        """What comes before the model is let go of; collective."""

    def _closed(self) -> None:
        """Let go of what only this kind of loop holds."""

    @abstractmethod
    def _place(self) -> WalkState:
        """Where this rank stands."""

    @abstractmethod
    def _stand(self, walk: WalkState) -> None:
        """Stand where a loop stood."""

    def _refuse_save(self, others: tuple[Any, ...]) -> None:
        """Refuse a checkpoint that could not be gone on from."""

    @property
    @abstractmethod
    def _stepping(self) -> Optimizers:
        """The user's optimizers that are saved with the loop."""

    @property
    @abstractmethod
    def _at(self) -> int:
        """The steps of this rank."""

    @property
    @abstractmethod
    def _asked(self) -> int:
        """The signal by which some rank was asked to stop, 0 without one."""

    @property
    def asked_to_stop(self) -> bool:
        """Was some rank asked to stop, by a signal, before the last meeting? The same on all ranks.

        Known when the answer is adopted. Within ``qsparse.process.notice.listening``; save and leave the
        loop then.
        """
        return self._asked > 0

    def save(self, folder: str | Path, *others: Any, keep: int = 3, **notes: Any) -> None:
        """Leave a checkpoint of all ranks, which have taken as many steps; collective.

        It holds the model, the optimizer, what was not said yet, the counters, and the state of torch's
        generator of random numbers on the CPU. A round that is under way ends first; its answer is saved as
        well, and is adopted at its step.

        Args:
            folder: of the checkpoints, which all ranks see.
            *others: whatever else has a ``state_dict``, such as schedulers, always in the same order.
            keep: how many checkpoints of this loop stay, at least 1; those of another run are left alone,
                with a warning.
            **notes: numbers and texts that `resume` returns, e.g. ``epoch=3``.

        Raises:
            CheckpointError: it could not be written, or another job that is alive saves into the folder; on
                all ranks, which may go on: the checkpoints before it are as they were, and so is the loop.
            SettingError: ``keep`` is less than 1, a tensor has left what is exchanged, the loop has ended, or
                an optimizer has stepped that was neither given to `attach` nor is among ``others``.
            DisagreementError: not all ranks have called it, or not after as many steps.
        """
        self._refuse_if_over("save")
        if keep < 1:
            raise SettingError(
                f"save was called with keep={keep}, which would remove the checkpoint that it writes: keep "
                "must be at least 1"
            )
        settings = {**self._settings, "others": [type(each).__name__ for each in others]}
        self._refuse_save(others)
        self._guarded(lambda: self._all_in("save()"))
        try:
            save(
                self.wire, named_path(folder), self._at, lambda: self._state(others, notes), settings, keep,
                claim=functools.partial(self._claim, named_path(folder)),
            )  # fmt: skip
        except CheckpointError:
            raise  # all have been told, and still stand at one step
        except BaseException as error:
            self._failed = error
            raise

    def resume(self, folder: str | Path, *others: Any) -> dict[str, Any]:
        """Go on from the newest whole checkpoint in a folder, if any; collective, before the first step.

        With another number of ranks than it was saved with, see `resharding.reshard`; a new rank's optimizer
        takes the mean of the others' moments.

        Args:
            folder, *others: as for `save`.

        Returns:
            The notes that it was saved with; empty where there is none.

        Raises:
            CheckpointError: it is of another model, algorithm, optimizer or seed; to go without it, attach
                anew.
            DisagreementError: not all ranks have called it.
        """
        self._refuse_if_over("resume")
        if self._at:
            raise SettingError(f"resume comes before the first step, not after {self._at}")
        settings = {**self._settings, "others": [type(each).__name__ for each in others]}

        def prepare() -> tuple[dict[str, Any], Mapping[str, Any]]:
            assert found is not None
            found.compare(settings)
            with found.understood():
                state = found_state(found, self.algorithm, self.exchange, self.wire.rank, self.wire.size)
            with found.understood():
                return self._go_on(state, others), {"steps": self._at}

        self._guarded(lambda: self._all_in("resume()"))
        try:
            found = find(self.wire, Checkpoints(named_path(folder), resume="auto"), settings)
            return {} if found is None else agree(self.wire, prepare, "resume()")
        except BaseException as error:
            # Raised on all ranks, of which some may have gone on already.
            self._failed = error
            raise

    def _claim(self, folder: Path) -> None:
        """Hold a folder of checkpoints until the loop ends."""
        if folder in self._holds:
            return
        try:
            self._holds[folder] = Hold(folder, "name another folder for the checkpoints", takes_over=True)
        except SettingError as error:
            raise CheckpointError(str(error)) from None

    def _state(self, others: tuple[Any, ...], notes: dict[str, Any]) -> State:
        """What this rank goes on from."""
        self.flat.check()
        walk = self._place()
        rest = torch_of(self.flat, self._stepping, others)
        saved: State = plain(LoopState(walk, self.ledger.snapshot(), np.zeros(2), rest, notes))
        return saved

    def _go_on(self, state: LoopState, others: tuple[Any, ...]) -> dict[str, Any]:
        self._stand(state.walk)
        restore_torch(self.flat, self._stepping, others, state.torch)
        self.ledger.resume(state.ledger)
        return state.notes

    def finish(self) -> None:
        """End the loop and let go of the model; collective.

        Parameters, gradients and buffers get memory of their own again, with the values that they have. A
        wire that `attach` has made is closed; the ledger stays. Where an exchange failed before, its error
        is raised again.

        Raises:
            DisagreementError: the ranks end with different models.
        """
        try:
            self._refuse_if_failed()
            if not self._open:
                return
            self._end()
        except BaseException:
            self._let_go()
            raise
        self._detach()
        if self._own is not None:
            self._own.close()
        else:
            self.wire.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            # What was raised by a meeting has been told already.
            if self._failed is None and self._open:
                self.exchange.notify(self.wire, error, self._at)
            self._let_go()

    def _refuse(self, error: SettingError) -> NoReturn:
        """Give up, because of what the loop has done."""

        def give_up() -> NoReturn:
            raise error

        self._refuse_if_failed()
        self._guarded(give_up)
        raise AssertionError

    def _guarded(self, act: Callable[[], T]) -> T:
        try:
            self.flat.check()
            return act()
        except BaseException as error:
            self.exchange.notify(self.wire, error, self._at)
            self._failed = error
            raise

    def _refuse_if_failed(self) -> None:
        """Who catches the error of an exchange must not train on alone: the others have given up."""
        if self._failed is not None:
            raise self._failed

    def _refuse_if_over(self, call: str) -> None:
        self._refuse_if_failed()
        if not self._open:
            raise SettingError(
                f"this loop has ended: call {call}() before finish(), and within the with block"
            )

    def _detach(self) -> None:
        for hold in self._holds.values():
            hold.release()
        self._holds.clear()
        if self._open:
            self._open = False
            self._closed()
            self.flat.release()

    def _let_go(self, together: bool = False) -> None:
        """Detach after an error; unless all ranks do so together, without waiting for the others."""
        self.wire.settle()
        self._detach()
        if self._own is not None:
            with suppress(WireError):
                if together:
                    self._own.close()
                else:
                    self._own.leave()

    def _all_in(self, call: str) -> None:
        """See that all ranks are in the same call, after as many steps: nobody waits for one that is not."""
        if self._node.flight is not None:
            self._node.flight.landed()  # or what has happened to it, which is told before anything else
        here = note(self.wire, call, self._at)
        with self.wire.at(call):
            heard = self.exchange.gather(self.wire, here)
            if heard is not None:
                same_call(with_own(here, heard))
            self.exchange.broadcast(self.wire, None if heard is None else here)

    def _disagree(self, difference: str) -> None:
        """Raise what every rank has found by itself, so that nobody has to be told."""
        if difference:
            self._failed = DisagreementError(difference)
            raise self._failed

    def _tell(self, call: str, mine: Any) -> list[Any]:
        with self.wire.at(call):
            return compared.everybodys(self.exchange, self.wire, self._at, mine, call)

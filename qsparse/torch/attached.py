"""Compressed exchanges for a training loop of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from qsparse.agreement import agree
from qsparse.algorithm import Algorithm, refuse_if_inhomogeneous
from qsparse.checkpoint import Checkpoints, find, save
from qsparse.errors import CheckpointError, DisagreementError, SettingError, WireError
from qsparse.exchange import Exchange
from qsparse.files import named_path
from qsparse.memory import ErrorFeedback
from qsparse.payload import Payload, Way
from qsparse.rounds.synchronous import Pace, Station, averaging
from qsparse.seeds import Seed
from qsparse.torch.device import Common, on_host
from qsparse.torch.saving import found_state, plain, tensors
from qsparse.torch.start import adopt_from_rank_0, prepare, shapes
from qsparse.types import Layout, State
from qsparse.wire.base import Wire


def attach(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm | str,
    comm: Any = None,
    *,
    exchange: Exchange | str = "server",
    seed: int = 0,
) -> Attached:
    """Make an ordinary training loop a distributed one; collective.

    All ranks start from rank 0's model, with its frozen parameters and buffers. After each
    ``optimizer.step()`` the algorithm's trigger decides whether the ranks meet: the net update since
    the last meeting is compressed and exchanged, and every rank goes on from the new common model.
    The optimizer takes the local steps, with whatever learning rates and schedulers it has. Batch
    statistics stay each rank's own until `Attached.finish` averages them; call it (or leave the ``with``
    block) before you use the trained model.

    Args:
        model: float32 or float64, on the CPU or on a GPU (``docs/gpu.md``); not moved any more.
        optimizer: over exactly the model's trained parameters.
        algorithm: an algorithm or its text, e.g. ``"qsparse-local-sgd(H=8)"``; its learning rate and
            momentum stay unset, because the optimizer has them.
        comm: an mpi4py communicator or a `Wire`, which stays open; COMM_WORLD unless given.
        exchange: the pattern of messages.
        seed: of the random parts; the same on all ranks.

    Raises:
        CompositionError: an algorithm whose local step is not the optimizer's.
        SettingError: an optimizer of other parameters, or a model that does not fit.
        DisagreementError: the ranks have different models or settings.
    """
    return Attached(model, optimizer, algorithm, comm, exchange, seed)


class Attached:
    """A training loop's place in the exchange; made by `attach`.

    Attributes:
        ledger: what this rank said.
        steps: how often the optimizer has stepped.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        algorithm: Algorithm | str,
        comm: Any,
        exchange: Exchange | str,
        seed: int,
    ) -> None:
        self._owns = not isinstance(comm, Wire)
        if isinstance(comm, Wire):
            self.wire = comm
        else:
            from qsparse.wire.mpi import MpiWire

            self.wire = MpiWire(comm)
        self.ledger = self.wire.ledger
        self.steps = 0
        self._met = 0
        #: What ended the exchange before its time.
        self._failed: BaseException | None = None
        self._optimizer = optimizer
        self._seed = Seed(seed)

        try:
            made = agree(self.wire, lambda: prepare(model, optimizer, algorithm, exchange, seed, self.wire))
            self.algorithm, self.exchange, self.flat, self._settings = made
        except DisagreementError:
            # Every rank raises the same here, so all of them come to close. After another error the
            # wire stays open: it lets each rank print its own message before the job is aborted.
            if self._owns:
                with suppress(WireError):
                    self.wire.close()
            raise
        flat = self.flat
        for tensor in (flat.values, flat.beside, *(tensor for _, tensor in flat.rest)):
            adopt_from_rank_0(self.wire, tensor)
        # Only now all ranks have the same buffers, by which this is decided.
        flat.leave_constants()
        self._settings |= shapes(flat)
        self._pace = Pace()
        self._common = [self._meets(self.algorithm, flat.values, flat.layout)]
        if flat.beside.numel():
            self._common.append(self._meets(averaging(self.algorithm), flat.beside, flat.statistics))
        self._rates = self._learning_rates()
        self._hook: Any = optimizer.register_step_post_hook(self._stepped)
        # The optimizer would drop the gradients' memory; this keeps them views of one vector.
        optimizer.zero_grad = flat.zero_grad  # type: ignore[method-assign]

    def save(self, folder: str | Path, *others: Any, keep: int = 3, **notes: Any) -> None:
        """Leave a checkpoint of all ranks, which have taken as many steps; collective.

        It holds the model, the optimizer, what was not said yet, the counters, and the state of torch's
        generator of random numbers on the CPU.

        Args:
            folder: of the checkpoints, which all ranks see.
            others: whatever else has a ``state_dict``, such as schedulers, always in the same order.
            keep: how many checkpoints stay, at least 1.
            notes: numbers and texts that `resume` returns, e.g. ``epoch=3``.

        Raises:
            CheckpointError: it could not be written; on all ranks, which may go on: the checkpoints before it
                are as they were, and so is the loop.
            SettingError: ``keep`` is less than 1, or a tensor has left what is exchanged.
        """
        self._refuse_if_failed()
        if keep < 1:
            raise SettingError(
                f"save was called with keep={keep}, which would remove the checkpoint that it writes: keep "
                "must be at least 1"
            )
        settings = {**self._settings, "others": [type(each).__name__ for each in others]}
        try:
            save(
                self.wire, named_path(folder), self.steps, lambda: self._state(others, notes), settings, keep
            )
        except CheckpointError:
            raise  # all have been told, and still stand at one step
        except BaseException as error:
            self._failed = error
            raise

    def resume(self, folder: str | Path, *others: Any) -> dict[str, Any]:
        """Go on from the newest whole checkpoint in a folder, if any; collective, before the first step.

        With another number of ranks than it was saved with, see `qsparse.resharding.reshard`; a new rank's
        optimizer takes the mean of the others' moments.

        Args:
            folder, others: as for `save`.

        Returns:
            The notes that it was saved with; empty where there is none.

        Raises:
            CheckpointError: it is of another model, algorithm, optimizer or seed; to go without it, attach
                anew.
        """
        self._refuse_if_failed()
        if self.steps:
            raise SettingError(f"resume comes before the first step, not after {self.steps}")
        settings = {**self._settings, "others": [type(each).__name__ for each in others]}

        def prepare() -> tuple[dict[str, Any], Mapping[str, Any]]:
            assert found is not None
            found.compare(settings)
            state = found_state(found, self.algorithm, self.exchange, self.wire.rank, self.wire.size)
            return self._go_on(state, others), {"steps": self.steps}

        try:
            found = find(self.wire, Checkpoints(named_path(folder), resume="auto"))
            return {} if found is None else agree(self.wire, prepare)
        except BaseException as error:
            # Raised on all ranks, of which some may have gone on already.
            self._failed = error
            raise

    def _state(self, others: tuple[Any, ...], notes: dict[str, Any]) -> State:
        """What this rank goes on from, with the places of `qsparse.rounds.phases.Walk.state`."""
        self.flat.check()
        main, beside = self._common[0], self._common[-1]
        aside = beside is not main
        stations = [common.state() for common in self._common]
        stations[0]["local"] = {"anchor": on_host(main.anchor)}
        return {
            "walk": {
                "x": on_host(main.tensor),
                "aside": on_host(self.flat.beside),
                "anchor": on_host(beside.anchor if aside else self.flat.beside),
                "t": self.steps,
                "met": self._met,
                "rates": self._rates,
                "phase": "main",
                "phases": {"main": stations},
            },
            "torch": {
                "rest": plain([tensor for _, tensor in self.flat.rest]),
                "optimizer": plain(self._optimizer.state_dict()),
                "others": [plain(each.state_dict()) for each in others],
                "generator": plain(torch.get_rng_state()),
            },
            "ledger": self.ledger.snapshot(),
            "losses": np.zeros(2),
            "notes": notes,
        }

    def _go_on(self, state: State, others: tuple[Any, ...]) -> dict[str, Any]:
        walk = state["walk"]
        main, *aside = walk["phases"]["main"]
        # The optimizer takes the local steps.
        main = dict(main)
        self._common[0].restore(main, walk["x"], main.pop("local")["anchor"])
        for common, saved in zip(self._common[1:], aside, strict=True):
            common.restore(saved, walk["aside"], walk["anchor"])
        with torch.no_grad():
            for (_, tensor), kept in zip(self.flat.rest, tensors(state["torch"]["rest"]), strict=True):
                tensor.copy_(kept)
        self._optimizer.load_state_dict(tensors(state["torch"]["optimizer"]))
        for each, saved in zip(others, state["torch"]["others"], strict=True):
            each.load_state_dict(tensors(saved))
        if state["torch"]["generator"] is not None:
            torch.set_rng_state(tensors(state["torch"]["generator"]))
        self.ledger.resume(state["ledger"])
        self.steps, self._met, self._rates = walk["t"], walk["met"], walk["rates"]
        self._pace.t = self._pace.clock = self.steps
        notes: dict[str, Any] = state["notes"]
        return notes

    def _meets(self, algorithm: Algorithm, tensor: torch.Tensor, layout: Layout) -> Common:
        start = tensor.cpu().numpy()
        station = Station(
            algorithm, self.exchange, self.wire, start, self._seed, layout, self.ledger, self._pace
        )
        return Common(station, tensor)

    def finish(self) -> None:
        """Meet once more if there were steps since the last meeting, and detach; collective.

        A wire that `attach` has made is closed; the ledger stays. Where an exchange failed before, its error
        is raised again.
        """
        try:
            self._refuse_if_failed()
            if self._hook is None:
                return
            # A worker may have skipped the last meeting, and then something is still to be said.
            if self._met < self.steps or (self.steps and self.algorithm.trigger.may_skip):
                self._guarded(functools.partial(self._meet, last=True))
            if self.steps:
                self._guarded(self._average_aside)
            self._guarded(self._part)
        finally:
            self._detach()
        if self._owns:
            self.wire.close()
        else:
            self.wire.flush()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            # What was raised by a meeting has been told already.
            if self._failed is None and self._hook is not None:
                self.exchange.tell(self.wire, error, self.steps)
            self._detach()

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._refuse_if_failed()
        self.steps += 1
        if self._common[0].station.due(self.steps):
            self._guarded(self._meet)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            self.flat.check()
            act()
        except BaseException as error:
            self.exchange.tell(self.wire, error, self.steps)
            self._failed = error
            raise

    def _refuse_if_failed(self) -> None:
        """Who catches the error of an exchange must not train on alone: the others have given up."""
        if self._failed is not None:
            raise self._failed

    def _detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            del self._optimizer.zero_grad

    def _part(self) -> None:
        """Say good-bye: who has taken fewer steps would otherwise leave the others waiting for it."""
        note = Payload.build(way=Way.BESIDE, origin=self.wire.rank, step=self.steps)
        with self.wire.at("finish()"):
            heard = self.exchange.gather(self.wire, note)
            self.exchange.broadcast(self.wire, None if heard is None else note)

    def _meet(self, last: bool = False) -> None:
        self._check_rates()
        self._pace.t = self._pace.clock = self.steps
        self._common[0].meet(self.steps, last)
        self._met = self.steps

    def _average_aside(self) -> None:
        for common in self._common[1:]:
            common.meet(self.steps)

    def _learning_rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups if "lr" in group]

    def _check_rates(self) -> None:
        if isinstance(self.algorithm.up.memory, ErrorFeedback) and self._rates != self._learning_rates():
            refuse_if_inhomogeneous(self.algorithm.up)

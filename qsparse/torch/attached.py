"""Compressed exchanges for a training loop of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch

from qsparse.algorithm import Algorithm
from qsparse.errors import CheckpointError, DisagreementError, SettingError, WireError
from qsparse.exchange import Exchange
from qsparse.exchange.collectives import agree
from qsparse.exchange.notes import FINISH, UPDATES, note, same_call
from qsparse.files import named_path
from qsparse.planning import links_for
from qsparse.rounds.node import Node, Pace, averaging
from qsparse.rounds.state import plain
from qsparse.rules import refuse_if_inhomogeneous
from qsparse.run.checkpoint import Checkpoints, find, save
from qsparse.run.folder import Hold
from qsparse.seeds import Seed
from qsparse.torch import compared
from qsparse.torch.given import model_of
from qsparse.torch.ownership import Before
from qsparse.torch.saving import LoopState, found_state, restore_torch, restore_walk, torch_of, walk_of
from qsparse.torch.start import Parts, adopt_from_rank_0, prepare, shapes
from qsparse.torch.steps import Steps, as_optimizers
from qsparse.torch.tensors import anchor_of, node_about
from qsparse.types import Layout, State
from qsparse.wire.base import Wire

T = TypeVar("T")


def attach(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    algorithm: Algorithm | str,
    comm: Any = None,
    *,
    exchange: Exchange | str = "auto",
    link_rate: str | None = None,
    link_latency: str | float | None = None,
    seed: int = 0,
) -> Attached:
    """Make an ordinary training loop a distributed one; collective.

    All ranks start from rank 0's model, with its frozen parameters and buffers. After each
    ``optimizer.step()`` the algorithm's trigger decides whether the ranks meet: the net update since
    the last meeting is compressed and exchanged, and every rank goes on from the new common model.
    The optimizer takes the local steps, with whatever learning rates and schedulers it has, from this rank's
    own gradient: AdamW, NAdam, Lion and clipping act on that, and not on the mean of all ranks' gradients as
    under DDP, which changes where training ends (``docs/sharp-bits.md``). Batch statistics stay each rank's
    own until `Attached.finish` averages them; call it (or leave the ``with`` block) before you use the
    trained model.

    With a delay, as in ``"qsparse-local-sgd(H=8, delay=4)"``, messages travel while the optimizer goes on,
    and the answer is adopted so many steps after the report; what the optimizer has done since is kept.

    A step is one ``step()`` of each optimizer; see `qsparse.torch.steps.Steps`. Parameters that have moved
    since the last meeting without a step are refused by `Attached.finish`, where the ranks differ.

    An attach that fails leaves model and optimizer as it found them.

    Args:
        model: float32 or float64, on the CPU or on a GPU (``docs/gpu.md``); not moved any more. Not one that
            is wrapped in DistributedDataParallel or its kin, which exchange by themselves: attach
            ``model.module``. `torch.compile` may come before or after.
        optimizer: over exactly the model's trained parameters (accelerate's wrapper is looked into); or
            several that share them out, such as ``[muon, adamw]``, and step once each in every iteration.
        algorithm: an algorithm or its text, e.g. ``"qsparse-local-sgd(H=8)"``. The text names no lr,
            momentum, nesterov or weight_decay, whatever the value, because the optimizer has them. An
            `Algorithm` does not tell what was spelled out: its local step must equal that of a preset where
            nothing was set.
        comm: an mpi4py communicator or a `Wire`, which stays open; COMM_WORLD unless given.
        exchange: the pattern of messages; ``auto``: the one that is fastest with this model, algorithm and
            number of ranks (`qsparse.planning.exchange_for`).
        link_rate, link_latency: of the links for which it is chosen, e.g. ``"100mbit"`` and ``"50us"``; those
            that the wire knows, or 1 Gbit/s and 50 µs, unless given.
        seed: of the random parts; the same on all ranks.

    Raises:
        CompositionError: an algorithm whose local step is not the optimizer's.
        SettingError: no optimizer, one of other parameters, or one that moves them outside of its ``step()``,
            such as a schedule-free one; a model that does not fit, or of which a part is attached already.
        DisagreementError: the ranks have different models or settings.
        LaunchError: processes that torch or a launcher of its kind has started, which MPI does not know of.
    """
    return Attached(model, optimizer, algorithm, comm, exchange, link_rate, link_latency, seed)


class Attached:
    """A training loop's place in the exchange; made by `attach`.

    Attributes:
        ledger: what this rank said.
        steps: how often the optimizer has stepped, or all of several.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        algorithm: Algorithm | str,
        comm: Any,
        exchange: Exchange | str,
        link_rate: str | None,
        link_latency: str | float | None,
        seed: int,
    ) -> None:
        #: What was made here is closed here.
        self._own: Any = None
        if not isinstance(comm, Wire):
            from qsparse.wire.mpi import MpiWire

            comm = self._own = MpiWire(comm)
        self.wire: Wire = comm
        self.ledger = self.wire.ledger
        self.steps = 0
        self._met = self._meetings = 0
        #: Folders of checkpoints that are this loop's until it ends.
        self._holds: dict[Path, Hold] = {}
        #: What ended the exchange before its time.
        self._failed: BaseException | None = None
        self._steps: Steps | None = None
        self._seed = Seed(seed)
        before: Before | None = None

        def make() -> tuple[Parts, Mapping[str, Any]]:
            nonlocal before
            before = Before(model_of(model))
            self._optimizers = as_optimizers(optimizer)
            links = links_for(link_rate, link_latency, self.wire.links)
            return prepare(model, self._optimizers, algorithm, exchange, links, seed, self.wire)

        try:
            made = agree(self.wire, make, "attach()")
            self.algorithm, self.exchange, self.flat, self._settings = made
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
        self._pace = Pace()
        self._nodes = [self._node(self.algorithm, flat.values, flat.layout)]
        if flat.buffer_values.numel():
            self._nodes.append(self._node(averaging(self.algorithm), flat.buffer_values, flat.statistics))
        self._steps = Steps(self._optimizers, flat, self._stepped, self._refuse)
        self._rates = self._learning_rates()

    @property
    def asked_to_stop(self) -> bool:
        """Was some rank asked to stop, by a signal, before the last meeting? The same on all ranks.

        Known when the answer is adopted. Within ``qsparse.process.notice.listening``; save and leave the
        loop then.
        """
        return self._pace.asked > 0

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
        self._refuse_unsaved(others)
        self._guarded(lambda: self._all_in("save()"))
        try:
            save(
                self.wire, named_path(folder), self.steps, lambda: self._state(others, notes), settings, keep,
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
        if self.steps:
            raise SettingError(f"resume comes before the first step, not after {self.steps}")
        settings = {**self._settings, "others": [type(each).__name__ for each in others]}

        def prepare() -> tuple[dict[str, Any], Mapping[str, Any]]:
            assert found is not None
            found.compare(settings)
            with found.understood():
                state = found_state(found, self.algorithm, self.exchange, self.wire.rank, self.wire.size)
            with found.understood():
                return self._go_on(state, others), {"steps": self.steps}

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

    def _refuse_unsaved(self, others: tuple[Any, ...]) -> None:
        missing = "" if self._steps is None else self._steps.unsaved(others)
        if missing:
            raise SettingError(
                f"{missing} has stepped the model and was not given to attach, so the checkpoint would not "
                "hold what it remembers: hand it to save and to resume, behind the folder"
            )

    def _state(self, others: tuple[Any, ...], notes: dict[str, Any]) -> State:
        """What this rank goes on from."""
        self.flat.check()
        self.flat.collect()
        walk = walk_of(self.flat, self._nodes, self.steps, self._met, self._rates)
        rest = torch_of(self.flat, self._optimizers, others)
        saved: State = plain(LoopState(walk, self.ledger.snapshot(), np.zeros(2), rest, notes))
        return saved

    def _go_on(self, state: LoopState, others: tuple[Any, ...]) -> dict[str, Any]:
        walk = state.walk
        restore_walk(self.flat, self._nodes, walk)
        restore_torch(self.flat, self._optimizers, others, state.torch)
        self.ledger.resume(state.ledger)
        self.steps, self._met, self._rates = walk.t, walk.met or 0, walk.rates or []
        self._pace.t = self._pace.clock = self.steps
        return state.notes

    def _node(self, algorithm: Algorithm, tensor: torch.Tensor, layout: Layout) -> Node:
        return node_about(tensor, algorithm, self.exchange, self.wire, self._seed, layout, self._pace)

    def finish(self) -> None:
        """Adopt the answer that is under way, meet once more if there were steps since, detach; collective.

        Parameters, gradients and buffers get memory of their own again, with the values that they have. A
        wire that `attach` has made is closed; the ledger stays. Where an exchange failed before, its error
        is raised again.

        Raises:
            DisagreementError: the ranks end with different models, because parameters have moved since the
                last meeting without a step that was counted, or they step with different settings.
        """
        try:
            self._refuse_if_failed()
            if self._steps is None:
                return
            if self._nodes[0].flight is not None:
                self._guarded(self._nodes[0].land)
            # A worker may have skipped the last meeting, and then something is still to be said.
            if self._met < self.steps or (self.steps and self.algorithm.trigger.claims.may_skip):
                self._guarded(functools.partial(self._meet, last=True))
            if self.steps:
                self._guarded(self._average_buffers)
            self._disagree(self._guarded(self._part))
        except BaseException:
            self._let_go()
            raise
        self._detach()
        if self._own is not None:
            self._own.close()
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
            if self._failed is None and self._steps is not None:
                self.exchange.notify(self.wire, error, self.steps)
            self._let_go()

    def _stepped(self) -> None:
        self._refuse_if_failed()
        self.steps += 1
        node = self._nodes[0]
        due = node.due(self.steps)
        if node.lands(self.steps, due):
            self._guarded(node.land)
        if due:
            self._disagree(self._guarded(self._compare))
            self._guarded(self._meet)

    def _refuse(self, error: SettingError) -> NoReturn:
        """Give up, because of what the loop has done with its optimizers."""

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
            self.exchange.notify(self.wire, error, self.steps)
            self._failed = error
            raise

    def _refuse_if_failed(self) -> None:
        """Who catches the error of an exchange must not train on alone: the others have given up."""
        if self._failed is not None:
            raise self._failed

    def _refuse_if_over(self, call: str) -> None:
        self._refuse_if_failed()
        if self._steps is None:
            raise SettingError(
                f"this loop has ended: call {call}() before finish(), and within the with block"
            )

    def _detach(self) -> None:
        for hold in self._holds.values():
            hold.release()
        self._holds.clear()
        if self._steps is not None:
            self._steps.close()
            self._steps = None
            self._nodes.clear()
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
        if self._nodes[0].flight is not None:
            self._nodes[0].flight.landed()  # or what has happened to it, which is told before anything else
        here = note(self.wire, call, self.steps)
        with self.wire.at(call):
            heard = self.exchange.gather(self.wire, here)
            if heard is not None:
                same_call(heard)
            self.exchange.broadcast(self.wire, None if heard is None else here)

    def _disagree(self, difference: str) -> None:
        """Raise what every rank has found by itself, so that nobody has to be told."""
        if difference:
            self._failed = DisagreementError(difference)
            raise self._failed

    def _compare(self) -> str:
        """At some meetings: where the ranks' settings differ."""
        self._meetings += 1
        if not compared.due(self._meetings):
            return ""
        assert self._steps is not None
        mine = compared.settings_of(self._steps.current)
        heard = self._tell(UPDATES, compared.digest(mine))
        return "" if len(set(heard)) == 1 else compared.other_settings(self._tell(UPDATES, mine), self.steps)

    def _part(self) -> str:
        """Say good-bye: who has taken fewer steps would otherwise leave the others waiting for it.

        Returns:
            What was never exchanged and differs between the ranks, or with which settings they differed.
        """
        assert self._steps is not None
        mine = compared.settings_of(self._steps.current)
        strays = self.flat.strays(anchor_of(self._nodes[0]))
        digests = {name: compared.digest(tensor) for name, tensor in strays.items()}
        heard = self._tell(FINISH, [compared.digest(mine), digests, self._steps.pending])
        difference = compared.stray([each[1] for each in heard], [each[2] for each in heard], self._met)
        if not difference and len({each[0] for each in heard}) > 1:
            difference = compared.other_settings(self._tell(FINISH, mine), self.steps)
        return difference

    def _tell(self, call: str, mine: Any) -> list[Any]:
        with self.wire.at(call):
            return compared.everybodys(self.exchange, self.wire, self.steps, mine, call)

    def _meet(self, last: bool = False) -> None:
        """Report, and go on from the answer: at once, or after some more steps unless this is the last."""
        self._check_rates()
        self._pace.t = self._pace.clock = self.steps
        delay = self.algorithm.meeting.claims.delay
        if delay and not last:
            self._nodes[0].launch(self.steps, delay)
        else:
            self._nodes[0].synchronize(self.steps, last)
        self._met = self.steps

    def _average_buffers(self) -> None:
        self.flat.collect()
        for node in self._nodes[1:]:
            node.synchronize(self.steps)
        self.flat.spread()

    def _learning_rates(self) -> list[float]:
        assert self._steps is not None
        groups = [group for each in self._steps.current for group in each.param_groups]
        return [float(group["lr"]) for group in groups if "lr" in group]

    def _check_rates(self) -> None:
        if self.algorithm.up.memory.claims.keeps_error and self._rates != self._learning_rates():
            refuse_if_inhomogeneous(self.algorithm.up)

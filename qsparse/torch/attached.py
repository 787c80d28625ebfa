"""Compressed exchanges for a training loop of one's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.exchange import Exchange
from qsparse.exchange.notes import FINISH, UPDATES
from qsparse.planning import links_for
from qsparse.rounds.node import Node, Pace, averaging
from qsparse.rounds.state import WalkState
from qsparse.rules import refuse_if_inhomogeneous
from qsparse.seeds import Seed
from qsparse.torch import compared
from qsparse.torch.held import Held
from qsparse.torch.saving import restore_walk, walk_of
from qsparse.torch.start import Parts, prepare
from qsparse.torch.stepper import Gradient, Stepper
from qsparse.torch.steps import Optimizers, Steps, as_optimizers
from qsparse.torch.tensors import anchor_of, node_about
from qsparse.types import Layout
from qsparse.wire.base import Wire


@overload
def attach(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    algorithm: Algorithm | str,
    comm: Any = ...,
    *,
    exchange: Exchange | str = ...,
    link_rate: str | None = ...,
    link_latency: str | float | None = ...,
    seed: int = ...,
) -> Attached:
    """Where the user's optimizer takes the steps."""


@overload
def attach(
    model: torch.nn.Module,
    optimizer: None = ...,
    algorithm: Algorithm | str = ...,
    comm: Any = ...,
    *,
    gradient: Gradient,
    steps: int | None = ...,
    exchange: Exchange | str = ...,
    link_rate: str | None = ...,
    link_latency: str | float | None = ...,
    seed: int = ...,
) -> Stepper:
    """Where the algorithm takes the steps."""


def attach(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    algorithm: Algorithm | str | None = None,
    comm: Any = None,
    *,
    gradient: Gradient | None = None,
    steps: int | None = None,
    exchange: Exchange | str = "auto",
    link_rate: str | None = None,
    link_latency: str | float | None = None,
    seed: int = 0,
) -> Attached | Stepper:
    """Make an ordinary training loop a distributed one; collective.

    All ranks start from rank 0's model, with its frozen parameters and buffers. Who takes the steps is what
    is given: an optimizer, or ``gradient``.

    With an optimizer, the algorithm's trigger decides after each ``optimizer.step()`` whether the ranks meet:
    the net update since the last meeting is compressed and exchanged, and every rank goes on from the new
    common model.
    The optimizer takes the local steps, with whatever learning rates and schedulers it has, from this rank's
    own gradient: AdamW, NAdam, Lion and clipping act on that, and not on the mean of all ranks' gradients as
    under DDP, which changes where training ends (``docs/sharp-bits.md``). Batch statistics stay each rank's
    own until `Attached.finish` averages them; call it (or leave the ``with`` block) before you use the
    trained model.

    With a delay, as in ``"qsparse-local-sgd(H=8, delay=4)"``, messages travel while the optimizer goes on,
    and the answer is adopted so many steps after the report; what the optimizer has done since is kept.

    A step is one ``step()`` of each optimizer; see `qsparse.torch.steps.Steps`. Parameters that have moved
    since the last meeting without a step are refused by `Attached.finish`, where the ranks differ.

    With ``gradient`` the algorithm takes its own local steps, each where the loop calls `Stepper.step` with a
    batch, and is whatever ``qsparse train`` can run: one that goes by gradients and not by net updates
    (signum-majority), by gradients over a rank's whole share (gd, laq), by two gradients of one batch (lasg),
    one with phases (asylpg), and one whose workers do not wait for each other, or whose rank 0 only serves.

    An attach that fails leaves model and optimizer as it found them.

    Args:
        model: float32 or float64, on the CPU or on a GPU (``docs/gpu.md``); not moved any more. Not one that
            is wrapped in DistributedDataParallel or its kin, which exchange by themselves: attach
            ``model.module``. `torch.compile` may come before or after.
        optimizer: over exactly the model's trained parameters (accelerate's wrapper is looked into); or
            several that share them out, such as ``[muon, adamw]``, and step once each in every iteration.
            None where ``gradient`` is given.
        algorithm: an algorithm or its text, e.g. ``"qsparse-local-sgd(H=8)"``. With an optimizer, which has
            them, the text names no lr, momentum, nesterov or weight_decay, whatever the value. An
            `Algorithm` does not tell what was spelled out: its local step must equal that of a preset where
            nothing was set. With ``gradient`` they are the algorithm's: ``"dist-ef-sgdm(lr=0.02)"``.
        comm: an mpi4py communicator or a `Wire`, which stays open; COMM_WORLD unless given.
        gradient: called with a batch, it runs forward and backward, so that the parameters have their
            gradients, which were cleared before, and returns the loss. Called with None by algorithms that
            take gradients over the whole share: those of the mean loss over all examples of this rank.
        steps: with ``gradient``, how many steps a worker takes; where workers do not wait, they share so many
            steps each. May be left out where no rank needs to know.
        exchange: the pattern of messages; ``auto``: the one that is fastest with this model, algorithm and
            number of ranks (`qsparse.planning.exchange_for`).
        link_rate, link_latency: of the links for which it is chosen, e.g. ``"100mbit"`` and ``"50us"``; those
            that the wire knows, or 1 Gbit/s and 50 µs, unless given.
        seed: of the random parts; the same on all ranks.

    Raises:
        CompositionError: an algorithm whose local step is not the optimizer's, or parts that do not go
            together.
        SettingError: no optimizer, one of other parameters, or one that moves them outside of its ``step()``,
            such as a schedule-free one; an optimizer and ``gradient``, or ``steps`` with an optimizer; no
            ``steps`` where they are needed; a model that does not fit, or a part of it is attached already.
        DisagreementError: the ranks have different models or settings.
        LaunchError: processes that torch or a launcher of its kind has started, which MPI does not know of.
    """
    if gradient is None:
        return Attached(model, optimizer, algorithm, comm, steps, exchange, link_rate, link_latency, seed)
    return Stepper(
        model, optimizer, gradient, algorithm, comm, steps, exchange, link_rate, link_latency, seed
    )


class Attached(Held):
    """A training loop's place in the exchange, where the user's optimizer takes the steps; made by `attach`.

    Attributes:
        ledger: what this rank said.
        steps: how often the optimizer has stepped, or all of several.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
        algorithm: Algorithm | str | None,
        comm: Any,
        steps: int | None,
        exchange: Exchange | str,
        link_rate: str | None,
        link_latency: str | float | None,
        seed: int,
    ) -> None:
        self.steps = 0
        self._met = self._meetings = 0
        self._steps: Steps | None = None
        self._seed = Seed(seed)

        def make(wire: Wire) -> tuple[Parts, Mapping[str, Any]]:
            self._optimizers = as_optimizers(optimizer)
            if steps is not None:
                raise SettingError(
                    f"steps={steps} goes with gradient=…: with an optimizer the loop ends with finish()"
                )
            links = links_for(link_rate, link_latency, wire.links)
            return prepare(model, self._optimizers, algorithm, exchange, links, seed, wire)

        super().__init__(model, comm, make)

    def _begin(self) -> None:
        flat = self.flat
        self._pace = Pace()
        self._nodes = [self._about(self.algorithm, flat.values, flat.layout)]
        if flat.buffer_values.numel():
            self._nodes.append(self._about(averaging(self.algorithm), flat.buffer_values, flat.statistics))
        self._steps = Steps(self._optimizers, flat, self._stepped, self._refuse)
        self._rates = self._learning_rates()

    def _about(self, algorithm: Algorithm, tensor: torch.Tensor, layout: Layout) -> Node:
        return node_about(tensor, algorithm, self.exchange, self.wire, self._seed, layout, self._pace)

    @property
    def _node(self) -> Node:
        return self._nodes[0]

    @property
    def _stepping(self) -> Optimizers:
        return self._optimizers

    @property
    def _at(self) -> int:
        return self.steps

    @property
    def _asked(self) -> int:
        return self._pace.asked

    def _refuse_save(self, others: tuple[Any, ...]) -> None:
        missing = "" if self._steps is None else self._steps.unsaved(others)
        if missing:
            raise SettingError(
                f"{missing} has stepped the model and was not given to attach, so the checkpoint would not "
                "hold what it remembers: hand it to save and to resume, behind the folder"
            )

    def _place(self) -> WalkState:
        self.flat.collect()
        return walk_of(self.flat, self._nodes, self.steps, self._met, self._rates)

    def _stand(self, walk: WalkState) -> None:
        restore_walk(self.flat, self._nodes, walk)
        self.steps, self._met, self._rates = walk.t, walk.met or 0, walk.rates or []
        self._pace.t = self._pace.clock = self.steps

    def finish(self) -> None:
        """Adopt the answer that is under way, meet once more if there were steps since, detach; collective.

        Parameters, gradients and buffers get memory of their own again, with the values that they have. A
        wire that `attach` has made is closed; the ledger stays. Where an exchange failed before, its error
        is raised again.

        Raises:
            DisagreementError: the ranks end with different models, because parameters have moved since the
                last meeting without a step that was counted, or they step with different settings.
        """
        super().finish()

    def _end(self) -> None:
        if self._node.flight is not None:
            self._guarded(self._node.land)
        # A worker may have skipped the last meeting, and then something is still to be said.
        if self._met < self.steps or (self.steps and self.algorithm.trigger.claims.may_skip):
            self._guarded(functools.partial(self._meet, last=True))
        if self.steps:
            self._guarded(self._average_buffers)
        self._disagree(self._guarded(self._part))

    def _closed(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        self._nodes.clear()

    def _stepped(self) -> None:
        self._refuse_if_failed()
        self.steps += 1
        node = self._node
        due = node.due(self.steps)
        if node.lands(self.steps, due):
            self._guarded(node.land)
        if due:
            self._disagree(self._guarded(self._compare))
            self._guarded(self._meet)

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
        strays = self.flat.strays(anchor_of(self._node))
        digests = {name: compared.digest(tensor) for name, tensor in strays.items()}
        heard = self._tell(FINISH, [compared.digest(mine), digests, self._steps.pending])
        difference = compared.stray([each[1] for each in heard], [each[2] for each in heard], self._met)
        if not difference and len({each[0] for each in heard}) > 1:
            difference = compared.other_settings(self._tell(FINISH, mine), self.steps)
        return difference

    def _meet(self, last: bool = False) -> None:
        """Report, and go on from the answer: at once, or after some more steps unless this is the last."""
        self._check_rates()
        self._pace.t = self._pace.clock = self.steps
        delay = self.algorithm.meeting.claims.delay
        if delay and not last:
            self._node.launch(self.steps, delay)
        else:
            self._node.synchronize(self.steps, last)
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

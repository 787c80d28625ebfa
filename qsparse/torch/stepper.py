"""A loop of one's own in which the algorithm takes the steps, from gradients that the loop computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.exchange import Exchange
from qsparse.exchange.notes import FINISH
from qsparse.planning import links_for
from qsparse.rounds.asynchronous import Answered
from qsparse.rounds.node import Node
from qsparse.rounds.phases import Stepped, Walk
from qsparse.rounds.state import WalkState
from qsparse.seeds import Seed
from qsparse.torch import compared
from qsparse.torch.held import Held
from qsparse.torch.start import Parts, adopt_from_rank_0, prepare_own
from qsparse.torch.steps import Optimizers, Steps
from qsparse.torch.tensors import elsewhere
from qsparse.types import Vector
from qsparse.wire.base import Wire

#: Fills the gradients of the model's parameters from a batch, or from this rank's whole share (None), and
#: returns the loss.
Gradient = Callable[[Any], Any]


class Stepper(Held):
    """A training loop's place in the exchange, where the algorithm takes the steps; made by `attach`.

    Attributes:
        ledger: what this rank said.
        over: were all steps of the run taken?
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        gradient: Gradient,
        algorithm: Algorithm | str | None,
        comm: Any,
        steps: int | None,
        exchange: Exchange | str,
        link_rate: str | None,
        link_latency: str | float | None,
        seed: int,
    ) -> None:
        self.over = False
        self._gradient, self._seed = gradient, Seed(seed)
        #: A run without an end of its own goes on for longer than anybody waits.
        self._until = sys.maxsize if steps is None else steps
        self._batch: Any = None

        def make(wire: Wire) -> tuple[Parts, Mapping[str, Any]]:
            if optimizer is not None:
                raise SettingError(
                    "attach was given an optimizer and gradient=…: leave the optimizer out, because the "
                    "algorithm takes the steps with the gradients, or leave gradient out"
                )
            links = links_for(link_rate, link_latency, wire.links)
            return prepare_own(model, gradient, algorithm, exchange, links, seed, steps, wire)

        super().__init__(model, comm, make)

    def _begin(self) -> None:
        flat = self.flat
        #: What local steps work on: the model itself, or a copy of it on the host, and alike of the buffers.
        self._x, self._buffers = (
            values.cpu().numpy().copy() if elsewhere(values) else values.numpy()
            for values in (flat.values, flat.buffer_values)
        )
        self._walk = Walk(
            self.algorithm, self.exchange, self.wire, self._x, self._seed, flat.layout, self._buffers
        )
        self._moves: Iterator[Stepped | Answered] = self._walk.steps(
            self._until, self._oracle, lambda t: self._batch, used=lambda t: False
        )
        self._strangers = Steps((), flat, self._stepped, self._refuse)

    @property
    def steps(self) -> int:
        """How many steps this rank has taken; on a rank that only serves, those of the furthest worker."""
        return self._walk.pace.t

    @property
    def worker(self) -> int | None:
        """This rank's number among the workers, and so that of its share; None where it only serves."""
        workers = self.exchange.workers(self.wire.size)
        return workers.index(self.wire.rank) if self.wire.rank in workers else None

    @property
    def workers(self) -> int:
        """How many ranks compute gradients: into so many shares the data are divided."""
        return len(self.exchange.workers(self.wire.size))

    @property
    def together(self) -> bool:
        """Do all ranks stand at one step? Then the loop may be saved, or finished before its time.

        Always so where workers wait for each other; with AsyLPG and its kin after steps over the whole share.
        """
        return self._node.algorithm.meeting.claims.waits

    def step(self, batch: Any = None) -> float | None:
        """Take the algorithm's next step on this rank: a worker's local step, and a meeting where one is due.

        Where workers do not wait for each other, a worker waits for the answer to its own report only, and
        the rank that serves answers one report. Its model is the coordinator's from then on.

        Args:
            batch: handed to ``gradient``, twice where a step takes two gradients. It is not looked at in a
                step over the whole share, in one that this rank is not asked for, and on a rank that serves.

        Returns:
            The loss at the model before the step; None where no gradient was computed.

        Raises:
            SettingError: the run is over, or ``gradient`` has returned no loss or left no gradient.
            RankError: another rank has failed.
        """
        self._refuse_if_over("step")
        if self.over:
            raise SettingError(
                f"the run is over after step {self.steps}, and rank {self.wire.rank} has called step() once "
                "more: leave the loop when `over` is true"
            )
        self._batch = batch
        happened = self._guarded(self._next)
        self._batch = None
        return happened.loss if isinstance(happened, Stepped) else None

    def serve(self) -> None:
        """Take all steps that are left, on a rank that only serves (`worker` is None).

        Raises:
            SettingError: this rank works, so that it needs batches.
            RankError: another rank has failed.
        """
        self._refuse_if_over("serve")
        if self.worker is not None:
            raise SettingError(
                f"rank {self.wire.rank} works, so its steps need batches: call step(batch) until `over` is "
                "true; a rank whose `worker` is None serves"
            )
        while not self.over:
            self.step()

    def _next(self) -> Stepped | Answered | None:
        happened = next(self._moves, None)
        if happened is None:
            self.over = True
        elif isinstance(happened, Stepped):
            walk, waits = self._walk, happened.phase.meeting.claims.waits
            if walk.ends and (self._node.stopped or (waits and walk.pace.clock >= self._until)):
                # What comes behind the last step: the final values, where nobody has waited for them.
                assert next(self._moves, None) is None
                self.over = True
        else:
            for vector, coordinator in zip((self._x, self._buffers), self._walk.coordinators, strict=False):
                np.copyto(vector, coordinator.model)
        self._show()
        return happened

    def _show(self) -> None:
        """Let the module have what the ranks have in common."""
        with torch.no_grad():
            if elsewhere(self.flat.values):
                self.flat.values.copy_(torch.from_numpy(self._x))
                self.flat.buffer_values.copy_(torch.from_numpy(self._buffers))
        self.flat.spread()

    def _oracle(self, x: Vector, batch: Any, out: Vector) -> float:
        """The gradient at x, which is this rank's vector, as the user's function leaves it."""
        flat = self.flat
        if elsewhere(flat.values):
            with torch.no_grad():
                flat.values.copy_(torch.from_numpy(x))
        for p in flat.parameters:
            p.grad = None
        loss = self._gradient(batch)
        try:
            number = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        except (TypeError, ValueError, RuntimeError):
            raise SettingError(
                f"gradient returned {type(loss).__name__} in place of the loss on rank {self.wire.rank}: "
                "return a number, or the tensor that backward() was called of"
            ) from None
        flat.check()
        if not flat.gather_gradients(out):
            raise SettingError(
                f"gradient has left no gradient in the parameters of rank {self.wire.rank}: call backward() "
                "of the loss in it, and do not clear the gradients behind it"
            )
        flat.collect()
        if elsewhere(flat.values):
            np.copyto(self._buffers, flat.buffer_values.cpu().numpy())
        return number

    @property
    def _node(self) -> Node:
        return self._walk.node

    @property
    def _stepping(self) -> Optimizers:
        return ()

    @property
    def _at(self) -> int:
        return self.steps

    @property
    def _asked(self) -> int:
        return self._walk.pace.asked

    def _refuse_save(self, others: tuple[Any, ...]) -> None:
        if not self.together:
            raise SettingError(
                f"rank {self.wire.rank} called save() at step {self.steps} while workers do not wait for "
                "each other, so that no two ranks stand at one step: save where `together` is true, as after "
                "a step over the whole share, or use meeting synchronous"
            )

    def _place(self) -> WalkState:
        return replace(self._walk.state(), met=self._node.reported)

    def _stand(self, walk: WalkState) -> None:
        self._walk.restore(walk)
        self._node.reported, self.over = walk.met or 0, self._walk.pace.clock >= self._until
        self._show()

    def finish(self) -> None:
        """Say what is left to be said, and let go of the model; collective.

        Before the last step it may be called where all ranks stand at one step (`together`). Parameters and
        buffers get memory of their own again, with the values that they have. A wire that `attach` has made
        is closed; the ledger stays. Where an exchange failed before, its error is raised again.

        Raises:
            SettingError: workers that do not wait for each other have still to take steps.
            DisagreementError: the ranks end at different steps, or with different models.
        """
        super().finish()

    def _end(self) -> None:
        if not (self.over or self.together):
            self._refuse(
                SettingError(
                    f"rank {self.wire.rank} called finish() at step {self.steps}, and the workers, which do "
                    f"not wait for each other, share {self._until} steps each: go on until `over` is true"
                )
            )
        if not self.over and self.steps:
            self._guarded(self._say_the_rest)
        self._disagree(self._guarded(self._part))

    def _say_the_rest(self) -> None:
        node, row = self._node, self.algorithm
        if node.flight is not None:
            node.land()
        # A worker may have skipped a net update, and then something is still to be said.
        held_back = row.trigger.claims.may_skip and not row.local.claims.reports_gradient
        if node.reported < self.steps or held_back:
            node.synchronize(self.steps, last=True)
        if row.participation.claims.chooses:
            # Who was not asked was not told of the last models.
            self._tell(FINISH, None)
            adopt_from_rank_0(self.wire, torch.from_numpy(self._x))
        self._walk.average(self.steps)
        self._show()

    def _part(self) -> str:
        """Say good-bye; returns where the ranks' models differ, as a sentence."""
        # A step of the model that nobody has exchanged would otherwise go unseen.
        mine = compared.digest(torch.from_numpy(self._x))
        told = {*self._tell(FINISH, mine), mine}
        if len(told) == 1:
            return ""
        return (
            f"the ranks end with different models after step {self.steps}: let nothing but step() change the "
            "parameters, and load or average weights before the model is attached"
        )

    def _stepped(self) -> None:
        """An optimizer has moved the model, which steps of the algorithm move alone."""
        names = ", ".join(type(each).__name__ for each in self._strangers.current)
        self._refuse(
            SettingError(
                f"{names} has stepped the model on rank {self.wire.rank} after step {self.steps}, which was "
                "attached with gradient=…: leave the optimizer's step() out, because step(batch) moves the "
                "parameters, or attach the model with the optimizer"
            )
        )

    def _closed(self) -> None:
        self._strangers.close()
        self._moves = iter(())

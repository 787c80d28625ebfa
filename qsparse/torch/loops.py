"""One rank's training loop, step by step, in several ways of agreeing: ours, and torch's own over gloo."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, Final

import torch
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn import functional

from qsparse.data import Batches, Dataset, shard
from qsparse.exchange import AllGather
from qsparse.presets import qsparse_local_sgd
from qsparse.seeds import Seed
from qsparse.torch.attached import attach
from qsparse.torch.ddp import wrapped
from qsparse.torch.flat import as_batch
from qsparse.torch.models import build_model
from qsparse.torch.problem import evaluate
from qsparse.wire.base import Wire

MOMENTUM: Final = 0.9
#: Methods that are no hooks for gradients.
OURS: Final = "qsparse-local-sgd"
DENSE: Final = "DDP, dense"
POST_LOCAL: Final = "DDP post-localSGD"


class Loop(ABC):
    """A rank's share of the training: model, batches, and how its ranks agree.

    Args:
        data: the whole data set; all ranks have the same.
        model: a name for `build_model`.
        batch: examples of a step.
        wire: says which rank this is, of how many.
        seed: of the model, the shares and the batches.
    """

    def __init__(self, data: Dataset, model: str, batch: int, wire: Wire, seed: Seed) -> None:
        self.data = data
        self.model: Any = build_model(model, data.shape, data.classes, seed)
        share = shard(data.train_y, wire.size, "random", seed)[wire.rank]
        self._batches = Batches(share, batch, seed.at(rank=wire.rank, use="batch"))
        self._share = slice(wire.rank, None, wire.size)
        self._t = 0

    def step(self) -> None:
        """A step of SGD with momentum."""
        examples, labels = as_batch(self.data.train_x, self.data.train_y, self._batches.batch(self._t))
        self._t += 1
        self.optimizer.zero_grad()
        functional.cross_entropy(self.forward(examples), labels).backward()
        self.optimizer.step()

    def right(self) -> float:
        """How many examples of this rank's share of the test set are put into their class."""
        x, y = self.data.test_x[self._share], self.data.test_y[self._share]
        score = evaluate(self.model, x, y)
        self.model.train()
        return score.right

    @property
    @abstractmethod
    def optimizer(self) -> Any:
        """Takes the steps."""

    @property
    @abstractmethod
    def forward(self) -> Any:
        """What is called with the examples."""

    def finish(self) -> None:
        """Let go of what the loop holds; collective."""


class Attached(Loop):
    """Ours: local steps, and every H-th the top 1 % by their signs, with error feedback, to all others."""

    def __init__(self, *args: Any, lr: float, H: int) -> None:
        super().__init__(*args)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr, MOMENTUM)
        self._attached = attach(
            self.model, self._optimizer, qsparse_local_sgd(H=H), args[3], exchange=AllGather()
        )

    @property
    def optimizer(self) -> Any:
        return self._optimizer

    @property
    def forward(self) -> Any:
        return self.model

    def finish(self) -> None:
        self._attached.finish()


class Hooked(Loop):
    """DDP, with a hook of its own or dense."""

    def __init__(self, *args: Any, lr: float, hook: str | None) -> None:
        super().__init__(*args)
        self._ddp = wrapped(self.model, hook)
        self._optimizer = torch.optim.SGD(self._ddp.parameters(), lr, MOMENTUM)

    @property
    def optimizer(self) -> Any:
        return self._optimizer

    @property
    def forward(self) -> Any:
        return self._ddp


class PostLocal(Loop):
    """DDP whose gradients stay at home, and models that are averaged after every H-th step."""

    def __init__(self, *args: Any, lr: float, H: int) -> None:
        super().__init__(*args)
        self._ddp = wrapped(self.model)
        state = post_localSGD_hook.PostLocalSGDState(None, None, 0, post_local_gradient_allreduce=False)
        self._ddp.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
        optimizer = torch.optim.SGD(self._ddp.parameters(), lr, MOMENTUM)
        averager = PeriodicModelAverager(H, warmup_steps=0)
        averager.step = 1  # it would average after steps 1, H + 1, 2H + 1, …
        with warnings.catch_warnings():
            # torch's own import of what it has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch.distributed.optim import PostLocalSGDOptimizer
        self._optimizer = PostLocalSGDOptimizer(optimizer, averager)

    @property
    def optimizer(self) -> Any:
        return self._optimizer

    @property
    def forward(self) -> Any:
        return self._ddp


def make_loop(
    method: str, lr: float, H: int, data: Dataset, model: str, batch: int, wire: Wire, seed: Seed
) -> Loop:
    """The loop of a method; H only where there are local steps."""
    place = (data, model, batch, wire, seed)
    if method == OURS:
        return Attached(*place, lr=lr, H=H)
    if method == POST_LOCAL:
        return PostLocal(*place, lr=lr, H=H)
    return Hooked(*place, lr=lr, hook=None if method == DENSE else method)

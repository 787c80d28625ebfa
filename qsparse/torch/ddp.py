"""PyTorch's own distributed training, DistributedDataParallel over gloo: what we are held against."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook, quantization_hooks
from torch.nn.parallel import DistributedDataParallel

from qsparse.types import Vector

#: A hook and its state, made where a process group is.
MakeHook = Callable[[], tuple[Any, Any]]

#: Steps of PowerSGD that are dense, the fewest that error feedback allows.
DENSE_STEPS: Final = 2


def _power(rank: int) -> powerSGD_hook.PowerSGDState:
    return powerSGD_hook.PowerSGDState(None, rank, start_powerSGD_iter=DENSE_STEPS)


#: The hooks for gradients that torch brings.
HOOKS: Final[dict[str, MakeHook]] = {
    "DDP fp16": lambda: (None, default_hooks.fp16_compress_hook),
    "DDP bf16": lambda: (None, default_hooks.bf16_compress_hook),
    "DDP PowerSGD, rank 1": lambda: (_power(1), powerSGD_hook.powerSGD_hook),
    "DDP PowerSGD, rank 4": lambda: (_power(4), powerSGD_hook.powerSGD_hook),
    "DDP fp16∘PowerSGD, rank 4": lambda: (
        _power(4),
        default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook),
    ),
    "DDP batched PowerSGD": lambda: (_power(1), powerSGD_hook.batched_powerSGD_hook),
    "DDP 8 bit, per tensor": lambda: (None, quantization_hooks.quantization_pertensor_hook),
    "DDP 8 bit, per channel": lambda: (None, quantization_hooks.quantization_perchannel_hook),
}

#: Seconds in which the threads of a process group get the interpreter's lock.
_LETTING_GO: Final = 0.2


@contextmanager
def gloo(folder: Path, rank: int, size: int, interface: str | None) -> Iterator[None]:
    """A process group of all ranks, which meet in a folder that all of them see; collective.

    Args:
        folder: where the ranks find each other.
        rank, size: of this rank.
        interface: whose address is used; None is the loopback.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = interface or "lo"
    store = dist.FileStore(str(folder / "gloo"), size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        # Its threads outlive it where DDP was used. They take the interpreter's lock to drop what the last
        # message held, and abort the process if they still wait for it when the interpreter ends.
        time.sleep(_LETTING_GO)


def all_reduce(x: Vector) -> None:
    """Sum over the ranks, in place; gloo's own."""
    dist.all_reduce(torch.from_numpy(x))


#: More than any model here.
_ONE_BUCKET_MB: Final = 4000


def wrapped(model: nn.Module, hook: str | None = None) -> DistributedDataParallel:
    """The model, whose gradients are averaged from here on; all ranks have the same one already.

    Args:
        model: as all ranks have it.
        hook: one of `HOOKS`; dense without. PowerSGD gets all gradients in one bucket: with two it blocks
            both threads of gloo for ever.
    """
    cap = _ONE_BUCKET_MB if hook and "PowerSGD" in hook else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ddp = DistributedDataParallel(model, init_sync=False, bucket_cap_mb=cap)
    if hook is not None:
        ddp.register_comm_hook(*HOOKS[hook]())
    return ddp


def why_not(name: str) -> str | None:
    """Try a hook on a small matrix; what it raises, or None where it works; collective."""
    try:
        hooked = HookedVector(np.ones(64 * 64, np.float32), HOOKS[name])
        for _ in range(DENSE_STEPS + 1):
            hooked()
    except Exception as error:
        # Errors of callbacks come wrapped in a preface for each callback.
        reason = str(error).partition("\n")[0].rpartition("callback: ")[2]
        return reason if ":" in reason else f"{type(error).__name__}: {reason or 'it gives no reason'}"
    return None


class HookedVector:
    """One vector that a hook averages, as the gradient of a matrix: PowerSGD leaves vectors as they are.

    The matrix is as near to a square as n has factors for.

    Args:
        x: the gradient, (n,).
        make: the hook.

    Attributes:
        seconds: of the last call, from the hook's beginning to the end of its future; what DDP does
            before and after is not in it.
    """

    def __init__(self, x: Vector, make: MakeHook) -> None:
        rows = next(d for d in range(int(x.size**0.5), 0, -1) if x.size % d == 0)
        self._slope = torch.from_numpy(x).view(-1)
        self._model = _Matrix(rows, x.size // rows)
        state, hook = make()
        self.seconds = 0.0

        @functools.wraps(hook)  # torch goes by the name
        def timed(state: Any, bucket: Any) -> Any:
            begin = time.perf_counter()
            future = hook(state, bucket)
            future.wait()
            self.seconds = time.perf_counter() - begin
            return future

        self._ddp = wrapped(self._model)
        self._ddp.register_comm_hook(state, timed)

    def __call__(self) -> Vector:
        """The mean over the ranks, (n,), as the hook makes it; collective."""
        self._model.weight.grad = None
        self._ddp(self._slope).backward()
        grad = self._model.weight.grad
        assert grad is not None
        mean: Vector = grad.view(-1).numpy()
        return mean


class _Matrix(nn.Module):
    """A matrix, and a loss whose gradient is what one likes."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns))

    def forward(self, slope: torch.Tensor) -> torch.Tensor:
        return torch.dot(self.weight.view(-1), slope)

"""What `attach` is given: which models, optimizers and texts it takes, and what it says of the others."""

from __future__ import annotations

from typing import Any, Final

import torch

from qsparse.algorithm import Algorithm
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import Exchange
from qsparse.registry import build, settings_in

#: Settings that are the optimizer's under `attach`.
_OPTIMIZERS: Final = ("lr", "momentum", "nesterov", "weight_decay")
LEAVE_TO_IT: Final = (
    "the optimizer takes the local steps, so leave lr, momentum, nesterov and weight_decay to it, and choose "
    "an algorithm that reports net updates and has no momentum of its own (such as dist-ef-sgd for "
    "dist-ef-sgdm); or let the algorithm take its own steps: attach with gradient=… in place of the optimizer"
)
TAKES_THEM: Final = (
    "attach with gradient=… in place of the optimizer, so that the algorithm takes its own steps, or use "
    "qsparse train"
)
#: Modules that exchange gradients or parameters by themselves.
_WRAPPERS: Final = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")
#: Where optimizers live that do.
_EXCHANGING: Final = ("torch.distributed.", "horovod.")


def algorithm_of(algorithm: Algorithm | str | None) -> Algorithm:
    """The algorithm.

    Raises:
        SettingError: it is none.
    """
    if isinstance(algorithm, Algorithm):
        return algorithm
    if not isinstance(algorithm, str):
        raise SettingError(
            f"attach needs an algorithm or its text, such as 'qsparse-local-sgd(H=4)', not {_a(algorithm)}"
        )
    made: Algorithm = build(algorithm, "algorithm")
    return made


def optimizers_algorithm(algorithm: Algorithm | str | None) -> Algorithm:
    """The algorithm, whose text gives no setting that is the optimizer's.

    Whether a setting of its local step was given to an `Algorithm` is seen by the caller.

    Raises:
        CompositionError: the text has such a setting, whatever its value.
        SettingError: it is no algorithm.
    """
    made = algorithm_of(algorithm)
    if isinstance(algorithm, str):
        spelled = [name for name in settings_in(algorithm, "algorithm") if name in _OPTIMIZERS]
        if spelled:
            raise CompositionError(f"{algorithm!r} gives {' and '.join(spelled)}: {LEAVE_TO_IT}")
    return made


def exchange_of(exchange: Exchange | str) -> Exchange:
    """The exchange.

    Raises:
        SettingError: it is none.
    """
    if isinstance(exchange, str):
        made: Exchange = build(exchange, "exchange")
        return made
    if not isinstance(exchange, Exchange):
        raise SettingError(f"attach needs an exchange or its text, such as 'allgather', not {_a(exchange)}")
    return exchange


def optimizer_of(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer whose steps are seen; that inside, where it is wrapped by accelerate.

    Raises:
        SettingError: it is none of torch's, or exchanges by itself.
    """
    while type(optimizer).__module__.startswith("accelerate.") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if isinstance(optimizer, type):
        raise SettingError(
            f"attach needs an optimizer that was made, not the class {optimizer.__name__}: "
            f"{optimizer.__name__}(model.parameters(), lr=...)"
        )
    exchanging = type(optimizer).__module__.startswith(_EXCHANGING)
    # What wraps an optimizer may be called one, and have none of its hooks.
    if (
        isinstance(optimizer, torch.optim.Optimizer)
        and hasattr(optimizer, "_optimizer_step_post_hooks")
        and not exchanging
    ):
        return optimizer
    attributes = getattr(optimizer, "__dict__", {}).items()
    inside = next((name for name, value in attributes if isinstance(value, torch.optim.Optimizer)), None)
    hint = ""
    if inside is not None:
        hint = f": pass the one inside, .{inside}, if it alone moves the parameters"
    if exchanging:
        raise SettingError(
            f"{type(optimizer).__name__} exchanges by itself, and attach would exchange the same steps once "
            f"more{hint or ': pass an ordinary torch.optim.Optimizer'}"
        )
    raise SettingError(f"attach needs a torch.optim.Optimizer with its step hooks, not {_a(optimizer)}{hint}")


def model_of(model: Any) -> torch.nn.Module:
    """The model, in which nothing else exchanges gradients or parameters.

    Raises:
        SettingError: it is no module, or something does.
    """
    if not isinstance(model, torch.nn.Module):
        raise SettingError(f"attach needs a torch.nn.Module that was made, not {_a(model)}")
    for path, module in model.named_modules():
        names = {kind.__name__ for kind in type(module).__mro__}
        where = f" (at {path!r})" if path else ""
        for wrapper in _WRAPPERS:
            if wrapper in names:
                remedy = (
                    "attach needs the whole model on each rank, so leave it out"
                    if wrapper.startswith("F")
                    else "attach model.module, call it in the loop, and leave the wrapper out"
                )
                raise SettingError(
                    f"the model is wrapped in {wrapper}{where}, which exchanges by itself, dense, besides "
                    f"the compressed updates: {remedy}"
                )
        if isinstance(module, torch.nn.DataParallel) and len(module.device_ids) > 1:
            raise SettingError(
                f"the model is wrapped in DataParallel{where}, over {len(module.device_ids)} devices: start "
                "a rank for each device, and attach model.module"
            )
    return model


def _a(value: Any) -> str:
    """What something is, for messages."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"

"""How a loop is attached: what is refused, on what the ranks agree, and from what they start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qsparse import _version, promises
from qsparse.algorithm import Algorithm
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import Exchange, ParameterServer
from qsparse.local import SGD
from qsparse.payload import Payload, Way, raw
from qsparse.planning import Links, exchange_for
from qsparse.registry import spell
from qsparse.rounds.warming import warm_algorithm
from qsparse.rules import check
from qsparse.seeds import Seed
from qsparse.torch.flat import FlatModel
from qsparse.torch.given import LEAVE_TO_IT, algorithm_of, exchange_of
from qsparse.torch.naming import named_buffers, named_parameters
from qsparse.torch.steps import Optimizers, parameters_of
from qsparse.wire.base import Wire

#: What a loop is made of, and the settings by which ranks and checkpoints are compared.
Parts = tuple[Algorithm, Exchange, FlatModel, dict[str, Any]]


def prepare(
    model: torch.nn.Module,
    optimizers: Optimizers,
    algorithm: Algorithm | str,
    exchange: Exchange | str,
    links: Links,
    seed: int,
    wire: Wire,
) -> tuple[Parts, Mapping[str, Any]]:
    """Make a loop's parts on this rank, and say on what the ranks must agree.

    Args:
        model: as for `qsparse.torch.attach`.
        optimizers: of `as_optimizers`.
        algorithm, exchange: as for `qsparse.torch.attach`.
        links: of the ranks, for which an exchange is chosen.
        seed: as for `qsparse.torch.attach`.
        wire: says which rank this is, of how many.

    Raises:
        CompositionError: an algorithm whose local step is not the optimizer's, or that has phases.
        SettingError: an optimizer of other parameters, or a model that does not fit; it is as it was then.
    """
    chosen, pattern = algorithm_of(algorithm), exchange_of("server" if exchange == "auto" else exchange)
    if chosen.local != SGD():
        raise CompositionError(f"the local step {spell(chosen.local)} cannot be attached: {LEAVE_TO_IT}")
    if chosen.prelude is not None:
        raise CompositionError(
            "an algorithm of several phases cannot be attached, because in one of them full gradients take "
            "the place of the optimizer's steps: use qsparse train"
        )
    if not chosen.meeting.claims.waits:
        raise CompositionError("workers that do not wait cannot be attached: use qsparse train")
    if chosen.participation.claims.chooses:
        raise CompositionError(
            f"participation {spell(chosen.participation)} cannot be attached, because a rank that is left "
            "out of a round would have to leave out its optimizer's steps: use qsparse train"
        )
    pattern = pattern.on(wire)
    check(chosen, pattern, wire.size)
    # A schedule without a length would fail in the middle of the loop.
    trigger = chosen.trigger.bind(chosen.server.claims.rate)
    trigger.due(trigger.init(Seed(seed)), 1)
    if len(pattern.workers(wire.size)) < wire.size:
        raise CompositionError(f"{spell(pattern)}: every rank runs the loop, so every rank must work")
    flat = FlatModel(model, parameters_only=True)
    if not flat.covers(parameters_of(*optimizers)):
        raise SettingError("the optimizer must have exactly the model's trained parameters")
    for link in (chosen.up, chosen.answer):
        link.compressor.bind(flat.layout).check(flat.values.numel())
    named = (("up", chosen.up), ("down", chosen.answer))
    bound = ((way, link.compressor.bind(flat.layout), link.memory) for way, link in named)
    promises.warn(bound, flat.values.numel(), wire.rank)
    start = flat.values.cpu().numpy()
    warm_algorithm(chosen.closed(), start, flat.layout, wire.rank)
    if exchange == "auto":
        # Messages are made to see how long they are: with kernels that one rank has compiled by now.
        pattern = exchange_for(chosen.closed(), flat.values.numel(), wire.size, flat.layout, links)
    settings = {
        "qsparse": _version.__version__,
        **chosen.closed().axes(),
        "exchange": spell(pattern),
        "optimizer": ", ".join(type(each).__name__ for each in optimizers),
        **shapes(flat),
        "type": str(start.dtype),
        "seed": seed,
    }
    return (chosen, pattern, flat, settings), settings


def shapes(flat: FlatModel) -> dict[str, Any]:
    """What is trained, averaged and left alone, with its shapes: the settings of a model."""
    named = {**dict(named_parameters(flat.model)), **dict(named_buffers(flat.model))}
    return {
        "layers": [[layer.name, list(named[layer.name].shape)] for layer in flat.layout],
        "buffers": [[layer.name, list(named[layer.name].shape)] for layer in flat.statistics],
        "rest": [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in flat.rest],
    }


def adopt_from_rank_0(wire: Wire, tensor: torch.Tensor) -> None:
    """Give a tensor of this rank the values that it has on rank 0; collective."""
    with torch.no_grad():
        # numpy has not all types of torch, and the tensor may have gaps: bytes of a dense copy.
        dense = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor)
        mine, data = None, dense.reshape(-1).view(torch.uint8).numpy()
        if wire.rank == 0:
            mine = Payload.build([raw(data)], way=Way.CONTROL, n=tensor.numel())
        start = ParameterServer().broadcast(wire, mine)
        if wire.rank == 0:
            return
        np.copyto(data, np.frombuffer(start.body, data.dtype))
        if any(stride == 0 for stride in tensor.stride()) and tensor.numel() > 1:
            tensor.data = dense.to(tensor.device)  # expanded: its elements are one and the same
        else:
            tensor.copy_(dense)

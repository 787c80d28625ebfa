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
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.torch.flat import FlatModel
from qsparse.torch.given import LEAVE_TO_IT, TAKES_THEM, algorithm_of, exchange_of, optimizers_algorithm
from qsparse.torch.naming import named_buffers, named_parameters
from qsparse.torch.steps import Optimizers, parameters_of
from qsparse.wire.base import Wire

#: What a loop is made of, and the settings by which ranks and checkpoints are compared.
Parts = tuple[Algorithm, Exchange, FlatModel, dict[str, Any]]


def prepare(
    model: torch.nn.Module,
    optimizers: Optimizers,
    algorithm: Algorithm | str | None,
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
    chosen, pattern = (
        optimizers_algorithm(algorithm),
        exchange_of("server" if exchange == "auto" else exchange),
    )
    if chosen.local != SGD():
        raise CompositionError(f"the local step {spell(chosen.local)} cannot be attached: {LEAVE_TO_IT}")
    if chosen.prelude is not None:
        raise CompositionError(
            "an algorithm of several phases cannot be attached, because in one of them full gradients take "
            f"the place of the optimizer's steps: {TAKES_THEM}"
        )
    if not chosen.meeting.claims.waits:
        raise CompositionError(
            "workers that do not wait cannot be attached to an optimizer, because one rank only serves and "
            f"the others take as many steps as they come to: {TAKES_THEM}"
        )
    if chosen.participation.claims.chooses:
        raise CompositionError(
            f"participation {spell(chosen.participation)} cannot be attached, because a rank that is left "
            f"out of a round would have to leave out its optimizer's steps: {TAKES_THEM}"
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
    closed = chosen.closed()
    pattern = _fitted(closed, flat, pattern, links if exchange == "auto" else None, wire)
    steppers = ", ".join(type(each).__name__ for each in optimizers)
    settings = _settings(closed, pattern, steppers, flat, seed)
    return (chosen, pattern, flat, settings), settings


def prepare_own(
    model: torch.nn.Module,
    gradient: Any,
    algorithm: Algorithm | str | None,
    exchange: Exchange | str,
    links: Links,
    seed: int,
    steps: int | None,
    wire: Wire,
) -> tuple[Parts, Mapping[str, Any]]:
    """As `prepare`, of a loop in which the algorithm takes its own steps.

    Args:
        model, gradient, algorithm, exchange: as for `qsparse.torch.attach`.
        links: of the ranks, for which an exchange is chosen.
        seed, steps: as for `qsparse.torch.attach`.
        wire: says which rank this is, of how many.

    Raises:
        CompositionError: parts that do not go together.
        SettingError: no function of gradients, no number of steps where one is needed, or a model that does
            not fit; it is as it was then.
    """
    chosen = algorithm_of(algorithm)
    if not callable(gradient):
        raise SettingError(f"gradient must be a function of a batch, not {gradient!r}")
    pattern = natural_exchange(chosen) if exchange == "auto" else exchange_of(exchange)
    pattern = pattern.on(wire)
    pattern.check(wire.size)
    workers = pattern.workers(wire.size)
    chosen = chosen.among(len(workers))
    check(chosen, pattern, wire.size)
    _check_steps(chosen, steps, len(workers) == wire.size)
    whole = chosen.closed() if steps is None else chosen.over(steps)
    flat = FlatModel(model, parameters_only=True)
    pattern = _fitted(whole, flat, pattern, links if exchange == "auto" else None, wire)
    settings = _settings(whole, pattern, "", flat, seed)
    # A run may go on for longer, where no schedule goes by its length.
    return (whole, pattern, flat, settings), settings | {"steps": steps}


def _check_steps(algorithm: Algorithm, steps: int | None, all_work: bool) -> None:
    """Refuse a number of steps that is none, and none where somebody must know it."""
    if steps is not None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise SettingError(f"steps must be a whole number of at least 1, not {steps!r}")
        prelude = algorithm.prelude
        if prelude is not None and prelude.server.claims.holds and steps <= (prelude.length or 0):
            raise SettingError(
                f"{steps} steps are over with the prelude, which never moves the model: give more steps"
            )
        return
    why = None
    if not algorithm.meeting.claims.waits:
        why = "workers that do not wait share the steps of the run"
    elif not all_work:
        why = "the rank that serves must know when the run is over"
    elif algorithm.prelude is not None or algorithm.length is not None:
        why = "its phases must know when the run is over"
    elif algorithm.over(1) != algorithm.closed():
        why = "a schedule without a length of its own goes by that of the run"
    if why is not None:
        raise SettingError(f"this algorithm needs a number of steps, because {why}: give attach steps=…")


def _fitted(
    algorithm: Algorithm, flat: FlatModel, pattern: Exchange, links: Links | None, wire: Wire
) -> Exchange:
    """Have the kernels for a model compiled; returns the exchange, chosen anew where links are given."""
    n = flat.values.numel()
    for phase in filter(None, (algorithm, algorithm.prelude)):
        named = (("up", phase.up), ("down", phase.answer))
        bound = [(way, link.compressor.bind(flat.layout), link.memory) for way, link in named]
        for _, compressor, _ in bound:
            compressor.check(n)
        promises.warn(bound, n, wire.rank)
    warm_algorithm(algorithm, flat.values.cpu().numpy(), flat.layout, wire.rank)
    if links is None:
        return pattern
    # Messages are made to see how long they are: with kernels that one rank has compiled by now.
    return exchange_for(algorithm, n, wire.size, flat.layout, links)


def _settings(
    algorithm: Algorithm, pattern: Exchange, steppers: str, flat: FlatModel, seed: int
) -> dict[str, Any]:
    """What must be equal on all ranks, and in a checkpoint to go on from."""
    return {
        "qsparse": _version.__version__,
        **algorithm.axes(),
        "exchange": spell(pattern),
        "optimizer": steppers,
        **shapes(flat),
        "type": str(flat.values.dtype).removeprefix("torch."),
        "seed": seed,
    }


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

"""A model as one flat vector: parameters and gradients are views of it, nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from qsparse.data.images import Examples, Pictures
from qsparse.data.photos import PictureFiles
from qsparse.data.sparse import SparseRows
from qsparse.errors import SettingError
from qsparse.seeds import Seed
from qsparse.torch.naming import named_buffers, named_parameters
from qsparse.torch.ownership import address_of, hold, refuse_held
from qsparse.torch.sparse import sparse_batch
from qsparse.types import Layer, Layout, Vector


class FlatModel:
    """Moves a model's parameters, gradients and batch statistics into flat tensors, on the model's device.

    The module keeps working as before: ``parameter.data`` and ``parameter.grad`` become views of
    ``values`` and ``slopes``, buffers of the parameters' type views of ``buffer_values``. Parameters that
    need no gradient and other buffers stay where they are, and are listed in ``rest``. `release` gives
    all of them memory of their own again.

    In a loop that somebody else has written only parameters are views. A layer may let its buffer grow, which
    must not reach into its neighbours, and gradients may be sparse, or dropped.

    Args:
        model: all trained parameters on the CPU, or all on one GPU, and of one type, float32 or float64.
        parameters_only: leave gradients alone, and buffers in memory of their own; `collect` copies them into
            ``buffer_values``, `spread` back.

    Attributes:
        values: the parameters in the order of ``model.named_parameters()``, (n,).
        slopes: the gradients, alike; (0,) where they are left alone.
        parameters: those that are trained.
        buffer_values: buffers of the parameters' type, in the order of ``model.named_buffers()``.
        layout: names (see `qsparse.torch.naming`), places and dimensions of the parameters.
        statistics: those of the buffers in ``buffer_values``.
        rest: names and tensors of what is in none of the three.

    Raises:
        SettingError: a parameter elsewhere or of another type, no parameter at all, a tensor without plain
            memory, two that share some, or one that lies in the vectors of another FlatModel.
    """

    def __init__(self, model: torch.nn.Module, parameters_only: bool = False) -> None:
        self.model, self._parameters_only = model, parameters_only
        every, buffer_values = named_parameters(model), named_buffers(model)
        for name, tensor in (*every, *buffer_values):
            if is_lazy(tensor):
                raise SettingError(
                    f"{name!r} has no shape yet, because its layer is lazy: run the model on one batch, then "
                    "make the optimizer and attach both"
                )
        named = [(name, p) for name, p in every if p.requires_grad]
        if not named:
            raise SettingError("the model has no parameters that need a gradient")
        for name, p in named:
            if type(p.data) is not torch.Tensor:
                raise SettingError(
                    f"parameter {name!r} is a {type(p.data).__name__}, which has no plain memory: attach a "
                    "model whose parameters lie as a whole on each rank"
                )
            if p.device.type not in ("cpu", "cuda") or p.dtype not in (torch.float32, torch.float64):
                raise SettingError(
                    f"parameter {name!r} is {p.dtype} on {p.device}: parameters must be float32 or "
                    "float64, on the CPU or on a GPU"
                )
        kinds = {p.dtype for _, p in named}
        if len(kinds) > 1:
            raise SettingError(f"the parameters have several types ({kinds}): use one for all")
        dtype = kinds.pop()
        buffers = [(name, b) for name, b in buffer_values if b.dtype == dtype]
        device = named[0][1].device
        for name, tensor in [*named, *buffers]:
            if tensor.device != device:
                raise SettingError(
                    f"{name!r} is on {tensor.device} and {named[0][0]!r} on {device}: put the whole model on "
                    "one device"
                )
        self.rest: list[tuple[str, torch.Tensor]] = [
            *((name, p) for name, p in every if not p.requires_grad),
            *((name, b) for name, b in buffer_values if b.dtype != dtype),
        ]
        for name, tensor in self.rest:
            if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
                raise SettingError(
                    f"{name!r} is {tensor.dtype}, {tensor.layout}, on {tensor.device}: it has no plain "
                    "memory, which the ranks need to have the same model"
                )
        refuse_held(model, [*named, *buffers, *self.rest])
        _refuse_overlaps([*named, *buffers], self.rest)
        self.parameters = [p for _, p in named]
        self._places: dict[str, tuple[int, torch.Size]] = {}
        # torch's memory starts at a multiple of 64 bytes on every rank: the same alignment of each
        # parameter, and so the same vector instructions and the same bits.
        self.values = torch.empty(sum(p.numel() for _, p in named), dtype=dtype, device=device)
        self.layout = self._moved(named, self.values)
        self.slopes = torch.zeros_like(self.values[: 0 if parameters_only else None])
        self._put_buffers(buffers)
        self._views: list[torch.Tensor] = []
        if not parameters_only:
            self._views = [
                self.slopes[layer.start : layer.stop].view(p.shape)
                for p, layer in zip(self.parameters, self.layout, strict=True)
            ]
            self.zero_grad()
        hold(self)

    def _moved(self, named: list[tuple[str, Any]], into: torch.Tensor, views: bool = True) -> Layout:
        """Copy tensors into a flat one, one after the other; returns their places.

        They become views of it, or get memory of their own, without gaps.
        """
        layers, start = [], 0
        with torch.no_grad():
            for name, tensor in named:
                stop = start + tensor.numel()
                into[start:stop].copy_(tensor.detach().reshape(-1))
                view = into[start:stop].view(tensor.shape)
                tensor.data = view if views else view.clone()
                self._places[name] = tensor.data_ptr(), tensor.shape
                layers.append(Layer(name, start, stop, tensor.dim()))
                start = stop
        return tuple(layers)

    def _put_buffers(self, buffers: list[tuple[str, torch.Tensor]]) -> None:
        self._buffers = buffers
        size = sum(b.numel() for _, b in buffers)
        self.buffer_values = torch.empty(size, dtype=self.values.dtype, device=self.values.device)
        self.statistics = self._moved(buffers, self.buffer_values, views=not self._parameters_only)

    def left(self) -> dict[str, torch.Tensor]:
        """The tensors of ``rest`` by name, as they are now: a layer may have put others in their places."""
        now = {**dict(named_parameters(self.model)), **dict(named_buffers(self.model))}
        return {name: now[name] for name, _ in self.rest if name in now}

    def collect(self) -> None:
        """Copy buffers that have memory of their own into ``buffer_values``."""
        for layer, (_, buffer) in zip(self.statistics, self._buffers, strict=True):
            self.buffer_values[layer.start : layer.stop].copy_(buffer.detach().reshape(-1))

    def spread(self) -> None:
        """Copy ``buffer_values`` into them."""
        with torch.no_grad():
            for layer, (_, buffer) in zip(self.statistics, self._buffers, strict=True):
                buffer.copy_(self.buffer_values[layer.start : layer.stop].view(buffer.shape))

    def leave_constants(self) -> None:
        """Keep buffers that hold NaN or infinity out of ``buffer_values``, in ``rest``: a mask has no mean.

        What they hold decides, so call it where all ranks have the same.
        """
        constant = [(name, b) for name, b in self._buffers if not bool(b.isfinite().all())]
        for name, b in constant:
            del self._places[name]
            b.data = b.data.clone()
        if constant:
            self.rest += constant
            self._put_buffers([(name, b) for name, b in self._buffers if name in self._places])

    @property
    def vector(self) -> Vector:
        """``values`` where they lie; like the next two of models on the CPU only."""
        return self.values.numpy()

    @property
    def gradient(self) -> Vector:
        """``slopes`` where they lie."""
        return self.slopes.numpy()

    @property
    def buffers(self) -> Vector:
        """``buffer_values`` where it lies."""
        return self.buffer_values.numpy()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients in one sweep, whatever ``set_to_none`` says: they stay views."""
        self.slopes.zero_()
        for p, view in zip(self.parameters, self._views, strict=True):
            if p.grad is not view:
                p.grad = view

    def gather_gradients(self, out: Vector) -> bool:
        """Copy the parameters' gradients into ``out``, (n,), zeros where there are none; returns if any is.

        A zero has no sign, as where gradients are views and are added to zeros.
        """
        host = torch.from_numpy(out)
        place = host if self.values.device == host.device else torch.empty_like(self.values)
        found = False
        with torch.no_grad():
            place.zero_()
            for p, layer in zip(self.parameters, self.layout, strict=True):
                if p.grad is not None:
                    found = True
                    place[layer.start : layer.stop] += p.grad.to_dense().reshape(-1)
            if place is not host:
                host.copy_(place)
        return found

    def vectors(self) -> Sequence[torch.Tensor]:
        """What the model's tensors are views of."""
        return self.values, self.slopes, self.buffer_values

    def name_of(self, tensor: torch.Tensor) -> str:
        """The name under which a tensor that lies in a vector is held."""
        places = {place: name for name, (place, _) in self._places.items()}
        return places.get(tensor.data_ptr(), "a part")

    def release(self) -> None:
        """Give parameters, gradients and buffers memory of their own again, with the values that they have.

        What was written from one of them to a file would have the whole vector with it otherwise. The
        vectors are empty from then on.
        """
        held = {address_of(vector) for vector in self.vectors()} - {None}
        parameters = dict.fromkeys([*self.parameters, *self.model.parameters()])
        buffers = dict.fromkeys([*(b for _, b in self._buffers), *self.model.buffers()])
        for tensor in (*parameters, *buffers):
            if address_of(tensor) in held:
                tensor.data = tensor.data.clone()
        for p in parameters:
            if p.grad is not None and address_of(p.grad) in held:
                p.grad = p.grad.clone()
        self._views = []
        self.values, self.slopes, self.buffer_values = (vector.new_empty(0) for vector in self.vectors())

    def check(self) -> None:
        """Refuse a model that has left the vectors, because whoever moves them would not move it.

        Addresses are compared and no values, which takes a millisecond for a ResNet-50.

        Raises:
            SettingError: a parameter or a buffer that has left its vector, or a parameter in no vector that
                needs a gradient; with its name, and what to do.
        """
        for name, p in named_parameters(self.model):
            if name in self._places:
                self._stay("parameter", name, p)
            elif p.requires_grad:
                raise SettingError(not_exchanged(name, p))
        for name, b in named_buffers(self.model):
            if name in self._places:
                self._stay("buffer", name, b)

    def strays(self, anchor: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the ranks may have in common, and may not: nobody has been told of it.

        Args:
            anchor: what ``values`` were when all ranks had the same, (n,).

        Returns:
            By kind and name: parameters that have moved since, and buffers that were not there then.
        """
        found: dict[str, torch.Tensor] = {}
        if not torch.equal(self.values, anchor):
            for layer in self.layout:
                mine, theirs = (x[layer.start : layer.stop] for x in (self.values, anchor))
                if not torch.equal(mine, theirs):
                    found[f"parameter {layer.name!r}"] = mine
        known = self._places.keys() | {name for name, _ in self.rest}
        for name, b in named_buffers(self.model):
            if name not in known and b.dtype == self.values.dtype and b.layout is torch.strided:
                found[f"buffer {name!r}"] = b
        return found

    def _stay(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        place, shape = self._places[name]
        if tensor.shape != shape:
            raise SettingError(
                f"{kind} {name!r} was resized from {tuple(shape)} to {tuple(tensor.shape)} after the model "
                "was attached, and is exchanged with the shape that it had: give it its size before, e.g. by "
                "running the model on one batch, and attach the model then"
            )
        if tensor.data_ptr() != place or not tensor.is_contiguous():
            raise SettingError(
                f"{kind} {name!r} has got other memory than that which is exchanged, as by model.cuda(), "
                ".to(memory_format=...), load_state_dict(assign=True), flatten_parameters() of an LSTM on a "
                "GPU, or by setting .data: do this before the model is attached, and change tensors in place "
                "from then on (copy_)"
            )

    def covers(self, parameters: list[Any]) -> bool:
        """Whether these are exactly the model's trained parameters."""
        return {id(p) for p in parameters if p.requires_grad} == {id(p) for p in self.parameters}


def not_exchanged(name: str | None, tensor: torch.Tensor) -> str:
    """Why a tensor is not trained with an attached model; the name is None where the model has it not."""
    if name is None:
        return (
            f"a tensor of shape {tuple(tensor.shape)} in the optimizer needs a gradient and is not "
            "exchanged, because the attached model has no such parameter: register it in the model before "
            "the model is attached"
        )
    return (
        f"parameter {name!r} needs a gradient and is not exchanged, because when the model was attached it "
        "was frozen or not there: finish() before you let it need one, and attach the model anew"
    )


def _refuse_overlaps(moving: list[tuple[str, Any]], staying: list[tuple[str, torch.Tensor]]) -> None:
    """Tensors that share memory are equal because they do; moving one would part them."""
    stretches = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), name, moves)
        for named, moves in ((moving, True), (staying, False))
        for name, tensor in named
        if tensor.numel()
    )
    before: Any = ("", 0, 0, "", False)
    for stretch in stretches:
        (place, _, end, first, moves), (here, start, stop, second, too) = before, stretch
        if place == here and start < end and (moves or too):
            raise SettingError(
                f"{first!r} and {second!r} share memory, which would be parted when they become views of one "
                "vector: tie them by making them one parameter (b.weight = a.weight), or give each its own "
                "(clone) before the model is flattened"
            )
        if place != here or stop > end:
            before = stretch


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def as_batch(
    x: Examples, y: np.ndarray, indices: np.ndarray, sparse: bool = False, changes: Seed | None = None
) -> tuple[Any, Any]:
    """Examples by index, in memory that torch has aligned, and their labels.

    Args:
        x, y: examples and labels.
        indices: of those that are taken.
        sparse: take sparse rows as a `qsparse.torch.sparse.SparseBatch`.
        changes: of this batch of pictures in files, other parts of which are taken each time.
    """
    labels = torch.from_numpy(y)[torch.from_numpy(indices)]
    if isinstance(x, SparseRows):
        return sparse_batch(x, indices) if sparse else torch.from_numpy(x[indices]), labels
    if isinstance(x, PictureFiles):
        examples = torch.empty((len(indices), *x.shape[1:]))
        x.take(indices, examples.numpy(), changes)
        return examples, labels
    if isinstance(x, Pictures):
        examples = torch.empty((len(indices), *x.shape[1:]))
        x.take(indices, examples.numpy())
        return examples, labels
    return torch.from_numpy(x)[torch.from_numpy(indices)], labels

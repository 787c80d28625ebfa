"""The models that come with qsparse, with parameters that depend on the seed alone.

Every rank builds its model from the run's seed, and several ranks may be threads of one process.
Modules are therefore made on torch's ``meta`` device, which draws nothing, and each parameter is then
filled from its own stream: torch's global generator is neither read nor moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from qsparse.data import names
from qsparse.errors import SettingError
from qsparse.seeds import Seed

#: What `build_model` knows.
MODELS = ("softmax", "mlp", "cnn", "resnet20", "resnet32", "resnet18", "resnet50")

_META: dict[str, Any] = {"device": "meta", "dtype": torch.float32}


def build_model(name: str, shape: tuple[int, ...], classes: int, seed: Seed) -> nn.Module:
    """Build a model on the CPU, in training mode, all parameters float32 and contiguous.

    Weights are uniform with variance ``2 / fan_in`` (He et al. 2015), those of the last layer with
    variance ``1 / (3 fan_in)``; biases are 0, scales of batch norms 1.

    Args:
        name: ``softmax`` (one linear layer), ``mlp`` or ``mlp(200, 100)`` (hidden sizes), ``cnn`` or
            ``cnn(32, 64, 128)`` (channels, channels, hidden size), ``resnet20`` or ``resnet32`` (He et
            al. 2016 for CIFAR, shortcuts of option A), ``resnet18`` or ``resnet50`` (He et al. 2016 for
            ImageNet, option B). The latter begin with 7 x 7 convolutions of stride 2 and max pooling for
            pictures of 64 x 64 and more, as published, and with 3 x 3 convolutions below; the stride of
            a bottleneck is in its 3 x 3 convolution, as in torchvision.
        shape: of one example: ``(channels, height, width)``, or any for ``softmax`` and ``mlp``.
        classes: how many numbers come out per example.
        seed: of the run; its rank, step and use do not matter, so that all ranks agree.

    Raises:
        UnknownPart: there is no model of this name.
        SettingError: the model cannot take such examples or such numbers.

    >>> model = build_model("mlp(20)", (1, 8, 8), 10, Seed(7))
    >>> sum(p.numel() for p in model.parameters())
    1510
    """
    kind, arguments = names.parse(name)
    if kind not in MODELS:
        raise names.unknown("model", kind, MODELS)
    if classes < 2:
        raise SettingError(f"a model for {classes} classes: give at least 2")
    if not shape or min(shape) < 1:
        raise SettingError(f"a model for examples of shape {tuple(shape)}: every size must be at least 1")
    if kind == "mlp":
        model = _mlp(math.prod(shape), _hidden(name, arguments), classes)
    elif kind == "cnn":
        model = _cnn(*_picture(kind, shape), classes, _widths(name, arguments))
    elif arguments:
        raise SettingError(f"{name!r}: {kind} takes nothing in brackets")
    elif kind == "softmax":
        model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes, **_META))
    else:
        model = _resnet(*_picture(kind, shape), classes, _RESNETS[kind])
    try:
        _allocate(model)
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise SettingError(f"model {name!r} does not fit into the memory of this machine: {why}") from None
    _initialise(model, seed.at(rank=0, step=0, use="model"))
    return model


def _allocate(model: nn.Module) -> None:
    """Give tensors on the meta device memory, with anything in it.

    `nn.Module.to_empty` does so as well, and loads symbolic shapes and SymPy for it: half a second.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _hidden(name: str, arguments: tuple[str, ...]) -> tuple[int, ...] | None:
    if not arguments:
        return None
    if not _are_positive(arguments):
        raise SettingError(f"{name!r}: hidden sizes are whole numbers above 0, e.g. mlp(200, 100)")
    return tuple(map(int, arguments))


def _widths(name: str, arguments: tuple[str, ...]) -> tuple[int, int, int]:
    if not arguments:
        return 32, 64, 128
    if len(arguments) != 3 or not _are_positive(arguments):
        raise SettingError(f"{name!r}: cnn takes three whole numbers above 0, e.g. cnn(32, 64, 128)")
    first, second, hidden = map(int, arguments)
    return first, second, hidden


def _are_positive(words: tuple[str, ...]) -> bool:
    # Python makes no numbers of thousands of digits.
    return all(word.isdecimal() and len(word) < 20 and int(word) > 0 for word in words)


def _picture(kind: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise SettingError(
            f"{kind} needs pictures of shape (channels, height, width) and the examples have shape "
            f"{tuple(shape)}: use softmax or mlp"
        )
    channels, height, width = shape
    if min(height, width) < 4:
        raise SettingError(f"{kind} needs pictures of at least 4 x 4, these are {height} x {width}")
    return channels, height, width


def _mlp(inputs: int, hidden: tuple[int, ...] | None, classes: int) -> nn.Sequential:
    if hidden is None:
        hidden = (128, 64) if inputs <= 64 else (256, 128)
    layers: list[nn.Module] = [nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(inputs, size, **_META), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, classes, **_META))


def _cnn(channels: int, height: int, width: int, classes: int, widths: tuple[int, int, int]) -> nn.Sequential:
    first, second, hidden = widths
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1, **_META),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1, **_META),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), hidden, **_META),
        nn.ReLU(),
        nn.Linear(hidden, classes, **_META),
    )


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False, **_META),
        nn.BatchNorm2d(outputs, **_META),
    ]


class _Padded(nn.Module):
    """The shortcut without parameters: every stride-th pixel, new channels zero (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.more = outputs - inputs
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        before = self.more // 2
        return nn.functional.pad(x, (0, 0, 0, 0, before, self.more - before))


def _projected(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a 1 x 1 convolution (option B)."""
    return nn.Sequential(*_conv(inputs, outputs, 1, stride))


class _Block(nn.Module):
    """A few convolutions beside a shortcut."""

    def __init__(self, body: list[nn.Module], shortcut: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _two(inputs: int, width: int, stride: int) -> list[nn.Module]:
    """Two 3 x 3 convolutions."""
    return [*_conv(inputs, width, 3, stride), nn.ReLU(), *_conv(width, width, 3)]


def _bottleneck(inputs: int, width: int, stride: int) -> list[nn.Module]:
    """A 3 x 3 convolution between two of 1 x 1, of which the last has four times the channels."""
    narrow = [*_conv(inputs, width, 1), nn.ReLU(), *_conv(width, width, 3, stride), nn.ReLU()]
    return [*narrow, *_conv(width, 4 * width, 1)]


class _Plan(NamedTuple):
    """A residual network.

    Attributes:
        widths, depths: of each stage.
        body: of a block: channels that come in, its width, and its stride.
        expansion: channels that leave a block, by its width.
        shortcut: where these differ from those that come in, or the stride is not 1.
        stem: is there one of its own for large pictures?
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    body: Callable[[int, int, int], list[nn.Module]]
    expansion: int
    shortcut: Callable[[int, int, int], nn.Module]
    stem: bool


_RESNETS: Final = {
    "resnet20": _Plan((16, 32, 64), (3, 3, 3), _two, 1, _Padded, stem=False),
    "resnet32": _Plan((16, 32, 64), (5, 5, 5), _two, 1, _Padded, stem=False),
    "resnet18": _Plan((64, 128, 256, 512), (2, 2, 2, 2), _two, 1, _projected, stem=True),
    "resnet50": _Plan((64, 128, 256, 512), (3, 4, 6, 3), _bottleneck, 4, _projected, stem=True),
}

#: Pictures of so many pixels, both ways, are large.
_LARGE: Final = 64


class _ResNet(nn.Sequential):
    """Layers one after another, on pictures whose channels lie together: a fifth faster on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(x.contiguous(memory_format=torch.channels_last))
        return out


def _resnet(channels: int, height: int, width: int, classes: int, plan: _Plan) -> nn.Sequential:
    inputs = plan.widths[0]
    if plan.stem and min(height, width) >= _LARGE:
        layers = [*_conv(channels, inputs, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    else:
        layers = [*_conv(channels, inputs, 3), nn.ReLU()]
    for stage, (inner, depth) in enumerate(zip(plan.widths, plan.depths, strict=True)):
        outputs = inner * plan.expansion
        for block in range(depth):
            stride = 2 if stage and not block else 1
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else plan.shortcut(inputs, outputs, stride)
            layers.append(_Block(plan.body(inputs, inner, stride), shortcut))
            inputs = outputs
    return _ResNet(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes, **_META))


@torch.no_grad()
def _initialise(model: nn.Module, seed: Seed) -> None:
    modules = list(model.modules())
    last = max(i for i, module in enumerate(modules) if isinstance(module, nn.Linear))
    for number, module in enumerate(modules):
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.fill_(1)
            module.bias.fill_(0)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            bound = math.sqrt((1 if number == last else 6) / fan_in)
            _uniform(module.weight, bound, seed.child(number))
            if module.bias is not None:
                module.bias.fill_(0)
        elif next(module.parameters(recurse=False), None) is not None:
            raise AssertionError(f"{type(module).__name__} has parameters that nothing initialises")


def _uniform(weight: torch.Tensor, bound: float, seed: Seed) -> None:
    # Uniform, not normal, and not from torch: only integers, a product and a difference are needed, so
    # processors of different make get the same bits. Torch's normal numbers depend on their vector
    # units, and its CPU generator keeps only 32 bits of a seed.
    values = seed.generator().random(weight.numel(), dtype="float32")
    values *= 2 * bound
    values -= bound
    weight.copy_(torch.from_numpy(values).view_as(weight))

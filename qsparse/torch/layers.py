"""The layers of the models that come with qsparse, on torch's ``meta`` device, where nothing is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from qsparse.torch.sizes import LARGE, STAGES, Stages
from qsparse.torch.sparse import SparseBatch, linear

_META: Final[dict[str, Any]] = {"device": "meta", "dtype": torch.float32}


def mlp(inputs: int, hidden: tuple[int, ...], classes: int) -> nn.Sequential:
    """Layers of these sizes with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(inputs, size, **_META), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, classes, **_META))


class Linear(nn.Sequential):
    """One linear layer, of examples that are dense or sparse."""

    takes_sparse = True

    def forward(self, x: torch.Tensor | SparseBatch) -> torch.Tensor:
        if isinstance(x, SparseBatch):
            weight, bias = self.parameters()
            return linear(x, weight, bias)
        out: torch.Tensor = super().forward(x)
        return out


def softmax(inputs: int, classes: int) -> nn.Sequential:
    """One linear layer, whose parameters have the names of those of an mlp."""
    return Linear(nn.Flatten(), nn.Linear(inputs, classes, **_META))


class Logistic(Linear):
    """One score for the second of two classes; that of the first is 0."""

    def forward(self, x: torch.Tensor | SparseBatch) -> torch.Tensor:
        return nn.functional.pad(super().forward(x), (1, 0))


def logistic(inputs: int) -> nn.Sequential:
    """Logistic regression: the cross entropy of its two scores is log(1 + exp(∓(w·x + b)))."""
    return Logistic(nn.Flatten(), nn.Linear(inputs, 1, **_META))


def cnn(channels: int, height: int, width: int, classes: int, widths: tuple[int, int, int]) -> nn.Sequential:
    """Two 3 x 3 convolutions with pooling, and a hidden layer; widths: channels, channels, hidden size."""
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


class Padded(nn.Module):
    """The shortcut without parameters: every stride-th pixel, new channels zero (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.more = outputs - inputs
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        before = self.more // 2
        return nn.functional.pad(x, (0, 0, 0, 0, before, self.more - before))


def projected(inputs: int, outputs: int, stride: int) -> nn.Module:
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


def two(inputs: int, width: int, stride: int) -> list[nn.Module]:
    """Two 3 x 3 convolutions."""
    return [*_conv(inputs, width, 3, stride), nn.ReLU(), *_conv(width, width, 3)]


def bottleneck(inputs: int, width: int, stride: int) -> list[nn.Module]:
    """A 3 x 3 convolution between two of 1 x 1, of which the last has four times the channels."""
    narrow = [*_conv(inputs, width, 1), nn.ReLU(), *_conv(width, width, 3, stride), nn.ReLU()]
    return [*narrow, *_conv(width, 4 * width, 1)]


class Plan(NamedTuple):
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


def _plan(stages: Stages) -> Plan:
    """The layers of a residual network of these numbers."""
    body, expansion = (bottleneck, 4) if stages.bottleneck else (two, 1)
    shortcut = projected if stages.projected else Padded
    return Plan(stages.widths, stages.depths, body, expansion, shortcut, stages.stem)


#: Of He et al. 2016, for CIFAR and for ImageNet.
PLANS: Final = {name: _plan(stages) for name, stages in STAGES.items()}


class _ResNet(nn.Sequential):
    """Layers one after another, on pictures whose channels lie together: a fifth faster on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(x.contiguous(memory_format=torch.channels_last))
        return out


def resnet(channels: int, height: int, width: int, classes: int, plan: Plan) -> nn.Sequential:
    """The residual network of a plan."""
    inputs = plan.widths[0]
    if plan.stem and min(height, width) >= LARGE:
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

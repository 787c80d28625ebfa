"""How many parameters the models that come with qsparse have, without loading torch."""

from __future__ import annotations

import itertools
from typing import Final, NamedTuple

#: Pictures of so many pixels, both ways, are large.
LARGE: Final = 64


class Stages(NamedTuple):
    """The numbers of a residual network.

    Attributes:
        widths, depths: of each stage.
        bottleneck: are blocks a 3 x 3 convolution between two of 1 x 1, of which the last has four times
            the channels? Else they are two of 3 x 3.
        projected: have shortcuts that change shape a 1 x 1 convolution (option B)? Else no parameters.
        stem: is there one of its own for large pictures?
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    bottleneck: bool
    projected: bool
    stem: bool


#: Of He et al. 2016, for CIFAR and for ImageNet.
STAGES: Final = {
    "resnet20": Stages((16, 32, 64), (3, 3, 3), bottleneck=False, projected=False, stem=False),
    "resnet32": Stages((16, 32, 64), (5, 5, 5), bottleneck=False, projected=False, stem=False),
    "resnet10": Stages((64, 128, 256, 512), (1, 1, 1, 1), bottleneck=False, projected=True, stem=True),
    "resnet18": Stages((64, 128, 256, 512), (2, 2, 2, 2), bottleneck=False, projected=True, stem=True),
    "resnet50": Stages((64, 128, 256, 512), (3, 4, 6, 3), bottleneck=True, projected=True, stem=True),
}


def mlp_size(inputs: int, hidden: tuple[int, ...], classes: int) -> int:
    """The parameters of linear layers with biases.

    >>> mlp_size(64, (20,), 10)
    1510
    """
    return sum(before * after + after for before, after in itertools.pairwise((inputs, *hidden, classes)))


def cnn_size(channels: int, height: int, width: int, classes: int, widths: tuple[int, int, int]) -> int:
    """The parameters of two 3 x 3 convolutions with pooling, and of two linear layers.

    >>> cnn_size(1, 28, 28, 10, (32, 64, 128))
    421642
    """
    first, second, hidden = widths
    convolutions = 9 * channels * first + first + 9 * first * second + second
    return convolutions + mlp_size(second * (height // 4) * (width // 4), (hidden,), classes)


def resnet_size(channels: int, height: int, width: int, classes: int, stages: Stages) -> int:
    """The parameters of a residual network, scales and shifts of its batch norms included.

    >>> resnet_size(3, 224, 224, 1000, STAGES["resnet50"])
    25557032
    """
    inputs = stages.widths[0]
    large = stages.stem and min(height, width) >= LARGE
    total = _conv(channels, inputs, 7 if large else 3)
    for stage, (inner, depth) in enumerate(zip(stages.widths, stages.depths, strict=True)):
        outputs = 4 * inner if stages.bottleneck else inner
        for block in range(depth):
            if stages.bottleneck:
                total += _conv(inputs, inner, 1) + _conv(inner, inner, 3) + _conv(inner, outputs, 1)
            else:
                total += _conv(inputs, inner, 3) + _conv(inner, inner, 3)
            changes = inputs != outputs or (stage > 0 and block == 0)
            if changes and stages.projected:
                total += _conv(inputs, outputs, 1)
            inputs = outputs
    return total + mlp_size(inputs, (), classes)


def _conv(inputs: int, outputs: int, size: int) -> int:
    """A convolution without biases, and the batch norm behind it."""
    return inputs * outputs * size * size + 2 * outputs

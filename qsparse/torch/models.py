"""The models by name, and what one of yours is; importing this loads no torch, building one does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qsparse.errors import SettingError
from qsparse.registry import build, register
from qsparse.seeds import Seed
from qsparse.torch.sizes import STAGES, cnn_size, mlp_size, resnet_size
from qsparse.types import Layer, Layout

if TYPE_CHECKING:
    from torch import nn


class Model(ABC):
    """What makes a module for a data set."""

    kind: ClassVar[str] = "model"
    registered_name: ClassVar[str]
    #: The examples and classes that are meant where nobody says others: those of MNIST.
    usual: ClassVar[tuple[tuple[int, ...], int]] = ((1, 28, 28), 10)

    def parameters(self, shape: tuple[int, ...], classes: int) -> int:
        """How many parameters the module has; unless said otherwise, it is made and counted.

        Args:
            shape, classes: as of `module`.

        Raises:
            SettingError: the model cannot take such examples.
        """
        module = self.module(shape, classes)
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    def layout(self, shape: tuple[int, ...], classes: int) -> Layout:
        """The layers of the module, as they lie in the flat vector; it is made for that.

        Args:
            shape, classes: as of `module`.

        Raises:
            SettingError: the model cannot take such examples.
        """
        from qsparse.torch.naming import named_parameters

        layers: list[Layer] = []
        for name, parameter in named_parameters(self.module(shape, classes)):
            if parameter.requires_grad:
                start = layers[-1].stop if layers else 0
                layers.append(Layer(name, start, start + parameter.numel(), parameter.dim()))
        return tuple(layers)

    @abstractmethod
    def module(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A new module, which makes so many numbers of each example.

        Layers on torch's ``meta`` device get memory and weights from `build_model`. Others stay as their
        classes initialise them: torch's global generator begins where the run's seed says. A module with
        ``takes_sparse = True`` is called with a `qsparse.torch.sparse.SparseBatch` where the data set keeps
        its examples sparse; others get them as a dense tensor.

        Args:
            shape: of one example, ``(channels, height, width)`` or ``(features,)``.
            classes: 2 or more.

        Raises:
            SettingError: the model cannot take such examples.
        """


def build_model(name: str, shape: tuple[int, ...], classes: int, seed: Seed) -> nn.Module:
    """Build a model on the CPU, in training mode, with parameters that depend on the seed alone.

    Those of the models that come with qsparse are float32 and contiguous. Weights are uniform with variance
    ``2 / fan_in`` (He et al. 2015), those of the last layer with variance ``1 / (3 fan_in)``; biases are 0,
    scales of batch norms 1.

    Args:
        name: of a registered `Model`, such as ``mlp(200, 100)``; ``qsparse list models`` shows them.
        shape: of one example.
        classes: how many numbers come out per example.
        seed: of the run; its rank, step and use do not matter, so that all ranks agree.

    Raises:
        UnknownPart: there is no model of this name.
        SettingError: the model cannot take such examples or such numbers.

    >>> model = build_model("mlp(20)", (1, 8, 8), 10, Seed(7))
    >>> sum(p.numel() for p in model.parameters())
    1510
    """
    from qsparse.torch.initial import initial

    part: Model = build(name, "model")
    if classes < 2:
        raise SettingError(f"a model for {classes} classes: give at least 2")
    if not shape or min(shape) < 1:
        raise SettingError(f"a model for examples of shape {tuple(shape)}: every size must be at least 1")
    return initial(lambda: part.module(shape, classes), name, seed.at(rank=0, step=0, use="model"))


@register("softmax")
@dataclass(frozen=True)
class Softmax(Model):
    """One linear layer; examples that are sparse stay so."""

    def parameters(self, shape: tuple[int, ...], classes: int) -> int:
        """Weights and biases."""
        return mlp_size(math.prod(shape), (), classes)

    def module(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """For examples of any shape."""
        from qsparse.torch.layers import softmax

        return softmax(math.prod(shape), classes)


@register("logistic")
@dataclass(frozen=True)
class Logistic(Model):
    """Logistic regression for two classes, with half the parameters of softmax; sparse examples stay so."""

    def parameters(self, shape: tuple[int, ...], classes: int) -> int:
        """Weights and a bias."""
        if classes != 2:
            raise SettingError(f"logistic tells two classes apart, and there are {classes}: use softmax")
        return mlp_size(math.prod(shape), (), 1)

    def module(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """For examples of any shape."""
        from qsparse.torch.layers import logistic

        self.parameters(shape, classes)
        return logistic(math.prod(shape))


@dataclass(frozen=True, init=False)
class _Sized(Model):
    """A model that is spelled with its sizes one after the other.

    Args:
        args: the sizes, or the first of them.
        sizes: those behind them.
    """

    sizes: tuple[int, ...] = ()
    #: What the sizes must be, for messages.
    wanted: ClassVar[str]

    def __init__(self, *args: int, sizes: Sequence[int] = ()) -> None:
        object.__setattr__(self, "sizes", (*args, *sizes))
        # torch counts in 64 bits.
        if not all(type(size) is int and 0 < size < 2**63 for size in self.sizes):
            raise self.refusal()

    def refusal(self) -> SettingError:
        """What is said of sizes that cannot be."""
        return SettingError(f"{self.spelling()}: {self.wanted}")

    def spelling(self) -> str:
        """As it is written."""
        return (
            f"{self.registered_name}({', '.join(map(str, self.sizes))})"
            if self.sizes
            else self.registered_name
        )


@register("mlp")
@dataclass(frozen=True, init=False)
class MLP(_Sized):
    """Linear layers with ReLU between them: mlp, or mlp(200, 100) with hidden sizes.

    The sizes are 256 and 128 unless given, 128 and 64 for examples of up to 64 numbers.
    """

    wanted: ClassVar[str] = "hidden sizes are whole numbers above 0, e.g. mlp(200, 100)"

    def module(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """For examples of any shape."""
        from qsparse.torch.layers import mlp

        inputs = math.prod(shape)
        return mlp(inputs, self._hidden(inputs), classes)

    def parameters(self, shape: tuple[int, ...], classes: int) -> int:
        """Weights and biases."""
        inputs = math.prod(shape)
        return mlp_size(inputs, self._hidden(inputs), classes)

    def _hidden(self, inputs: int) -> tuple[int, ...]:
        return self.sizes or ((128, 64) if inputs <= 64 else (256, 128))


@register("cnn")
@dataclass(frozen=True, init=False)
class CNN(_Sized):
    """Two 3 x 3 convolutions with pooling, and a hidden layer: cnn, or cnn(32, 64, 128).

    The sizes are channels, channels and the hidden layer's.
    """

    wanted: ClassVar[str] = "cnn takes three whole numbers above 0, e.g. cnn(32, 64, 128)"

    def __init__(self, *args: int, sizes: Sequence[int] = ()) -> None:
        super().__init__(*args, sizes=sizes)
        if len(self.sizes) not in (0, 3):
            raise self.refusal()

    def module(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """For pictures."""
        from qsparse.torch.layers import cnn

        return cnn(*_picture(self.registered_name, shape), classes, self._widths())

    def parameters(self, shape: tuple[int, ...], classes: int) -> int:
        """Those of all four layers."""
        return cnn_size(*_picture(self.registered_name, shape), classes, self._widths())

    def _widths(self) -> tuple[int, int, int]:
        first, second, hidden = self.sizes or (32, 64, 128)
        return first, second, hidden


class _Residual(Model):
    """A residual network."""

    def module(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """For pictures."""
        from qsparse.torch.layers import PLANS, resnet

        return resnet(*_picture(self.registered_name, shape), classes, PLANS[self.registered_name])

    def parameters(self, shape: tuple[int, ...], classes: int) -> int:
        """Those of convolutions, batch norms and the last layer."""
        return resnet_size(*_picture(self.registered_name, shape), classes, STAGES[self.registered_name])


@register("resnet20")
@dataclass(frozen=True)
class ResNet20(_Residual):
    """He et al. 2016 for CIFAR, 20 layers, shortcuts without parameters (option A)."""

    usual: ClassVar[tuple[tuple[int, ...], int]] = ((3, 32, 32), 10)


@register("resnet32")
@dataclass(frozen=True)
class ResNet32(_Residual):
    """He et al. 2016 for CIFAR, 32 layers, shortcuts without parameters (option A)."""

    usual: ClassVar[tuple[tuple[int, ...], int]] = ((3, 32, 32), 10)


@register("resnet10")
@dataclass(frozen=True)
class ResNet10(_Residual):
    """resnet18 with one block in place of two a stage, 10 layers, as it is often taken for CIFAR."""

    usual: ClassVar[tuple[tuple[int, ...], int]] = ((3, 32, 32), 100)


@register("resnet18")
@dataclass(frozen=True)
class ResNet18(_Residual):
    """He et al. 2016 for ImageNet, 18 layers, shortcuts of option B.

    It begins with 7 x 7 convolutions of stride 2 and max pooling for pictures of 64 x 64 and more, as
    published, and with 3 x 3 convolutions below.
    """

    usual: ClassVar[tuple[tuple[int, ...], int]] = ((3, 224, 224), 1000)


@register("resnet50")
@dataclass(frozen=True)
class ResNet50(_Residual):
    """He et al. 2016 for ImageNet, 50 layers in bottlenecks, shortcuts of option B.

    It begins as resnet18 does; the stride of a bottleneck is in its 3 x 3 convolution, as in torchvision.
    """

    usual: ClassVar[tuple[tuple[int, ...], int]] = ((3, 224, 224), 1000)


def _picture(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise SettingError(
            f"{name} needs pictures of shape (channels, height, width) and the examples have shape "
            f"{tuple(shape)}: use softmax or mlp"
        )
    channels, height, width = shape
    if min(height, width) < 4:
        raise SettingError(f"{name} needs pictures of at least 4 x 4, these are {height} x {width}")
    return channels, height, width

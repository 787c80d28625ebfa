"""The models: their sizes, their shapes and their reproducible beginning."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from qsparse import registry
from qsparse.data import Batches, load
from qsparse.errors import SettingError, UnknownPart
from qsparse.registry import build, names
from qsparse.seeds import Seed
from qsparse.torch.models import Model, build_model
from qsparse.types import Layer

DIGITS, MNIST, CIFAR, IMAGENET = (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224)
#: Models for two classes alone.
TWO = ("logistic",)
RESNETS = ("resnet20", "resnet32", "resnet10", "resnet18", "resnet50")


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def flat(model: torch.nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("softmax", MNIST, 10, 7850),
        ("softmax", (123,), 2, 248),
        ("logistic", (123,), 2, 124),
        ("mlp", DIGITS, 10, 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10),
        ("mlp", MNIST, 10, 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        ("mlp(300)", MNIST, 10, 784 * 300 + 300 + 300 * 10 + 10),
        ("mlp(200, 100)", (123,), 2, 123 * 200 + 200 + 200 * 100 + 100 + 100 * 2 + 2),
        ("cnn", MNIST, 10, 320 + 18496 + 3136 * 128 + 128 + 1290),
        ("cnn(4, 8, 20)", CIFAR, 10, 112 + 296 + 512 * 20 + 20 + 210),
        ("resnet20", CIFAR, 10, 269_722),
        ("resnet32", CIFAR, 10, 464_154),
        ("resnet10", CIFAR, 10, 4_903_242),
        ("resnet10", CIFAR, 100, 4_949_412),
        ("resnet18", CIFAR, 10, 11_173_962),
        ("resnet18", IMAGENET, 1000, 11_689_512),
        ("resnet50", CIFAR, 10, 23_520_842),
        ("resnet50", IMAGENET, 1000, 25_557_032),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, ...], classes: int, expected: int) -> None:
    assert count(build_model(name, shape, classes, Seed(0))) == expected


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 96)])
@pytest.mark.parametrize(
    "name",
    ["softmax", "mlp", "mlp(20)", "cnn", "cnn(2, 3, 5)", *RESNETS],
)
def test_sizes_without_torch_are_those_of_the_modules(name: str, shape: tuple[int, ...]) -> None:
    """Told by numbers, counted on torch's device meta."""
    part: Model = build(name, "model")
    module = part.module(shape, 7)
    assert part.parameters(shape, 7) == sum(parameter.numel() for parameter in module.parameters())


def test_a_model_of_ones_own_is_made_and_counted() -> None:
    class Frozen(Model):
        """A layer that is trained, and one that is not."""

        def module(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
            first, last = torch.nn.Linear(shape[0], 3), torch.nn.Linear(3, classes)
            first.requires_grad_(False)
            return torch.nn.Sequential(first, last)

    assert Frozen().parameters((5,), 2) == 3 * 2 + 2
    assert Frozen().layout((5,), 2) == (Layer("1.weight", 0, 6, 2), Layer("1.bias", 6, 8, 1))


@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR])
@pytest.mark.parametrize("name", [*names("model"), "mlp(7)"])
def test_forward_and_backward(name: str, shape: tuple[int, ...]) -> None:
    classes = 2 if name in TWO else 10
    model = build_model(name, shape, classes, Seed(0))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32))
    out = model(x)
    assert out.shape == (3, classes)
    assert bool(torch.isfinite(out).all())
    out.square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any())
    model.eval()
    assert model(x[:1]).shape == (1, classes)


@pytest.mark.parametrize("name", names("model"))
def test_everything_is_float32_contiguous_and_real(name: str) -> None:
    model = build_model(name, CIFAR, 2, Seed(0))
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()
        assert parameter.requires_grad
        assert parameter.device.type == "cpu"
        assert parameter.is_leaf
    for buffer_name, buffer in model.named_buffers():
        assert buffer.device.type == "cpu"
        assert bool((buffer == (1 if buffer_name.endswith("running_var") else 0)).all())


@pytest.mark.parametrize("name", names("model"))
def test_the_seed_alone_decides(name: str) -> None:
    torch.manual_seed(1)
    first = flat(build_model(name, CIFAR, 2, Seed(7)))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = flat(build_model(name, CIFAR, 2, Seed(7, rank=3, step=5, use="batch")))
    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(first, flat(build_model(name, CIFAR, 2, Seed(8))))
    # Seeds that agree in their low 32 bits are different seeds.
    assert not np.array_equal(first, flat(build_model(name, CIFAR, 2, Seed(7 + 2**32))))


def test_threads_do_not_disturb_each_other() -> None:
    jobs = [(name, Seed(run)) for run in range(4) for name in ("mlp", "cnn", "resnet20")]
    alone = [flat(build_model(name, MNIST, 10, seed)) for name, seed in jobs]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: flat(build_model(job[0], MNIST, 10, job[1])), jobs))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "resnet18"])
def test_weights_have_the_variance_of_he(name: str) -> None:
    model = build_model(name, CIFAR, 10, Seed(3))
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    for layer in layers:
        weight = layer.weight.detach().numpy()
        fan_in = weight[0].size
        variance = 2 / fan_in if layer is not layers[-1] else 1 / (3 * fan_in)
        # The variance of n uniform numbers deviates by about 0.9 / sqrt(n), their mean by 1 / sqrt(n).
        close = 5 / math.sqrt(weight.size)
        assert weight.var() == pytest.approx(variance, rel=close)
        assert abs(weight.mean()) < close * math.sqrt(variance)
        if layer.bias is not None:
            assert not layer.bias.any()
    weights = [layer.weight.detach().numpy().ravel()[:50] for layer in layers]
    scaled = np.array([w / np.abs(w).max() for w in weights])
    assert len(np.unique(scaled.round(3), axis=0)) == len(layers), "two layers drew the same numbers"


def test_resnet20_shortcuts_have_no_parameters() -> None:
    model = build_model("resnet20", CIFAR, 10, Seed(0))
    shortcuts = [module for name, module in model.named_modules() if name.endswith(".shortcut")]
    assert len(shortcuts) == 9
    assert sum(map(count, shortcuts)) == 0
    x = torch.arange(2 * 16 * 4 * 4, dtype=torch.float32).reshape(2, 16, 4, 4)
    out = shortcuts[3](x)
    assert out.shape == (2, 32, 2, 2)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("size", "stem", "at_the_end"), [(63, (3, 1), 8), (64, (7, 2), 2), (224, (7, 2), 7)])
def test_large_pictures_have_a_stem_of_their_own(
    name: str, size: int, stem: tuple[int, int], at_the_end: int
) -> None:
    model = build_model(name, (3, size, size), 10, Seed(0))
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    assert (first.kernel_size[0], first.stride[0]) == stem
    pooled: list[torch.Size] = []
    pooling = next(module for module in model.modules() if isinstance(module, torch.nn.AdaptiveAvgPool2d))
    pooling.register_forward_hook(lambda module, given, out: pooled.append(given[0].shape))
    model.eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
    channels = 512 if name == "resnet18" else 2048
    assert pooled == [(1, channels, at_the_end, at_the_end)]


def test_channels_that_lie_together_change_no_meaning() -> None:
    model = build_model("resnet20", CIFAR, 10, Seed(0)).eval().double()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, *CIFAR)))
    plain = torch.nn.Sequential(*model)
    seen: list[bool] = []
    model[0].register_forward_hook(
        lambda module, given, out: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)
    assert seen == [True, False]


@pytest.mark.parametrize(("name", "accuracy"), [("softmax", 0.9), ("mlp", 0.93), ("cnn", 0.95)])
def test_models_learn_real_digits(name: str, accuracy: float) -> None:
    digits = load("digits")
    model = build_model(name, digits.shape, digits.classes, Seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = Batches(np.arange(len(digits.train_y)), 64, Seed(1, use="batch"))
    for t in range(150):
        chosen = batches.batch(t)
        x, y = torch.from_numpy(digits.train_x[chosen]), torch.from_numpy(digits.train_y[chosen])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(torch.from_numpy(digits.test_x)).argmax(1).numpy() == digits.test_y
    assert right.mean() > accuracy


def test_unknown_models_get_a_suggestion() -> None:
    with pytest.raises(UnknownPart, match=r"did you mean 'resnet20'\?.* mlp, resnet10, resnet18, resnet20"):
        build_model("resnet-20", CIFAR, 10, Seed(0))


@pytest.mark.parametrize(
    ("name", "shape", "classes", "message"),
    [
        ("cnn", (123,), 2, "use softmax or mlp"),
        ("resnet18", (64,), 2, "use softmax or mlp"),
        ("cnn", (1, 2, 8), 2, "at least 4 x 4"),
        ("logistic", DIGITS, 10, "logistic tells two classes apart, and there are 10: use softmax"),
        ("softmax(3)", DIGITS, 10, "softmax cannot be made of .* it has none"),
        ("mlp(0)", DIGITS, 10, "above 0"),
        ("mlp(-3)", DIGITS, 10, "above 0"),
        ("mlp(2.5)", DIGITS, 10, "above 0"),
        ("mlp(true)", DIGITS, 10, "above 0"),
        ("mlp('20')", DIGITS, 10, "above 0"),
        ("mlp(99999999999999999999)", DIGITS, 10, "above 0"),
        ("mlp(20", DIGITS, 10, "cannot read"),
        ("cnn(4, 8)", DIGITS, 10, "three whole numbers"),
        ("cnn(4, 0, 8)", DIGITS, 10, "three whole numbers"),
        ("mlp", DIGITS, 1, "classes"),
        ("mlp", (), 10, "shape"),
        ("mlp", (0,), 10, "shape"),
    ],
)
def test_bad_settings_are_refused(name: str, shape: tuple[int, ...], classes: int, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_model(name, shape, classes, Seed(0))


@dataclass(frozen=True)
class Drawn(Model):
    """Layers that torch initialises beside one without memory."""

    def module(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        inputs = int(np.prod(shape))
        return torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.LayerNorm(inputs),
            torch.nn.Linear(inputs, 9),
            torch.nn.Linear(9, classes, device="meta"),
        )


def test_a_model_that_torch_initialises_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On threads as alone, and torch's generator is where it was; a layer on meta gets our weights."""
    monkeypatch.setitem(registry._parts["model"], "drawn", Drawn)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model = build_model("drawn", DIGITS, 10, Seed(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    first = flat(model)
    torch.rand(7)
    assert np.array_equal(first, flat(build_model("drawn", DIGITS, 10, Seed(3, rank=2, step=4, use="batch"))))
    assert not np.array_equal(first, flat(build_model("drawn", DIGITS, 10, Seed(4))))
    with ThreadPoolExecutor(4) as pool:
        seeds = [Seed(seed) for seed in (3, 4) * 8]
        together = list(pool.map(lambda seed: flat(build_model("drawn", DIGITS, 10, seed)), seeds))
    assert all(np.array_equal(each, first) for each in together[::2])
    last: Any = model[3]  # type: ignore[index]
    assert float(last.weight.detach().abs().max()) <= np.sqrt(1 / 9)
    assert not last.bias.any()
    assert set(model[1].weight.tolist()) == {1.0}  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: 3, "makes a int, not a torch.nn.Module"),
        (lambda: torch.nn.LayerNorm(4, device="meta"), "LayerNorm has tensors on the device meta, and only"),
        (lambda: torch.nn.Linear(2**40, 2**20, device="meta"), "does not fit into the memory"),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    module: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Odd(Model):
        def module(self, shape: tuple[int, ...], classes: int) -> Any:
            return module()

    monkeypatch.setitem(registry._parts["model"], "odd", Odd)
    with pytest.raises(SettingError, match=message):
        build_model("odd", DIGITS, 10, Seed(0))

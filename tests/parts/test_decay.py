"""Weight decay of some parameters and not of others, and learning rates that warm up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.exchange import ParameterServer
from qsparse.link import Link
from qsparse.local import SGD, AdamW, Local
from qsparse.local.shared import WeightDecay
from qsparse.memory import Innovation
from qsparse.registry import build, spell
from qsparse.rounds.phases import Walk
from qsparse.rounds.virtual import Virtual
from qsparse.schedules import Steps
from qsparse.seeds import Seed
from qsparse.types import Layer, Vector
from qsparse.wire.threads import run_threads

LAYOUT = (
    Layer("conv.weight", 0, 24, 4),
    Layer("norm.weight", 24, 28, 1),
    Layer("norm.bias", 28, 32, 1),
    Layer("out.weight", 32, 52, 2),
    Layer("scale", 52, 53, 0),
)
N = 53
WEIGHTS = np.r_[0:24, 32:52]
OTHERS = np.setdiff1d(np.arange(N), WEIGHTS)
START = np.random.default_rng(0).normal(size=N).astype(np.float32)


def slope(t: int) -> Vector:
    gradient: Vector = np.random.default_rng(t).normal(size=N).astype(np.float32)
    return gradient


def taken(local: Local, steps: int = 20, start: Vector = START) -> Vector:
    """The model after so many steps."""
    x = start.copy()
    state = local.init(x)

    def oracle(x: Vector, batch: Any, out: Vector) -> float:
        np.copyto(out, slope(batch))
        return 0.0

    for t in range(1, steps + 1):
        local.advance(state, oracle, t, t)
    return x


LOCALS = [
    ("SGD", SGD(0.05, weight_decay=0.3, decay_on="weights"), {"weight_decay": 0.3}),
    ("SGD", SGD(0.05, 0.9, True, 0.3, decay_on="weights"),
     {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    ("AdamW", AdamW(0.05, weight_decay=0.3, decay_on="weights"), {"weight_decay": 0.3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "local", "settings"), LOCALS)
def test_decay_of_weights_is_that_of_torchs_groups(name: str, local: Local, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    parts = [torch.nn.Parameter(torch.from_numpy(START[layer.start : layer.stop].copy())) for layer in LAYOUT]
    groups = [
        {"params": [p for p, layer in zip(parts, LAYOUT, strict=True) if layer.dims >= 2]},
        {
            "params": [p for p, layer in zip(parts, LAYOUT, strict=True) if layer.dims < 2],
            "weight_decay": 0.0,
        },
    ]
    optimizer = getattr(torch.optim, name)(groups, lr=0.05, **settings)
    for t in range(1, 21):
        for p, layer in zip(parts, LAYOUT, strict=True):
            p.grad = torch.from_numpy(slope(t)[layer.start : layer.stop].copy())
        optimizer.step()
    wanted = torch.cat([p.detach() for p in parts]).numpy()
    np.testing.assert_allclose(taken(local.bind(LAYOUT)), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("local", [SGD(0.05, 0.5, False, 0.3), AdamW(0.05, weight_decay=0.3)], ids=repr)
def test_some_decay_as_all_do_and_the_others_not_at_all(local: Any) -> None:
    from dataclasses import replace

    some = taken(replace(local, decay_on="weights").bind(LAYOUT))
    everything, nothing = taken(local), taken(replace(local, weight_decay=0.0))
    assert np.array_equal(some[WEIGHTS], everything[WEIGHTS])
    assert np.array_equal(some[OTHERS], nothing[OTHERS])
    assert np.all(everything != nothing)
    assert local.bind(LAYOUT) is local


def test_what_is_bound_and_what_is_refused() -> None:
    bound = SGD(0.1, weight_decay=0.1, decay_on="weights").bind(LAYOUT)
    assert isinstance(bound, WeightDecay)
    assert bound.decay_on == ((0, 24), (32, 52))
    assert bound.bind(LAYOUT) is bound
    unbound = build("sgd(lr=0.1, weight_decay=0.1, decay_on='weights')", "local")
    assert build(spell(unbound), "local") == unbound
    with pytest.raises(SettingError, match="does not know the model's layers"):
        taken(unbound)
    for layout in ((), (Layer("a", 0, N),), (*LAYOUT[:-1], Layer("scale", 52, 53))):
        with pytest.raises(SettingError, match="must know how many dimensions"):
            unbound.bind(layout)
    # Nothing decays, so nothing need be known.
    assert taken(SGD(0.1, decay_on="weights")).shape == (N,)
    assert taken(AdamW(0.1, weight_decay=0, decay_on="weights").bind(())).shape == (N,)
    for text in ("'biases'", "[[0, 24], [20, 52]]", "[[24, 0]]", "[[-3, 4]]", "[3]", "[[1, 2, 3]]", "3"):
        for part in ("sgd(lr=0.1, weight_decay=0.1", "adamw(lr=0.1"):
            with pytest.raises(SettingError, match=r"decay_on|cannot be made of"):
                build(f"{part}, decay_on={text})", "local")


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_decoupled_decay_of_weights(momentum: float) -> None:
    """Over real ranks and in one thread: without gradients weights shrink by (1 − ηλ), others stay."""
    local = SGD(0.5, momentum, weight_decay=0.1, decoupled=True, decay_on="weights")
    algorithm = Algorithm(local, down=Link(memory=Innovation()))

    def still(x: Vector, batch: Any, out: Vector) -> float:
        out[...] = 0
        return 0.0

    def body(wire: Any) -> tuple[Vector, Vector]:
        x = START.copy()
        walk = Walk(algorithm, ParameterServer(), wire, x, Seed(1), LAYOUT)
        for _ in walk.steps(5, still, lambda t: t):
            pass
        return x, walk.coordinators[0].model if walk.coordinators else x

    wanted, velocity = START.astype(np.float64), np.zeros(N)
    for _ in range(5):
        velocity = momentum * velocity + 0.1 * wanted
        wanted = wanted - 0.5 * velocity
    wanted[OTHERS] = START[OTHERS]
    virtual = Virtual(algorithm, 2, START, layout=LAYOUT)
    for t in range(5):
        virtual.gradients[...] = 0
        virtual.step(last=t == 4)
    models = [model for pair in run_threads(2, body, timeout=60) for model in pair]
    for model in (*models, *virtual.models, virtual.model):
        assert np.array_equal(model[OTHERS], START[OTHERS])
        np.testing.assert_allclose(model, wanted, rtol=1e-5)
        assert model.tobytes() == models[0].tobytes()


def test_steps_warm_up() -> None:
    rate = build("steps(start=0.4, after=[6, 8], factor=0.5, warmup=4)", "schedule")
    values = [rate.at(t) for t in range(1, 10)]
    np.testing.assert_allclose(values, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.2, 0.2, 0.1])
    assert [Steps(0.4, (6, 8), 0.5).at(t) for t in (1, 4, 7)] == [0.4, 0.4, 0.2]
    with pytest.raises(SettingError, match="warmup not negative"):
        Steps(0.4, (), warmup=-1)

"""Models as flat vectors, and `attach`: an ordinary training loop on several ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpirun import mpi_run

from qsparse.errors import CompositionError, DisagreementError, NotFinite, RankError, SettingError
from qsparse.local import SGD
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

torch = pytest.importorskip("torch")

import transcriptions as paper  # noqa: E402
from loops import (  # noqa: E402
    LEFTOVERS,
    REST,
    batch,
    fill,
    flat,
    frozen,
    net,
    normed,
    on_threads,
    statistics_of,
    step,
    tensors,
)
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from qsparse.algorithm import Algorithm  # noqa: E402
from qsparse.torch import attach  # noqa: E402
from qsparse.torch.flat import FlatModel  # noqa: E402
from qsparse.triggers import Drift, Every  # noqa: E402

# --- models as flat vectors ----------------------------------------------------------------------


def inside(tensor: torch.Tensor, vector: np.ndarray) -> bool:
    begin = vector.__array_interface__["data"][0]
    return begin <= tensor.data_ptr() <= begin + vector.nbytes - tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_and_gradients_are_views(dtype: Any) -> None:
    model, twin = net(1, dtype), net(1, dtype)
    flattened = FlatModel(model)
    assert np.array_equal(flattened.vector, flat(twin))
    assert flattened.vector.dtype == flattened.gradient.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert [(layer.name, layer.size) for layer in flattened.layout] == [
        (name, p.numel()) for name, p in twin.named_parameters()
    ]
    for p, layer in zip(model.parameters(), flattened.layout, strict=True):
        assert inside(p, flattened.vector)
        assert p.data_ptr() == flattened.vector[layer.start :].__array_interface__["data"][0]

    examples = batch(0, 0, dtype)
    for _ in range(2):
        flattened.zero_grad()
        assert not flattened.gradient.any()
        functional.cross_entropy(model(examples[0]), examples[1]).backward()
        for p in model.parameters():
            assert p.grad is not None
            assert inside(p.grad, flattened.gradient)
    functional.cross_entropy(twin(examples[0]), examples[1]).backward()
    wanted = torch.cat([p.grad.reshape(-1) for p in twin.parameters() if p.grad is not None])
    np.testing.assert_allclose(flattened.gradient, wanted.numpy(), rtol=1e-5, atol=1e-7)

    # Whoever drops the gradients gets them back as views, cleared.
    model.zero_grad()
    assert next(model.parameters()).grad is None
    flattened.zero_grad()
    assert all(p.grad is not None and inside(p.grad, flattened.gradient) for p in model.parameters())

    flattened.vector[:] = 0
    assert not model(examples[0]).any(), "writing the vector is writing the model"


def test_state_dict_round_trip() -> None:
    model, other = normed(1), normed(2)
    one, two = FlatModel(model), FlatModel(other)
    for t in range(3):
        model(batch(0, t, torch.float32)[0])
    state = copy.deepcopy(model.state_dict())
    assert set(state) == set(normed().state_dict())
    other.load_state_dict(state)
    assert np.array_equal(one.vector, two.vector)
    assert np.array_equal(one.buffers, two.buffers)
    assert all(inside(p, two.vector) for p in other.parameters()), "loading keeps the views"
    x = batch(0, 9, torch.float32)[0]
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_buffers_are_views() -> None:
    model, twin = normed(), normed()
    flattened = FlatModel(model)
    assert flattened.buffers.tolist() == [0] * 5 + [1] * 5
    for t in range(3):
        x = batch(0, t, torch.float32)[0]
        assert torch.equal(model(x), twin(x))
    assert isinstance(model[1], nn.BatchNorm1d)
    assert isinstance(twin[1], nn.BatchNorm1d)
    wanted = torch.cat([twin[1].running_mean, twin[1].running_var]).numpy()
    assert np.array_equal(flattened.buffers, wanted)
    assert model[1].num_batches_tracked == 3, "whole numbers stay where they are"
    assert FlatModel(net()).buffers.size == 0


def test_frozen_parameters_stay_out() -> None:
    model = net(1)
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.data_ptr()
    flattened = FlatModel(model)
    assert [layer.name for layer in flattened.layout] == ["0.bias", "2.weight", "2.bias"]
    assert model[0].weight.data_ptr() == kept
    assert flattened.covers(list(model.parameters()))
    assert not flattened.covers([model[0].bias])
    assert not flattened.covers([*model.parameters(), nn.Parameter(torch.zeros(1))])
    with pytest.raises(SettingError, match="no parameters that need a gradient"):
        FlatModel(model.requires_grad_(False))


def test_tied_parameters_are_one() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
        model[2].weight = model[0].weight
        return fill(model, 3)

    model, twin = tied(), tied()
    flattened = FlatModel(model)
    assert flattened.vector.size == 16
    assert model[0].weight is model[2].weight
    x = torch.ones(2, 4)
    flattened.zero_grad()
    for one in (model, twin):
        one(x).square().sum().backward()
    assert np.array_equal(flattened.gradient, twin[0].weight.grad.reshape(-1).numpy())


def of_one_memory(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    weight = model[0].weight
    if kind == "whole":
        model[2].weight.data = weight.data
    elif kind == "part":
        model[2].bias.data = weight.data.t()[1]
    elif kind == "frozen":
        model[2].weight = nn.Parameter(weight.data, requires_grad=False)
    elif kind == "buffer":
        model.register_buffer("bias", model[2].bias.data[2:])
    elif kind == "neighbours":
        model[0].bias.data, model[2].bias.data = torch.zeros(8).split(4)
    elif kind == "staying":
        model.register_buffer("a", torch.arange(4))
        model.register_buffer("b", model.a[1:])
    return model


@pytest.mark.parametrize(
    ("kind", "pair"),
    [
        ("whole", "'0.weight' and '2.weight'"),
        ("part", "'0.weight' and '2.bias'"),
        ("frozen", "'0.weight' and '2.weight'"),
        ("buffer", "'2.bias' and 'bias'"),
        ("neighbours", None),
        ("staying", None),
    ],
)
def test_tensors_of_one_memory_are_not_parted(kind: str, pair: str | None) -> None:
    model = of_one_memory(kind)
    if pair is None:
        assert FlatModel(model).values.numel() == 40
    else:
        with pytest.raises(SettingError, match=f"{pair} share memory"):
            FlatModel(model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m[2].double(), "several types"),
        (lambda m: m.half(), "'0.weight' is torch.float16 on cpu"),
        (lambda m: m.bfloat16(), "'0.weight' is torch.bfloat16 on cpu"),
        (lambda m: m[2].to("meta"), "'2.weight' is torch.float32 on meta"),
    ],
)
def test_models_that_do_not_fit(change: Callable[[Any], Any], reason: str) -> None:
    model = net(0, torch.float32)
    change(model)
    with pytest.raises(SettingError, match=reason):
        FlatModel(model)


def test_buffers_of_another_type_keep_it() -> None:
    model = net(0, torch.float32)
    model.register_buffer("scale", torch.full((2,), 1 / 3, dtype=torch.float64))
    FlatModel(model)
    assert model.scale.dtype == torch.float64
    assert model.scale.tolist() == [1 / 3] * 2


# --- attach: what it computes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "exchange"),
    [
        (1, "server"),
        (2, "server"),
        (2, "allgather"),
        (3, "tree(root=1)"),
        (3, "server(root=2)"),
        (4, "nodes(outer=server, ranks=2)"),
        (4, "nodes(outer=sharded, ranks=[3, 1])"),
    ],
)
def test_sgd_is_sgd_on_all_examples(ranks: int, exchange: str) -> None:
    """Momentum, Nesterov and weight decay are the optimizer's; one momentum each equals one for all."""
    settings = {"lr": 0.2, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}
    alone = net(1)
    optimizer = torch.optim.SGD(alone.parameters(), **settings)
    for t in range(40):
        batches = [batch(rank, t) for rank in range(ranks)]
        step(alone, optimizer, tuple(torch.cat(part) for part in zip(*batches, strict=True)))

    def body(wire: Wire) -> tuple[np.ndarray, int]:
        model = net(1)
        optimizer = torch.optim.SGD(model.parameters(), **settings)
        with attach(model, optimizer, "sgd", wire, exchange=exchange) as attached:
            for t in range(40):
                step(model, optimizer, batch(wire.rank, t))
        assert attached.steps == 40
        return flat(model), attached.ledger.messages["up"]

    models, said = zip(*on_threads(ranks, body), strict=True)
    # Of four ranks on two machines two speak.
    assert sum(said) == 40 * (2 if exchange.startswith("nodes") else ranks)
    assert all(np.array_equal(models[0], other) for other in models)
    np.testing.assert_allclose(models[0], flat(alone), rtol=0, atol=2e-6)
    assert np.abs(flat(net(1)) - flat(alone)).max() > 0.1


def slope(r: int, x: np.ndarray, t: int) -> np.ndarray:
    """Worker r's gradient at x in step t, with a model of its own."""
    model = net()
    nn.utils.vector_to_parameters(torch.from_numpy(x.copy()), model.parameters())
    examples, labels = batch(r, t)
    loss = functional.cross_entropy(model(examples), labels)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy()


@pytest.mark.parametrize("scheduled", [False, True])
def test_qsparse_is_the_papers_loop(scheduled: bool) -> None:
    """Also while a torch scheduler changes the rate between two meetings; `finish` meets the rest."""
    T, R = 42, 3

    def eta(t: int) -> float:
        return 0.2 * 0.5 ** ((t - 1) // 6) if scheduled else 0.2

    wanted = paper.qsparse_local_sgd(
        flat(net(1)), slope, T, R, None, None, eta,
        meetings={*range(4, T + 1, 4), T}, C=lambda v, r, t: paper.sign_top_k(v, 5), momentum=0.5,
    )  # fmt: skip

    def body(wire: Wire) -> dict[int, np.ndarray]:
        model = net(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
        attached = attach(model, optimizer, "qsparse-local-sgd(H=4, compressor=topk(k=5) >> sign)", wire)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.5) if scheduled else None
        seen = {}
        for t in range(1, T + 1):
            before = flat(model)
            step(model, optimizer, batch(wire.rank, t))
            if t % 4 == 0:
                seen[t] = flat(model)
            assert not np.array_equal(before, flat(model))
            if scheduler is not None:
                scheduler.step()
        attached.finish()
        attached.finish()
        seen[T] = flat(model)
        assert attached.ledger.messages["up"] == 11
        # Detached: steps of one's own, without the others, who take none.
        if wire.rank == 0:
            for t in range(8):
                step(model, optimizer, batch(9, t))
            assert not np.array_equal(flat(model), seen[T])
        return seen

    models = on_threads(R, body)
    for seen in models:
        assert seen.keys() == wanted.keys()
        for t, model in seen.items():
            assert np.array_equal(model, models[0][t])
            np.testing.assert_allclose(model, wanted[t], rtol=0, atol=2e-6)


def test_batch_statistics_are_averaged_at_the_end() -> None:
    R, T, H = 3, 6, 2

    def by_hand() -> tuple[np.ndarray, np.ndarray]:
        models = [normed(1) for _ in range(R)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
        for t in range(T):
            for r in range(R):
                step(models[r], optimizers[r], batch(r, t, torch.float32))
            if (t + 1) % H == 0:
                with torch.no_grad():
                    for tensors in zip(*(m.parameters() for m in models), strict=True):
                        mean = torch.stack(tensors).mean(0)
                        for tensor in tensors:
                            tensor.copy_(mean)
        return flat(models[0]), sum(map(statistics_of, models)) / R

    def body(wire: Wire) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        model = normed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, f"local-sgd(H={H})", wire) as attached:
            for t in range(T):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
            own = statistics_of(model)
        # Each meeting about the model, and one about the statistics; rank 0 hears itself.
        assert attached.ledger.messages["up"] == T / H + 1
        return flat(model), statistics_of(model), own

    weights, statistics = by_hand()
    results = on_threads(R, body)
    for ours, theirs, own in results:
        assert np.array_equal(ours, results[0][0])
        assert np.array_equal(theirs, results[0][1])
        assert np.abs(own - theirs).max() > 0.01
        np.testing.assert_allclose(ours, weights, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(theirs, statistics, rtol=1e-4, atol=1e-5)
    assert np.abs(statistics - np.repeat([0, 1], 5)).max() > 0.1


@pytest.mark.parametrize("steps", [(8, 9), (9, 8), (8, 12), (12, 8), (8, 0), (0, 8)])
def test_ranks_with_statistics_that_end_at_different_steps(steps: tuple[int, int]) -> None:
    """What one rank says of its statistics is no answer to a report about the model: an error on both."""

    def body(wire: Wire) -> None:
        model = normed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loop() -> None:
            with attach(model, optimizer, "local-sgd(H=4)", wire):
                for t in range(steps[wire.rank]):
                    step(model, optimizer, batch(wire.rank, t, torch.float32))

        with pytest.raises((DisagreementError, RankError), match="the ranks meet at different steps"):
            loop()

    run_threads(2, body, timeout=30)


def test_what_workers_skip_is_said_at_the_end() -> None:
    """Nobody finds it worth while before `finish`; then the models are averaged, and the statistics."""
    R, T = 3, 6
    algorithm = Algorithm(SGD(), Every(2) & Drift(1e9))

    def body(wire: Wire) -> tuple[np.ndarray, np.ndarray, int]:
        model = normed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, algorithm, wire) as attached:
            for t in range(T):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
            own = flat(model)
        # Three meetings and the last, and one about the statistics.
        assert attached.ledger.messages == {"up": 1 + 1, "down": 4 + 1}
        return own, flat(model), attached.ledger.skips

    results = on_threads(R, body)
    mean = sum(own for own, *_ in results) / R
    assert np.abs(results[0][0] - results[1][0]).max() > 0.05
    for _, averaged, skips in results:
        assert skips == 3
        np.testing.assert_allclose(averaged, mean, rtol=1e-4, atol=1e-6)


def test_dist_ef_is_attached() -> None:
    """A weight decay of the algorithm's own is none of the optimizer's: without one, presets fit."""

    def body(wire: Wire) -> np.ndarray:
        model = net(1, torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "dist-ef-blocksgd", wire):
            step(model, optimizer, batch(wire.rank, 0, torch.float32))
        with pytest.raises(CompositionError, match="the optimizer takes the local steps"):
            attach(model, optimizer, "dist-ef-blocksgd(weight_decay=0.1)", wire)
        return flat(model)

    one, other = on_threads(2, body)
    assert np.array_equal(one, other)
    assert not np.array_equal(one, flat(net(1, torch.float32)))


def test_all_start_from_rank_0() -> None:
    def body(wire: Wire) -> tuple[np.ndarray, float]:
        model = normed(wire.rank)
        model[1].running_mean.fill_(float(wire.rank + 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "sgd", wire):
            return flat(model), float(model[1].running_mean[0])

    for weights, mean in on_threads(3, body):
        assert np.array_equal(weights, flat(normed(0)))
        assert mean == 1


def test_what_is_in_no_vector_is_listed() -> None:
    model = frozen(0)
    rest = FlatModel(model).rest
    assert [name for name, _ in rest] == ["0.weight", *REST, "1.num_batches_tracked"]
    assert all(tensor is dict(model.named_buffers()).get(name, model[0].weight) for name, tensor in rest)
    assert FlatModel(net()).rest == []


def test_frozen_parameters_and_all_buffers_start_from_rank_0() -> None:
    def body(wire: Wire) -> dict[str, torch.Tensor]:
        model = frozen(wire.rank)
        held = dict([*model.named_parameters(), *model.named_buffers()])
        places = {name: held[name].data_ptr() for name in ("0.weight", "gaps", "count")}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "sgd", wire):
            now = dict([*model.named_parameters(), *model.named_buffers()])
            assert all(now[name] is tensor for name, tensor in held.items())
            assert all(now[name].data_ptr() == place for name, place in places.items()), "in place"
            return tensors(model)

    wanted = tensors(frozen(0))
    for started in on_threads(3, body):
        assert started.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert started[name].dtype == tensor.dtype, name
            assert torch.equal(started[name], tensor), name


def test_a_tensor_without_memory_is_refused() -> None:
    for tensor in (torch.empty(2, dtype=torch.int8, device="meta"), torch.eye(3).int().to_sparse()):
        model = net()
        model.register_buffer("odd", tensor)
        with pytest.raises(SettingError, match=r"'odd' is .*: it has no plain memory"):
            FlatModel(model)


def test_gradients_are_left_alone() -> None:
    """They are torch's own, and ``zero_grad`` drops or keeps them as it says."""

    def body(wire: Wire) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        own = optimizer.zero_grad
        with attach(model, optimizer, "sgd", wire) as attached:
            assert attached.flat.gradient.size == 0
            assert optimizer.zero_grad == own
            for t in range(3):
                step(model, optimizer, batch(0, t))
                kept = [p.grad for p in model.parameters()]
                optimizer.zero_grad(set_to_none=False)
                assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
                optimizer.zero_grad()
                assert all(p.grad is None for p in model.parameters())

    on_threads(1, body)


# --- attach: what it refuses ---------------------------------------------------------------------


def refused(
    error: type[Exception],
    reason: str,
    algorithm: Algorithm | str = "sgd",
    exchange: str = "server",
    make: Callable[[Wire], tuple[nn.Module, Any]] | None = None,
) -> None:
    """On every rank, with the same error: all of them ask for the same."""

    def body(wire: Wire) -> None:
        if make is None:
            model = net()
            optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
        else:
            model, optimizer = make(wire)
        with pytest.raises((error, RankError), match=reason) as caught:
            attach(model, optimizer, algorithm, wire, exchange=exchange)
        if wire.rank == 0:
            assert type(caught.value) is error

    on_threads(2, body)


@LEFTOVERS
def test_a_rate_of_the_algorithms_own_is_refused() -> None:
    reason = "the optimizer takes the local steps, so leave lr, momentum"
    refused(CompositionError, reason, "sgd(lr=0.2)")
    refused(CompositionError, reason, "qsparse-local-sgd(momentum=0.9)")
    refused(CompositionError, reason, "signum-majority")
    refused(CompositionError, reason, Algorithm(SGD(0.1, weight_decay=1.0)))


@LEFTOVERS
def test_what_cannot_be_composed_is_refused() -> None:
    refused(CompositionError, "every rank must work", exchange="server(works=false)")
    refused(SettingError, "no rank 5 among 2", exchange="tree(root=5)")
    refused(SettingError, "cannot keep 500 of 53", "topk-sgd(k=500)")


@LEFTOVERS
def test_an_optimizer_of_other_parameters_is_refused() -> None:
    extra = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    choices: list[Callable[[Any], Any]] = [
        lambda model: model[0].parameters(),
        lambda model: net().parameters(),
        lambda model: [*model.parameters(), extra],
    ]
    for choose in choices:

        def make(wire: Wire, choose: Callable[[Any], Any] = choose) -> tuple[nn.Module, Any]:
            model = net()
            return model, torch.optim.SGD(choose(model), lr=0.1)

        refused(SettingError, "exactly the model's trained parameters", make=make)


@LEFTOVERS
def test_different_models_disagree_on_every_rank() -> None:
    def body(wire: Wire) -> None:
        model = nn.Linear(6, 3 if wire.rank < 2 else 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(
            DisagreementError, match=r"about layers: rank 0 has .*3, 6.* and rank 2 has .*4, 6"
        ):
            attach(model, optimizer, "sgd", wire)

    on_threads(3, body)


@pytest.mark.parametrize(
    "buffers",
    [
        {"a": torch.zeros(2, 3, dtype=torch.int64)},
        {"b": torch.zeros(3, 2, dtype=torch.int64)},
        {"a": torch.zeros(3, 2, dtype=torch.int32)},
        {"a": torch.zeros(3, 2, dtype=torch.int64), "b": torch.tensor(True)},
        {},
    ],
)
def test_different_tensors_beside_the_vectors_disagree_on_every_rank(
    buffers: dict[str, torch.Tensor],
) -> None:
    def body(wire: Wire) -> None:
        model = net()
        mine = buffers if wire.rank == 1 else {"a": torch.zeros(3, 2, dtype=torch.int64)}
        for name, tensor in mine.items():
            model.register_buffer(name, tensor)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reason = r"about rest: .*'a', \[3, 2\], 'torch.int64'.* rank 1 has"
        with pytest.raises(DisagreementError, match=reason):
            attach(model, optimizer, "sgd", wire)

    on_threads(3, body)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"algorithm": ("local-sgd(H=3)", "local-sgd(H=4)")}, r"about trigger: rank 0 has 'every\(H=3\)'"),
        ({"exchange": ("server", "tree")}, "about exchange: rank 0 has 'server' and rank 1 has 'tree'"),
        ({"seed": (0, 1)}, "about seed"),
        ({"dtype": (torch.float32, torch.float64)}, "about type: rank 0 has 'float32'"),
    ],
)
@LEFTOVERS
def test_different_settings_disagree_on_every_rank(settings: dict[str, Any], reason: str) -> None:
    def body(wire: Wire) -> None:
        mine = {name: values[wire.rank] for name, values in settings.items()}
        model = net(0, mine.pop("dtype", torch.float32))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(DisagreementError, match=reason):
            attach(model, optimizer, mine.pop("algorithm", "sgd"), wire, **mine)

    on_threads(2, body)


@LEFTOVERS
def test_a_schedule_and_a_fixed_grid_do_not_go_together() -> None:
    """float16 under error feedback is fine until the rate changes; then the meeting is refused."""

    def body(wire: Wire) -> str:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
        attach(model, optimizer, "qsparse-local-sgd(H=2, compressor=float16)", wire)
        for t in range(1, 9):
            if t == 6:
                # Both refuse by themselves; who is second may have been told by the first.
                with pytest.raises((CompositionError, RankError), match="constant learning rate"):
                    step(model, optimizer, batch(wire.rank, t))
                return "refused"
            step(model, optimizer, batch(wire.rank, t))
            scheduler.step()
        return "went on"

    assert on_threads(2, body) == ["refused", "refused"]


# --- attach: errors reach everybody --------------------------------------------------------------


@LEFTOVERS
@pytest.mark.parametrize(
    "exchange",
    ["server", "server(root=2)", "tree", "tree(root=1)", "allgather", "nodes(outer=tree, ranks=2)"],
)
@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("H", [1, 4])
def test_an_exception_in_one_loop_reaches_the_others(exchange: str, failing: int, H: int) -> None:
    def body(wire: Wire) -> str:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            with attach(model, optimizer, f"local-sgd(H={H})", wire, exchange=exchange):
                for t in range(20):
                    if wire.rank == failing and t == 5:
                        raise KeyError("a label is missing")
                    step(model, optimizer, batch(wire.rank, t))
        except (RankError, KeyError) as error:
            # Detached: the optimizer is the user's again, and its steps meet nobody.
            step(model, optimizer, batch(wire.rank, 0))
            optimizer.zero_grad()
            assert all(p.grad is None for p in model.parameters())
            return f"{type(error).__name__}: {error}"
        return "went on"

    seen = on_threads(3, body)
    assert seen.pop(failing) == "KeyError: 'a label is missing'"
    assert seen == [f"RankError: rank {failing}, step 5: KeyError: 'a label is missing'"] * 2


@LEFTOVERS
@pytest.mark.parametrize(
    "exchange",
    ["server", "server(root=1)", "tree", "tree(root=2)", "allgather", "nodes(outer=server, ranks=2)"],
)
@pytest.mark.parametrize("longer", [0, 1, 2])
def test_loops_of_different_lengths_are_told(exchange: str, longer: int) -> None:
    """Nobody waits for a rank that has finished: neither in a meeting nor in ``finish``."""

    def body(wire: Wire, more: int) -> str:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, "local-sgd(H=2)", wire, exchange=exchange)
        try:
            for t in range(4 + more * (wire.rank == longer)):
                step(model, optimizer, batch(wire.rank, t))
            attached.finish()
        except (RankError, DisagreementError) as error:
            return str(error)
        return "went on"

    for more in (1, 2, 5):
        for text in on_threads(3, lambda wire, more=more: body(wire, more)):
            assert "different steps (rank: step) {" in text
            assert f"{longer}: {5 if more == 1 else 6}" in text


@LEFTOVERS
def test_nan_in_a_model_names_the_parameter() -> None:
    def body(wire: Wire) -> str:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer, "topk-sgd(k=3)", wire)
        for t in range(9):
            if (wire.rank, t) == (1, 3):
                with torch.no_grad():
                    model[2].bias[1] = float("nan")
            try:
                step(model, optimizer, batch(wire.rank, t))
            except (NotFinite, RankError) as error:
                return str(error)
        return "went on"

    for text in on_threads(2, body):
        # The gradient of what comes before the NaN is NaN, too.
        assert "rank 1, step 4" in text
        assert "parameter '0.weight', element 0" in text


# --- over processes ------------------------------------------------------------------------------


def test_processes_train_as_threads_do() -> None:
    pytest.importorskip("mpi4py")
    program = """
        import torch
        torch.set_num_threads(1)
        from mpi4py import MPI
        from qsparse.torch import attach
        from loops import batch, flat, normed, step

        def train(comm, rank):
            model = normed(rank)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            attached = attach(model, optimizer, "qsparse-local-sgd(H=2, compressor=topk(k=5) >> sign)", comm)
            for t in range(9):
                step(model, optimizer, batch(rank, t, torch.float32))
            attached.finish()
            return flat(model).tobytes().hex()

        if __name__ == "__main__":
            # The world is what is taken where no communicator is given.
            trained = train(None, MPI.COMM_WORLD.rank)
            if MPI.COMM_WORLD.rank == 0:
                print(trained)
    """
    space: dict[str, Any] = {"__name__": "program"}
    exec("\n".join(line.removeprefix(" " * 8) for line in program.splitlines()), space)
    threads = on_threads(2, lambda wire: space["train"](wire, wire.rank))
    assert mpi_run(2, program, timeout=60).stdout.split() == [threads[0]] == [threads[1]]


def test_a_wire_that_is_handed_in_stays_open() -> None:
    def body(wire: Wire) -> None:
        for _ in range(2):
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with attach(model, optimizer, "sgd", wire):
                step(model, optimizer, batch(wire.rank, 0))

    on_threads(2, body)


def test_wires_that_attach_has_made_are_closed() -> None:
    """Also after a disagreement; and nothing is said at the end."""
    pytest.importorskip("mpi4py")
    program = """
        import warnings
        warnings.simplefilter("error")
        import torch
        torch.set_num_threads(1)
        from mpi4py import MPI
        from qsparse.errors import DisagreementError, WireError
        from qsparse.torch import attach
        from qsparse.wire.mpi_end import wires_open
        from loops import batch, frozen, step, tensors

        rank = MPI.COMM_WORLD.rank
        wanted = tensors(frozen(0))
        for use in range(50):
            model = frozen(rank)
            optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1)
            if use % 10 == 9:
                try:
                    attach(model, optimizer, "sgd", seed=rank)
                except DisagreementError as error:
                    assert "about seed" in str(error)
                else:
                    raise AssertionError("the seeds differ")
                assert not wires_open
            with attach(model, optimizer, "local-sgd(H=2)", None if use % 2 else MPI.COMM_WORLD) as attached:
                started = tensors(model)
                assert all(torch.equal(started[name], wanted[name]) for name in wanted)
                for t in range(3):
                    step(model, optimizer, batch(rank, t, torch.float32))
            assert not wires_open
            attached.finish()
            assert attached.ledger.messages["up"] == 2 + 1
            try:
                attached.wire.flush()
            except WireError as error:
                assert "has closed its wire" in str(error)
            else:
                raise AssertionError("the wire is open")
        if rank == 0:
            print("done")
    """
    finished = mpi_run(2, program, timeout=60)
    assert finished.stdout.split() == ["done"]
    assert finished.stderr == ""


@pytest.mark.parametrize(("algorithm", "at"), [("sgd", 3), ("local-sgd(H=4, delay=3)", 9)])
def test_a_script_that_fails_on_one_rank_ends_with_its_traceback(algorithm: str, at: int) -> None:
    """Without ``with``: the other rank waits in a meeting, or a round is under way, and the job ends."""
    pytest.importorskip("mpi4py")
    program = """
        import sys
        import torch
        torch.set_num_threads(1)
        from qsparse.torch import attach
        from loops import batch, net, step

        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attached = attach(model, optimizer, sys.argv[1])
        for t in range(1000):
            if attached.wire.rank == 1 and t == int(sys.argv[2]):
                raise KeyError("a label is missing")
            step(model, optimizer, batch(attached.wire.rank, t))
        attached.finish()
        print("went on")
    """
    finished = mpi_run(2, program, algorithm, at, timeout=60, check=False)
    assert finished.returncode != 0
    assert finished.seconds < 50
    assert "KeyError: 'a label is missing'" in finished.stderr
    assert 'raise KeyError("a label is missing")' in finished.stderr
    assert "went on" not in finished.stdout

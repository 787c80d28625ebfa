"""No step under `attach` stays unseen, whichever optimizer takes it, nor a difference between ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import mpi_run

from qsparse.errors import CheckpointError, DisagreementError, RankError, SettingError
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, fill, flat, normed, on_threads  # noqa: E402
from optimizers import Sharp, backward, groups, in_two_calls, take, two  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from qsparse.torch import attach  # noqa: E402

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


def alike(models: list[Any]) -> bool:
    return all(np.array_equal(models[0], other) for other in models)


def refused(body: Callable[[Wire], Any], match: str, ranks: int = 2) -> None:
    """On all ranks, with this sentence."""

    def loop(wire: Wire) -> None:
        with pytest.raises((SettingError, DisagreementError, RankError), match=match):
            body(wire)

    on_threads(ranks, loop)


# --- who steps -----------------------------------------------------------------------------------


class Wrapper:
    """Passes on what it is asked for, and registers no hooks."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def step(self) -> None:
        self.inner.step()


def plainly(model: nn.Module, wire: Wire, t: int, optimizer: Any) -> None:
    backward(model, wire, t)
    optimizer.step()


def with_closure(model: nn.Module, wire: Wire, t: int, optimizer: Any) -> None:
    backward(model, wire, t)
    optimizer.step(lambda: backward(model, wire, t))


def wrapped(model: nn.Module, wire: Wire, t: int, optimizer: Any) -> None:
    backward(model, wire, t)
    Wrapper(optimizer).step()


STEPPED: dict[str, tuple[Callable[[Any], Any], Callable[..., None]]] = {
    "two calls": (Sharp, in_two_calls),
    "one within another": (Sharp, with_closure),
    "wrapper": (lambda ps: SGD(ps, lr=0.1), wrapped),
    "closures": (lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=3), with_closure),
}


@pytest.mark.parametrize("name", STEPPED)
def test_each_iteration_is_a_step(name: str) -> None:
    make, act = STEPPED[name]

    def body(wire: Wire) -> Any:
        model = normed(1)
        optimizer = make(list(model.parameters()))
        models = []
        with attach(model, optimizer, "local-sgd(H=2)", wire) as attached:
            for t in range(6):
                act(model, wire, t, optimizer)
                models.append(flat(model))
            assert attached.steps == 6
            assert attached.ledger.messages["up"] == 3
        return models[1], models[3], flat(model)

    one, other = on_threads(2, body)
    assert all(map(np.array_equal, one, other))
    assert not np.array_equal(one[0], one[2])


def test_an_optimizer_that_comes_later_takes_the_place(tmp_path: Path) -> None:
    """Its steps are exchanged; what it remembers is in a checkpoint only if it is named."""

    def body(wire: Wire, steps: int, saves: int) -> Any:
        model = normed(1)
        first = SGD(model.parameters(), lr=0.1)
        second = AdamW(model.parameters(), lr=0.01)
        with attach(model, first, "qsparse-local-sgd(H=2)", wire) as attached:
            begin = attached.resume(tmp_path, second).get("t", 0)
            for t in range(begin, steps):
                take(model, second if t >= 3 else first, wire, t)
                if t + 1 == saves:
                    with pytest.raises(SettingError, match=r"AdamW has stepped .* hand it to save"):
                        attached.save(tmp_path)
                    attached.save(tmp_path, second, t=t + 1)
            assert attached.steps == steps
        return begin, flat(model)

    whole = on_threads(2, lambda wire: body(wire, 8, 5))
    again = on_threads(2, lambda wire: body(wire, 8, 0))
    assert [begin for begin, _ in (*whole, *again)] == [0, 0, 5, 5]
    assert alike([model for _, model in (*whole, *again)])


def together(model: nn.Module, optimizers: list[Any], wire: Wire, t: int) -> None:
    backward(model, wire, t)
    for optimizer in optimizers:
        optimizer.step()


def test_several_optimizers_are_those_of_their_groups() -> None:
    """SGD for one half and SGD for the other are SGD for all, bit for bit."""

    def body(wire: Wire, several: bool) -> Any:
        model = normed(1)
        parts = groups(model) if several else [list(model.parameters())]
        optimizers = [SGD(part, lr=0.1, momentum=0.9) for part in parts]
        with attach(model, optimizers, "qsparse-local-sgd(H=2)", wire) as attached:
            for t in range(7):
                together(model, optimizers, wire, t)
        assert attached.steps == 7
        return flat(model)

    one, all_ = on_threads(2, lambda wire: body(wire, True)), on_threads(2, lambda wire: body(wire, False))
    assert alike([*one, *all_])


def test_several_optimizers_go_on(tmp_path: Path) -> None:
    """With the moments of both; also on a rank that is new, which has the mean of the others'."""

    def body(wire: Wire, steps: int) -> Any:
        model = normed(1)
        optimizers = two(model)
        with attach(model, optimizers, "qsparse-local-sgd(H=2)", wire) as attached:
            begin = attached.resume(tmp_path).get("t", 0)
            buffers = [state["exp_avg"].clone() for state in optimizers[1].state.values()]
            for t in range(begin, steps):
                together(model, optimizers, wire, t)
                if t == 4:
                    attached.save(tmp_path, t=5)
        return begin, flat(model), [each.numpy() for each in buffers]

    whole, again = (on_threads(2, lambda wire: body(wire, 9)) for _ in range(2))
    more = on_threads(3, lambda wire: body(wire, 9))
    assert [begin for begin, *_ in (*whole, *again, *more)] == [0, 0, 5, 5, 5, 5, 5]
    assert alike([model for _, model, _ in (*whole, *again)])
    assert alike([model for _, model, _ in more])
    for old, other, new in zip(*(buffers for *_, buffers in more), strict=True):
        np.testing.assert_allclose(new, (old + other) / 2, rtol=1e-5, atol=1e-8)
    reason = "optimizer is 'Muon, AdamW' there and 'SGD' here"

    def alone(wire: Wire) -> None:
        model = normed(1)
        with attach(model, SGD(model.parameters(), 0.1), "qsparse-local-sgd(H=2)", wire) as attached:
            attached.resume(tmp_path)

    with pytest.raises(CheckpointError, match=reason):
        on_threads(1, alone)


@LEFTOVERS
def test_lists_that_cannot_be_attached() -> None:
    def body(wire: Wire, choose: Callable[[Any], Any]) -> None:
        model = normed(1)
        attach(model, choose(model), "sgd", wire)

    choices: dict[str, Callable[[Any], Any]] = {
        "an empty list of optimizers": lambda model: [],
        r"the optimizers \(Muon, SGD\) share a parameter": lambda m: [two(m)[0], SGD(m.parameters(), 0.1)],
        "exactly the model's trained parameters": lambda model: two(model)[:1],
    }
    for reason, choose in choices.items():
        refused(lambda wire, choose=choose: body(wire, choose), reason)  # type: ignore[misc]


@LEFTOVERS
def test_one_of_several_that_steps_alone_is_named() -> None:
    def body(wire: Wire) -> None:
        model = normed(1)
        optimizers = two(model)
        with attach(model, optimizers, "local-sgd(H=4)", wire):
            together(model, optimizers, wire, 0)
            for t in range(1, 9):
                together(model, optimizers[1:], wire, t)

    refused(body, r"AdamW has stepped twice in one step of the loop: AdamW has stepped and Muon has not")


# --- what is trained and not exchanged -----------------------------------------------------------


class Two(nn.Module):
    """A layer that is trained, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = normed(1), fill(nn.Linear(3, 3), 2).requires_grad_(False)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


@LEFTOVERS
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_a_group_that_is_added_is_refused_in_the_next_step(inside: bool, alone: bool) -> None:
    """Also where one rank alone adds it, and where a later optimizer brings it."""
    name = r"parameter 'head\.weight'" if inside else r"a tensor of shape \(2,\) in the optimizer"

    def body(wire: Wire, later: bool) -> None:
        model = Two()
        optimizer = SGD(model.body.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=2)", wire) as attached:
            take(model, optimizer, wire, 0)
            if later:
                optimizer = SGD(model.body.parameters(), lr=0.1)
            if wire.rank == 1 or not alone:
                weight = model.head.requires_grad_(True).weight if inside else nn.Parameter(torch.ones(2))
                optimizer.add_param_group({"params": [weight], "lr": 0.1})
            for t in range(1, 5):
                assert attached.steps == 1 or (alone and wire.rank == 0)
                take(model, optimizer, wire, t)

    for later in (False, True):
        refused(lambda wire, later=later: body(wire, later), f"{name} .*is not exchanged")  # type: ignore[misc]


@LEFTOVERS
def test_a_schedule_free_optimizer_is_refused() -> None:
    """At the beginning, and where it takes the place of another one."""

    class Free(SGD):
        def train(self) -> None: ...

        def eval(self) -> None: ...

    def body(wire: Wire, kind: Any) -> None:
        model = normed(1)
        optimizer = kind(model.parameters(), lr=0.1)
        with attach(model, optimizer, "sgd", wire):
            take(model, Free(model.parameters(), lr=0.1), wire, 0)

    for kind in (Free, SGD):
        refused(lambda wire, kind=kind: body(wire, kind), "Free moves the parameters outside of step")  # type: ignore[misc]


def by_hand(model: Any, wire: Wire) -> None:
    for p in model.parameters():
        p.data -= 0.1 * (wire.rank + 1)


def swapped(model: Any, wire: Wire) -> None:
    model.load_state_dict({name: each * (wire.rank + 2) for name, each in model.state_dict().items()})


def half(model: Any, wire: Wire) -> None:
    backward(model, wire, 9)
    model.optimizers[0].step()


@LEFTOVERS
@pytest.mark.parametrize("steps", [0, 3, 4])
@pytest.mark.parametrize("change", [by_hand, swapped, half])
def test_what_moves_without_a_step_is_refused_at_the_end(change: Callable[..., None], steps: int) -> None:
    """Unless steps come after the last meeting: then it is exchanged with them."""

    def body(wire: Wire) -> Any:
        model = normed(1)
        optimizers = two(model)
        object.__setattr__(model, "optimizers", optimizers)
        with attach(model, optimizers, "local-sgd(H=2)", wire):
            for t in range(steps):
                together(model, optimizers, wire, t)
            change(model, wire)
        return flat(model)

    if steps == 3:
        assert alike(on_threads(2, body))
        return
    since = "the meeting at step 4" if steps else "the model was attached"
    pending = r"\(Muon has stepped and AdamW has not\)" if change is half else "and no rank"
    refused(body, f"the ranks end with different models: on rank 0 parameter '0.*since {since}, .*{pending}")


def test_what_moves_alike_on_all_ranks_is_no_difference() -> None:
    """As where weights are clamped after the step."""

    def body(wire: Wire) -> Any:
        model = normed(1)
        optimizer = SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=2)", wire):
            for t in range(4):
                take(model, optimizer, wire, t)
                with torch.no_grad():
                    for p in model.parameters():
                        p.clamp_(-0.2, 0.2)
        return flat(model)

    models = on_threads(2, body)
    assert alike(models)
    assert np.abs(models[0]).max() == np.float32(0.2)


# --- settings ------------------------------------------------------------------------------------


@LEFTOVERS
@pytest.mark.parametrize(("when", "noticed"), [(0, 2), (4, 8), (40, 64), (97, 98)])
def test_other_settings_on_another_rank_are_named(when: int, noticed: int) -> None:
    """At a meeting that compares, and at the end at the latest."""

    def body(wire: Wire) -> None:
        model = normed(1)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        with attach(model, optimizer, "local-sgd(H=2)", wire):
            for t in range(98):
                if t == when:
                    for loss in (3.0, 3.0 - (wire.rank == 0)):
                        plateau.step(loss)
                take(model, optimizer, wire, t)

    refused(
        body,
        f"at step {noticed} the ranks train with different settings: lr of group 0 of SGD is 0.1 on .* 0.05",
    )


@pytest.mark.parametrize(
    ("name", "values", "differ"),
    [
        ("momentum", (0.9, 0.5), True),
        ("weight_decay", (0.0, 1e-4), True),
        ("lr", (0.1, 0.1 * (1 + 1e-15)), False),
        ("lr", (0.1, torch.tensor(0.1)), False),
        ("foreach", (True, None), False),
        ("mine", (object(), object()), False),
    ],
)
@LEFTOVERS
def test_which_settings_are_compared(name: str, values: tuple[Any, Any], differ: bool) -> None:
    def body(wire: Wire) -> None:
        model = normed(1)
        optimizer = SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0][name] = values[wire.rank]
        with attach(model, optimizer, "sgd", wire):
            take(model, optimizer, wire, 0)

    if differ:
        refused(body, f"{name} of group 0 of SGD is")
    else:
        on_threads(2, body)


# --- buffers -------------------------------------------------------------------------------------


class Observed(nn.Module):
    """Batch statistics, and a layer that gives its buffer the size of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.zeros(1))
        self.inner = normed(1)

    def forward(self, x: Any) -> Any:
        if self.most.numel() != x.shape[1]:
            self.most.resize_(x.shape[1])
        self.most.copy_(x.detach().abs().amax(0))
        return self.inner(x)


@LEFTOVERS
def test_a_buffer_that_grows_leaves_its_neighbours_alone() -> None:
    def body(wire: Wire) -> None:
        model, twin = Observed(), Observed()
        optimizer = SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=4)", wire):
            for one in (model, twin):
                one(batch(wire.rank, 0, torch.float32)[0])
            assert all(map(torch.equal, model.buffers(), twin.buffers()))
            for t in range(4):
                take(model, optimizer, wire, t)

    refused(body, r"buffer 'most' was resized from \(1,\) to \(6,\) after the model was attached")


def test_a_buffer_that_has_its_size_is_averaged(tmp_path: Path) -> None:
    """And goes on from a checkpoint; no tensor shares memory with it."""

    def body(wire: Wire) -> Any:
        model = Observed()
        model(torch.zeros(2, 6))
        optimizer = SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=4)", wire) as attached:
            begin = attached.resume(tmp_path).get("t", 0)
            for t in range(begin, 6):
                take(model, optimizer, wire, t)
                if t == 3:
                    attached.save(tmp_path, t=4)
            own = [b.numpy().copy() for b in model.buffers() if b.is_floating_point()]
        sizes = [b.untyped_storage().nbytes() - b.nbytes for b in model.buffers()]
        assert sizes == [0] * len(sizes)
        return begin, own, [b.numpy() for b in model.buffers() if b.is_floating_point()]

    first, again = on_threads(2, body), on_threads(2, body)
    assert [begin for begin, *_ in (*first, *again)] == [0, 0, 4, 4]
    for place, average in enumerate(first[0][2]):
        mine, theirs = (rank[1][place] for rank in first)
        assert not np.array_equal(mine, theirs)
        np.testing.assert_allclose(average, (mine + theirs) / 2, rtol=1e-5, atol=1e-6)
        assert all(np.array_equal(average, rank[2][place]) for rank in (*first, *again))


def test_what_is_left_alone_is_saved_as_it_is(tmp_path: Path) -> None:
    """Also where a layer puts another tensor in its place, or lets it grow."""

    def body(wire: Wire) -> Any:
        model: Any = normed(1)
        model.register_buffer("seen", torch.zeros(1, dtype=torch.int64))
        model.register_buffer("count", torch.zeros((), dtype=torch.int64))
        optimizer = SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=4)", wire) as attached:
            if not attached.resume(tmp_path):
                model.count = model.count + 3
                model.seen.resize_(2).copy_(torch.tensor([5, 6]))
                attached.save(tmp_path, t=1)
        return int(model.count), model.seen.tolist()

    assert [on_threads(1, body) for _ in range(2)] == [[(3, [5, 6])]] * 2


@LEFTOVERS
@pytest.mark.parametrize("same", [True, False])
def test_a_buffer_that_comes_later_must_not_differ(same: bool) -> None:
    def body(wire: Wire) -> None:
        model = normed(1)
        optimizer = SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "local-sgd(H=4)", wire):
            take(model, optimizer, wire, 0)
            model.register_buffer("cache", torch.full((3,), 0.0 if same else float(wire.rank)))

    if same:
        on_threads(2, body)
    else:
        refused(body, "buffer 'cache' of rank 0 was not there when the model was attached")


@LEFTOVERS
def test_a_lazy_layer_is_refused() -> None:
    def body(wire: Wire) -> None:
        model = nn.Sequential(nn.LazyLinear(3))
        attach(model, SGD(model.parameters(), lr=0.1), "sgd", wire)

    refused(body, r"'0\.weight' has no shape yet.*run the model on one batch", ranks=1)


# --- gradients and compiled steps ----------------------------------------------------------------

SPARSE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "SparseAdam": (lambda: nn.Embedding(9, 4, sparse=True), lambda ps: torch.optim.SparseAdam(ps, lr=0.1)),
    "Adagrad": (
        lambda: nn.EmbeddingBag(9, 4, mode="sum", sparse=True),
        lambda ps: torch.optim.Adagrad(ps, lr=0.1),
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_gradients_stay_sparse(name: str) -> None:
    """One rank under `attach` trains as without it."""
    make, choose = SPARSE[name]

    def train(model: Any, wire: Wire | None) -> Any:
        model = copy.deepcopy(model)
        optimizer = choose(list(model.parameters()))
        attached = None if wire is None else attach(model, optimizer, "sgd", wire)
        for t in range(5):
            optimizer.zero_grad()
            model(torch.tensor([[t, t + 1, 3]])).pow(2).sum().backward()
            assert model.weight.grad.is_sparse
            optimizer.step()
        if attached is not None:
            attached.finish()
            assert attached.steps == 5
        return model.weight.detach().numpy()

    model = fill(make(), 1)
    attached = on_threads(1, lambda wire: train(model, wire))[0]
    np.testing.assert_allclose(attached, train(model, None), rtol=0, atol=1e-6)
    assert not np.array_equal(attached, model.weight.detach().numpy())


@pytest.mark.filterwarnings("ignore")  # of Dynamo, about torch itself
def test_compiled_steps_are_exchanged() -> None:
    """The exchange is a break in the graph, of a step and of an iteration."""

    def body(wire: Wire) -> Any:
        model = fill(nn.Linear(6, 3), 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with attach(model, optimizer, "sgd", wire) as attached:
            compiled = torch.compile(optimizer.step, backend="eager")
            for t in range(3):
                backward(model, wire, t)
                compiled()

            @torch.compile(backend="eager")  # type: ignore[untyped-decorator]
            def iteration(x: Any, y: Any) -> None:
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()

            for t in range(3, 6):
                iteration(*batch(wire.rank, t, torch.float32))
            assert attached.steps == attached.ledger.messages["up"] == 6
        return flat(model)

    def plain(wire: Wire) -> Any:
        model = fill(nn.Linear(6, 3), 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with attach(model, optimizer, "sgd", wire):
            for t in range(6):
                take(model, optimizer, wire, t)
        return flat(model)

    np.testing.assert_allclose(on_threads(1, body)[0], on_threads(1, plain)[0], rtol=1e-4, atol=1e-5)


# --- over processes ------------------------------------------------------------------------------


def test_scalers_phases_and_collectives_of_ones_own() -> None:
    """A step that a scaler leaves out on one rank is a step, so nobody waits in another call for ever."""
    pytest.importorskip("mpi4py")
    program = """
        import torch
        torch.set_num_threads(1)
        from mpi4py import MPI
        from qsparse.torch import attach
        from loops import batch, flat, normed
        from optimizers import Sharp, in_two_calls, take, two
        from torch.optim import SGD, AdamW
        from torch.nn import functional

        comm = MPI.COMM_WORLD

        def scaled(optimizers_of):
            model = normed(1)
            optimizers = optimizers_of(model)
            scaler = torch.amp.GradScaler("cpu")
            left_out = 0
            with attach(model, optimizers, "local-sgd(H=4)", comm) as link:
                for t in range(8):
                    x, y = batch(comm.rank, t, torch.float32)
                    model.zero_grad()
                    loss = functional.cross_entropy(model(x), y)
                    factor = float("inf") if (comm.rank, t) == (1, 4) else 1.0
                    scaler.scale(loss * factor).backward()
                    before = flat(model)
                    for optimizer in optimizers:
                        scaler.step(optimizer)
                    left_out += bool((before == flat(model)).all())
                    scaler.update()
                    comm.allreduce(float(loss.detach()))
            assert link.steps == 8
            assert left_out == (comm.rank == 1)
            return flat(model)

        def phases(make, act):
            model = normed(1)
            first, then = make(list(model.parameters())), AdamW(model.parameters(), lr=0.01)
            with attach(model, first, "local-sgd(H=1)", comm) as link:
                for t in range(6):
                    if t < 3:
                        act(model, link.wire, t, first)
                    else:
                        take(model, then, link.wire, t)
            assert link.steps == 6
            return flat(model)

        models = [
            scaled(lambda model: [SGD(model.parameters(), lr=0.1)]),
            scaled(two),
            phases(Sharp, in_two_calls),
        ]
        for model in models:
            assert all((other == model).all() for other in comm.allgather(model))
        if comm.rank == 0:
            print("done")
    """
    assert mpi_run(2, program, timeout=100).stdout.split() == ["done"]

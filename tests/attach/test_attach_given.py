"""What `attach` takes and what it refuses: optimizers, wrapped models, texts; and the names of tensors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsparse.algorithm import Algorithm
from qsparse.errors import CheckpointError, CompositionError, RankError, SettingError
from qsparse.local import Gradient
from qsparse.meeting import Async
from qsparse.participation import Sample
from qsparse.presets import qsparse_local_sgd, sgd
from qsparse.registry import settings_in, spell
from qsparse.run.checkpoint import MANIFEST, _digest_of
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, fill, flat, net, normed, step  # noqa: E402
from torch import nn  # noqa: E402

from qsparse.torch import attach  # noqa: E402
from qsparse.torch.naming import named_buffers, named_parameters  # noqa: E402
from qsparse.wrappers import plain_settings  # noqa: E402


def alone(body: Callable[[Wire], Any]) -> Any:
    return run_threads(1, body, timeout=60)[0]


# --- links ---------------------------------------------------------------------------------------


def test_the_exchange_is_chosen_for_the_links_that_are_given() -> None:
    def taken(wire: Wire, **links: Any) -> str:
        model = nn.Linear(64, 64)
        with attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "sgd", wire, **links) as attached:
            return spell(attached.exchange)

    def body(wire: Wire) -> None:
        assert taken(wire) == taken(wire, link_rate="1gbit") == "server"
        assert taken(wire, link_rate="1mbit") == "sharded"
        assert taken(wire, link_rate="1mbit", link_latency=10) == "allgather"
        with pytest.raises(SettingError, match="link rate fast: write a number with its unit"):
            taken(wire, link_rate="fast")

    run_threads(3, body, timeout=60)


# --- settings that are the optimizer's -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sgd(lr=0.1)", "lr"),
        ("sgd(0.1)", "lr"),
        ("sgd(lr=0.2)", "lr"),
        ("local_sgd(H=2, lr=0.1)", "lr"),
        ("qsparse-local-sgd(momentum=0.0)", "momentum"),
        ("qsparse-local-sgd(nesterov=false, H=4)", "nesterov"),
        ("topk-sgd(0.1, momentum=0.0, nesterov=false)", "lr and momentum and nesterov"),
        ("dist-ef-sgd( weight_decay = 0.0 )", "weight_decay"),
        ("sgd(lr=cosine(0.1))", "lr"),
    ],
)
def test_a_rate_that_is_spelled_out_is_refused_whatever_its_value(text: str, names: str) -> None:
    def body(wire: Wire) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(CompositionError) as caught:
            attach(model, optimizer, text, wire)
        assert str(caught.value).startswith(f"{text!r} gives {names}: the optimizer takes the local steps")

    alone(body)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"prelude": Algorithm(length=3)},
            "of several phases cannot be attached, because in one",
        ),
        ({"meeting": Async()}, "workers that do not wait cannot be attached"),
        (
            {"participation": Sample(0.5)},
            r"sample\(fraction=0.5\) cannot be attached, because a rank",
        ),
        ({"local": Gradient()}, "the local step gradient cannot be attached"),
    ],
)
def test_what_a_loop_cannot_do_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    def body(wire: Wire) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(CompositionError, match=reason):
            attach(model, optimizer, sgd().with_(**change), wire)

    alone(body)


def test_an_algorithm_made_in_python_is_taken_while_its_rate_is_open() -> None:
    """The rate is the optimizer's, so one that was given is refused, whatever its value."""

    def body(wire: Wire) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for taken in (qsparse_local_sgd(H=2), sgd().with_(H=2), "qsparse-local-sgd( H=2 )"):
            attach(model, optimizer, taken, wire).finish()
        for rate in (0.1, 0.2):
            said = rf"the local step sgd\(lr={rate}\) cannot be attached: the optimizer takes the local steps"
            with pytest.raises(CompositionError, match=said):
                attach(model, optimizer, qsparse_local_sgd().with_(lr=rate), wire)

    alone(body)


def test_what_a_text_gives_by_name_and_by_place() -> None:
    assert settings_in("sgd", "algorithm") == settings_in(" sgd() ", "algorithm") == []
    assert settings_in("topk(3)", "compressor") == ["k"]
    assert settings_in("blockwise(topk(k=3) >> sign, layers=true)", "compressor")[-1] == "layers"
    assert settings_in("topk(k=3) >> sign", "compressor") == [], "a sum of parts gives nothing to one of them"


# --- what is no optimizer, and what is no model --------------------------------------------------


class Delegating:
    """As frameworks wrap optimizers: steps go through, hooks do not."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self) -> None:
        self.inner.step()


class Posing(torch.optim.Optimizer):
    """Called an optimizer, without what torch's constructor makes."""

    def __init__(self, inner: Any) -> None:
        self.base = inner


def scheduler(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3)


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (Delegating, r"needs a torch.optim.Optimizer .* not a Delegating: pass the one inside, \.inner"),
        (Posing, r"not a Posing: pass the one inside, \.base"),
        (scheduler, r"not a StepLR: pass the one inside, \.optimizer"),
        (lambda optimizer: torch.optim.SGD, r"not the class SGD: SGD\(model.parameters\(\), lr=...\)"),
        (lambda optimizer: None, "not None"),
        (lambda optimizer: "sgd", "not a str"),
        (lambda optimizer: optimizer.param_groups[0]["params"][0], "not a Parameter"),
    ],
    ids=["wrapper", "posing", "scheduler", "class", "None", "text", "parameter"],
)
def test_what_is_no_optimizer_is_refused(wrap: Callable[[Any], Any], reason: str) -> None:
    def body(wire: Wire) -> None:
        model = net()
        wrapped = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(SettingError, match=reason):
            attach(model, wrapped, "sgd", wire)

    alone(body)


@LEFTOVERS
def test_the_other_ranks_are_told() -> None:
    def body(wire: Wire) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises((SettingError, RankError), match=r"needs a torch\.optim\.Optimizer") as caught:
            attach(model, Delegating(optimizer) if wire.rank == 1 else optimizer, "sgd", wire)  # type: ignore[arg-type]
        assert type(caught.value) is (SettingError if wire.rank == 1 else RankError)

    run_threads(3, body, timeout=60)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": nn.Linear}, "needs a torch.nn.Module that was made, not the class Linear"),
        ({"model": None}, "needs a torch.nn.Module that was made, not None"),
        (
            {"model": nn.Sequential(nn.LazyLinear(3))},
            "'0.weight' has no shape yet, .*: run the model on one batch",
        ),
        ({"algorithm": None}, "needs an algorithm or its text, .* not None"),
        ({"algorithm": torch.optim.SGD}, "needs an algorithm or its text, .* not the class SGD"),
        ({"exchange": None}, "needs an exchange or its text, .* not None"),
    ],
)
def test_other_things_than_were_asked_for_are_refused(change: dict[str, Any], reason: str) -> None:
    def body(wire: Wire) -> None:
        model = net()
        given = {"model": model, "algorithm": "sgd", "exchange": "server", **change}
        with pytest.raises(SettingError, match=reason):
            attach(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), comm=wire, **given)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's word about lazy modules
        alone(body)


def test_the_optimizer_inside_accelerates_is_taken() -> None:
    accelerate = pytest.importorskip("accelerate")

    def body(wire: Wire, wrapped: bool) -> Any:
        model = net(1)
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if wrapped:
            model, optimizer = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
        with attach(model, optimizer, "qsparse-local-sgd(H=2)", wire) as attached:
            for t in range(5):
                step(model, optimizer, batch(0, t))
        assert attached.steps == 5
        return flat(model).tobytes()

    assert alone(lambda wire: body(wire, True)) == alone(lambda wire: body(wire, False))


def test_what_exchanges_by_itself_is_refused(tmp_path: Path) -> None:
    """Its dense traffic would go on, and the ledger would not know of it."""
    from torch import distributed as dist
    from torch.distributed import device_mesh, fsdp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own import of what it has deprecated
        from torch.distributed.optim import ZeroRedundancyOptimizer
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    def refused(model: Any, reason: str, optimizer: Any = None) -> None:
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)

        def body(wire: Wire) -> None:
            with pytest.raises(SettingError, match=reason):
                attach(model, optimizer, "sgd", wire)

        alone(body)

    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
        remedy = "attach model.module, call it in the loop"
        refused(wrapped, f"wrapped in DistributedDataParallel, which .*: {remedy}")
        refused(nn.Sequential(nn.Linear(3, 4), wrapped), r"DistributedDataParallel \(at '1'\)")
        refused(torch.compile(wrapped, backend="eager"), r"DistributedDataParallel \(at '_orig_mod'\)")

        model = nn.Linear(4, 2)
        zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
        refused(model, r"ZeroRedundancyOptimizer exchanges by itself, .*: pass the one inside, \.optim", zero)

        sharded = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        fsdp.fully_shard(sharded, mesh=device_mesh.init_device_mesh("cpu", (1,)))
        refused(sharded, "wrapped in FSDPModule, .*needs the whole model on each rank")
    finally:
        dist.destroy_process_group()
    replicated = nn.DataParallel(nn.Linear(4, 2))
    replicated.device_ids = [0, 1]
    refused(replicated, "wrapped in DataParallel, over 2 devices: start a rank for each device")


# --- names ---------------------------------------------------------------------------------------


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


class Outer(nn.Module):
    """A module of one's own that is called as DataParallel calls what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner

    def forward(self, x: Any) -> Any:
        return self.module(x)


def layer_compiled(model: Any) -> Any:
    model[2] = compiled(model[2])
    return model


def layer_checkpointed(model: Any) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model[1] = checkpoint_wrapper(model[1])
    return model


WRAP: dict[str, Callable[[Any], Any]] = {
    "whole": compiled,
    "a layer": layer_compiled,
    "both": lambda model: compiled(layer_compiled(model)),
    "replicated": nn.DataParallel,
    "replicated, compiled": lambda model: compiled(nn.DataParallel(model)),
    "compiled, replicated": lambda model: nn.DataParallel(compiled(model)),
    "checkpointed": layer_checkpointed,
}


@pytest.mark.parametrize("wrap", WRAP)
def test_names_are_those_of_the_model_without_wrappers(wrap: str) -> None:
    plain, wrapped = normed(), WRAP[wrap](normed())
    for names in (named_parameters, named_buffers):
        assert [name for name, _ in names(wrapped)] == [name for name, _ in names(plain)]
    assert any(
        a != b for (a, _), (b, _) in zip(wrapped.named_buffers(), plain.named_buffers(), strict=True)
    ) or (wrap == "a layer")
    own = [name for name, _ in named_parameters(Outer(normed()))]
    assert own[0] == "module.0.weight", "what is no wrapper keeps its name"


POLICY = "qsparse-local-sgd(H=2, compressor='0.weight: topk(k=3) >> sign; *: sign')"


@pytest.mark.parametrize(
    ("first", "second"), [("plain", "whole"), ("whole", "plain"), ("plain", "replicated")]
)
def test_a_checkpoint_fits_with_and_without_a_wrapper(tmp_path: Path, first: str, second: str) -> None:
    """And a policy by layers means the same layers: the bits are those of a loop that was never wrapped."""

    def body(wire: Wire, kind: str, folder: Path, ends: int) -> Any:
        model = WRAP.get(kind, lambda model: model)(normed(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with attach(model, optimizer, POLICY, wire) as attached:
            begin = attached.resume(folder).get("t", 0)
            for t in range(begin, ends):
                step(model, optimizer, batch(wire.rank, t, torch.float32))
            attached.save(folder, t=ends)
        return begin, flat(model).tobytes()

    whole = run_threads(2, lambda wire: body(wire, "plain", tmp_path / "whole", 6), timeout=60)
    run_threads(2, lambda wire: body(wire, first, tmp_path / "parts", 3), timeout=60)
    # One rank may compile, and the other not.
    again = run_threads(
        2, lambda wire: body(wire, second if wire.rank else first, tmp_path / "parts", 6), timeout=60
    )
    assert [model for _, model in again] == [model for _, model in whole]
    assert [begin for begin, _ in again] == [3, 3]


def test_checkpoints_that_kept_the_names_of_wrappers_are_resumed(tmp_path: Path) -> None:
    """As those of earlier versions, whose manifest has the names as torch gives them."""

    def loop(wire: Wire, wide: int = 5) -> Any:
        model = fill(nn.Sequential(nn.Linear(6, wide), nn.BatchNorm1d(wide), nn.Linear(wide, 3)), 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attach(model, optimizer, "topk-sgd", wire) as attached:
            notes = attached.resume(tmp_path)
            step(model, optimizer, batch(wire.rank, 0, torch.float32))
            attached.save(tmp_path, saved=True, keep=1)
        return notes

    for prefix in ("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."):
        alone(loop)
        (folder,) = tmp_path.iterdir()
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["blake2b"]
        for key in ("layers", "buffers", "rest"):
            entries = manifest["settings"][key]
            manifest["settings"][key] = [[prefix + name, *more] for name, *more in entries]
        (folder / MANIFEST).write_text(json.dumps(manifest | {"blake2b": _digest_of(manifest)}))
        assert alone(loop) == {"saved": True}
    with pytest.raises(CheckpointError, match=r"of another run: buffers is .*'1.running_mean', \[5\]"):
        alone(lambda wire: loop(wire, wide=7))
    # A model of one's own whose names begin so keeps them.
    named = {"layers": [["module.a", [1]]], "buffers": [], "rest": []}
    assert plain_settings(named, named) == named

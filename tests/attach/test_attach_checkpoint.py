"""`Attached.save` and `resume`: a training loop of one's own that is ended, and goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsparse.errors import CheckpointError, SettingError
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, fill, flat, normed, step  # noqa: E402
from torch import nn  # noqa: E402

from qsparse.torch import attach  # noqa: E402

MAKE: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, nesterov=True),
    "groups": lambda ps: torch.optim.SGD([{"params": [p]} for p in ps if p.requires_grad], 0.1),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.01, amsgrad=True),
}

ALGORITHMS = {
    "feedback": "qsparse-local-sgd(H=4)",
    "both ways": "dist-ef-sgd",
    "gaps": "qsparse-local-sgd(H=5, random_gaps=true)",
    "machines": "qsparse-local-sgd(H=4)",
    "machines, compressed": "qsparse-local-sgd(H=4)",
}
EXCHANGES = {
    "machines": "nodes(outer=server, ranks=2)",
    "machines, compressed": "nodes(outer=server, ranks=2, recompress=true)",
}


def frozen(seed: int = 0) -> nn.Module:
    """Batch statistics, a counter of whole numbers, and a frozen layer of half the width."""
    model = normed(seed)
    model.append(nn.Linear(3, 3).requires_grad_(False).to(torch.bfloat16))
    fill(model[3], seed)
    return model


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = frozen(seed)

    def forward(self, x: Any) -> Any:
        hidden = self.inner[:3](x)
        return hidden + self.inner[3](hidden.to(torch.bfloat16)).float()


def loop(
    wire: Wire, folder: Path, algorithm: str, optimizer: str, steps: int, every: int = 7, **given: Any
) -> tuple[Any, Any, int]:
    """What a user writes: the parameters, the counters and the step with which it has begun."""
    model = Net(wire.rank)
    opt = MAKE[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 10)
    with attach(model, opt, algorithm, wire, **given) as attached:
        begin = attached.resume(folder, scheduler).get("t", 0)
        for t in range(begin + 1, steps + 1):
            step(model, opt, batch(wire.rank, t, torch.float32))
            scheduler.step()
            if t % every == 0:
                attached.save(folder, scheduler, t=t, keep=2)
    return (
        (flat(model), [b.numpy().copy() for b in model.buffers()], scheduler.get_last_lr()),
        {**attached.ledger.snapshot(), "seconds": None},
        begin,
    )


def same(a: Any, b: Any) -> bool:
    return bool(
        np.array_equal(a[0], b[0])
        and all(map(np.array_equal, a[1], b[1]))
        and a[2] == b[2]
        and len(a) == len(b)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_loop_goes_on(tmp_path: Path, name: str, optimizer: str) -> None:
    """The model, batch statistics, learning rate and counters are those of a loop that was not ended."""

    def body(wire: Wire, folder: Path, steps: int) -> Any:
        exchange = EXCHANGES.get(name, "auto")
        return loop(wire, folder, ALGORITHMS[name], optimizer, steps, exchange=exchange)

    whole = run_threads(3, lambda wire: body(wire, tmp_path / "whole", 33), timeout=60)
    # Checkpoints are also made where the ranks do not meet.
    for folder in sorted((tmp_path / "whole").iterdir())[1:]:
        folder.rename(tmp_path / folder.name)
    on = run_threads(3, lambda wire: body(wire, tmp_path / "whole", 33), timeout=60)
    for (model, ledger, begin), (other, counted, again) in zip(whole, on, strict=True):
        assert (begin, again) == (0, 21)
        assert same(model, other)
        for key in ("paper_bits", "messages", "skips"):
            assert ledger[key] == counted[key]
        assert ledger["wire_bytes"]["up"] == counted["wire_bytes"]["up"]


S = torch.optim.lr_scheduler

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda opt: S.StepLR(opt, 3),
    "several": lambda opt: S.MultiStepLR(opt, [3, 7, 7, 9]),
    "warm-up": lambda opt: S.SequentialLR(opt, [S.LinearLR(opt, 0.1, 1, 4), S.MultiStepLR(opt, [4, 6])], [4]),
    "of both": lambda opt: S.SequentialLR(opt, [S.StepLR(opt, 2), S.MultiStepLR(opt, [2])], [5]),
    "together": lambda opt: S.ChainedScheduler([S.StepLR(opt, 2), S.MultiStepLR(opt, [7])]),
    "cosine": lambda opt: S.CosineAnnealingLR(opt, 12),
    "one cycle": lambda opt: S.OneCycleLR(opt, 0.2, total_steps=13),
    "plateau": lambda opt: S.ReduceLROnPlateau(opt, factor=0.5, patience=1),
}


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on(tmp_path: Path, name: str) -> None:
    """The learning rates are those of a loop that was not ended, before and after a milestone."""

    def body(wire: Wire, ends: int, folder: Path) -> list[float]:
        model = fill(nn.Linear(6, 3), 0)
        opt = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scheduler = SCHEDULERS[name](opt)
        rates = []
        with attach(model, opt, "local-sgd(H=2)", wire) as attached:
            for t in range(attached.resume(folder, scheduler).get("t", 0), ends):
                step(model, opt, batch(wire.rank, t, torch.float32))
                scheduler.step(*([1.0] if name == "plateau" else []))
                rates.append(opt.param_groups[0]["lr"])
            attached.save(folder, scheduler, t=ends)
        return rates

    whole = run_threads(2, lambda wire: body(wire, 12, tmp_path / "whole"))
    parts = [run_threads(2, lambda wire, t=t: body(wire, t, tmp_path / "parts")) for t in (2, 5, 8, 12)]
    for rank, rates in enumerate(whole):
        assert [rate for part in parts for rate in part[rank]] == rates
        assert len(set(rates)) > 2


def test_torch_draws_on_where_it_was(tmp_path: Path) -> None:
    def body(wire: Wire, begin: float) -> tuple[float, Any]:
        model = fill(nn.Linear(6, 3), 0)
        with attach(model, torch.optim.SGD(model.parameters(), 0.1), "qsparse-local-sgd", wire) as attached:
            torch.manual_seed(begin)
            notes = attached.resume(tmp_path)
            if not notes:
                attached.save(tmp_path, text="ü", number=2.5)
            return float(torch.rand(())), notes

    first = run_threads(1, lambda wire: body(wire, 1))[0]
    assert run_threads(1, lambda wire: body(wire, 2))[0] == (first[0], {"text": "ü", "number": 2.5})


def test_nothing_is_said_again(tmp_path: Path) -> None:
    """A loop that was saved after its last meeting has but its statistics to say when it goes on and ends."""

    def body(wire: Wire) -> Any:
        return loop(wire, tmp_path, "qsparse-local-sgd(H=4)", "sgd", 8, every=8)

    first, again = (run_threads(2, body, timeout=60) for _ in range(2))
    for (model, ledger, begin), (other, counted, begun) in zip(first, again, strict=True):
        assert (begin, begun) == (0, 8)
        assert same(model, other)
        assert ledger["messages"] == counted["messages"] == {"up": 2 + 1, "down": 2 + 1}


@LEFTOVERS
@pytest.mark.parametrize(("ranks", "size"), [(4, 3), (3, 4), (3, 1)])
def test_other_ranks(tmp_path: Path, ranks: int, size: int) -> None:
    def body(wire: Wire, steps: int) -> Any:
        return loop(wire, tmp_path, "qsparse-local-sgd(H=4)", "sgd", steps, every=6)

    run_threads(ranks, lambda wire: body(wire, 18), timeout=60)
    # One float cannot hold the sum of three, and that is said.
    told = pytest.warns(RuntimeWarning, match="goes on with 1, whose error memories.*off by up to")
    with told if size == 1 else nullcontext():
        on = run_threads(size, lambda wire: body(wire, 40), timeout=60)
    assert {begin for _, _, begin in on} == {18}
    assert len({model[0].tobytes() for model, _, _ in on}) == 1
    assert all(np.isfinite(model[0]).all() for model, _, _ in on)
    # A meeting after every fourth step, and at the end one about the statistics.
    assert sum(ledger["messages"]["up"] for _, ledger, _ in on) == 4 * ranks + 6 * size + size


@LEFTOVERS
def test_refusals(tmp_path: Path) -> None:
    def body(wire: Wire, **given: Any) -> Any:
        algorithm = given.pop("algorithm", "qsparse-local-sgd(H=4)")
        return loop(wire, tmp_path, algorithm, given.pop("optimizer", "sgd"), 10, **given)

    run_threads(2, body, timeout=60)
    with pytest.raises(CheckpointError, match="is of another run: seed is 0 there and 1 here"):
        run_threads(2, lambda wire: body(wire, seed=1), timeout=60)
    with pytest.raises(CheckpointError, match="trigger is 'every"):
        run_threads(2, lambda wire: body(wire, algorithm="qsparse-local-sgd(H=2)"), timeout=60)
    # It would load, and miss its moments at the first step.
    with pytest.raises(CheckpointError, match="optimizer is 'SGD' there and 'AdamW' here"):
        run_threads(2, lambda wire: body(wire, optimizer="adamw"), timeout=60)
    # An optimizer of other groups says itself what it misses, on all ranks.
    with pytest.raises(ValueError, match="parameter group"):
        run_threads(2, lambda wire: body(wire, optimizer="groups"), timeout=60)


def test_resume_comes_first(tmp_path: Path) -> None:
    def body(wire: Wire) -> None:
        model = fill(nn.Linear(6, 3), 0)
        opt = torch.optim.SGD(model.parameters(), 0.1)
        with attach(model, opt, "qsparse-local-sgd", wire) as attached:
            step(model, opt, batch(0, 1, torch.float32))
            attached.resume(tmp_path)

    with pytest.raises(SettingError, match="resume comes before the first step, not after 1"):
        run_threads(1, body)


@pytest.mark.parametrize("keep", [0, -1])
def test_the_newest_checkpoint_is_kept(tmp_path: Path, keep: int) -> None:
    """Refused before anything is written or removed; the loop goes on."""

    def body(wire: Wire) -> None:
        model = fill(nn.Linear(6, 3), 0)
        opt = torch.optim.SGD(model.parameters(), 0.1)
        with attach(model, opt, "qsparse-local-sgd", wire) as attached:
            for _ in range(2):
                attached.save(tmp_path)
            with pytest.raises(SettingError, match=f"keep={keep}, .*at least 1"):
                attached.save(tmp_path, keep=keep)
            step(model, opt, batch(wire.rank, 1, torch.float32))

    run_threads(2, body)
    assert len(list(tmp_path.iterdir())) == 2

"""`attach` with gradients: the algorithm takes its own steps in a loop of one's own, as `train` does."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsparse.errors import CheckpointError, CompositionError, SettingError
from qsparse.registry import build, names
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

from loops import (  # noqa: E402
    batch,
    flat,
    net,
    no_round_is_left,  # noqa: F401
    normed,
    on_threads,
    statistics_of,
)
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from qsparse.data import Batches, Dataset, shard  # noqa: E402
from qsparse.run.config import RunConfig  # noqa: E402
from qsparse.run.making import default_batch  # noqa: E402
from qsparse.seeds import Seed  # noqa: E402
from qsparse.torch import Stepper, attach, stepper  # noqa: E402
from qsparse.torch.flat import as_batch  # noqa: E402
from qsparse.torch.models import build_model  # noqa: E402
from qsparse.train import load_data, train  # noqa: E402

SEED, BATCH, STEPS = 3, 8, 12


def text_of(name: str) -> str:
    """A preset with phases so short that a few steps go through several."""
    return f"{name}(inner=4)" if build(name, "algorithm").prelude is not None else name


@functools.cache
def digits() -> Dataset:
    return load_data(RunConfig(data="digits"))


class OwnLoop:
    """A loop of one's own with the model, the shares and the batches of ``qsparse train``."""

    def __init__(self, wire: Wire, text: str, steps: int | None = STEPS) -> None:
        data = digits()
        self.model = build_model("mlp(8)", data.shape, data.classes, Seed(SEED))
        self.link = attach(
            self.model, algorithm=text, comm=wire, gradient=self.gradient, steps=steps, seed=SEED
        )
        number = self.link.worker or 0
        self.share = shard(data.train_y, self.link.workers, "random", Seed(SEED))[number]
        self.batches = Batches(self.share, BATCH, Seed(SEED).at(rank=number, use="batch"))

    def gradient(self, batch: Any) -> float:
        """Over a whole share in the parts in which ``qsparse train`` goes over it."""
        data, examples, total = digits(), self.share if batch is None else batch, 0.0
        for part in (examples[first : first + 1000] for first in range(0, len(examples), 1000)):
            x, y = as_batch(data.train_x, data.train_y, part)
            loss = functional.cross_entropy(self.model(x), y) * (len(part) / len(examples))
            loss.backward()
            total += float(loss.detach())
        return total

    def step(self) -> float | None:
        return self.link.step(self.batches.batch(self.link.steps))

    def run(self) -> str:
        """Take the steps that are left; the model's digest then."""
        while not self.link.over:
            self.step()
        self.link.finish()
        return hashlib.sha256(flat(self.model).tobytes()).hexdigest()


# --- which presets work, and with what they are given -----------------------------------------------


@pytest.mark.parametrize("name", names("algorithm"))
def test_every_preset_makes_the_model_of_qsparse_train(name: str) -> None:
    """Bit for bit: on two ranks, of which one only serves where the algorithm has such a one."""
    text = text_of(name)
    config = RunConfig(
        data="digits", model="mlp(8)", algorithm=text, steps=STEPS, seed=SEED, threads=1, wire="threads",
        ranks=2,
    )  # fmt: skip
    if default_batch(config) is not None:
        config = replace(config, batch=BATCH)
    wanted = train(config).summary["model_sha256"]
    assert on_threads(2, lambda wire: OwnLoop(wire, text).run()) == [wanted] * 2


STEP = "the local step .* cannot be attached: the optimizer takes the local steps"
PHASES = "an algorithm of several phases cannot be attached, because in one of them full gradients take"
#: What an optimizer cannot do, by the preset that needs it; each works with gradients, as shown above.
REFUSED = {
    **dict.fromkeys(("dist-ef-sgdm", "dist-ef-blocksgdm", "signum-majority", "gd", "qgd", "laq"), STEP),
    **dict.fromkeys(("slaq", "lag-wk", "lag-ps", "lasg-wk1", "lasg-wk2"), STEP),
    **dict.fromkeys(("asylpg", "sparse-asylpg", "acc-asylpg", "asyfpg", "acc-asyfpg", "qsvrg"), STEP),
    "qsparse-local-sgd-async": "workers that do not wait cannot be attached to an optimizer",
}


@pytest.mark.parametrize("name", names("algorithm"))
def test_what_an_optimizer_cannot_do_is_refused_with_a_remedy(name: str) -> None:
    def body(wire: Wire) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if name in REFUSED:
            with pytest.raises(CompositionError, match=f"{REFUSED[name]}.*gradient=… in place of the opt"):
                attach(model, optimizer, name, wire)
        else:
            attach(model, optimizer, name, wire).finish()

    on_threads(1, body)


def small(
    wire: Wire, text: Any, steps: int | None = None, model: nn.Module | None = None, **given: Any
) -> Stepper:
    """A loop about a small model, which its ``model`` is."""
    made = net(wire.rank) if model is None else model

    def gradient(examples: Any) -> torch.Tensor:
        x, y = batch(wire.rank, 0, torch.float32) if examples is None else examples
        loss: torch.Tensor = functional.cross_entropy(made(x.to(next(made.parameters()).dtype)), y)
        loss.backward()
        return loss

    return attach(made, algorithm=text, comm=wire, gradient=gradient, steps=steps, **given)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("qsparse-local-sgd-async", "workers that do not wait share the steps of the run"),
        ("asylpg", "workers that do not wait share"),
        ("lag-ps", "the rank that serves must know when the run is over"),
        ("sgd(lr=cosine(0.1))", "a schedule without a length of its own goes by that of the run"),
    ],
)
def test_a_number_of_steps_is_asked_for_where_somebody_must_know_it(text: str, why: str) -> None:
    def body(wire: Wire) -> None:
        with pytest.raises(SettingError, match=f"needs a number of steps, because {why}.*: give attach"):
            small(wire, text)

    on_threads(2, body)


# --- how a loop ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "local-sgd(H=4)",
        "qsparse-local-sgd(H=4, delay=2)",
        "sgd(trigger=drift(1000.0))",
        "laq",
        "dist-ef-sgdm",
    ],
)
def test_a_loop_that_ends_where_it_likes_is_one_that_was_told_its_end(text: str) -> None:
    """What is left to be said is said, and nothing twice."""
    row = build(text.partition("(trigger")[0], "algorithm")
    if "drift" in text:
        row = row.with_(trigger=build("drift(1000.0)", "trigger"))

    def body(wire: Wire) -> list[np.ndarray]:
        models = []
        for steps in (6, None, 9):
            link = small(wire, row, steps)
            for t in range(6):
                assert not link.over
                link.step(batch(wire.rank, t))
            assert link.over == (steps == 6)
            model = link.flat.model
            link.finish()
            models.append(flat(model))
        return models

    told, open_, longer = zip(*on_threads(3, body), strict=True)
    for other in (open_, longer):
        assert all(np.array_equal(told[0], each) for each in (*told, *other))
    assert not np.array_equal(told[0], flat(net(0)))


@pytest.mark.parametrize("text", ["laq", "dist-ef-sgdm"])
def test_every_exchange_brings_the_steps(text: str) -> None:
    """Where all ranks work; a machine of two says one mean, which is another algorithm's model."""

    def body(wire: Wire) -> list[np.ndarray]:
        models = []
        for exchange in ("server", "server(root=2)", "tree", "allgather", "nodes(outer=server, ranks=2)"):
            link = small(wire, text, 4, net(wire.rank, torch.float32), exchange=exchange)
            assert (link.worker, link.workers) == (wire.rank, 4)
            while not link.over:
                link.step(batch(wire.rank, link.steps, torch.float32))
            model = link.flat.model
            link.finish()
            models.append(flat(model))
        return models

    found = on_threads(4, body)
    for models in found:
        assert all(np.array_equal(found[0][0], model) for model in models[:-1])
        assert np.array_equal(found[0][-1], models[-1])


@pytest.mark.parametrize("text", ["qsparse-local-sgd-async(H=3)", "asylpg(inner=5)", "lag-ps"])
def test_workers_share_the_steps_and_end_with_one_model(text: str) -> None:
    def body(wire: Wire) -> tuple[int, float | None, np.ndarray]:
        link = small(wire, text, 20)
        model, taken, loss = link.flat.model, 0, None
        if link.worker is None:
            link.serve()
        while not link.over:
            found = link.step(batch(wire.rank, taken))
            taken, loss = taken + 1, loss if found is None else found
        link.finish()
        return taken, loss, flat(model)

    (served, *_), *worked = found = on_threads(3, body)
    assert served == 0
    assert sum(taken for taken, *_ in worked) >= 40
    assert all(np.array_equal(found[0][2], model) for *_, model in worked)
    assert all(loss is not None and 0 < loss < 5 for _, loss, _ in worked if loss is not None)


def test_the_rank_that_serves_has_the_model_of_the_moment() -> None:
    """So it can be evaluated there; each answer moves it."""

    def body(wire: Wire) -> list[np.ndarray]:
        link = small(wire, "qsparse-local-sgd-async(H=1)", 5, net(wire.rank, torch.float32))
        seen = [flat(link.flat.model)]
        while not link.over:
            link.step(batch(wire.rank, link.steps, torch.float32))
            seen.append(flat(link.flat.model))
        link.finish()
        return seen

    server, worker = on_threads(2, body)
    # One worker: what it is answered is what the server has then.
    for mine, theirs in zip(server[1:5], worker[1:5], strict=True):
        assert np.array_equal(mine, theirs)
    assert len({each.tobytes() for each in server}) == 6


@pytest.mark.parametrize("text", ["signum-majority", "asyfpg(inner=3)", "qsparse-local-sgd-async(H=2)"])
def test_batch_statistics_are_averaged(text: str) -> None:
    def body(wire: Wire) -> tuple[np.ndarray, np.ndarray]:
        model = normed(wire.rank)
        link = small(wire, text, 8, model)
        while not link.over:
            link.step(batch(wire.rank, link.steps, torch.float32))
        link.finish()
        return flat(model), statistics_of(model)

    found = on_threads(3, body)
    assert not np.array_equal(found[0][1], statistics_of(normed()))
    assert all(np.array_equal(a, b) for each in found for a, b in zip(found[0], each, strict=True))


# --- gradients ----------------------------------------------------------------------------------------


def test_a_parameter_without_a_gradient_stays_and_a_sparse_one_moves() -> None:
    """As torch leaves them: None, sparse, or from several calls of backward."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(4, 2, sparse=True)
            self.idle = nn.Parameter(torch.ones(3))
            nn.init.ones_(self.words.weight)

    def body(wire: Wire) -> None:
        model = Words()

        def gradient(at: Any) -> float:
            for _ in range(2):
                model.words(at).sum().backward()
            return 1

        link = attach(model, algorithm="sgd(lr=0.25)", comm=wire, gradient=gradient)
        assert link.step(torch.tensor([1, 1, 3])) == 1.0
        link.finish()
        assert model.words.weight[:, 0].tolist() == [1, 0, 1, 0.5]
        assert model.idle.tolist() == [1, 1, 1]

    on_threads(2, body)


@pytest.mark.parametrize("text", ["laq", "lasg-wk2", "qsparse-local-sgd(H=2)", "asylpg(inner=3)"])
def test_a_model_that_lies_elsewhere_is_copied_where_it_is_used(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: local steps are taken on the host, and the module has their x at each gradient."""

    def body(wire: Wire) -> tuple[np.ndarray, np.ndarray]:
        model = normed(wire.rank)
        link = small(wire, text, 7, model)
        while not link.over:
            link.step(batch(wire.rank, link.steps, torch.float32))
            assert np.array_equal(flat(model), link._x)
        link.finish()
        return flat(model), statistics_of(model)

    here = on_threads(2, body)
    monkeypatch.setattr(stepper, "elsewhere", lambda tensor: True)
    there = on_threads(2, body)
    assert all(
        np.array_equal(a, b)
        for one, two in zip(here, there, strict=True)
        for a, b in zip(one, two, strict=True)
    )


# --- checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "laq",
        "lasg-wk1",
        "dist-ef-sgdm",
        "signum-majority",
        "qsparse-local-sgd(H=4, delay=2)",
        "lag-ps",
        "asylpg(inner=4)",
    ],
)
def test_a_loop_goes_on_from_its_checkpoint(tmp_path: Path, text: str) -> None:
    """To the bits of one that was not ended; a rank that serves saves with the others."""

    def body(wire: Wire, end: int | None) -> Any:
        loop = OwnLoop(wire, text)
        notes = loop.link.resume(tmp_path)
        while not loop.link.over:
            if end is not None and loop.link.together and loop.link.steps >= end:
                loop.link.save(tmp_path, seen=loop.link.steps)
                loop.link.finish()
                return notes
            loop.step()
        return notes, loop.run()

    wanted = on_threads(2, lambda wire: OwnLoop(wire, text).run())
    assert on_threads(2, lambda wire: body(wire, 5)) == [{}, {}]
    resumed = on_threads(2, lambda wire: body(wire, None))
    assert [model for _, model in resumed] == wanted
    assert all(5 <= notes["seen"] <= 6 for notes, _ in resumed)


def test_other_ranks_go_on_and_another_algorithm_does_not(tmp_path: Path) -> None:
    def body(wire: Wire, text: str) -> Any:
        link = small(wire, text)
        begun = link.resume(tmp_path)
        for t in range(3):
            link.step(batch(wire.rank, t))
        link.save(tmp_path, t=link.steps)
        model = link.flat.model
        link.finish()
        return begun, flat(model)

    on_threads(3, lambda wire: body(wire, "laq"))
    (begun, one), (_, two) = on_threads(2, lambda wire: body(wire, "laq"))
    assert begun == {"t": 3}
    assert np.array_equal(one, two)

    def other(wire: Wire) -> None:
        with pytest.raises(CheckpointError, match=r"compressor is .* there and 'float32' here"):
            body(wire, "lag-wk")

    on_threads(2, other)


def test_a_loop_whose_workers_do_not_wait_has_no_moment_for_a_checkpoint(tmp_path: Path) -> None:
    def body(wire: Wire) -> None:
        link = small(wire, "qsparse-local-sgd-async(H=1)", 4)
        assert link.resume(tmp_path) == {}
        with pytest.raises(SettingError, match="do not wait for each other, so that no two ranks stand"):
            link.save(tmp_path)
        while not link.over:
            link.step(batch(wire.rank, link.steps))
        link.finish()
        assert not list(tmp_path.iterdir())

    on_threads(2, body)

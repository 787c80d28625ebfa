"""``qsparse reproduce dist-ef``: a short run on the real data, and what it is made of."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reproducing import invoke, refused, shown
from torch.nn import functional

from qsparse.data import load
from qsparse.data.dataset import Dataset
from qsparse.errors import SettingError
from qsparse.reproduce import dist_ef
from qsparse.reproduce.dist_ef import BLOCK, FULL, ROWS, STRETCHES, WORKERS, DistEF, Job, Net, train
from qsparse.seeds import Seed
from qsparse.torch.models import build_model
from qsparse.torch.problem import Network

D = 784 * 128 + 128 + 1280 + 10
#: What one message takes, up and down.
FLOAT = 32 * D
WHOLE = D + 32
BLOCKS = D + 4 * 32
VOTE = 32 + math.ceil(D * math.log2(3))  # of 8, so it ties somewhere
NORMS = 4 * D + 32 * 199  # 199 blocks of 512, the last one shorter
BITS = [
    (FLOAT, FLOAT), *2 * [(WHOLE, WHOLE)], *2 * [(BLOCKS, BLOCKS)], (D, VOTE), (D, WHOLE),
    *2 * [(NORMS, NORMS)],
]  # fmt: skip


def test_quick_dist_ef(data_dir: Path, tmp_path: Path) -> None:
    record = shown(DistEF(quick=True), tmp_path, "--data-dir", data_dir, "--quiet")
    assert record["settings"] == {"quick": True, "seeds": 3, "tune": False}
    (measured,) = record["measured"]["sets"]
    assert [run["name"] for run in measured["runs"]] == [row.name for row in ROWS]
    rates = dict(zip(measured["rates"], [row.rates[0] for row in ROWS], strict=True))
    table = {line[0]: line for line in record["tables"][0]["rows"]}
    for run, (up, down) in zip(measured["runs"], BITS, strict=True):
        said = WORKERS * run["steps"]
        assert (run["parameters"], run["blocks"], run["steps"], run["seed"]) == (D, 4, 40, 0)
        assert run["messages"] == {"up": said, "down": said}
        assert run["paper_bits"] == {"up": said * up, "down": said * down}
        for way, bits in (("up", up), ("down", down)):
            # Five votes share a byte.
            packed = D / 5 if bits == VOTE else bits / 8
            assert 0 < run["wire_bytes"][way] / said - packed < 700
        assert run["lr"] == measured["rates"][run["name"]] == rates[run["name"]]
        assert run["accuracy"] > 0.3
        assert len(run["losses"]) == STRETCHES
        assert run["losses"][-1] < 0.8 * run["losses"][0]
        line = table[run["name"]]
        assert line[1] == f"{100 * run['accuracy']:.2f}"
        assert (line[3], line[5]) == (f"{FLOAT / up:.2f}", f"{FLOAT / down:.2f}")


# --- training -----------------------------------------------------------------------------------

SMALL = Net("digits", "mlp(20)", 1)
ROW = {row.name: row for row in ROWS}


def job(name: str, **change: Any) -> Job:
    return Job(SMALL, ROW[name], 0.05, 0, 60)._replace(**change)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def test_full_precision_is_sgd_on_all_batches_together(digits: Dataset) -> None:
    """Momentum of each worker, warm-up and cosine, written out with PyTorch's optimizer."""
    from qsparse.data import Batches, shard

    run = train(job(FULL), digits)
    model = build_model("mlp(20)", digits.shape, 10, Seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9, nesterov=True)
    shares = shard(digits.train_y, 8, "random", Seed(0))
    batches = [Batches(share, 16, Seed(0, rank=r, use="batch")) for r, share in enumerate(shares)]
    losses = []
    for t in range(60):
        warm, done = (t + 1) / 6, (t - 6) / 54
        optimizer.param_groups[0]["lr"] = 0.05 * (warm if t < 6 else (1 + np.cos(np.pi * done)) / 2)
        chosen = np.concatenate([each.batch(t) for each in batches])
        x, y = torch.from_numpy(digits.train_x[chosen]), torch.from_numpy(digits.train_y[chosen])
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert run["losses"] == pytest.approx(np.reshape(losses, (STRETCHES, 3)).mean(axis=1).tolist(), rel=1e-3)
    with torch.no_grad():
        right = model(torch.from_numpy(digits.test_x)).argmax(1).numpy() == digits.test_y
    assert run["accuracy"] == pytest.approx(right.mean(), abs=0.003)
    assert run["accuracy"] > 0.85


def test_held_out_examples_take_the_place_of_the_test_set(digits: Dataset) -> None:
    x = digits.train_x.copy()
    x[-437:] = np.nan  # no training survives them, and a model puts all of them into one class
    run = train(job(BLOCK, held_out=437), replace(digits, train_x=x))
    assert run["accuracy"] in np.bincount(digits.train_y[-437:]) / 437
    assert run["losses"][-1] < 1 < run["losses"][0]


def test_a_run_is_its_seed(digits: Dataset) -> None:
    name = "QSGD, both ways"
    first, again, other = (train(job(name, seed=seed), digits) for seed in (0, 0, 1))
    assert first == again
    assert first["losses"][0] != other["losses"][0]


def test_all_epochs_unless_told(digits: Dataset) -> None:
    assert train(job(FULL, net=SMALL._replace(epochs=2), steps=None), digits)["steps"] == 2 * (179 // 16)


def test_divergence_is_an_accuracy_of_zero(digits: Dataset) -> None:
    with np.errstate(all="ignore"):
        assert train(job(BLOCK, lr=1e30), digits)["accuracy"] == 0


@pytest.mark.parametrize("name", [FULL, BLOCK])
def test_weight_decay_shrinks_the_model_and_is_not_compressed(digits: Dataset, name: str) -> None:
    plain, decayed = (train(job(name, decay=decay), digits) for decay in (0.0, 0.3))
    assert decayed["losses"][-1] > 1.5 * plain["losses"][-1]
    assert decayed["paper_bits"] == plain["paper_bits"]
    assert ("decoupled=true" in str(decayed["algorithm"])) == (name == BLOCK)


def test_tuning_takes_the_best_on_held_out_examples(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist_ef, "HELD_OUT", 400)
    monkeypatch.setattr(dist_ef, "ROWS", ROWS[:1])
    found = DistEF(quick=True, tune=True)._set(0, SMALL, digits, lambda line: None)
    grid = {run["lr"]: run["accuracy"] for run in found["tuned"]}
    assert tuple(grid) == ROWS[0].grid
    best = found["rates"][FULL]
    assert grid[best] == max(grid.values()) > min(grid.values())
    assert [run["lr"] for run in found["runs"]] == [best]


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp(20)", "cnn(4, 6, 20)"])
def test_gradients_of_a_network(digits: Dataset, model: str) -> None:
    network = Network(digits, model, Seed(3))
    plain = build_model(model, digits.shape, 10, Seed(3))
    x = network.vector + np.float32(0.01) * np.arange(network.vector.size, dtype=np.float32) % 0.07
    network.put(x)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(x.copy()), plain.parameters())
    out = np.full_like(x, np.nan)
    for examples in (np.arange(16), np.arange(40, 56)):
        loss = functional.cross_entropy(
            plain(torch.from_numpy(digits.train_x[examples])), torch.from_numpy(digits.train_y[examples])
        )
        slopes = torch.autograd.grad(loss, list(plain.parameters()))
        wanted = torch.cat([slope.reshape(-1) for slope in slopes]).numpy()
        assert network.gradient(examples, out) == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_batch_statistics_are_refused(digits: Dataset) -> None:
    with pytest.raises(SettingError, match="resnet20 has batch statistics"):
        Network(digits, "resnet20", Seed(0))


# --- claims -------------------------------------------------------------------------------------


def made(**accuracies: list[float]) -> dict[str, Any]:
    """A measured data set: all have 0.9 unless told."""
    runs = []
    for row, (up, down) in zip(ROWS, BITS, strict=True):
        said = {"up": 40 * up, "down": 40 * down}
        for seed, accuracy in enumerate(accuracies.get(row.name.replace("-", "_"), [0.9, 0.9])):
            run = {
                "name": row.name,
                "seed": seed,
                "accuracy": accuracy,
                "lr": 0.1,
                "parameters": D,
                "blocks": 4,
                "steps": 5,
            }
            run |= {"losses": [0.5 if row.name.endswith("SGDM") else 1.0] * STRETCHES}
            runs.append(run | {"paper_bits": said, "wire_bytes": said})
    rates = {row.name: row.rates[0] for row in ROWS}
    both = {"data": "mnist", "model": "mlp(128)", "rates": rates, "runs": runs, "to_the_end": []}
    both |= {"rate": 0.01, "decay": 1e-3}
    return {"sets": [both]}


def test_bars_of_dist_ef() -> None:
    def met(measured: dict[str, Any]) -> list[bool]:
        return [bar.met for bar in DistEF().bars(measured)]

    assert met(made()) == [True] * 3
    assert met(made(dist_EF_BlockSGDM=[0.899, 0.892])) == [True] * 3
    assert met(made(dist_EF_BlockSGDM=[0.899, 0.890])) == [False, True, True]
    for way, wanted in (("up", [True, False, True]), ("down", [True, True, False])):
        measured = made()
        for run in measured["sets"][0]["runs"]:
            if run["name"] == BLOCK:
                run["paper_bits"] = {**run["paper_bits"], way: 40 * 32 * D / 30.9}
        assert met(measured) == wanted


def test_who_was_trained_for_longer_is_held_to_the_bar() -> None:
    measured = made(dist_EF_BlockSGDM=[0.88, 0.88])
    assert [bar.met for bar in DistEF().bars(measured)] == [False, True, True]
    assert len(DistEF().tables(measured)) == 2
    ends = made(dist_EF_BlockSGDM=[0.898, 0.894])["sets"][0]["runs"]
    measured["sets"][0]["to_the_end"] = [{**run, "steps": 50} for run in ends if run["name"] in (FULL, BLOCK)]
    assert [bar.met for bar in DistEF().bars(measured)] == [True] * 3
    table = DistEF().tables(measured)[2]
    assert table.head == ("", "5 steps", "50 steps")
    assert table.rows[2] == ["difference", "-2.00 ± 0.00", "-0.40 ± 0.28"]
    # Who was only trained for longer is shown, beside who is held to the bars.
    measured["sets"].append({**measured["sets"][0], "runs": [], "model": "cnn"})
    assert len(DistEF().bars(measured)) == 3
    table = DistEF().tables(measured)[3]
    assert table.head == ("", "50 steps")
    assert table.rows[2] == ["difference", "-0.40 ± 0.28"]


def test_what_is_said_of_the_order() -> None:
    def verdicts(**accuracies: list[float]) -> list[str]:
        return [line[3] for line in DistEF().tables(made(**accuracies))[1].rows]

    assert verdicts()[:4] == ["unclear"] * 4
    assert verdicts()[4:] == ["yes", "yes"]
    assert verdicts(dist_EF_SGDM=[0.91, 0.92])[1:4] == ["NO", "yes", "yes"]
    # Differences of 5 and −1 points, then of 6 and 1: standard errors of 3 and 2.5.
    assert verdicts(dist_EF_BlockSGD=[0.95, 0.89])[0] == "unclear"
    assert verdicts(dist_EF_BlockSGD=[0.96, 0.91])[0] == "yes"
    assert verdicts(dist_EF_BlockSGD=[0.95, 0.90], dist_EF_SGD=[0.94, 0.89])[0] == "yes"


def test_no_seeds_are_refused() -> None:
    refused(invoke("dist-ef", "--seeds", 0), "--seeds must be at least 1, not 0")

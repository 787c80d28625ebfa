"""Models, data sets, shardings and wires of one's own on the command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from mpirun import finish, start

from qsparse.cli.commands import qsparse

MINE = """
import math
import os
from dataclasses import dataclass

import numpy as np
from torch import nn

from qsparse import register
from qsparse.data import Dataset, Sharding, Source, load
from qsparse.torch.models import Model
from qsparse.wire import Threads


@register("fewer-digits")
@dataclass(frozen=True)
class Fewer(Source):
    classes: int = 10

    def load(self, data_dir, *, progress=False):
        all = load("digits")
        kept = [y < self.classes for y in (all.train_y, all.test_y)]
        return Dataset(
            "fewer-digits", all.train_x[kept[0]], all.train_y[kept[0]], all.test_x[kept[1]],
            all.test_y[kept[1]], self.classes, all.shape,
        )


@register("normed")
@dataclass(frozen=True)
class Normed(Model):
    width: int = 16

    def module(self, shape, classes):
        inputs = math.prod(shape)
        return nn.Sequential(
            nn.Flatten(), nn.LayerNorm(inputs), nn.Linear(inputs, self.width), nn.ReLU(), nn.Dropout(0.0),
            nn.Linear(self.width, classes),
        )


@register("turns")
@dataclass(frozen=True)
class Turns(Sharding):
    def deal(self, labels, ranks, seed):
        return [np.arange(rank, len(labels), ranks) for rank in range(ranks)]


@register("lanes")
@dataclass(frozen=True)
class Lanes(Threads):
    def run(self, ranks, body):
        print(ranks, "lanes")
        return super().run(ranks, body)
"""


def test_own_parts_train_over_an_own_wire_as_over_processes(root: Path, tmp_path: Path) -> None:
    """The same model, bit for bit: it is drawn by torch, from the run's seed, on every rank."""
    (tmp_path / "mine.py").write_text(MINE)
    line = [
        sys.executable, "-m", "qsparse", "train", "--import", "mine", "--model", "normed(width=12)", "--data",
        "fewer-digits(classes=4)", "--sharding", "turns", "--ranks", "2", "--seed", "3", "--epochs", "10",
        "--quiet",
    ]  # fmt: skip
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (root, tmp_path)))}
    runs = {}
    for wire in ("lanes", "mpi"):
        out = tmp_path / wire
        done = finish(start([*line, "--wire", wire, "--out", str(out)], env=paths), 120)
        assert done.returncode == 0, done
        assert ("2 lanes" in done.stdout) == (wire == "lanes"), done
        runs[wire] = json.loads((out / "summary.json").read_text())
        assert 'model = "normed(width=12)"' in (out / "config.toml").read_text()
    assert runs["lanes"]["model_sha256"] == runs["mpi"]["model_sha256"]
    assert runs["mpi"]["ranks"] == 2
    assert runs["mpi"]["test_accuracy"] > 0.97


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--model", "mpl(20)", "no model is named 'mpl': did you mean 'mlp'? known: cnn, logistic, mlp"),
        ("--data", "digit", "no data set is named 'digit': did you mean 'digits'? known: cifar10, "),
        ("--sharding", "randm", "no sharding is named 'randm': did you mean 'random'?"),
        (
            "--wire",
            "thread",
            "no wire is named 'thread': did you mean 'threads'? known: mpi, simulated, threads",
        ),
        ("--model", "mlp(width=3)", "model mlp has no setting 'width': it has sizes"),
        ("--data", "digits(3)", "data set digits cannot be made of (3)"),
        ("--wire", "threads(3)", "wire threads cannot be made of (3)"),
    ],
)
def test_what_is_no_part_is_answered_with_the_nearest(
    option: str, text: str, said: str, tmp_path: Path
) -> None:
    words = ["train", "--wire", "threads", "--steps", "1", "--out", str(tmp_path / "out"), option, text]
    result = CliRunner().invoke(qsparse, words)
    assert result.exit_code == 1
    assert said in result.stderr

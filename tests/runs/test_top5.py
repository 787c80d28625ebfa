"""Top-5 accuracy: what is counted, and where it is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from qsparse.cli.commands import qsparse
from qsparse.cli.progress import ProgressBar
from qsparse.report.plots import PICTURES
from qsparse.report.runs import methods
from qsparse.run import Score
from qsparse.torch.problem import evaluate

RNG = np.random.default_rng(11)


def counted(logits: np.ndarray, y: np.ndarray, most: int) -> int:
    """How many labels are among the first ``most`` by their numbers; of equal ones the first."""
    order = [sorted(range(logits.shape[1]), key=lambda c, row=row: (-row[c], c)) for row in logits]
    return sum(label in first[:most] for label, first in zip(y.tolist(), order, strict=True))


@pytest.mark.parametrize("values", [1000, 4, 1])
def test_it_is_among_the_five_highest(values: int) -> None:
    """Of 700 examples, which is more than are tested at a time; with few values many are equal."""
    logits = RNG.integers(0, values, (700, 9)).astype(np.float32)
    y = RNG.integers(0, 9, 700)
    score = evaluate(torch.nn.Identity(), logits, y, top5=True)
    assert score.top5 == counted(logits, y, 5)
    assert score.right == counted(logits, y, 1) < score.top5 < 700
    places = ((0, 300), (300, 300), (300, 700))
    parts = [evaluate(torch.nn.Identity(), logits, y, *place, top5=True) for place in places]
    assert Score.total(parts)[2:] == score[2:]
    assert evaluate(torch.nn.Identity(), logits, y).top5 is None


def test_numbers_that_are_none_are_not_right() -> None:
    logits = np.tile(np.arange(8, dtype=np.float32), (4, 1))
    logits[1, 7] = np.nan
    logits[2, :4] = np.nan
    logits[3] = np.nan
    y = np.full(4, 7)
    assert evaluate(torch.nn.Identity(), logits, y, top5=True).top5 == 2  # rows 0 and 2: four come before


def test_scores_without_it_have_none() -> None:
    assert Score(1, 2.0, 4).figures() == {"test_accuracy": 0.25, "test_loss": 0.5}
    assert Score.total([Score(1, 2.0, 4), Score(2, 1.0, 4)]) == Score(3, 3.0, 8)
    total = Score.total([Score(1, 2.0, 4, 3), Score(2, 1.0, 4, 3)])
    assert total.figures() == {"test_accuracy": 0.375, "test_loss": 0.375, "top5": 0.75}


@pytest.mark.parametrize("algorithm", ["qsparse-local-sgd", "asylpg"])
def test_a_run_tells_it_everywhere(tmp_path: Path, algorithm: str) -> None:
    """Where workers wait, and where the coordinator evaluates alone."""
    result = CliRunner().invoke(
        qsparse,
        ["train", "--wire", "threads", "--ranks", "2", "--model", "softmax", "--algorithm", algorithm,
         "--epochs", "2", "--out", str(tmp_path / "out")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert all(1 >= line["top5"] > line["test_accuracy"] for line in history)
    assert summary["top5"] == history[-1]["top5"] > 0.7
    assert re.search(rf"^top-5 accuracy +{summary['top5']:.4f}$", result.output, re.MULTILINE)
    bar = ProgressBar(quiet=True)
    bar.evaluated(history[-1])
    assert f", top-5 {summary['top5']:.4f}, " in bar._seen
    figure = PICTURES["top5-paper-bits"](methods([tmp_path / "out"]), None)
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(history)]
    assert line.get_ydata() == pytest.approx([each["top5"] for each in history])


def test_two_classes_have_no_five(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("".join(f"{i % 2} 1:{i % 2} 2:1\n" for i in range(60)))
    result = CliRunner().invoke(
        qsparse,
        ["train", "--wire", "threads", "--ranks", "2", "--model", "softmax", "--steps", "2",
         "--data", f"libsvm:{tmp_path}/rows", "--out", str(tmp_path / "out")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "top-5" not in result.output
    assert "top5" not in (tmp_path / "out" / "summary.json").read_text()
    assert "top5" not in (tmp_path / "out" / "history.jsonl").read_text()
    assert PICTURES["top5-link-bytes"](methods([tmp_path / "out"]), None) is None

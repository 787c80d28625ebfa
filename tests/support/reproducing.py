"""The command ``qsparse reproduce``, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from qsparse.cli.commands import qsparse
from qsparse.reproduce.base import Experiment


def invoke(*args: object) -> Result:
    return CliRunner().invoke(qsparse, ["reproduce", *map(str, args)])


def refused(result: Result, *texts: str) -> None:
    """One sentence, status 1, nothing printed as a result."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    for text in ("error: ", *texts):
        assert text in result.stderr


def shown(experiment: Experiment, out: Path, *args: object) -> dict[str, Any]:
    """Run an experiment by its command; what its file holds, which must be what was printed."""
    result = invoke(experiment.name, "--quick", "--out", out, *args)
    assert result.exit_code == 0, result.output
    record = json.loads((out / f"{experiment.name}.json").read_text())
    assert (out / f"{experiment.name}.png").read_bytes().startswith(b"\x89PNG")
    for table in experiment.tables(record["measured"]):
        assert str(table) in result.stdout
    assert record["settings"]["quick"] is True
    assert record["seconds"] > 0
    assert record["versions"]["numpy"] == np.__version__
    assert record["bars"] == []
    assert "NOT MET" not in result.stdout
    return record


def separable(path: Path) -> Path:
    """Two classes that a line divides, 105 examples of 4 features in the format of LIBSVM."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(105, 4))
    y = np.where(x @ [1, -2, 0.5, 0] > 0, 1, -1)
    lines = [
        f"{label} " + " ".join(f"{place}:{value:.4f}" for place, value in enumerate(row, 1))
        for row, label in zip(x, y, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path

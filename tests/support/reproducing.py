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

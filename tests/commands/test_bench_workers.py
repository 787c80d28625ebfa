"""``qsparse bench workers``: short runs, simulated and of real ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from links import limited
from mpirun import finish, start

from qsparse.bench.workers import runs_of
from qsparse.cli.commands import qsparse
from qsparse.ledger import ACTIVITIES

ARGS = ["bench", "workers", "--data", "digits", "--model", "mlp(20)", "--batch", "8", "--rate", "10mbit"]
TWO = ["--algorithm", "asyfpg", "--algorithm", "asylpg(bits=4)"]


def looked_at(found: dict[str, Any], text: str, workers: list[int]) -> None:
    """What every such bench finds: less travels with fewer bits, and seconds are as they are printed."""
    names = ("asyfpg", "asylpg(bits=4)")
    rows = [(run["workers"], run["name"]) for run in found["runs"]]
    assert rows == [(number, name) for number in workers for name in names]
    for full, low in zip(found["runs"][::2], found["runs"][1::2], strict=True):
        assert low["link_bytes"] < 0.5 * full["link_bytes"]
        for run in (full, low):
            split = run["seconds"]["worker"]
            assert set(split) == set(ACTIVITIES)
            assert all(each >= 0 for each in split.values())
            assert sum(split.values()) > 0
        (line,) = [
            line.split() for line in text.splitlines() if line.split()[:2] == [str(low["workers"]), names[1]]
        ]
        total, first = low["seconds"]["total"], full["seconds"]["total"]
        assert line[2:4] == [f"{total:.2f}", f"{first / total:.2f}"]


def test_over_a_simulated_network_fewer_bytes_are_less_time(tmp_path: Path) -> None:
    """Where each rank has a core of its own and the link is what takes the time."""
    file = tmp_path / "found.json"
    line = [*ARGS, *TWO, "--simulated", "--workers", "1,3", "--updates", "24", "--json", str(file)]
    done = CliRunner().invoke(qsparse, line)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text("utf-8"))
    looked_at(found, done.output, [1, 3])
    # 24 reports and as many models of 1,510 values over the coordinator's link, at 1.25 MB/s.
    slow = [run["seconds"]["total"] for run in found["runs"][::2]]
    assert min(slow) > 24 * 1510 * 4 / 1.25e6


@limited
def test_real_ranks_over_limited_links(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "qsparse", *ARGS, *TWO, "--workers", "2", "--updates", "20"]
    finished = finish(start([*command, "--json", str(file)]), 120)
    assert finished.returncode == 0, finished
    looked_at(json.loads(file.read_text("utf-8")), finished.stdout, [2])


def test_more_workers_take_fewer_steps_each() -> None:
    """All of them together as many, with one snapshot before the first where there are snapshots."""
    ((_, one), (_, other)) = runs_of(["asylpg(mu=0.1)", "qsparse-local-sgd"], 4, 100)
    assert (one.algorithm, one.steps, one.ranks) == ("asylpg(mu=0.1, inner=25)", 26, 5)
    assert (other.algorithm, other.steps) == ("qsparse-local-sgd", 25)
    ((_, given),) = runs_of(["asylpg(inner=7)"], 4, 100)
    assert (given.algorithm, given.steps) == ("asylpg(inner=7)", 25)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--workers", "4,x"], "--workers must be numbers of at least 1 with commas between, not '4,x'"),
        (["--workers", "0"], "--workers must be numbers"),
        (["--algorithm", "asylgp"], "no algorithm is named 'asylgp'"),
        (["--rate", "fast", "--simulated"], "fast"),
        (["--updates", "0"], "--updates must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(args: list[str], said: str) -> None:
    done = CliRunner().invoke(qsparse, [*ARGS, *args])
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)

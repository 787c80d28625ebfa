"""A folder of results belongs to one job at a time, and checkpoints to the run that has left them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bowl import Bowl, history, named, preset, train
from click.testing import CliRunner

import qsparse.run.folder
from qsparse.cli.commands import qsparse as command
from qsparse.cli.naming import default_folder
from qsparse.cli.train import config_of
from qsparse.cli.train import train as train_command
from qsparse.errors import CheckpointError, RankError, SettingError
from qsparse.rules import natural_exchange
from qsparse.run import Settings, run
from qsparse.run.folder import LOCK, Hold
from qsparse.run.records import Progress
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

HOLDER = """
    import os, sys, time
    from pathlib import Path
    from qsparse.run.folder import Hold

    hold = Hold(Path(sys.argv[1]))
    child = os.fork() if sys.argv[2] == "forks" else None
    if child is None or child:
        print(child or os.getpid(), flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder: Path, how: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder, and whose child lives on for a while if it forks."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), how]
    environ = {**os.environ, "SLURM_JOB_ID": "77"}
    child = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            child = int(process.stdout.readline())
            yield process
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qsparse.run.folder, "_PATIENCE", 0.1)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("how", ["", "forks"])
def test_a_folder_is_one_jobs_as_long_as_that_lives(tmp_path: Path, impatient: None, how: str) -> None:
    """And free the moment it is gone, however it ended, also where a forked child lives on."""
    folder = tmp_path / "deep" / "out"
    with holder(folder, how) as process:
        since = r"\(process \d+ on host \S+\) since \d+-\d+-\d+ \d+:\d+:\d+: name another --out"
        with pytest.raises(SettingError, match=f"{folder} is in use by job 77 {since}"):
            Hold(folder)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Hold(folder):
            with pytest.raises(SettingError, match=f"in use by process {os.getpid()} on"):
                Hold(folder)
            Hold(folder, takes_over=True).release()
    # The killed process had made the folders.
    assert list(folder.iterdir()) == []


def test_what_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with Hold(tmp_path / "a" / "b"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LOCK]
    assert not (tmp_path / "a").exists()
    with Hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_several_things_in_one_folder(tmp_path: Path, impatient: None) -> None:
    one, other = Hold(tmp_path, name=".one.lock"), Hold(tmp_path, name=".other.lock")
    with one, other, pytest.raises(SettingError, match="in use by"):
        Hold(tmp_path, name=".one.lock")


def test_without_locks_the_file_speaks(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is alive, or another machine's file that is fresh."""
    monkeypatch.setattr(qsparse.run.folder, "_lock", lambda handle: (False, False))
    with holder(tmp_path) as process, pytest.raises(SettingError, match=f"process {process.pid} on"):
        Hold(tmp_path)
    file = tmp_path / LOCK
    assert file.exists()
    Hold(tmp_path).release()
    file.write_text('{"host": "elsewhere", "pid": 1, "since": 1.0}')
    with pytest.raises(SettingError, match="process 1 on host elsewhere since "):
        Hold(tmp_path)
    os.utime(file, (time.time() - 100, time.time() - 100))
    Hold(tmp_path).release()
    file.write_text("no json")
    Hold(tmp_path).release()
    assert not file.exists()


# --- runs -------------------------------------------------------------------------------------------------


class During(Progress):
    """Does something after a step of a run."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def stepped(self, t: int, loss: float | None) -> None:
        if t == 10 and self.act is not None:
            act, self.act = self.act, None
            act()


def test_a_second_run_is_refused_before_it_changes_anything(tmp_path: Path, impatient: None) -> None:
    algorithm = preset("topk-sgd(lr=0.1)")

    def second() -> None:
        before = listing(tmp_path)
        for resume in ("none", "auto"):
            with pytest.raises((SettingError, RankError), match=r"is in use by process .*: name another"):
                train(algorithm, tmp_path / "out", steps=20, resume=resume)
        assert listing(tmp_path) == before

    train(algorithm, tmp_path / "out", ranks=1, steps=30, watcher=During(second))
    train(algorithm, tmp_path / "whole", ranks=1, steps=30)
    assert history(tmp_path / "out") == history(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoints", "history.jsonl", "summary.json",
    ]  # fmt: skip


def test_a_run_that_fails_lets_go(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the fault")

    with pytest.raises(RuntimeError, match="the fault"):
        train(preset("sgd"), tmp_path / "out", ranks=1, watcher=During(fail))
    with pytest.raises(SettingError):
        run(
            lambda: Settings(preset("sgd"), natural_exchange(preset("sgd")), steps=0),
            lambda _: Bowl(0), *[run_threads(1, lambda wire: wire)[0]], out=tmp_path / "new" / "out",
        )  # fmt: skip
    assert not (tmp_path / "new").exists()
    train(preset("sgd"), tmp_path / "out", ranks=1)
    assert not (tmp_path / "out" / LOCK).exists()


# --- checkpoints of another run ---------------------------------------------------------------------------


def test_only_its_own_checkpoints_are_removed(tmp_path: Path) -> None:
    train(preset("topk-sgd(lr=0.1)"), tmp_path, steps=60, every=10)
    before = named(tmp_path)
    assert [name.partition("-")[2] for name in before] == ["step-40", "step-50", "step-60"]
    with pytest.warns(
        RuntimeWarning, match=r"another run, which are left alone: 000006-step-60 .*seed is 0 there"
    ):
        train(preset("topk-sgd(lr=0.1)"), tmp_path, steps=60, every=10, keep=1, resume="none", seed=1)
    assert named(tmp_path) == [*before, "000012-step-60"]
    # Longer, and of other ranks: still the same run.
    with pytest.warns(RuntimeWarning, match="another run"):
        train(preset("topk-sgd(lr=0.1)"), tmp_path, 2, 80, every=10, keep=1, seed=1)
    assert named(tmp_path) == [*before, "000014-step-80"]


def test_a_loop_keeps_and_finds_its_own(tmp_path: Path) -> None:
    """Two loops that save into one folder, one after the other; and one that is alive."""
    torch = pytest.importorskip("torch")
    from qsparse.torch import attach

    def loop(seed: int, steps: int, act: Any = None) -> dict[str, Any]:
        def body(wire: Wire) -> dict[str, Any]:
            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with attach(model, optimizer, "local-sgd(H=1)", wire, seed=seed) as link:
                found = link.resume(tmp_path)
                for t in range(found.get("t", 0) + 1, steps + 1):
                    model(torch.ones(2, 4)).sum().backward()
                    optimizer.step()
                    link.save(tmp_path, keep=1, t=t)
                if act is not None:
                    act()
            return found

        return run_threads(1, body)[0]

    loop(1, 2)
    with pytest.raises(CheckpointError, match="is of another run: seed is 1 there and 2 here"):
        loop(2, 1)
    (tmp_path / "000002-step-2").rename(tmp_path.parent / "000002-step-2")
    loop(2, 5)
    (tmp_path.parent / "000002-step-2").rename(tmp_path / "000002-step-2")
    assert loop(1, 0)["t"] == 2

    def another() -> None:
        program = (
            "import sys; from pathlib import Path; from qsparse.run.folder import Hold; "
            "Hold(Path(sys.argv[1]))"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert "is in use by process" in told.stderr

    with pytest.warns(RuntimeWarning, match="another run"):
        loop(1, 3, another)
    in_use = r"in use by job 77 .*: name another folder for the checkpoints"
    with holder(tmp_path), pytest.raises(CheckpointError, match=in_use):
        loop(1, 4)
    with pytest.warns(RuntimeWarning, match="another run"):
        assert loop(1, 4)["t"] == 3
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("*/manifest.json")]
    assert sorted(each["settings"]["seed"] for each in manifests) == [1, 2]


# --- folders by default -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("", "digits-qsparse-local-sgd"),
        ("--ranks 4 --steps 9 --quiet --checkpoint-every 5", "digits-qsparse-local-sgd"),
        ("--seed 1 --lr 0.05", "digits-qsparse-local-sgd-lr-0.05-seed-1"),
        ("--algorithm local-sgd(H=1) --nesterov", "digits-local-sgd-H=1-nesterov"),
        ("--data libsvm:/a/b.txt --lr cosine(0.1)", "b.txt-qsparse-local-sgd-lr-cosine-0.1"),
    ],
)
def test_a_folder_is_named_after_what_the_run_is(line: str, name: str) -> None:
    with train_command.make_context("train", line.split()) as ctx:
        assert default_folder(config_of(ctx.params)) == Path("runs", name)


def test_long_names_are_told_apart() -> None:
    found = set()
    for k in (1, 2):
        words = ["--compressor", f"blockwise(topk(k={k}) >> qsgd(levels=15), layers=true)" * 3]
        with train_command.make_context("train", words) as ctx:
            found.add(default_folder(config_of(ctx.params)).name)
    assert len(found) == 2
    assert all(len(name) <= 100 for name in found)


def test_sweeps_and_experiments_are_alone_in_their_folders(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    with Hold(tmp_path), Hold(tmp_path, name=".laq.lock"):
        for args in (
            ["sweep", "laq", "--steps", "2", "--quiet", "--out", str(tmp_path)],
            ["reproduce", "laq", "--quick", "--quiet", "--out", str(tmp_path)],
        ):
            result = CliRunner().invoke(command, args)
            assert result.exit_code == 1, result.output
            assert "is in use by process" in result.stderr
    assert list(tmp_path.iterdir()) == []

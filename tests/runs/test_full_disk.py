"""A disk that is full, at whatever moment: a sentence that names the file, on all ranks, and status 1."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bowl import LEFTOVERS, preset, train
from click.testing import CliRunner

from qsparse.cli.commands import qsparse
from qsparse.errors import CheckpointError, DataError, QsparseError, RankError, SettingError
from qsparse.run import records

NO_ROOM = os.strerror(errno.ENOSPC)


@contextlib.contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of so many kilobytes."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted: not root, or not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, spare: int = 0) -> None:
    """Leave so many kilobytes."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    os.truncate(folder / "filler", max(0, (folder / "filler").stat().st_size - 1024 * spare))


def test_full_before_the_start(tmp_path: Path) -> None:
    """Nothing of an older run is lost."""
    with disk(tmp_path / "disk", 64) as folder:
        algorithm = preset("topk-sgd(lr=0.1)")
        train(algorithm, folder / "out", steps=20, every=None, ranks=2)
        before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
        fill(folder)
        for out in ("out", "new"):
            with pytest.raises((SettingError, RankError), match=f"cannot write to --out .*/{out}: {NO_ROOM}"):
                train(algorithm, folder / out, steps=20, every=None, ranks=2)
        assert {path: path.read_bytes() for path in (folder / "out").iterdir()} == before
        args = ["train", "--steps", "5", "--quiet", "--out", str(folder / "new")]
        result = CliRunner().invoke(qsparse, args)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("error: SettingError: cannot write to --out")
        assert result.stderr.count("\n") == 1


class Filling(records.Progress):
    """Fills a disk after a step."""

    def __init__(self, folder: Path, step: int, spare: int) -> None:
        self.folder, self.step, self.spare = folder, step, spare

    def stepped(self, t: int, loss: float | None) -> None:
        if t == self.step and not (self.folder / "filler").exists():
            fill(self.folder, self.spare)


@LEFTOVERS
@pytest.mark.parametrize(("every", "spare"), [(None, 0), (100, 0), (3, 4), (3, 12)])
def test_full_on_the_way(tmp_path: Path, every: int | None, spare: int) -> None:
    """In the history, the summary, a checkpoint: wherever it comes first, and with room it goes on."""
    with disk(tmp_path / "disk", 200) as folder:
        algorithm = preset("topk-sgd(lr=0.1)")
        watcher = Filling(folder, 11, spare)
        with pytest.raises((DataError, CheckpointError), match=NO_ROOM) as caught:
            train(algorithm, folder / "out", ranks=2, steps=3000, every=every, watcher=watcher)
        assert str(folder / "out") in str(caught.value)
        assert not (folder / "out" / "summary.json").exists()
        (folder / "filler").unlink()
        train(algorithm, folder / "out", ranks=2, steps=40, every=every)


def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let no file of this name be written whole."""
    write = records.write_whole

    def full(path: Path, text: str) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, NO_ROOM)
        write(path, text)

    monkeypatch.setattr(records, "write_whole", full)


@LEFTOVERS
@pytest.mark.parametrize("name", ["summary.json", "config.toml"])
def test_each_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    failing(monkeypatch, name)
    args = ["train", "--steps", "5", "--quiet", "--wire", "threads", "--ranks", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(qsparse, args)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith(f"error: DataError: cannot write {tmp_path}"), result.stderr
    assert f"{NO_ROOM}; make room there" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_what_others_write(tmp_path: Path) -> None:
    """Pictures, experiments, sweeps and scalars for TensorBoard."""
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    CliRunner().invoke(qsparse, ["train", "--steps", "5", "--quiet", "--out", str(run)])
    with disk(tmp_path / "disk", 64) as folder:
        (folder / "there").mkdir()
        fill(folder)
        commands: list[list[Any]] = [
            ["plot", run, "--out", folder / "plots"],
            ["plot", run, "--out", folder / "there"],
            ["reproduce", "laq", "--quick", "--quiet", "--out", folder / "there"],
            ["sweep", "laq", "--steps", "2", "--quiet", "--out", folder / "there"],
            ["train", "--steps", "5", "--quiet", "--tensorboard", "--out", folder / "there"],
        ]
        for words in commands:
            result = CliRunner().invoke(qsparse, [str(word) for word in words])
            assert result.exit_code == 1, (words, result.output)
            assert isinstance(result.exception, SystemExit | QsparseError), result
            assert NO_ROOM in result.stderr, (words, result.stderr)
            assert result.stderr.startswith("error: "), (words, result.stderr)

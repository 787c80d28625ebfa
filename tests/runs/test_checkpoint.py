"""Checkpoints: runs that go on as if they had not been ended; what is damaged, refused, or of other ranks."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bowl import LEFTOVERS, RUNS, Bowl, Fault, counted, history, named, preset, train

import qsparse.run.checkpoint
import qsparse.run.statefile
from qsparse.errors import CheckpointError, DataError, DisagreementError, SettingError
from qsparse.run import Settings, run
from qsparse.run.checkpoint import Checkpoints, Found, find, save
from qsparse.run.records import Progress
from qsparse.run.statefile import read, write
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads


def test_ranks_that_look_for_other_checkpoints_are_told(tmp_path: Path) -> None:
    """Looking is done together; a rank that does not would leave the others waiting."""

    def body(wire: Wire) -> bool:
        where = None if wire.rank == 1 else Checkpoints(tmp_path, resume="auto")
        with pytest.raises(DisagreementError, match="disagree about checkpoints"):
            run(lambda: Settings(preset("sgd"), steps=3), lambda _: Bowl(wire.rank), wire, checkpoints=where)
        return True

    assert run_threads(3, body, timeout=30) == [True] * 3


# --- a run that was ended goes on as if it had not been -------------------------------------------------


@LEFTOVERS
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_ended_goes_on(tmp_path: Path, name: str) -> None:
    """Ended three times, and gone on with each time."""
    algorithm, exchange = RUNS[name]
    whole = train(algorithm, tmp_path / "whole", every=None, exchange=exchange)
    out = tmp_path / "ended"
    for step, begin in ((5, 0), (33, 0), (58, 28)):
        fault = Fault(step)
        with pytest.raises(RuntimeError, match="the fault"):
            train(algorithm, out, exchange=exchange, watcher=fault)
        assert not (out / "summary.json").exists()
        assert fault.first >= begin, "it has really gone on from a checkpoint"
    gone_on = train(algorithm, out, exchange=exchange)
    assert counted(gone_on) == counted(whole)
    assert history(out) == history(tmp_path / "whole")
    assert len(gone_on["resumed"]) == 2


def test_a_prelude_that_skips_is_evaluated_like_a_run_that_skips(tmp_path: Path) -> None:
    """By the model that was told last, which is on no rank that has not said everything."""
    skipping = preset("local-sgd(lr=0.1)", trigger="drift(0.8)")
    plain = train(skipping, tmp_path / "plain")
    train(replace(preset("sgd"), prelude=replace(skipping, length=50)), tmp_path / "prelude")
    lines = [[line for line in history(tmp_path / n) if line["step"] < 50] for n in ("plain", "prelude")]
    assert plain["skips"]
    assert len(lines[0]) == 9
    for name in ("test_loss", "test_accuracy", "skips"):
        assert [line[name] for line in lines[0]] == [line[name] for line in lines[1]]


def counts(out: Path) -> list[str]:
    return (out / "arrivals.jsonl").read_text().splitlines()


@LEFTOVERS
@pytest.mark.parametrize(
    ("text", "per_epoch"),
    [
        ("asylpg(lr=0.1, inner=8)", 10),
        ("acc-asylpg(lr=0.1, inner=8)", 10),
        ("qsvrg(inner=5)", 10),
        ("qsvrg(inner=5)", 35),  # the last whole epoch, whose loss is reported, ends before the checkpoint
    ],
)
def test_a_prelude_is_a_moment_for_a_checkpoint(tmp_path: Path, text: str, per_epoch: int) -> None:
    """Where workers do not wait they all stand at one step in the synchronous prelude."""
    algorithm = preset(text)
    train(algorithm, tmp_path / "first", every=None, per_epoch=per_epoch)
    order = tuple(json.loads(line)["rank"] for line in counts(tmp_path / "first"))
    whole = train(algorithm, tmp_path / "whole", every=None, order=order, per_epoch=per_epoch)
    out = tmp_path / "ended"
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, out, order=order, watcher=Fault(40), per_epoch=per_epoch)
    # A prelude of one step before every 8, or before every 5.
    assert named(out)[-1].endswith("-step-37")
    watcher = Fault(-1)
    gone_on = train(algorithm, out, order=order, watcher=watcher, per_epoch=per_epoch)
    assert watcher.seen == list(range(37, 61)), "steps of the coordinator, told after the answers"
    assert history(out) == history(tmp_path / "whole")
    assert gone_on["model_sha256"] == whole["model_sha256"]
    assert counts(out) == counts(tmp_path / "whole") == counts(tmp_path / "first")
    assert gone_on["staleness"] == whole["staleness"]
    assert gone_on["resumed"][0]["step"] == 37
    assert gone_on["paper_bits"] == whole["paper_bits"]


def test_no_moment_without_meetings(tmp_path: Path) -> None:
    algorithm = preset("qsparse-local-sgd-async")
    with pytest.raises(SettingError, match="there is no moment for a checkpoint: use meeting synchronous"):
        train(algorithm, tmp_path)
    train(algorithm, tmp_path, every=None)


# --- what a checkpoint is on disk -----------------------------------------------------------------------


def alike(a: Any, b: Any) -> bool:
    """Equal in types, structure and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b or (a != a and b != b))


def test_a_file_holds_what_a_part_may_remember(tmp_path: Path) -> None:
    """Every type comes back as it was, numbers of NumPy as such, and other programs can read the tensors."""
    state = {
        "vector": np.linspace(0, 1, 7, dtype=np.float32),
        "deep": {"list": [np.arange(3), (1, 2.5, None)], "empty": np.empty((0, 0)), "flag": True},
        "at": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "numbers": {0: np.float32(0.1), "@odd": 2**63 + 1},
        "wide": [math.inf, math.nan, 1e-320, np.float64(0.1), np.bool_(True)],
        "text": "ü",
    }
    write(tmp_path / "file", state)
    found = read(tmp_path / "file")
    assert alike(found, state)
    assert not alike(found, {**state, "text": "u"})
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "file")
    assert np.array_equal(tensors["vector"], state["vector"])
    assert np.array_equal(tensors["deep/list/0"], [0, 1, 2])
    write(tmp_path / "nothing", {"t": 1})
    assert read(tmp_path / "nothing") == {"t": 1}
    with pytest.raises(CheckpointError, match="deep/thing is a set, which cannot be saved"):
        write(tmp_path / "file", {"deep": {"thing": {1}}})


def leave(wire: Wire, folder: Path, step: int = 1, keep: int = 3) -> None:
    save(wire, folder, step, lambda: {"x": np.full(9, step + wire.rank)}, {"seed": 0}, keep)


def seek(folder: Path, ranks: int, resume: str = "auto") -> Found | None:
    founds = run_threads(ranks, lambda wire: find(wire, Checkpoints(folder, resume=resume)))
    assert len({None if each is None else each.folder for each in founds}) == 1
    return founds[0]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of a tensor": (lambda c: flip(c / "rank-0001.safetensors"), "does not match its checksum"),
    "half a file": (lambda c: (c / "rank-0001.safetensors").write_bytes(b"12345"), "has 5 bytes, not"),
    "no file": (lambda c: (c / "rank-0000.safetensors").unlink(), "rank-0000.safetensors"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "cannot be read: No such file"),
    "half a manifest": (lambda c: (c / "manifest.json").write_text("{"), "manifest.json does not match"),
    "another manifest": (
        lambda c: (c / "manifest.json").write_text(
            (c / "manifest.json").read_text().replace('"step": ', '"step": 1')
        ),
        "manifest.json does not match",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, kind: str) -> None:
    damage, reason = DAMAGE[kind]
    for step in (1, 2, 22):
        run_threads(2, lambda wire, step=step: leave(wire, tmp_path, step))
    newest = tmp_path / "000003-step-22"
    assert seek(tmp_path, 2).folder == newest  # type: ignore[union-attr]
    damage(newest)
    with pytest.warns(
        RuntimeWarning, match=f"damaged checkpoint: .*000003-step-22 .*{reason}.*going on from"
    ):
        found = seek(tmp_path, 2)
    assert found is not None
    assert (found.folder.name, found.step) == ("000002-step-2", 2)
    assert found.state(1)["x"].tolist() == [3] * 9
    with pytest.raises(CheckpointError, match=f"no checkpoint of .* is whole: .*{reason}"):
        seek(tmp_path, 2, str(newest))
    # Another number of ranks needs all files.
    with pytest.warns(RuntimeWarning, match=reason):
        seek(tmp_path, 3)
    for name in ("000001-step-1", "000002-step-2"):
        damage(tmp_path / name)
    # A run that started afresh would remove them, and the disk of one rank may only be away.
    with pytest.raises(CheckpointError, match=f"no checkpoint of {tmp_path} is whole: .*{reason}.*move them"):
        seek(tmp_path, 2)


def test_where_checkpoints_are_looked_for(tmp_path: Path) -> None:
    assert seek(tmp_path / "nowhere", 2) is None
    run_threads(2, lambda wire: leave(wire, tmp_path / "out" / "checkpoints", 4))
    one = tmp_path / "out" / "checkpoints" / "000001-step-4"
    for path in (one, one.parent, one.parent.parent):
        found = seek(tmp_path / "other" / "checkpoints", 2, str(path))
        assert found is not None
        assert found.folder == one
    with pytest.raises(CheckpointError, match=f"there is no checkpoint in {tmp_path}/nowhere: name a"):
        seek(tmp_path, 2, f"{tmp_path}/nowhere")
    for bad in ({"every": 0}, {"keep": 0}):
        with pytest.raises(SettingError, match="must be at least 1, not 0"):
            Checkpoints(tmp_path, **bad)  # type: ignore[arg-type]


def test_only_whole_checkpoints_bear_a_name(tmp_path: Path) -> None:
    """What a killed job has left is cleared away; the newest few stay; other files are none of ours."""
    for name in (".000009-step-5.part", ".000001-step-1.gone", ".git", "notes"):
        (tmp_path / name).mkdir()
    for step in range(1, 6):
        run_threads(1, lambda wire, step=step: leave(wire, tmp_path, step, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".git", "000004-step-4", "000005-step-5", "notes",
    ]  # fmt: skip
    # Others than their owner can go on from them.
    for file in (tmp_path / "000005-step-5").iterdir():
        assert file.stat().st_mode & 0o777 == 0o644, file


def test_what_cannot_be_removed_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that died may have files open, which a file system of the network keeps."""
    (tmp_path / ".000001-step-5.part").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
        run_threads(1, lambda wire: leave(wire, tmp_path, 5))
    assert seek(tmp_path, 1).folder.name == "000002-step-5"  # type: ignore[union-attr]


class Power(BaseException):
    """Goes off, and nothing is done after that."""


def test_wherever_the_power_goes_off_a_whole_checkpoint_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each thing that is done to the disk in turn; with keep 1 the old one goes in the end."""
    left = 0

    def may_fail(act: Callable[..., Any]) -> Callable[..., Any]:
        def acts(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Power
            return act(*args, **kwargs)

        return acts

    found = []
    for count in itertools.count():
        folder = tmp_path / str(count)
        run_threads(1, lambda wire, folder=folder: leave(wire, folder, 1, keep=1))
        left = count
        with monkeypatch.context() as patch:
            for holder, name in (
                (os, "fsync"), (os, "open"), (Path, "mkdir"), (Path, "rename"), (Path, "open"),
                (Path, "chmod"), (shutil, "rmtree"), (qsparse.run.statefile, "sync"),
                (qsparse.run.checkpoint, "write"),
            ):  # fmt: skip
                patch.setattr(holder, name, may_fail(getattr(holder, name)))
            try:
                run_threads(1, lambda wire, folder=folder: leave(wire, folder, 2, keep=1))
            except Power:
                pass
            else:
                break
        checkpoint = seek(folder, 1)
        assert checkpoint is not None, f"nothing was left by the first {count} things"
        found.append(checkpoint.step)
        # What is left over is in nobody's way.
        run_threads(1, lambda wire, folder=folder: leave(wire, folder, 3, keep=1))
        assert len(list(folder.iterdir())) == 1
    assert found == sorted(found)
    assert min(found.count(1), found.count(2)) > 2


@LEFTOVERS
def test_a_folder_that_cannot_be_written_costs_no_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    watcher = Fault(1)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint of step 0 to .*checkpoints: "):
        train(preset("sgd"), tmp_path, resume="none", watcher=watcher)
    assert not watcher.seen
    assert not (tmp_path / "history.jsonl").exists()


@LEFTOVERS
def test_a_missing_library_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    watcher = Fault(1)
    with pytest.raises(CheckpointError, match="checkpoints need the package safetensors"):
        train(preset("sgd"), tmp_path, resume="none", watcher=watcher)
    assert not watcher.seen


def test_folders_need_not_be_synchronized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems answer EINVAL."""

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("qsparse.run.statefile.os.fsync", fsync)
    train(preset("sgd"), tmp_path, steps=8)
    assert named(tmp_path)


@LEFTOVERS
def test_one_rank_that_cannot_write_ends_all_and_harms_nothing(tmp_path: Path) -> None:
    run_threads(3, lambda wire: leave(wire, tmp_path, 1))

    def body(wire: Wire) -> None:
        try:
            save(wire, tmp_path, 2, lambda: {"x": {1}} if wire.rank == 2 else {}, {})
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    told = run_threads(3, body)
    reason = "x is a set, which cannot be saved"
    assert told[2].startswith(f"CheckpointError: {reason}")
    assert told[0] == told[1]
    assert told[0].startswith(f"CheckpointError: rank 2: {reason}")
    assert [path.name for path in tmp_path.iterdir()] == ["000001-step-1"]
    assert seek(tmp_path, 3) is not None
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"cannot write the checkpoint of step 1 to .*file: .*none was there before"
    ):
        run_threads(2, lambda wire: leave(wire, tmp_path / "file"))


# --- other settings -----------------------------------------------------------------------------------


@LEFTOVERS
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(preset("topk-sgd(lr=0.1)"), tmp_path, steps=20)
    with pytest.raises(CheckpointError, match=r"is of another run: local is 'sgd.*' there and 'sgd.*' here;"):
        train(preset("topk-sgd(lr=0.2)"), tmp_path, steps=20)
    with pytest.raises(CheckpointError, match="seed is 0 there and 1 here"):
        train(preset("topk-sgd(lr=0.1)"), tmp_path, steps=20, seed=1)
    with pytest.raises(CheckpointError, match="made after step 20, and the run has 19: give it more"):
        train(preset("topk-sgd(lr=0.1)"), tmp_path, steps=19)
    # Where a longer run was saved, a run of that length has still to meet for the last time.
    with pytest.raises(RuntimeError, match="the fault"):
        train(preset("topk-sgd(lr=0.1)"), tmp_path / "ended", steps=50, watcher=Fault(33))
    assert named(tmp_path / "ended")[-1].endswith("-step-28")
    with pytest.raises(CheckpointError, match="made after step 28, and the run has 28: give it more"):
        train(preset("topk-sgd(lr=0.1)"), tmp_path / "ended", steps=28)
    with pytest.raises(CheckpointError, match="seed is 0 there and 1 here; go on"):
        train(preset("topk-sgd(lr=0.1)"), tmp_path, steps=30, seed=1)
    # A schedule that is as long as the run is another schedule in a longer one.
    train(preset("topk-sgd(lr=cosine(0.1))"), tmp_path / "cosine", steps=20)
    with pytest.raises(CheckpointError, match=r"steps=20\)\)' there and .*steps=30.*go by the length"):
        train(preset("topk-sgd(lr=cosine(0.1))"), tmp_path / "cosine", steps=30)


class Teller(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def started(self, steps: int, after: int = 0) -> None:
        self.told.append((steps, after))

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self.told.append(record["step"])


def test_the_history_goes_on_in_another_folder(tmp_path: Path) -> None:
    """And whoever watches is told of it."""
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path / "old", steps=20)
    train(algorithm, tmp_path / "new", steps=33, every=None)  # whose history is none of this run's
    train(algorithm, tmp_path / "whole", steps=40)
    watcher = Teller()
    train(algorithm, tmp_path / "new", steps=40, resume=str(tmp_path / "old"), watcher=watcher)
    assert history(tmp_path / "new") == history(tmp_path / "whole")
    # Ranks that are threads have one watcher here, and each begins.
    steps = [line["step"] for line in history(tmp_path / "whole")]
    assert list(dict.fromkeys(watcher.told)) == [(40, 20), *steps]
    assert len(history(tmp_path / "old")) == 4


class Full(Progress):
    """After a step, no file may grow over some bytes, which to the program is a full disk."""

    def __init__(self, step: int) -> None:
        self.step, self.limits = step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def stepped(self, t: int, loss: float | None) -> None:
        if t == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, self.limits[1]))


@LEFTOVERS
def test_a_disk_that_is_full_is_said_in_a_sentence(tmp_path: Path) -> None:
    """By a run that does not write checkpoints in between, and loses none."""
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path, steps=30)
    watcher = Full(33)
    try:
        with pytest.raises(
            DataError, match=r"cannot write .*history\.jsonl: File too large; make room there"
        ):
            train(algorithm, tmp_path, steps=60, every=100, watcher=watcher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, watcher.limits)
    train(algorithm, tmp_path, steps=60)
    train(algorithm, tmp_path / "whole", steps=60)
    assert history(tmp_path) == history(tmp_path / "whole")


@pytest.mark.parametrize("where", ["its own", "elsewhere"])
def test_a_checkpoint_that_was_copied_away_takes_no_history_with_it(tmp_path: Path, where: str) -> None:
    """To go on from it is to go on with the history that lies in --out."""
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path / "run", steps=20)
    before = history(tmp_path / "run")
    newest = named(tmp_path / "run")[-1]
    backup = (tmp_path / "run" if where == "its own" else tmp_path) / "backup" / newest
    shutil.copytree(tmp_path / "run" / "checkpoints" / newest, backup)
    train(algorithm, tmp_path / "run", steps=30, resume=str(backup))
    assert history(tmp_path / "run")[: len(before)] == before


def test_a_history_is_found_beside_a_checkpoint_that_is_named_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path / "old", steps=20)
    monkeypatch.chdir(tmp_path / "old" / "checkpoints")
    train(algorithm, tmp_path / "new", steps=30, resume=named(tmp_path / "old")[-1])
    assert history(tmp_path / "new")[:4] == history(tmp_path / "old")


def test_a_history_that_is_gone_is_missed(tmp_path: Path) -> None:
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path, steps=22)
    (tmp_path / "history.jsonl").unlink()
    with pytest.warns(RuntimeWarning, match="jsonl had 5 lines after step 22, and 0 of them are left"):
        train(algorithm, tmp_path, steps=30)


def test_a_history_that_is_damaged_is_named(tmp_path: Path) -> None:
    """And is not lost: with the line mended, the run goes on."""
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path, steps=22)
    before = history(tmp_path)
    path = tmp_path / "history.jsonl"
    whole = path.read_bytes()
    first, second, *others = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([first, bytes(100), b"\xff" + second, *others]))
    with pytest.raises(DataError, match=r"history\.jsonl, line 2, is no JSON .*mend or remove the line"):
        train(algorithm, tmp_path, steps=30)
    assert path.read_bytes().startswith(first)
    path.write_bytes(whole)
    train(algorithm, tmp_path, steps=30)
    assert history(tmp_path)[: len(before)] == before


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    """And a run that is over is not done again."""
    algorithm = preset("topk-sgd(lr=0.1, momentum=0.9)")
    short = train(algorithm, tmp_path / "short", steps=20)
    again = train(algorithm, tmp_path / "short", steps=20, watcher=Fault(20))
    assert counted(again) == counted(short)
    assert len(history(tmp_path / "short")) == 4
    longer = train(algorithm, tmp_path / "short", steps=50)
    whole = train(algorithm, tmp_path / "whole", steps=50)
    assert counted(longer) == counted(whole)
    assert history(tmp_path / "short") == history(tmp_path / "whole")


def test_a_run_afresh_comes_after_what_was_there(tmp_path: Path) -> None:
    """The newest checkpoint is the one that was written last, not the one of the largest step."""
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path, steps=60)
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, tmp_path, steps=60, resume="none", watcher=Fault(10))
    assert [name.partition("-")[2] for name in named(tmp_path)] == ["step-56", "step-60", "step-7"]
    fault = Fault(11)
    with pytest.raises(RuntimeError, match="the fault"):
        train(algorithm, tmp_path, steps=60, watcher=fault)
    assert fault.first == 7


# --- other versions, and what goes away ---------------------------------------------------------------


def of_version(checkpoint: Path, version: str, **settings: Any) -> None:
    """Make a checkpoint one that another version has left."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["blake2b"]
    manifest["settings"] |= {"qsparse": version, **settings}
    path.write_text(json.dumps(manifest | {"blake2b": qsparse.run.checkpoint._digest_of(manifest)}))


def test_another_version_goes_on_with_a_word(tmp_path: Path) -> None:
    """Where format and algorithm are the same; settings that only one of the versions has do not matter."""
    algorithm = preset("topk-sgd(lr=0.1, momentum=0.9)")
    train(algorithm, tmp_path / "old", steps=20, every=10)
    of_version(tmp_path / "old" / "checkpoints" / named(tmp_path / "old")[-1], "0.0.9", since_removed=3)
    with pytest.warns(
        RuntimeWarning, match=r"was made by qsparse 0\.0\.9, and qsparse .* goes on from it"
    ) as told:
        summary = train(algorithm, tmp_path / "old", steps=40, every=10)
    assert len([each for each in told if "0.0.9" in str(each.message)]) == 1, "rank 0 says it, once"
    whole = train(algorithm, tmp_path / "whole", steps=40)
    assert summary["model_sha256"] == whole["model_sha256"]
    assert summary["resumed"][0]["step"] == 20

    # Theirs are of the same run, and make room.
    assert [name.rpartition("-")[2] for name in named(tmp_path / "old")] == ["20", "30", "40"]
    of_version(tmp_path / "old" / "checkpoints" / named(tmp_path / "old")[-1], "9.9", seed=5)
    with (
        pytest.warns(RuntimeWarning, match=r"by qsparse 9\.9"),
        pytest.raises(CheckpointError, match="of another run: seed is 5 there and 0 here"),
    ):
        train(algorithm, tmp_path / "old", steps=60)


@LEFTOVERS
def test_what_another_version_has_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = preset("topk-sgd(lr=0.1)")
    train(algorithm, tmp_path, steps=20)
    state = Found.state
    monkeypatch.setattr(
        Found, "state", lambda self, rank: {"walk": {}, "resumed": state(self, rank)["resumed"]}
    )
    with pytest.raises(KeyError):
        train(algorithm, tmp_path, steps=30)
    of_version(tmp_path / "checkpoints" / named(tmp_path)[-1], "9.9")
    reason = (
        r"made by qsparse 9\.9, and qsparse .* does not find in it what it needs \(KeyError: .*go on with the"
    )
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match=reason):
        train(algorithm, tmp_path, steps=30)


@LEFTOVERS
def test_ranks_of_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qsparse.run.job import Job

    own = Job._fingerprint

    def fingerprint(self: Job) -> dict[str, Any]:
        return own(self) | ({"qsparse": "9.9"} if self.wire.rank == 1 else {})

    monkeypatch.setattr(Job, "_fingerprint", fingerprint)
    with pytest.raises(DisagreementError, match=r"disagree about qsparse: .* and rank 1 has '9\.9'"):
        train(preset("sgd"), tmp_path, steps=5, every=None)


@LEFTOVERS
def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(qsparse.run.checkpoint, "FORMAT", 2)
        train(preset("sgd"), tmp_path, steps=20)
    with pytest.raises(CheckpointError, match="has format 2, and this version reads 1"):
        train(preset("sgd"), tmp_path, steps=30)


@LEFTOVERS
@pytest.mark.parametrize("when", ["before it is looked at", "before it is read"])
def test_a_checkpoint_that_goes_away_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Another job may remove older ones while this one looks for the newest."""
    train(preset("sgd"), tmp_path / "run", steps=20)
    folder = tmp_path / "run" / "checkpoints"

    def gone(*_: Any) -> None:
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    name = "_check" if when == "before it is looked at" else "everybodys"
    before = getattr(qsparse.run.checkpoint, name)

    def act(*args: Any) -> Any:
        if name == "_check":
            gone()
            return before(*args)
        answers = before(*args)
        if isinstance(answers[0], dict) and answers[0].get("manifest"):
            gone()
        return answers

    monkeypatch.setattr(qsparse.run.checkpoint, name, act)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of .* is whole|and is gone: another job removes"
    ):
        train(preset("sgd"), tmp_path / "new", steps=30, every=None, resume=str(tmp_path / "run"))

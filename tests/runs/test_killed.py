"""Real jobs that are killed outright at random moments, and go on from their checkpoints to the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from mpirun import finish, mpi_run, start

from qsparse.cli.commands import qsparse
from qsparse.cli.launch import mpiexec_command

pytest.importorskip("mpi4py")

SMALL = ("--quiet", "--model", "mlp(16)", "--steps", "400", "--evaluations", "3")

#: What a killed run must not lose: an error memory and momentum, memories of both ways, what was said last
#: and when to say more, two triggers in one, and phases that are walked in a circle (with one worker, so
#: that the order of arrivals is always the same).
RUNS = {
    "feedback": ("--sync-every", "4", "--momentum", "0.9"),
    "both ways": ("--algorithm", "dist-ef-sgdm"),
    "lazy": ("--algorithm", "laq"),
    "composite": ("--algorithm", "local-sgd(lr=0.1)", "--trigger", "(every(2) & drift(0.01)) | every(9)"),
    "phases": ("--algorithm", "asylpg(inner=8)"),
}

#: All runs in one job, because most of a short one is loading torch. Runs that are over are not done again.
SERIES = """
    import json, os, sys
    from pathlib import Path
    from qsparse.cli.commands import qsparse

    Path(sys.argv[2], f"pid{os.getpid()}").touch()
    for args in json.loads(sys.argv[1]):
        qsparse.main(["train", *args], standalone_mode=False)
"""


def lines(folder: Path, *args: str) -> str:
    return json.dumps([[*SMALL, "--out", str(folder / name), *RUNS[name], *args] for name in RUNS])


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def steps_on_disk(out: Path) -> int:
    """The step of the newest checkpoint."""
    with contextlib.suppress(FileNotFoundError):
        names = [path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith(".")]
        return max((int(name.rpartition("-")[2]) for name in names), default=0)
    return 0


def kill(job: subprocess.Popen[str], pids: Path) -> int:
    """SIGKILL to all ranks, then to the launcher; how many ranks there were to be killed."""
    killed = 0
    for path in pids.iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name.removeprefix("pid")), signal.SIGKILL)
            killed += 1
        path.unlink()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    finish(job, 30)
    return killed


def test_killed_jobs_end_with_the_same_bits(tmp_path: Path) -> None:
    whole, killed, pids = (tmp_path / name for name in ("whole", "killed", "pids"))
    program = tmp_path / "series.py"
    program.write_text(textwrap.dedent(SERIES))
    pids.mkdir()
    for args in json.loads(lines(whole, "--wire", "threads", "--ranks", "2")):
        qsparse.main(["train", *args], standalone_mode=False)
    command = [*mpiexec_command(2), sys.executable, str(program)]
    command += [lines(killed, "--checkpoint-every", "3", "--resume", "auto"), str(pids)]
    # Another moment in every run of the tests.
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print("moments of seed", seed)
    for name in RUNS:
        for least in sorted(moments.sample(range(10, 200), 3 if name == "feedback" else 1)):
            # It is to be killed on its way, and may have come further than this before.
            least = max(least, steps_on_disk(killed / name) + 3)
            job = start(command)
            limit = time.monotonic() + 60
            while steps_on_disk(killed / name) < least:
                assert job.poll() is None, finish(job, 1)
                assert time.monotonic() < limit
                time.sleep(0.001)
            time.sleep(moments.random() * 0.02)
            assert kill(job, pids) == 2
            assert not (killed / name / "summary.json").exists(), "it was killed in the middle"
    finished = finish(start(command), 100)
    assert finished.returncode == 0, finished
    for name in RUNS:
        one, other = summary(killed / name), summary(whole / name)
        for key in ("model_sha256", "paper_bits", "messages", "skips", "wire_bytes", "test_accuracy"):
            assert one[key] == other[key], (name, key)
        # When a run was over it was still begun again, each time a later one had been killed.
        begun = [note["step"] for note in one["resumed"] if note["step"] < 400]
        assert len(begun) == (3 if name == "feedback" else 1)
        assert 10 <= begun[0] <= begun[-1]
        history = [
            [json.loads(line)["step"] for line in (out / name / "history.jsonl").read_text().splitlines()]
            for out in (killed, whole)
        ]
        assert history[0] == history[1]


#: Rank 1 may write no file of more than so many bytes, which to the program is a full disk.
FULL = """
    import json, os, resource, sys
    from mpi4py import MPI
    from qsparse.cli.commands import qsparse

    if MPI.COMM_WORLD.rank == 1 and sys.argv[2] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    qsparse.main(["train", *json.loads(sys.argv[1])])
"""


def test_a_full_disk_of_one_rank_loses_nothing(tmp_path: Path) -> None:
    """Both ranks end with a sentence, the checkpoint before is as it was, and the run goes on from it."""
    args = [*SMALL[:3], "--out", str(tmp_path), "--checkpoint-every", "20", "--sync-every", "4", "--resume"]
    mpi_run(2, FULL, json.dumps([*args, "auto", "--steps", "40"]), "", timeout=60)
    newest = tmp_path / "checkpoints" / "000002-step-40"
    before = {path.name: path.read_bytes() for path in newest.iterdir()}
    assert len(before["rank-0001.safetensors"]) > 10_000

    failed = mpi_run(2, FULL, json.dumps([*args, "auto", "--steps", "80"]), "full", timeout=60, check=False)
    assert failed.returncode != 0
    reason = (
        f"CheckpointError: cannot write the checkpoint of step 60 to {tmp_path}/checkpoints: File too large; "
        "checkpoints before it have lost nothing (the newest, 000002-step-40, is as it was): make room there"
    )
    assert f"[rank 1] error: {reason}" in failed.stderr, failed
    assert sorted(path.name for path in newest.parent.iterdir()) == ["000001-step-20", newest.name]
    assert {path.name: path.read_bytes() for path in newest.iterdir()} == before

    mpi_run(2, FULL, json.dumps([*args, str(newest), "--steps", "80"]), "", timeout=60)
    one = summary(tmp_path)
    qsparse.main(
        ["train", *SMALL[:3], "--out", str(tmp_path / "whole"), "--sync-every", "4", "--steps", "80",
         "--wire", "threads", "--ranks", "2"],
        standalone_mode=False,
    )  # fmt: skip
    assert one["model_sha256"] == summary(tmp_path / "whole")["model_sha256"]
    assert one["resumed"] == [{"checkpoint": newest.name, "step": 40, "ranks": 2}]

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mpirun import clean_environment, finish, mpi_run, start

from qsparse.cli.commands import qsparse
from qsparse.cli.launch import mpiexec_command

pytest.importorskip("mpi4py")

STEPS = 200
SMALL = ("--quiet", "--model", "mlp(16)", "--steps", str(STEPS), "--evaluations", "3")
#: Steps after which a run is killed: it has left checkpoints, and is far from its end.
MOMENTS = range(10, 120)

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

#: Killed as a job of mpiexec; the others as one process, whose ranks are threads.
OVER_MPI = "feedback"

#: A process for each line of its input, all forked from one that has loaded torch: they are killed as any
#: other. Runs that are over are not done again.
FORKED = """
    import json, os, sys
    import qsparse.train
    import qsparse.torch.problem
    from qsparse.cli.commands import qsparse

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            for args in json.loads(line):
                qsparse.main(["train", *args], standalone_mode=False)
            sys.stdout.flush()
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)
"""


def line(name: str, folder: Path, *args: str) -> list[str]:
    return [*SMALL, "--out", str(folder / name), *RUNS[name], *args]


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def steps_on_disk(out: Path) -> int:
    """The step of the newest checkpoint."""
    with contextlib.suppress(FileNotFoundError):
        names = [path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith(".")]
        return max((int(name.rpartition("-")[2]) for name in names), default=0)
    return 0


def on_its_way(out: Path, least: int, alive: Callable[[], bool]) -> None:
    """Wait until a run has left a checkpoint of this step or a later one, and a little longer."""
    limit = time.monotonic() + 60
    while steps_on_disk(out) < least:
        assert alive(), "it has ended by itself"
        assert time.monotonic() < limit
        time.sleep(0.005)
    time.sleep(random.random() * 0.02)


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
    """One over processes, killed twice; the others over threads of a process that is killed once in each."""
    whole, killed, pids = (tmp_path / name for name in ("whole", "killed", "pids"))
    pids.mkdir()
    threads = ("--wire", "threads", "--ranks", "2")
    for name in RUNS:
        qsparse.main(["train", *line(name, whole, *threads)], standalone_mode=False)
    # Another moment in every run of the tests.
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print("moments of seed", seed)
    resumed = ("--checkpoint-every", "3", "--resume", "auto")

    out = killed / OVER_MPI
    note = f"import os, pathlib; pathlib.Path({str(pids)!r}, f'pid{{os.getpid()}}').touch()\n"
    (tmp_path / "noted.py").write_text(note)
    command = [*mpiexec_command(2), sys.executable, "-m", "qsparse", "train", "--import", "noted"]
    command += line(OVER_MPI, killed, *resumed)
    env = {"PYTHONPATH": str(tmp_path)}
    for least in sorted(moments.sample(MOMENTS, 2)):
        # It is to be killed on its way, and may have come further than this before.
        job = start(command, env=env)
        on_its_way(out, max(least, steps_on_disk(out) + 3), lambda job=job: job.poll() is None)
        assert kill(job, pids) == 2
        assert not (out / "summary.json").exists(), "it was killed in the middle"
    finished = finish(start(command, env=env), 100)
    assert finished.returncode == 0, finished

    program = tmp_path / "forked.py"
    program.write_text(textwrap.dedent(FORKED))
    others = [name for name in RUNS if name != OVER_MPI]
    lines = json.dumps([line(name, killed, *resumed, *threads) for name in others]) + "\n"
    with subprocess.Popen(
        [sys.executable, str(program)], env=clean_environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as parent:  # fmt: skip
        assert parent.stdin is not None
        assert parent.stdout is not None
        for name in others:
            out = killed / name
            parent.stdin.write(lines)
            parent.stdin.flush()
            pid = int(parent.stdout.readline())
            on_its_way(out, moments.choice(MOMENTS), lambda pid=pid: Path(f"/proc/{pid}/exe").exists())
            os.kill(pid, signal.SIGKILL)
            assert int(parent.stdout.readline()) == signal.SIGKILL
            assert not (out / "summary.json").exists(), "it was killed in the middle"
        told = parent.communicate(lines, timeout=100)[0].split()
        assert told[1:] == ["0"], told

    for name in RUNS:
        one, other = summary(killed / name), summary(whole / name)
        for key in ("model_sha256", "paper_bits", "messages", "skips", "wire_bytes", "test_accuracy"):
            assert one[key] == other[key], (name, key)
        # When a run was over it was still begun again, each time a later one had been killed.
        begun = [note["step"] for note in one["resumed"] if note["step"] < STEPS]
        assert len(begun) == (2 if name == OVER_MPI else 1)
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

    if MPI.COMM_WORLD.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    qsparse.main(["train", *json.loads(sys.argv[1])])
"""


def test_a_full_disk_of_one_rank_loses_nothing(tmp_path: Path) -> None:
    """Both ranks end with a sentence, the checkpoint before is as it was, and the run goes on from it."""
    args = [*SMALL[:3], "--out", str(tmp_path), "--checkpoint-every", "20", "--sync-every", "4", "--resume"]
    threads = ["--wire", "threads", "--ranks", "2"]
    qsparse.main(["train", *args, "auto", "--steps", "40", *threads], standalone_mode=False)
    newest = tmp_path / "checkpoints" / "000002-step-40"
    before = {path.name: path.read_bytes() for path in newest.iterdir()}
    assert len(before["rank-0001.safetensors"]) > 10_000

    failed = mpi_run(2, FULL, json.dumps([*args, "auto", "--steps", "80"]), timeout=60, check=False)
    assert failed.returncode != 0
    reason = (
        f"CheckpointError: cannot write the checkpoint of step 60 to {tmp_path}/checkpoints: File too large; "
        "checkpoints before it have lost nothing (the newest, 000002-step-40, is as it was): make room there"
    )
    assert f"[rank 1] error: {reason}" in failed.stderr, failed
    assert sorted(path.name for path in newest.parent.iterdir()) == ["000001-step-20", newest.name]
    assert {path.name: path.read_bytes() for path in newest.iterdir()} == before

    qsparse.main(["train", *args, str(newest), "--steps", "80", *threads], standalone_mode=False)
    one = summary(tmp_path)
    qsparse.main(
        [
            "train",
            *SMALL[:3],
            "--out",
            str(tmp_path / "whole"),
            "--sync-every",
            "4",
            "--steps",
            "80",
            *threads,
        ],
        standalone_mode=False,
    )
    assert one["model_sha256"] == summary(tmp_path / "whole")["model_sha256"]
    assert one["resumed"] == [{"checkpoint": newest.name, "step": 40, "ranks": 2}]

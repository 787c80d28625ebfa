"""Signals that announce the end: all ranks agree, leave a checkpoint, and end with a status of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bowl import Bowl, preset
from mpirun import Finished, finish, mpi_run, start

from qsparse.algorithm import Algorithm
from qsparse.cli.commands import qsparse
from qsparse.cli.launch import mpiexec_command
from qsparse.errors import Stopped
from qsparse.exchange import AllGather, Exchange, Nodes, ParameterServer, TreeBroadcast
from qsparse.process import notice
from qsparse.rules import natural_exchange
from qsparse.run import Settings, run
from qsparse.run.checkpoint import Checkpoints
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

pytest.importorskip("mpi4py")

TRAIN = (sys.executable, "-m", "qsparse", "train")
SMALL = ("--quiet", "--model", "mlp(16)", "--sync-every", "2")
FOREVER = (*SMALL, "--steps", "10000000", "--evaluations", "5")


def begun(job: subprocess.Popen[str], out: Path, lines: int = 2) -> None:
    """Wait until a run has written some lines of its history."""
    limit = time.monotonic() + 120
    while True:
        with contextlib.suppress(FileNotFoundError):
            if (out / "history.jsonl").read_text().count("\n") >= lines:
                return
        assert job.poll() is None, finish(job, 1)
        assert time.monotonic() < limit
        time.sleep(0.02)


def left(out: Path) -> list[str]:
    folder = out / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("starts", ["mpiexec", "--ranks"])
def test_a_launcher_that_is_told_to_end(tmp_path: Path, starts: str) -> None:
    """SIGTERM to whatever started the job; it goes on to the bits of a run that was not ended."""
    out = tmp_path / "out"
    args = [*FOREVER, "--out", str(out), "--checkpoint-every", "100000000"]
    job = start([*(mpiexec_command(2) if starts == "mpiexec" else []), *TRAIN, *args, "--ranks", "2"])
    begun(job, out)
    job.send_signal(signal.SIGTERM)
    finished = finish(job, 60)
    assert finished.returncode == 143, finished
    (name,) = left(out)
    step = int(name.rpartition("-")[2])
    for rank in range(2):
        said = f"[rank {rank}] SIGTERM at step {step}: checkpoint {out}/checkpoints/{name} left"
        assert said in finished.stderr, finished
        assert f"[rank {rank}] SIGTERM: the run leaves a checkpoint" in finished.stderr, finished
    assert "Traceback" not in finished.stderr, finished
    assert not (out / "summary.json").exists()
    assert not (out / ".lock").exists()
    if starts == "mpiexec":
        on = [
            "train",
            *SMALL,
            "--steps",
            str(step + 10),
            "--evaluations",
            "5",
            "--wire",
            "threads",
            "--ranks",
            "2",
        ]
        for folder in (out, tmp_path / "whole"):
            qsparse.main(
                [*on, "--ranks", "2", "--out", str(folder), "--resume", "auto"], standalone_mode=False
            )
        one, other = (json.loads((each / "summary.json").read_text()) for each in (out, tmp_path / "whole"))
        assert one["resumed"][0]["step"] == step
        assert one["model_sha256"] == other["model_sha256"]
        assert one["paper_bits"] == other["paper_bits"]


#: Exchanges, algorithms, how many ranks, and which of them is told.
TOLD = {
    "the root": ("qsparse-local-sgd(H=4)", ParameterServer(), 3, 0),
    "a worker": ("qsparse-local-sgd(H=4)", ParameterServer(), 3, 2),
    "who only serves": ("dist-ef-sgdm", ParameterServer(root=1, works=False), 3, 1),
    "in a tree": ("qsparse-local-sgd(H=4)", TreeBroadcast(root=2), 5, 1),
    "allgather": ("qsparse-local-sgd(H=4)", AllGather(), 3, 1),
    "who may skip": ("laq", AllGather(), 3, 2),
    "who is not asked": ("lag-ps", None, 4, 3),
    "in a phase": ("asylpg(inner=8)", None, 3, 2),
    "who does not speak": ("qsparse-local-sgd(H=4)", Nodes(ParameterServer(), 2), 4, 3),
    "who speaks for others": ("laq", Nodes(AllGather(), 2), 4, 2),
    "alone": ("sgd", ParameterServer(), 1, 0),
}


@pytest.mark.parametrize("name", TOLD)
def test_one_rank_that_is_told_tells_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At their next common meeting all ranks leave a checkpoint and stop; from there they go on."""
    algorithm, exchange, ranks, told = TOLD[name]
    heard: dict[int, int] = {}

    def own() -> int:
        return int(threading.current_thread().name.removeprefix("rank "))

    batch = Bowl.batch

    def at(self: Bowl, t: int) -> int:
        if own() == told and t >= 22:
            heard[own()] = signal.SIGUSR1
        return batch(self, t)

    monkeypatch.setattr(Bowl, "batch", at)
    if name == "who only serves":
        heard[told] = signal.SIGUSR1
    monkeypatch.setattr(notice, "asked", lambda: heard.get(own(), 0))
    stopped: list[int] = []

    def body(wire: Wire) -> None:
        try:
            train_on(wire, preset(algorithm), tmp_path, exchange)
        except Stopped as error:
            stopped.append(error.status)
            raise

    with pytest.raises(Stopped, match=r"SIGUSR1.* at step .*: checkpoint .* left; the same command"):
        run_threads(ranks, body, timeout=60)
    assert stopped == [128 + signal.SIGUSR1] * ranks
    (checkpoint,) = left(tmp_path)
    assert not (tmp_path / "summary.json").exists()
    heard.clear()
    monkeypatch.setattr(Bowl, "batch", batch)
    summary = run_threads(ranks, lambda wire: train_on(wire, preset(algorithm), tmp_path, exchange))[0]
    assert summary["resumed"][0]["checkpoint"] == checkpoint


def train_on(wire: Wire, algorithm: Algorithm, out: Path, exchange: Exchange | None) -> dict[str, Any]:
    return run(
        lambda: Settings(algorithm, exchange or natural_exchange(algorithm), steps=60),
        lambda _: Bowl(wire.rank),
        wire,
        out=out,
        checkpoints=Checkpoints(out / "checkpoints", 1000, 3, "auto"),
    )


def told_at(step: int, kind: str, rank: int, *args: str) -> Finished:
    """A job of two ranks, one of which gets a signal in a step."""
    env = {"FAULT_KIND": kind, "FAULT_RANK": str(rank), "FAULT_STEP": str(step)}
    command = ["-m", "qsparse", "train", *SMALL, "--steps", "400", "--import", "faults", *args]
    return mpi_run(2, command, timeout=120, env=env, check=False)


def test_a_run_without_checkpoints_ends_at_once(tmp_path: Path) -> None:
    """With a sentence that names the rank; and one that leaves checkpoints does so when it is told again."""
    finished = told_at(31, "SIGTERM", 1, "--out", str(tmp_path / "none"))
    assert finished.returncode > 0, finished
    assert "[rank 1] SIGTERM: the run ends without a checkpoint" in finished.stderr, finished
    assert "was ended by" not in finished.stderr, finished

    out = tmp_path / "again"
    # It never meets again, so that the first signal alone would not end it.
    args = [*SMALL[:3], "--sync-every", "1000000000", "--steps", "1000000000"]
    job = start([*TRAIN, *args, "--out", str(out), "--checkpoint-every", "1", "--import", "faults"],
                env={"FAULT_NOTES": str(tmp_path), "FAULT_KIND": "hang", "FAULT_STEP": "5"})  # fmt: skip
    limit = time.monotonic() + 120
    while not (tmp_path / "hangs").exists():
        assert job.poll() is None, finish(job, 1)
        assert time.monotonic() < limit
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    finished = finish(job, 20)
    assert finished.returncode == -signal.SIGTERM, finished
    assert "[rank 0] SIGTERM again: the run ends at once" in finished.stderr, finished
    assert not left(out)


@pytest.mark.parametrize(
    ("algorithm", "signalled", "told"), [("local-sgd(H=3)", 10, 12), ("local-sgd(H=4, delay=2)", 7, 10)]
)
def test_a_loop_of_ones_own_is_told(algorithm: str, signalled: int, told: int, tmp_path: Path) -> None:
    """`Attached.asked_to_stop` turns true on all ranks at the same step: that at which they adopt the answer.

    With a delay one rank has the answer earlier, which makes no difference.
    """
    program = """
        import os, signal, sys
        import torch
        from mpi4py import MPI
        from qsparse.process.notice import listening
        from qsparse.torch import attach

        rank = MPI.COMM_WORLD.rank
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with listening(checkpoints=True), attach(model, optimizer, sys.argv[2]) as link:
            for t in range(1, 100):
                if t == int(sys.argv[3]) and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                model(torch.ones(2, 3)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                if rank == 0:
                    link.wire.settle()
                if link.asked_to_stop:
                    link.save(sys.argv[1], t=t)
                    break
            print(f"rank {rank} left at {t}\\n", end="")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    """
    finished = mpi_run(2, program, tmp_path / "saved", algorithm, signalled, timeout=120)
    assert sorted(finished.stdout.splitlines()) == [f"rank {rank} left at {told}" for rank in (0, 1)], (
        finished
    )
    assert [path.name for path in (tmp_path / "saved").iterdir()] == [f"000001-step-{told}"]


def test_a_job_of_slurm_is_queued_again(tmp_path: Path, root: Path) -> None:
    """The job script as it is, with the launcher of this environment, and for Slurm what it is told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/told"\n')
    (tools / "scontrol").chmod(0o755)
    env = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "QSPARSE_VENV": sys.prefix, "SLURM_NTASKS": "2",
        "SLURM_SUBMIT_DIR": str(root), "SLURM_JOB_ID": "77", "HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user",
    }  # fmt: skip
    out = tmp_path / "out"
    set_here = [f"{name}={value}" for name, value in env.items()]
    script = str(root / "launch" / "slurm_mpiexec.sbatch")
    job = start(["env", *set_here, "bash", script, *FOREVER, "--out", str(out)])
    begun(job, out)
    job.send_signal(signal.SIGUSR1)
    finished = finish(job, 60)
    assert finished.returncode == 138, finished
    assert (tmp_path / "told").read_text() == "requeue 77\n"
    assert "[rank 0] SIGUSR1 at step " in finished.stderr, finished
    assert left(out)

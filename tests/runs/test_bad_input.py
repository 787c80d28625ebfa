"""Bad input and bad days: every rank ends soon, and says what is wrong, where, and what to do."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from mpirun import Finished, finish, mpi_run, start

from qsparse.cli.commands import qsparse
from qsparse.cli.launch import mpiexec_command
from qsparse.errors import SettingError
from qsparse.registry import build
from qsparse.run import Settings

#: A job that has not ended by itself after so many seconds is taken to wait for ever.
LIMIT = 90
#: From the fault to the end of the job.
SOON = 10
#: 1210 parameters: 1.weight (1024), 1.bias (16), 3.weight (160) and 3.bias (10).
SMALL = ("--quiet", "--model", "mlp(16)", "--steps", "200", "--sync-every", "1")


def refused(
    ranks: int, *args: object, out: Path | None = None, env: Mapping[str, str] | None = None
) -> Finished:
    """``qsparse train`` under mpirun, which must fail by itself and leave no result."""
    command = ["-m", "qsparse", "train", *SMALL, *map(str, args)]
    return failed(mpi_run(ranks, command, timeout=LIMIT, check=False, env=env), out)


def failed(finished: Finished, out: Path | None = None) -> Finished:
    assert finished.returncode > 0, finished
    # The helper ends a job that hangs by printing stacks; that is no end by itself.
    assert finished.seconds < LIMIT - 2, finished
    assert "Timeout (" not in finished.stderr, finished
    assert out is None or not (out / "summary.json").exists(), finished
    return finished


def together(jobs: Sequence[Callable[[], Finished]]) -> list[Finished]:
    """Three jobs at a time: most of a short one is waiting."""
    with ThreadPoolExecutor(3) as pool:
        return [begun.result() for begun in [pool.submit(job) for job in jobs]]


def said(finished: Finished, ranks: int, text: str) -> None:
    """Each rank has said it in a line of its own, and nobody has shown a traceback."""
    lines = finished.stderr.splitlines()
    for rank in range(ranks):
        assert any(line.startswith(f"[rank {rank}] error: ") and text in line for line in lines), finished
    assert "Traceback" not in finished.stderr, finished


def told(finished: Finished, text: str) -> None:
    """Some rank has said it, and no rank anything else.

    Before the ranks have met, one that is late may be ended before it can speak: a failing rank
    waits for the others, but not for long.
    """
    lines = [line for line in finished.stderr.splitlines() if line.startswith("[rank ")]
    assert lines, finished
    assert all("] error: " in line and text in line for line in lines), finished
    assert "Traceback" not in finished.stderr, finished


# --- refused before training --------------------------------------------------------------------


#: By every rank: arguments, and what each of the ranks says.
EVERYWHERE = (
    (
        ["--compressor", "topk(k=5000)"],
        "SettingError: topk(k=5000): cannot keep 5000 of 1210 coordinates; use ratio, or a smaller k",
    ),
    (["--data-dir", "/nowhere"], "DataError: the data folder /nowhere does not exist"),
    (["--ranks", "5"], "SettingError: --ranks 5 was asked for and the launcher started 2"),
)
#: Before the ranks meet: arguments, exit status and what is said.
BEFORE = (
    (["--wire", "threads"], 1, "error: SettingError: --wire threads makes its own ranks"),
    (["--bach", "8"], 2, "No such option '--bach'. Did you mean '--batch'?"),
)


def test_every_rank_refuses(tmp_path: Path) -> None:
    # A folder each: two jobs in one would refuse each other.
    outs = [tmp_path / str(number) for number in range(len(EVERYWHERE))]
    pairs = zip(EVERYWHERE, outs, strict=True)
    jobs = [functools.partial(refused, 2, *args, "--out", out) for (args, _), out in pairs]
    for finished, (_, text) in zip(together(jobs), EVERYWHERE, strict=True):
        told(finished, text)
    assert not any(out.exists() for out in outs)


def test_refused_before_the_ranks_meet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs = [functools.partial(refused, 2, *args, "--out", out) for args, _, _ in BEFORE]
    for finished, (_, status, text) in zip(together(jobs), BEFORE, strict=True):
        assert finished.returncode == status, finished
        assert text in finished.stderr, finished
        assert "Traceback" not in finished.stderr, finished
    assert not out.exists()


#: What is refused in the same words over threads.
ANYWHERE = (
    ("--sync-every 0", "SettingError: every(H=0): H must be a whole number of at least 1"),
    ("--algorithm qsparse-local-sdg", "did you mean 'qsparse-local-sgd'? known: "),
    ("--import no_such_module", "error: SettingError: cannot import --import no_such_module"),
    ("--config /nowhere.toml", "cannot read --config /nowhere.toml: No such file or directory"),
    ("--compressor 'tokp(k=5) >> sign'", "no compressor is named 'tokp': did you mean 'topk'? known: "),
    ("--compressor 'topk(ratoi=0.5)'", "topk has no setting 'ratoi': did you mean 'ratio'? it has k, ratio"),
    ("--exchange 'server(root=2)'", "server(root=2): there is no rank 2 among 2 ranks"),
    ("--exchange severs", "no exchange is named 'severs': did you mean 'server'?"),
    ("--memory nothing", "no memory is named 'nothing': known: changes, errorfeedback, innovation, snapshot"),
    ("--down-memory 'errorfeedback(dekay=1)'", "has no setting 'dekay': did you mean 'decay'?"),
    ("--trigger 'every(H=0)'", "every(H=0): H must be a whole number of at least 1"),
    ("--straggler 1", "--straggler must be RANK:FACTOR, such as 2:5, not 1"),
    ("--straggler 2:5", "rank 2 cannot be the straggler: it is none of the workers"),
    ("--straggler 1:0.5", "a straggler takes 1 to 1000 times as long as others, not 0.5"),
    ("--straggler 1:inf", "a straggler takes 1 to 1000 times as long as others, not inf"),
    ("--server hold", "server rule hold never moves the model"),
    ("--repeat nowhere.jsonl", "cannot read --repeat nowhere.jsonl: No such file"),
    (f"--repeat {__file__}", "is no arrivals.jsonl of a run"),
    ("--repeat /dev/null", "an order of arrivals repeats runs whose workers do not wait: this one's do"),
    ("--server majority", "server majority cannot be made of "),
    ("--server 'descend(lr=-1)'", "descend(lr=-1): lr must be a positive number or a schedule"),
    ("--lr -1", "--lr must be a positive number or a schedule, such as 0.1 or cosine(0.1), not -1"),
    ("--lr nan", "--lr must be a positive number or a schedule, such as 0.1 or cosine(0.1), not nan"),
    ("--lr inf", "--lr must be a positive number or a schedule, such as 0.1 or cosine(0.1), not inf"),
    ("--weight-decay nan", "--weight-decay must be a finite number, not nan"),
    (
        "--trigger 'every(2)'",
        "--sync-every has no effect: --trigger replaces the part that it is a setting of; write it in "
        "--trigger, or leave it out",
    ),
    ("--lr 0.5 --local 'sgd(lr=0.1)'", "--lr has no effect: --local replaces the part"),
    ("--lr 'cosin(0.1)'", "no schedule is named 'cosin': did you mean 'cosine'?"),
    ("--momentum 1", "sgd(momentum=1.0): momentum must lie in [0, 1)"),
    ("--algorithm 'qsparse-local-sgd(H=2)'", "gives setting H twice: keep one"),
    ("--algorithm gd", "--sync-every does not go with gd, which has lr, alpha, momentum, "),
    ("--epochs 1", "give either --epochs or --steps"),
    ("--evaluations 0", "evaluations must be positive and finite, not 0"),
    ("--batch 0", "a batch of 0 examples: give at least 1"),
    ("--batch 1000", "a batch of 1000 examples is larger than the rank's shard of "),
    ("--model mpl", "no model is named 'mpl': did you mean 'mlp'?"),
    ("--data digit", "no data set is named 'digit': did you mean 'digits'?"),
    ("--data libsvm:/nowhere", "there is no LIBSVM file /nowhere: "),
    ("--sharding 'dirichlet(0)'", "dirichlet"),
    ("--ranks 0", "--ranks must be at least 1, not 0"),
    ("--memory errorfeedback --compressor float32", "error feedback around float32 remembers nothing"),
    ("--out /proc/out", "cannot write to --out /proc/out: "),  # not even root can make a folder there
)


@pytest.mark.parametrize(("line", "text"), ANYWHERE, ids=[line for line, _ in ANYWHERE])
def test_threads_refuse_too(tmp_path: Path, line: str, text: str) -> None:
    out = tmp_path / "out"
    args = ["train", "--wire", "threads", "--ranks", "2", "--out", str(out), *SMALL, *shlex.split(line)]
    result = CliRunner().invoke(qsparse, args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert text in result.stderr
    assert not out.exists()


def test_a_number_out_of_range_is_no_usage(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ["train", "--wire", "threads", "--ranks", "2", "--out", str(out), *SMALL, "--threads", "0"]
    result = CliRunner().invoke(qsparse, line)
    assert result.exit_code == 2, result.output
    assert "Invalid value for '--threads': 0 is not in the range x>=1" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--algorithm asylpg --steps 1", "1 steps are over with the prelude, which never moves the model"),
        (
            "--algorithm asylpg(inner=-1) --steps 9",
            "a phase takes a whole number of at least 1 steps, not -1",
        ),
        (
            "--algorithm 'qsparse-local-sgd(lr=steps(start=0.1, after=[2]), reset_memory=true)' --steps 9 "
            "--memory errorfeedback",
            "reset_memory has no effect: --memory replaces the memory that is reset",
        ),
    ],
)
def test_settings_that_would_train_nothing_or_be_lost(tmp_path: Path, line: str, text: str) -> None:
    args = ["train", "--wire", "threads", "--ranks", "3", "--out", str(tmp_path / "out"), *shlex.split(line)]
    result = CliRunner().invoke(qsparse, args)
    assert result.exit_code == 1, result.output
    assert text in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("epochs", [0.0, -1.0, math.inf, math.nan])
def test_epochs_are_a_number(epochs: float) -> None:
    with pytest.raises(SettingError, match="epochs must be positive and finite"):
        Settings(algorithm=build("sgd", "algorithm"), epochs=epochs)


def test_an_out_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    out = tmp_path / "file" / "out"
    finished = refused(2, "--out", out)
    reason = f"SettingError: cannot write to --out {out}: {tmp_path / 'file'} is not a folder"
    assert f"[rank 0] error: {reason}" in finished.stderr, finished
    told(finished, reason)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_launcher_of_another_maker() -> None:
    """Its variables announce three ranks, and MPI sees one: nobody must train alone."""
    vendor = finish(start([sys.executable, "-m", "mpi4py", "--mpi-lib-version"]), 20).stdout
    variable = "PMI_SIZE" if "Open MPI" in vendor else "OMPI_COMM_WORLD_SIZE"
    # Set by `env`, because a clean environment has no such variables.
    job = start(["env", f"{variable}=3", sys.executable, "-m", "qsparse", "train", *SMALL])
    finished = failed(finish(job, LIMIT))
    assert finished.returncode == 1, finished
    assert f"error: LaunchError: {variable} announces 3 ranks" in finished.stderr, finished
    assert "Start the program with the mpiexec that belongs to the library" in finished.stderr, finished
    assert "Traceback" not in finished.stderr, finished


# --- ranks that differ --------------------------------------------------------------------------

BY_RANK = """
    import json, os, sys

    rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
    sys.argv[1:] = [*sys.argv[2:], *json.loads(sys.argv[1]).get(rank, [])]

    from qsparse.cli import main

    main()
"""


def differing(ranks: int, changes: Mapping[str, object], *args: object, out: Path) -> Finished:
    """Ranks with further arguments of their own, as a wrong line in a job script gives them."""
    line = [json.dumps(changes), "train", *SMALL, "--out", out, *args]
    return failed(mpi_run(ranks, BY_RANK, *line, timeout=LIMIT, check=False), out)


DIFFERENCES = (
    (["--lr", "0.2"], "disagree about local: rank 0 has 'sgd(lr=0.1)' and rank 1 has 'sgd(lr=0.2)'"),
    (["--seed", "7"], "disagree about seed: rank 0 has 0 and rank 1 has 7"),
    (["--model", "mlp(17)"], "disagree about layers: rank 0 has [['1.weight', 1024]"),
    (["--exchange", "tree"], "disagree about exchange: rank 0 has 'server' and rank 1 has 'tree'"),
)


def test_ranks_with_different_settings(tmp_path: Path) -> None:
    outs = [tmp_path / str(number) for number in range(len(DIFFERENCES))]
    pairs = zip(DIFFERENCES, outs, strict=True)
    jobs = [functools.partial(differing, 2, {"1": changes}, out=out) for (changes, _), out in pairs]
    for finished, (_, text) in zip(together(jobs), DIFFERENCES, strict=True):
        said(finished, 2, text)
        said(finished, 2, "start all ranks with the same command on the same data")
    assert not any(out.exists() for out in outs)


def libsvm(folder: Path, rows: int) -> str:
    folder.mkdir()
    lines = (f"{(-1) ** i} 1:{i % 7} 2:{-(i % 5)} {3 + i % 2}:1" for i in range(rows))
    (folder / "rows").write_text("\n".join(lines))
    return f"libsvm:{folder / 'rows'}"


def test_ranks_with_different_data(tmp_path: Path) -> None:
    """Rank 2 of three finds another file, and in a second job none at all."""
    data = libsvm(tmp_path / "long", 300)
    other = libsvm(tmp_path / "short", 290)
    outs = [tmp_path / name for name in ("changed", "gone")]
    changed, finished = together(
        [
            functools.partial(differing, 3, {"2": ["--data", found]}, "--data", data, out=out)
            for found, out in zip((other, f"libsvm:{tmp_path}/missing"), outs, strict=True)
        ]
    )
    said(changed, 3, "the ranks disagree about data: rank 0 has ")
    said(changed, 3, " and rank 2 has ")
    told(finished, f"DataError: there is no LIBSVM file {tmp_path}/missing")
    for line in finished.stderr.splitlines():
        assert not line.startswith(("[rank 0]", "[rank 1]")) or "] error: rank 2, step 0: DataError: " in line
    assert "[rank 2] error: DataError: " in finished.stderr, finished
    assert not any(out.exists() for out in outs)


# --- faults while training ----------------------------------------------------------------------


def fault(kind: str, rank: int = 2, step: int = 50, **more: object) -> dict[str, str]:
    """The environment for `faults`."""
    settings = {"kind": kind, "rank": rank, "step": step, **more}
    return {f"FAULT_{name.upper()}": str(value) for name, value in settings.items()}


def test_a_rank_that_raises(tmp_path: Path) -> None:
    exchanges = ("server", "tree(root=1)", "allgather")
    jobs = [
        functools.partial(
            refused, 3, "--import", "faults", "--exchange", exchange, "--out", tmp_path / exchange,
            out=tmp_path / exchange, env=fault("raise"),
        )
        for exchange in exchanges
    ]  # fmt: skip
    for finished, exchange in zip(together(jobs), exchanges, strict=True):
        for rank in range(2):
            text = f"[rank {rank}] error: rank 2, step 50: RuntimeError: the fault of rank 2\n"
            assert text in finished.stderr, finished
        # Nobody foresaw it, so the rank that raised shows where.
        assert "[rank 2] Traceback (most recent call last):" in finished.stderr, finished
        assert "[rank 2] RuntimeError: the fault of rank 2" in finished.stderr, finished
        left = sorted(path.name for path in (tmp_path / exchange).iterdir())
        assert left == ["config.toml", "history.jsonl"], exchange


def test_a_rank_that_raises_as_a_thread(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = [sys.executable, "-m", "qsparse", "train", *SMALL, "--import", "faults", "--out", str(out)]
    finished = failed(
        finish(start([*job, "--wire", "threads", "--ranks", "3"], env=fault("raise")), LIMIT), out
    )
    assert finished.returncode == 1, finished
    assert "RuntimeError: the fault of rank 2\nraised by rank 2 of 3\n" in finished.stderr, finished


@pytest.mark.parametrize("where", ["a worker", "the coordinator", "a thread"])
def test_a_nan_is_named_and_not_sent(tmp_path: Path, where: str) -> None:
    out = tmp_path / "out"
    rank = 0 if where == "the coordinator" else 1
    env = fault("nan", rank, 5, index=1024 + 3)
    text = f"NotFinite: at rank {rank}, step 5, in parameter '1.bias', element 3 of the update: "
    args = ("--import", "faults", "--out", str(out))
    if where == "a thread":
        job = [sys.executable, "-m", "qsparse", "train", *SMALL, *args, "--wire", "threads", "--ranks", "2"]
        finished = failed(finish(start(job, env=env), LIMIT), out)
        assert f"error: {text}" in finished.stderr, finished
        assert "Traceback" not in finished.stderr, finished
        return
    finished = refused(2, *args, out=out, env=env)
    assert f"[rank {rank}] error: {text}" in finished.stderr, finished
    assert f"[rank {1 - rank}] error: rank {rank}, step 5: {text}" in finished.stderr, finished
    said(finished, 2, "lower the learning rate or look at the data")


@pytest.mark.parametrize(
    ("kind", "rank", "exchange"),
    [
        ("setup", 1, "server"),
        *(("evaluate", rank, "server") for rank in range(3)),
        ("evaluate", 1, "server(root=2)"),
        ("evaluate", 1, "allgather"),
    ],
)
def test_faults_beside_the_training(tmp_path: Path, kind: str, rank: int, exchange: str) -> None:
    out = tmp_path / "out"
    # An epoch of a third of digits is 29 steps of 16; the ranks evaluate at the next meeting.
    step = 0 if kind == "setup" else 30
    finished = refused(
        3, "--import", "faults", "--sync-every", 3, "--exchange", exchange, "--out", out, out=out,
        env=fault(kind, rank),
    )  # fmt: skip
    # Where others coordinate than rank 0, which is owed the score, they hear it from rank 0.
    through = "" if exchange == "server" else r"(?:PeerGone: rank \d waits .* of rank 0, which .*)?"
    for other in {0, 1, 2} - {rank}:
        text = rf"(?m)^\[rank {other}\] error: {through}rank {rank}, step {step}: RuntimeError: the fault of"
        # A rank that is late before the first meeting is ended before it can speak.
        told = re.search(text, finished.stderr)
        assert told or (kind == "setup" and f"[rank {other}]" not in finished.stderr), finished
    assert f"[rank {rank}] RuntimeError: the fault of rank {rank}" in finished.stderr, finished
    assert out.exists() == (kind == "evaluate")
    if out.exists():
        assert (out / "history.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("exit", "left with status 3 before the run had ended"),
        ("exit 0", "left with status 0 before the run had ended"),
        ("kill", "was ended by SIGKILL"),
        ("SIGSEGV", "was ended by SIGSEGV"),
    ],
)
def test_a_rank_that_vanishes(tmp_path: Path, kind: str, how: str) -> None:
    """It can say nothing itself; its supervisor does, and the launcher ends the others."""
    out = tmp_path / "out"
    pids = tmp_path / "pids"
    pids.mkdir()
    finished = mpi_run(
        3, ["-m", "qsparse", "train", *SMALL, "--steps", "100000", "--import", "faults", "--out", str(out)],
        timeout=LIMIT, check=False, env=fault(kind, 1, 20, notes=pids),
    )  # fmt: skip
    failed(finished, out)
    assert [line for line in finished.stderr.splitlines() if line.startswith(f"[rank 1] {how}")], finished
    ended(pids, 3)


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_signals_to_the_launcher_end_all_ranks(tmp_path: Path, how: str) -> None:
    """While one rank is busy and the others wait for it."""
    out = tmp_path / "out"
    pids = tmp_path / "pids"
    pids.mkdir()
    job = start(
        [*mpiexec_command(3), sys.executable, "-m", "qsparse", "train", *SMALL, "--import", "faults",
         "--out", str(out)],
        env=fault("hang", 1, 20, notes=pids),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + LIMIT
        while not (pids / "hangs").exists():
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline, "the training has not begun"
            time.sleep(0.05)
        if how == "Ctrl-C":
            os.killpg(job.pid, signal.SIGINT)  # as a terminal does
        else:
            os.kill(job.pid, signal.SIGTERM)
    finally:
        finished = finish(job, SOON)
    assert finished.seconds < SOON - 1, finished
    assert finished.returncode != 0, finished
    assert "Traceback" not in finished.stderr, finished
    assert not (out / "summary.json").exists()
    ended(pids, 3)


def ended(pids: Path, ranks: int) -> None:
    """The processes of all ranks are gone, or go at once."""
    numbers = [int(path.name[3:]) for path in pids.glob("pid*")]
    assert len(numbers) == ranks
    deadline = time.monotonic() + 5
    while living := [pid for pid in numbers if lives(pid)]:
        assert time.monotonic() < deadline, f"processes {living} have outlived their job"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"

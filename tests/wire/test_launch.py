"""What starts jobs: the scripts of ``launch/`` and `qsparse.cli.launch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mpirun import ROOT, clean_environment, finish, mpi_run, start

from qsparse.cli import launch
from qsparse.errors import LaunchError, SettingError
from qsparse.process import launchers

SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=10)


def test_scripts_are_all_there_and_told_of() -> None:
    names = [path.name for path in SCRIPTS]
    assert names == ["env.sh", "local.sh", "slurm_mpiexec.sbatch", "slurm_srun.sbatch"]
    readme = (ROOT / "launch" / "README.md").read_text()
    assert all(name in readme for name in [*names, "hostfile.example"])
    assert "--kill-on-bad-exit=1" in (ROOT / "launch" / "slurm_srun.sbatch").read_text()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"OMP_NUM_THREADS": "3"},
        {"OMP_NUM_THREADS": "3,2"},
        {"OMP_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "2", "OMPI_MCA_osc": "rdma"},
        {"HYDRA_LAUNCHER": "ssh", "MPIR_CVAR_POLLS_BEFORE_YIELD": ""},
        *({name: "x"} for name in launch.SEVERAL_MACHINES),
    ],
    ids=lambda given: " ".join(given) or "nothing",
)
def test_env_sh_and_environment_are_the_same(given: dict[str, str]) -> None:
    path = {"PATH": os.environ["PATH"]}
    sourced = subprocess.run(
        ["bash", "--norc", "-euc", f'. "{ROOT}/launch/env.sh"; env -0'],
        env={**path, **given},
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    found = dict(line.split("=", 1) for line in sourced.stdout.split("\0") if line)
    for name in ("PATH", "PWD", "SHLVL", "_", "OLDPWD"):
        found.pop(name, None)
    assert found == launch.environment(given)
    assert ("HYDRA_LAUNCHER" in found) == (not set(given) & set(launch.SEVERAL_MACHINES))


def test_what_is_set_stays() -> None:
    given = {"I_MPI_SPIN_COUNT": "9", "HOME": "/somewhere"}
    result = launch.environment(given)
    assert result["I_MPI_SPIN_COUNT"] == "9"
    assert result["HOME"] == "/somewhere"
    assert given == {"I_MPI_SPIN_COUNT": "9", "HOME": "/somewhere"}


def test_local_sh_starts_ranks() -> None:
    program = "from mpi4py import MPI; w = MPI.COMM_WORLD; "
    program += "import os; threads = os.environ['OMP_NUM_THREADS']; "
    program += "print(f'{w.rank} {w.size} {threads}\\n', end='', flush=True)"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = str(ROOT / "launch" / "local.sh")
    for given, threads in (("", "1"), ("2", "2")):
        environ = {"PATH": path, "OMP_NUM_THREADS": given}
        finished = finish(start([script, "3", sys.executable, "-c", program], env=environ), 30)
        assert finished.returncode == 0, finished
        lines = sorted(line.split() for line in finished.stdout.splitlines())
        assert lines == [[str(rank), "3", threads] for rank in range(3)], finished
    for wrong in ([], ["3"], ["0", "true"], ["many", "true"]):
        finished = finish(start([script, *wrong]), 10)
        assert finished.returncode == 2, finished
        assert "usage: " in finished.stderr


def test_mpiexec_beside_python_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("venv", "path"):
        tmp_path.joinpath(name).mkdir()
        tool = tmp_path / name / "mpiexec"
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setattr(launch, "clashing_runtimes", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert launch.mpiexec_command(4) == [str(tmp_path / "venv" / "mpiexec"), "-n", "4"]
    tmp_path.joinpath("venv", "mpiexec").unlink()
    assert launch.mpiexec_command(1) == [str(tmp_path / "path" / "mpiexec"), "-n", "1"]
    tmp_path.joinpath("path", "mpiexec").unlink()
    with pytest.raises(LaunchError, match=r"pip install -c constraints.txt \"\.\[mpich\]\" in a clone"):
        launch.mpiexec_command(2)
    with pytest.raises(SettingError, match="at least one rank"):
        launch.mpiexec_command(0)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for mpiexec: a program that tells how it was started, and ends with a status."""
    path = tmp_path / "mpiexec"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], dict(os.environ)], open({str(tmp_path / 'told')!r}, 'w'))\n"
        "sys.exit(int(os.environ.get('STATUS', 0)))\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(launch, "mpiexec_command", lambda ranks: [str(path), "-n", str(ranks)])
    return tmp_path / "told"


@pytest.mark.parametrize("threads", [None, "2"])
def test_relaunch_runs_mpiexec(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: Path, threads: str | None
) -> None:
    monkeypatch.setattr(launch, "shared_memory_shortage", lambda ranks: "too little")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    with pytest.raises(SystemExit) as ended:
        launch.relaunch(4, ["train", "--lr", "0.1"])
    assert ended.value.code == 0
    command, environ = json.loads(tool.read_text())
    assert command == ["-n", "4", sys.executable, "-m", "qsparse", "train", "--lr", "0.1"]
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == (threads or "1")
    assert "too little" in capsys.readouterr().err


def test_a_status_of_mpiexec_is_believed_if_there_are_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: Path
) -> None:
    """Some launchers end with 0 where ranks are lost."""
    for status, there, code in (("0", True, 0), ("0", False, 1), ("9", True, 9), ("143", False, 143)):
        monkeypatch.setenv("STATUS", status)
        file = tool.with_name("summary.json")
        file.unlink(missing_ok=True)
        if there:
            file.write_text("")
        with pytest.raises(SystemExit) as ended:
            launch.relaunch(2, ["train"], lambda file=file: file)
        assert ended.value.code == code
        told = f"error: the ranks have failed: mpiexec ended with status 0, and there is no {file}\n"
        assert capsys.readouterr().err == (told if code == 1 else "")


def test_threads_of_a_rank() -> None:
    for given, threads in (({}, 1), ({"OMP_NUM_THREADS": ""}, 1), ({"OMP_NUM_THREADS": " 4 , 2"}, 4)):
        assert launchers.threads_of_a_rank(given) == threads
    for text in ("0", "-1", "many", ",2", "1.5"):
        with pytest.raises(SettingError, match="whole number of at least 1"):
            launchers.threads_of_a_rank({"OMP_NUM_THREADS": text})


def test_shared_memory_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.os, "statvfs", lambda folder: SimpleNamespace(f_bavail=64 << 8, f_frsize=4096))
    assert launch.shared_memory_shortage(10) is None
    assert "12 ranks may need 72 MB" in (launch.shared_memory_shortage(12) or "")
    monkeypatch.undo()
    assert launch.shared_memory_shortage(10**9, "/nowhere") is None


def test_mpi_run_shows_stacks_and_outputs() -> None:
    """The helper of the other tests: a job that hangs ends and says where."""
    program = """
        import sys, time
        print("said by", sys.argv[1], flush=True)

        def stuck():
            time.sleep(60)

        stuck()
    """
    with pytest.raises(AssertionError) as caught:
        mpi_run(2, program, "me", timeout=4)
    text = str(caught.value)
    assert "said by me" in text
    assert "in stuck" in text
    assert "2 ranks" in text
    finished = mpi_run(2, ["-m", "timeit", "-n", "1", "-r", "1", "pass"], timeout=20)
    assert finished.stdout.count("1 loop") == 2
    assert finished.returncode == 0
    assert mpi_run(1, "raise SystemExit(5)", check=False, timeout=20).returncode == 5


def test_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("MPI4PY_LIBMPI", "/site/libmpi.so")
    environ = clean_environment({"EXTRA": "1"})
    assert not {"PMI_RANK", "OMPI_COMM_WORLD_SIZE"} & set(environ)
    assert environ["MPI4PY_LIBMPI"] == "/site/libmpi.so"
    assert environ["EXTRA"] == "1"

"""The parent of a rank: it says how the rank has ended where the rank could not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mpirun import ROOT, Finished, finish, mpi_run, start

pytest.importorskip("mpi4py")

#: What rank 1 does with its wire, and how it ends. Rank 0 waits for it.
PROGRAM = """
    import os, signal, sys
    from qsparse.wire.mpi import MpiWire

    how = sys.argv[1]
    wire = MpiWire()

    def leave():
        wire.close()
        if how.startswith("finalized"):
            from mpi4py import MPI

            MPI.Finalize()
        os._exit(0)

    if wire.rank == 1:
        if how.endswith(", then _exit"):
            leave()
        if how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[how])
        if how == "raise":
            raise ValueError("the reason")
        if how == "abort":
            wire.abort(7)
        if how == "exit":
            sys.exit(4)
        os._exit(int(how))
    if how.endswith(", then _exit"):
        leave()
    wire.receive(1)
"""


def ended(tmp_path: Path, how: str) -> Finished:
    """A program of two ranks that ``launch/local.sh`` has started."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(ROOT / "launch" / "local.sh"), "2", sys.executable, str(program), how]
    return finish(start(command, env={"PATH": path}), 60)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("0", "left with status 0 before the run had ended, without a word (os._exit?)"),
        ("5", "left with status 5 before the run had ended, without a word (os._exit?)"),
        ("SIGKILL", "was ended by SIGKILL, which the system also sends where memory is short (see dmesg)"),
        ("SIGABRT", "was ended by SIGABRT"),
        ("SIGTERM", "was ended by SIGTERM"),
    ],
)
def test_an_end_without_a_word_is_named(tmp_path: Path, how: str, said: str) -> None:
    finished = ended(tmp_path, how)
    assert finished.returncode != 0, finished
    assert finished.stderr.count("the job cannot go on without it") == 1, finished
    assert f"[rank 1] {said}: the job cannot go on without it\n" in finished.stderr, finished


#: To MPICH, leaving by ``os._exit`` is a success only if the others leave at the same moment, else it kills
#: them: it says goodbye to its launcher in a function that ``exit`` calls, not in MPI_Finalize.
LAUNCHER_DECIDES = ["closed, then _exit", "finalized, then _exit"]


@pytest.mark.parametrize("how", [*LAUNCHER_DECIDES, "raise", "abort", "exit"])
def test_an_end_that_speaks_for_itself_is_left_alone(tmp_path: Path, how: str) -> None:
    finished = ended(tmp_path, how)
    if how not in LAUNCHER_DECIDES:
        assert finished.returncode != 0, finished
    assert "the job cannot go on without it" not in finished.stderr, finished


#: A command that tells what it was sent, and ends when it was told so.
TELLS = """
    import os, signal, sys, time

    heard = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: heard.append(signal.Signals(number).name))
    print(os.getppid(), flush=True)
    while "SIGHUP" not in heard:
        time.sleep(0.01)
    print(*sorted(heard), flush=True)
    sys.exit(6)
"""


def test_signals_are_handed_on_once(tmp_path: Path) -> None:
    """Those that were sent to the supervisor alone; those of its launcher have come to both."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(TELLS))
    command = [sys.executable, "-m", "qsparse.process.supervisor", sys.executable, str(program)]
    other = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        os.killpg(process.pid, signal.SIGUSR1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            subprocess.run([sys.executable, "-c", other, str(process.pid), str(int(number))], check=True)
        assert process.stdout.readline().split() == ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1"]
        assert process.wait(timeout=20) == 6


def test_a_command_that_is_none_and_one_that_is() -> None:
    for words, status, said in (([], 2, "usage: "), (["/nowhere"], 127, "cannot run /nowhere: No such file")):
        done = subprocess.run(
            [sys.executable, "-m", "qsparse.process.supervisor", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, said in done.stderr) == (status, True), done
    done = subprocess.run(
        [sys.executable, "-m", "qsparse.process.supervisor", sys.executable, "-c", "raise SystemExit(3)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_a_rank_inside_a_rank_is_refused(tmp_path: Path) -> None:
    """A program that a rank starts has the variables of its launcher, and is none of its ranks."""
    program = """
        import subprocess, sys
        from mpi4py import MPI

        line = [sys.executable, "-m", "qsparse", "train", "--ranks", "2", "--out", sys.argv[1]]
        for closes in (True, False):
            done = subprocess.run(line, capture_output=True, text=True, close_fds=closes)
            assert done.returncode == 1, done
            told = "error: LaunchError: this process was started by a rank of an MPI job (process "
            assert done.stderr.startswith(told), done
            assert "without the rank's variables (for MPICH: env -u " in done.stderr, done
            assert len(done.stderr.splitlines()) == 1, done
        print("refused")
    """
    finished = mpi_run(2, program, tmp_path / "out", timeout=120)
    assert finished.stdout.count("refused") == 2, finished
    assert not (tmp_path / "out").exists()

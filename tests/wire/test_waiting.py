"""No wait lasts for ever without a word: of processes under ``mpiexec``, and of threads."""

from __future__ import annotations

import math
import re
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from mpirun import Finished, finish, mpi_run, start

from qsparse.cli.launch import mpiexec_command
from qsparse.errors import SettingError, WaitTimeout
from qsparse.payload import Payload
from qsparse.wire.base import Wire
from qsparse.wire.threads import ThreadWire, run_threads
from qsparse.wire.waiting import Limits, Patience

pytest.importorskip("mpi4py")

#: Waits that are told of, and end, soon; the first is also after how long ranks tell each other.
SOON = {"QSPARSE_WAIT_WARN": "0.5", "QSPARSE_WAIT_END": "3"}


def ended_by_itself(finished: Finished) -> bool:
    """Has a job ended with a failure before its time was over?"""
    return finished.returncode != 0 and "Timeout (0:" not in finished.stderr


def test_how_long_a_rank_waits_is_settable() -> None:
    assert Limits.of({}) == (60, 1800, math.inf)
    assert Limits.of({"QSPARSE_WAIT_WARN": "0", "QSPARSE_WAIT_END": "90.5"}) == (math.inf, 90.5, 90.5)
    assert Limits.of({"QSPARSE_WAIT_END": "0"}) == (60, math.inf, math.inf)
    for text in ("soon", "-1", "nan"):
        with pytest.raises(SettingError, match=f"QSPARSE_WAIT_END is '{text}', which is not a number of sec"):
            Limits.of({"QSPARSE_WAIT_END": text})


def test_a_wire_that_is_lent_is_waited_for() -> None:
    """Whoever wants it waits until the other thread has ended, which is told to hurry."""
    (wire,) = ThreadWire.group(1)
    seen: list[str] = []

    def borrow() -> None:
        with wire.at("a round"):
            assert wire.hurry is not None
            assert wire.hurry.wait(60)
            seen.append("told")
            wire.send([Payload.build([b"first"])], 0)

    for _ in range(2):
        thread = threading.Thread(target=borrow)
        wire.lend(thread)
        thread.start()
    assert wire.hurry is None
    with wire.at("something else"):
        wire.send([Payload.build([b"second"])], 0)
    assert seen == ["told", "told"]
    assert [wire.receive()[1][0].text for _ in range(3)] == ["first", "first", "second"]


def test_who_is_in_no_hurry_polls_less() -> None:
    """Until somebody waits for it; then as any wait."""

    class Recorded(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            naps.append(timeout or 0.0)
            return self.is_set()

    naps: list[float] = []
    hurry = Recorded()
    patience = Patience(hurry)
    for _ in range(40):
        patience.rest(False)
    assert naps == sorted(naps)
    assert naps[0] == 2e-4
    assert naps[-1] == naps[-2] == 1e-2
    patience.rest(True)
    patience.rest(False)
    assert naps[-1] == naps[0]
    hurry.set()
    for _ in range(3):
        patience.rest(False)
    assert len(naps) == 42


def test_every_wait_says_for_whom_and_ends() -> None:
    """Rank 1 makes two wires, says one thing and then computes for ever."""
    program = """
        import time
        import pytest
        from mpi4py import MPI
        from qsparse.errors import WaitTimeout
        from qsparse.payload import Payload, Way
        from qsparse.wire.mpi import MpiWire

        wire, closed = MpiWire(), MpiWire()
        if wire.rank == 1:
            wire.send([Payload.build(step=7, origin=1)], 0)
            time.sleep(60)
        wire.receive(1)
        message = "for a message of rank 1 in the meeting of step 8 .*heard of .* s ago .report of step 7"
        with wire.at("the meeting of step 8"):
            with pytest.raises(WaitTimeout, match=f"rank 0 has waited .* s {message}"):
                wire.receive(1)
            with pytest.raises(WaitTimeout, match=f"rank 0 has waited .* s {message}"):
                wire.receive()
        with pytest.raises(WaitTimeout, match="for rank 1 to close .object 2 of 2 ranks.: rank 1 not heard"):
            closed.close()
        # Twice, as nothing that was given up may be written to later.
        for comm in (MPI.COMM_WORLD, MPI.COMM_WORLD):
            with pytest.raises(WaitTimeout, match="for rank 1 to make its object 3 on a communicator of 2"):
                MpiWire(comm)
        wire.send([Payload.build([bytes(20_000_000)])], 1)
        wire.flush()
    """
    finished = mpi_run(2, program, timeout=40, check=False, env=SOON)
    assert ended_by_itself(finished), finished
    lines = [line for line in finished.stderr.splitlines() if line.startswith("[rank 0] has waited ")]
    assert any(" s for a message of rank 1 in the meeting of step 8 " in line for line in lines), finished
    assert all(line.endswith("; ends the job after 3 s (QSPARSE_WAIT_END)") for line in lines), finished
    last = r"WaitTimeout: rank 0 has waited \d+ s for rank 1 to take what was sent"
    assert re.search(last, finished.stderr), finished


@pytest.mark.parametrize("how", ["leaves", "exits", "ended before", "fails before"])
def test_waiting_for_a_rank_that_does_not_come(how: str) -> None:
    program = """
        import sys, time
        from mpi4py import MPI
        import qsparse

        how, rank = sys.argv[1], MPI.COMM_WORLD.rank
        if rank == 1 and how == "fails before":
            raise FileNotFoundError("the data are not on this machine")
        if rank == 1 and how == "exits":
            sys.exit(3)
        from qsparse.wire.mpi import MpiWire
        wire = MpiWire()
        if how == "ended before":
            wire.close()
            if rank == 0:
                MpiWire()
        if rank == 1 and how == "leaves":
            time.sleep(60)
    """
    limits = SOON if how == "leaves" else {}
    finished = mpi_run(2, program, how, timeout=30, check=False, env=limits)
    assert ended_by_itself(finished), finished
    told = {
        "leaves": r"\[rank 0\] WaitTimeout: rank 0 has waited \d+ s for rank 1 to end, as it has itself",
        "exits": "rank 0 waits for rank 1 to make its object 1 .*, and it has ended",
        "ended before": "rank 0 waits for rank 1 to make its object 2 .*, and it has ended",
        "fails before": r"\[rank 1\] FileNotFoundError: the data are not on this machine",
    }
    assert re.search(told[how], finished.stderr), finished


ANOTHER_ORDER = """
    import sys, threading, time
    import numpy as np
    from mpi4py import MPI
    from qsparse import CompressedAllreduce
    from qsparse.payload import Payload
    from qsparse.wire.mpi import MpiWire

    how, world = sys.argv[1], MPI.COMM_WORLD
    one = CompressedAllreduce(world, "topk(k=1)")
    if how == "one object":
        one.wire.receive(1 - world.rank)
    other = CompressedAllreduce(world.Dup() if how == "two communicators" else world, "topk(k=1)")
    if how == "another thread":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    # Large, so that a message does not leave before it is taken.
    x = np.ones(200_000, np.float32)
    for allreduce in (one, other) if world.rank == 0 else (other, one):
        allreduce(x.copy())
"""


@pytest.mark.parametrize("how", ["one communicator", "two communicators", "one object", "another thread"])
def test_ranks_that_wait_for_each_other_find_out(how: str) -> None:
    alone = how != "another thread"
    limits = {"QSPARSE_WAIT_WARN": "0.5", "QSPARSE_WAIT_END": "0" if alone else "4"}
    finished = mpi_run(2, ANOTHER_ORDER, how, timeout=30, check=False, env=limits)
    assert ended_by_itself(finished), finished
    if alone:
        assert "each waits for the other, and nothing is under way" in finished.stderr, finished
        assert "DisagreementError: rank " in finished.stderr, finished
        remedy = (
            "let all ranks make the same calls" if how == "one object" else "in the same order on all ranks"
        )
        assert remedy in finished.stderr, finished
    else:
        # Another thread could send, so nothing is concluded; but it is said what is known.
        assert "each waits for the other" not in finished.stderr, finished
        assert "s ago that it waits for a message of rank" in finished.stderr, finished
        assert "WaitTimeout: rank " in finished.stderr, finished


def test_ranks_that_are_only_slow_are_not_taken_for_stuck() -> None:
    """Ranks tell each other of every wait; each has messages unread on one wire while it waits on another."""
    program = """
        import random, time
        from mpi4py import MPI
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire

        world = MPI.COMM_WORLD
        wires = [MpiWire(), MpiWire(), MpiWire(world.Dup())]
        draw = random.Random(world.rank)
        others = [rank for rank in range(world.size) if rank != world.rank]
        for step in range(40):
            for wire in wires:
                for other in others:
                    wire.send([Payload.build([bytes(100_000 if step % 7 == 0 else 10)], step=step)], other)
            time.sleep(draw.choice([0, 0, 0.02, 0.1]))
            # In another order each time, but all that is waited for has been sent.
            for wire in draw.sample(wires, 3):
                for other in draw.sample(others, len(others)):
                    assert wire.receive(other)[1][0].step == step
                    time.sleep(draw.choice([0, 0, 0, 0.03]))
        # One rank is waited for by all, who have heard of it before and hear of it again.
        for turn in range(3):
            if world.rank == turn:
                time.sleep(0.3)
                for other in others:
                    wires[turn].send([Payload.build(step=turn)], other)
            else:
                wires[turn].receive(turn)
        for wire in wires:
            wire.close()
        print("done", flush=True)
    """
    finished = mpi_run(3, program, timeout=60, env={"QSPARSE_WAIT_WARN": "0.01"})
    assert finished.stdout.count("done") == 3, finished
    assert "has waited" in finished.stderr, "otherwise nothing was told"


def test_objects_on_one_communicator_share_a_copy() -> None:
    program = """
        import threading
        import pytest
        from mpi4py import MPI
        from qsparse.errors import DisagreementError, WireError
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire

        world = MPI.COMM_WORLD
        alone = [MpiWire(MPI.COMM_SELF) for _ in range(2200)]
        wires = [MpiWire() for _ in range(20)]
        for number, wire in enumerate(wires):
            wire.send([Payload.build(step=number)], 1 - world.rank)
        for number, wire in reversed(list(enumerate(wires))):
            assert wire.receive(1 - world.rank)[1][0].step == number
        # Two threads, each with a wire of its own.
        def chat(wire):
            for step in range(300):
                wire.send([Payload.build([bytes(20 * step)], step=step, origin=wire.number)], 1 - world.rank)
                payload, = wire.receive()[1]
                assert (payload.step, payload.origin) == (step, wire.number)
            done.append(wire)
        done = []
        threads = [threading.Thread(target=chat, args=(wire,)) for wire in wires[5:7]]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(done) == 2
        for wire in alone + wires[:10]:
            wire.close()

        # A communicator takes its copy with it, as soon as its last wire is closed.
        for _ in range(2200):
            comm = MPI.COMM_SELF.Dup()
            wire = MpiWire(comm)
            comm.Free()
            wire.send([Payload.build()], 0)
            wire.receive(0)
            wire.close()
        kept = []
        try:
            for _ in range(2200):
                kept.append(MPI.COMM_SELF.Dup())
        except MPI.Exception:  # of MPICH and its kin; Open MPI has room for more than a test should fill
            with pytest.raises(WireError, match="no room for one more communicator .*Free those"):
                MpiWire(kept[0])
        for comm in kept:
            comm.Free()

        if world.rank:
            wires[-1].channel._newest += 1  # as if it had made another one meanwhile
        with pytest.raises(DisagreementError, match="make them in the same order on all ranks"):
            MpiWire()
        print("done")
    """
    finished = mpi_run(2, program, timeout=60)
    assert finished.stdout.count("done") == 2, finished


@pytest.mark.parametrize("how", ["not started", "ended"])
def test_mpi_that_does_not_run_is_a_sentence(how: str) -> None:
    program = """
        import sys
        import mpi4py
        mpi4py.rc.initialize = sys.argv[1] == "ended"
        import pytest
        from mpi4py import MPI
        from qsparse import CompressedAllreduce
        from qsparse.cli.commands import qsparse
        from qsparse.errors import LaunchError, WireError
        from qsparse.wire.mpi import MpiWire, launch_check, local_ranks

        match = "MPI is not started in this process.*MPI.Init_thread"
        if sys.argv[1] == "ended":
            made = [CompressedAllreduce(comm, "topk(k=1)") for comm in (MPI.COMM_SELF, None)]
            MPI.Finalize()
            match = "MPI has been ended in this process"
            for each in made:
                with pytest.raises(WireError, match="closed"):
                    each.wire.receive(0)
                each.close()
        for door in (MpiWire, lambda: MpiWire(MPI.COMM_SELF), launch_check, local_ranks,
                     lambda: CompressedAllreduce(MPI.COMM_WORLD)):
            with pytest.raises(LaunchError, match=match):
                door()
        for command in (["doctor"], ["train", "--steps", "1"]):
            with pytest.raises(SystemExit):
                qsparse.main(command)
        print("done")
    """
    finished = mpi_run(2, program, how, timeout=60)
    assert finished.stdout.count("done") == 2, finished
    assert finished.stderr.count("error: LaunchError: MPI ") == 4, finished


def test_processes_that_a_rank_starts_are_not_of_its_job(tmp_path: Path) -> None:
    program = tmp_path / "main.py"
    program.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, subprocess, sys
            from mpi4py import MPI
            import qsparse

            def work(i):
                return i * MPI.COMM_WORLD.size

            if __name__ == "__main__":
                for method in ("spawn", "forkserver"):
                    with multiprocessing.get_context(method).Pool(1) as pool:
                        assert pool.map(work, [1, 2]) == [1, 2]
                assert MPI.COMM_WORLD.size == 2
                if MPI.COMM_WORLD.rank == 0:
                    command = [sys.executable, "-m", "qsparse", "doctor", "--ranks", "2"]
                    print(subprocess.run(command, capture_output=True, text=True).stderr)
                    # Of a rank that does not know of qsparse, with all that was open.
                    plain = "import os; from mpi4py import MPI; print(os.system('%s'))" % " ".join(command)
                    subprocess.run([sys.executable, "-c", plain])
                MPI.COMM_WORLD.Barrier()
                print("done")
            """
        )
    )
    finished = finish(start([*mpiexec_command(2), sys.executable, str(program)]), 60)
    assert finished.returncode == 0, finished
    assert finished.stdout.count("done") == 2, finished
    assert "error: LaunchError: this process was started by a rank of an MPI job" in finished.stdout, finished


def test_threads_say_for_whom_they_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QSPARSE_WAIT_WARN", "0.1")
    monkeypatch.setenv("QSPARSE_WAIT_END", "2")

    release = threading.Event()

    def body(wire: Wire) -> None:
        if wire.rank == 1:
            wire.send([Payload.build(step=3, origin=1)], 0)
            release.wait(60)
        wire.receive(1)
        with wire.at("the meeting of step 4"):
            wire.receive(1)

    with pytest.raises(
        WaitTimeout, match=r"rank 0 has waited \d+ s for a message of rank 1 in the meeting of step 4"
    ) as caught:
        run_threads(2, body)
    # The rank that computes is not waited for here, either, but shown.
    assert not release.is_set()
    assert "release.wait(60)" in "".join(caught.value.__notes__)
    release.set()
    told = capsys.readouterr().err
    assert " s for a message of rank 1 in the meeting of step 4: rank 1 last heard of" in told
    assert "(report of step 3)" in told

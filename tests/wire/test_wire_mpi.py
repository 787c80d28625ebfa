"""The wire between processes: real jobs under ``mpiexec``, many checks in each."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from mpirun import clean_environment, finish, mpi_run, start

from qsparse.cli.launch import mpiexec_command
from qsparse.errors import LaunchError
from qsparse.process import launchers
from qsparse.process.launchers import announced_size, clashing_runtimes
from qsparse.wire.waiting import Patience

pytest.importorskip("mpi4py")

# Warnings are errors in the ranks, too: a message that nobody has received is one.
STRICT = {"PYTHONWARNINGS": "error"}


def test_a_wait_is_overslept_by_a_tenth_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    patience = Patience()
    for _ in range(100):
        patience.rest(False)
    assert pauses[0] == 20e-6
    assert all(pause <= 20e-6 + 0.1001 * sum(pauses[:i]) for i, pause in enumerate(pauses))
    assert max(pauses) == pauses[-1] == 1e-3, "a long wait leaves the core to others"
    patience.rest(True)
    pauses.clear()
    for _ in range(21):
        patience.rest(False)
    assert pauses == [20e-6]


def test_processes_obey() -> None:
    """On the four of COMM_WORLD, on three of them beside one, and on two pairs at the same time."""
    program = """
        import time
        from mpi4py import MPI
        from qsparse.wire.mpi import MpiWire
        from wire_laws import CHUNK, LAWS

        world = MPI.COMM_WORLD
        comms = [None, world.Split(world.rank == 3), world.Split(world.rank // 2)]
        for comm in comms:
            where = comm or world
            for law in LAWS:
                begin = time.perf_counter()
                wire = MpiWire(comm, chunk_bytes=CHUNK)
                assert (wire.rank, wire.size) == (where.rank, where.size)
                law(wire)
                wire.close()
                wire.close()
                if not wire.rank:
                    took = time.perf_counter() - begin
                    print(f"{law.__name__} on {where.size}: {took:.2f} s\\n", end="", flush=True)
    """
    printed = mpi_run(4, program, timeout=90, env=STRICT).stdout
    for size, count in ((4, 1), (3, 1), (2, 2), (1, 1)):
        assert printed.count(f" on {size}: ") == 12 * count, printed


def test_communicators() -> None:
    """Beside the messages of other code; on groups, alone and on copies; what is refused."""
    program = """
        import pytest
        from mpi4py import MPI
        from qsparse.errors import SettingError, WireError
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire, library, local_ranks
        from wire_laws import CHUNK, LAWS, frame, check

        world = MPI.COMM_WORLD
        right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size

        # The same tags and ranks, in the user's communicator, under way all the time.
        mine, theirs = [bytearray(b"%d %d" % (world.rank, tag)) for tag in range(6)], bytearray(9)
        sends = [world.Isend(text, right, tag) for tag, text in enumerate(mine)]
        wire = MpiWire(world)
        wire.send([frame(wire, 1, 100)], right)
        check(wire.receive()[1][0], left, 1)
        wire.close()
        for tag in reversed(range(6)):
            status = MPI.Status()
            world.Recv(theirs, left, tag, status)
            assert theirs[: status.Get_count()] == b"%d %d" % (left, tag)
        MPI.Request.Waitall(sends)

        half = world.Split(world.rank % 2, -world.rank)
        wires = [MpiWire(half), MpiWire(MPI.COMM_SELF), MpiWire(world.Dup(), chunk_bytes=CHUNK)]
        assert wires[0].size == 2 and wires[0].rank == half.rank
        for law in LAWS[3:7]:
            for wire in wires:
                law(wire)
                world.Barrier()
        for wire in wires:
            wire.close()
        with pytest.raises(WireError, match="closed"):
            wires[0].send([Payload.build()], 0)

        null = world.Split(MPI.UNDEFINED if world.rank else 0)
        if world.rank:
            with pytest.raises(SettingError, match="null communicator"):
                MpiWire(null)
        inter = half.Create_intercomm(0, world, 1 - world.rank % 2 + world.size - 2)
        with pytest.raises(SettingError, match="inter-communicator"):
            MpiWire(inter)
        with pytest.raises(SettingError, match="not 'world'"):
            MpiWire("world")
        for chunk in (0, 1 << 31):
            with pytest.raises(SettingError, match="chunk_bytes"):
                MpiWire(chunk_bytes=chunk)
        assert local_ranks() == (world.rank, world.size)
        vendor, version = library()
        assert version[0].isdigit()
        print(vendor, version)
    """
    finished = mpi_run(4, program, timeout=30, env=STRICT)
    assert finished.stdout.count("\n") == 4, finished


def test_foreign_and_altered_messages_are_refused_by_name() -> None:
    program = """
        import pytest
        from mpi4py import MPI
        from qsparse.errors import Corrupted, ForeignFrame, Truncated
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire

        wire = MpiWire()
        raw, tag = wire._comm, wire.number
        sound = Payload.build([b"x" * 100], origin=wire.rank, step=5)
        altered = bytearray(sound.frame)
        altered[70] ^= 1
        long = lambda length, piece: b"QSPL" + length.to_bytes(8, "little") + piece.to_bytes(8, "little")
        # What rank 1 sends past the wire, and how rank 0 must call it.
        cases = [
            ([b"hello, this is no frame at all"], ForeignFrame, "b'hell'"),
            ([b"QSPZ1234"], ForeignFrame, "b'QSPZ'"),
            ([b""], Truncated, "empty"),
            ([sound.frame[:20]], Truncated, "header"),
            ([sound.frame[:-1]], Truncated, "announces"),
            ([altered], Corrupted, "checksum"),
            ([bytes(sound.frame) + b"tail"], ForeignFrame, "tail"),
            ([b"QSPL123"], Truncated, "7 bytes"),
            ([long(1 << 63, 10)], Corrupted, "more than there is memory"),
            ([long(10, 5), b"12345", b"1234567"], Corrupted, "exceed"),
            ([long(10, 5), b"123"], Corrupted, "pieces of 5 bytes, and one has 3"),
            ([long(200, 148), sound.frame], Truncated, "ended after 148"),
            ([long(148, 148), altered], Corrupted, "checksum"),
        ]
        for messages, kind, text in cases:
            if wire.rank:
                for data in messages:
                    raw.Send([data, MPI.BYTE], 0, tag)
                wire.send([sound], 0)
            else:
                with pytest.raises(kind, match=f"rank 0 refuses a message of rank 1.*{text}"):
                    wire.receive(1)
                # The next message is none the worse for it.
                source, (payload,) = wire.receive()
                assert (source, payload.step, bytes(payload.body)) == (1, 5, b"x" * 100)
        wire.close()
        print("done")
    """
    finished = mpi_run(2, program, timeout=30, env=STRICT)
    assert finished.stdout.count("done") == 2, finished


def test_a_message_above_two_gibibytes() -> None:
    program = """
        import numpy as np
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire

        length = 2**31 + 1000
        wire = MpiWire()
        if wire.rank == 0:
            # A mark at each mebibyte, and the same zeros between them, which need be in memory once.
            zeros = np.zeros((1 << 20) - 1, np.uint8)
            parts = [part for i in range(length >> 20) for part in (bytes([i % 251]), zeros)]
            parts += [bytes([(length >> 20) % 251]), zeros[: length % (1 << 20) - 1]]
            payload = Payload.build(parts, step=7)
            wire.send([payload], 1)
            wire.flush()
        else:
            source, (payload,) = wire.receive()
            body = np.frombuffer(payload.body, np.uint8)
            marks = body[:: 1 << 20]
            assert (source, payload.step, len(body)) == (0, 7, length)
            assert (marks == np.arange(len(marks)) % 251).all()
            assert np.count_nonzero(body) == np.count_nonzero(marks)
        wire.close()
    """
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 << 30:
        pytest.skip("needs 8 GiB of free memory")
    mpi_run(2, program, timeout=240, env=STRICT)


def test_waiting_is_cheap_and_ends_soon() -> None:
    program = """
        import time
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire

        wire = MpiWire()
        if wire.rank == 0:
            time.sleep(1.0)
            for dest in (1, 2):
                wire.send([Payload.build([time.time().hex().encode()])], dest)
        else:
            begin = time.process_time()
            payload = wire.receive(0 if wire.rank == 1 else -1)[1][0]
            late = time.time() - float.fromhex(payload.text)
            # One write: the launcher mixes the writes of the ranks.
            print(f"SPENT {time.process_time() - begin} LATE {late}\\n", end="", flush=True)
        wire.close()
    """
    finished = mpi_run(3, program, timeout=20, env=STRICT)
    words = finished.stdout.split()
    spent = [float(words[i + 1]) for i, word in enumerate(words) if word == "SPENT"]
    assert len(spent) == 2, finished
    assert max(spent) < 0.5, finished
    late = [float(words[i + 1]) for i, word in enumerate(words) if word == "LATE"]
    assert max(late) < 0.5, finished


FAILING = """
    import sys, threading, time
    from qsparse.wire.mpi import MpiWire

    wire = MpiWire()
    how = sys.argv[1]
    if wire.rank == 1:
        print("before the end", flush=True)
        if how == "exception":
            raise ValueError("the reason of rank 1")
        if how == "in a thread":
            threading.Thread(target=lambda: 1 // 0).start()
            wire.receive(0)
        if how == "exit":
            sys.exit(3)
        if how == "abort":
            try:
                raise ValueError("the reason of rank 1")
            except ValueError:
                wire.abort(7)
        if how == "finally":
            try:
                raise ValueError("the reason of rank 1")
            finally:
                wire.close()
        if how == "close":
            wire.close()
    if wire.rank == 2 and how == "close":
        wire.close()
    if wire.rank == 2 and how != "exit":
        time.sleep(30)  # computes, and hears nothing
    wire.receive(1)
"""


@pytest.mark.parametrize("how", ["exception", "in a thread", "exit", "abort", "finally", "close"])
def test_the_failure_of_a_rank_ends_the_job(how: str) -> None:
    finished = mpi_run(3, FAILING, how, timeout=25, check=False)
    assert finished.seconds < 15, finished
    assert finished.returncode, finished
    assert "before the end" in finished.stdout
    told = "[rank 0] WireError: rank 0 waits for a message of rank 1, which "
    if how == "exit":
        assert f"{told}has ended without closing its wire" in finished.stderr, finished
    elif how == "close":
        assert f"{told}has closed its wire" in finished.stderr, finished
    elif how == "in a thread":
        assert "[rank 1] ZeroDivisionError" in finished.stderr, finished
        assert f"{told}has failed with ZeroDivisionError" in finished.stderr, finished
    elif how == "abort":
        assert f"{told}has failed with ValueError: the reason of rank 1" in finished.stderr, finished
        assert finished.returncode in (7, 1), finished
    elif how == "finally":
        assert "[rank 1] ValueError: the reason of rank 1" in finished.stderr, finished
    else:
        assert "[rank 1] Traceback (most recent call last):\n[rank 1]   File" in finished.stderr, finished
        assert "[rank 1] ValueError: the reason of rank 1" in finished.stderr, finished
        assert f"{told}has failed with ValueError: the reason of rank 1" in finished.stderr, finished


def test_all_ranks_say_why_they_fail_and_unreceived_messages_are_told() -> None:
    program = """
        import os, signal, warnings
        import pytest
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire

        wire = MpiWire()
        wire.send([Payload.build([bytes(3_000_000)])], (wire.rank + 1) % 3)
        with pytest.warns(RuntimeWarning, match="without receiving 1 messages"):
            wire.close()
        wire = MpiWire()
        os.kill(os.getpid(), signal.SIGUSR1)
        raise KeyError(f"reason {wire.rank}")
    """
    finished = mpi_run(3, program, timeout=25, check=False, env=STRICT)
    assert finished.returncode, finished
    assert finished.seconds < 15, finished
    for rank in range(3):
        assert f"[rank {rank}] KeyError: 'reason {rank}'" in finished.stderr, finished
        assert f"[rank {rank}] received SIGUSR1 and goes on" in finished.stderr, finished


@pytest.mark.parametrize("how", ["by itself", "MPI first"])
def test_what_a_rank_has_sent_arrives_after_it_has_ended(how: str) -> None:
    """The others compute meanwhile; more messages than MPI takes at once, and one that it lets wait."""
    program = """
        import sys, time
        from mpi4py import MPI
        from qsparse.payload import Payload
        from qsparse.wire.mpi import MpiWire

        def sent(i):
            return bytes([i % 251]) * (5_000_000 if i == 500 else 300)

        idle = MpiWire()
        wire = MpiWire()
        if wire.rank == 0:
            for i in range(1000):
                wire.send([Payload.build([sent(i)], step=i)], 1)
            if sys.argv[1] == "MPI first":
                MPI.Finalize()
        elif wire.rank == 1:
            time.sleep(1)
            for i in range(1000):
                payload, = wire.receive(0)[1]
                assert (payload.step, bytes(payload.body)) == (i, sent(i))
            print("all of them")
        else:
            time.sleep(0.5)
            for _ in range(100):
                wire.send([Payload.build([bytes(3_000_000)])], 0)
            wire.flush()
            print("taken")
    """
    finished = mpi_run(3, program, how, timeout=40)
    assert sorted(finished.stdout.splitlines()) == ["all of them", "taken"], finished


def test_no_rank_outlives_its_launcher(tmp_path: Path) -> None:
    program = tmp_path / "wait.py"
    program.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from qsparse.wire.mpi import MpiWire\n"
        "wire = MpiWire()\n"
        "note = Path(sys.argv[1], f'part{wire.rank}')\n"
        "note.write_text(str(os.getpid()))\n"
        "note.rename(Path(sys.argv[1], f'pid{wire.rank}'))\n"
        # Open MPI notices by itself in ranks that call MPI, not in ranks that compute.
        "if wire.rank == 2: time.sleep(60)\n"
        "wire.receive((wire.rank + 1) % wire.size)\n"
    )
    job = start([*mpiexec_command(3), sys.executable, str(program), str(tmp_path)])
    try:
        deadline = time.monotonic() + 20
        while len(pids := [int(path.read_text()) for path in tmp_path.glob("pid?")]) < 3:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline, "the ranks have not started"
            time.sleep(0.05)
        assert all(map(_lives, pids))
        os.kill(job.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(map(_lives, pids)):
            assert time.monotonic() < deadline, "ranks are alive without their launcher"
            time.sleep(0.05)
    finally:
        finish(job, 5)


def _lives(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def test_a_launcher_of_another_maker_is_refused() -> None:
    """A launcher that only sets its variables, as one of another MPI library does."""
    program = "from qsparse.wire.mpi import MpiWire; MpiWire()"
    variable = "PMI_SIZE" if "openmpi" in mpi_runtime() else "OMPI_COMM_WORLD_SIZE"
    # Set by `env`, because a clean environment has no such variables.
    job = start(["env", f"{variable}=4", sys.executable, "-c", program])
    finished = finish(job, 20)
    assert finished.returncode == 1, finished
    assert f"LaunchError: {variable} announces 4 ranks" in finished.stderr, finished
    assert "sees a world of one" in finished.stderr
    assert "mpiexec that belongs to the library" in finished.stderr


def mpi_runtime() -> str:
    finished = finish(start([sys.executable, "-m", "mpi4py", "--mpi-lib-version"]), 20)
    return finished.stdout.lower().replace("open mpi", "openmpi")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ("OMPI_COMM_WORLD_SIZE", 2)),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, ("PMI_SIZE", 4)),
        ({"PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "8"}, None),
        ({"SLURM_NTASKS": "8"}, None),
        ({"SLURM_STEP_NUM_TASKS": "8"}, ("SLURM_STEP_NUM_TASKS", 8)),
        ({"FLUX_JOB_SIZE": "3"}, ("FLUX_JOB_SIZE", 3)),
        ({"PMIX_RANK": "0"}, None),
        ({"PMIX_RANK": "2"}, ("PMIX_RANK", 3)),
        ({"WORLD_SIZE": "2"}, None),
        ({"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, ("WORLD_SIZE", 2)),
        ({"PMI_SIZE": "two"}, None),
    ],
)
def test_announced_size(environ: dict[str, str], found: tuple[str, int] | None) -> None:
    assert announced_size(environ) == found
    assert found is None or found[0] in launchers.REMEDIES


def test_two_runtimes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"mpich": "5.0.2"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert clashing_runtimes() is None
    versions["openmpi"] = "5.0.11"
    assert "mpich 5.0.2 and openmpi 5.0.11" in (clashing_runtimes() or "")
    monkeypatch.setattr("shutil.which", lambda name, path=None: "/somewhere/mpiexec")
    with pytest.raises(LaunchError, match="overwrite each other"):
        mpiexec_command(2)


def test_importing_the_wire_loads_no_mpi() -> None:
    program = "import sys, qsparse.wire.mpi, qsparse.cli.launch; sys.exit('mpi4py' in sys.modules)"
    finished = finish(start([sys.executable, "-c", program]), 20)
    assert finished.returncode == 0, finished
    assert "PMI_SIZE" not in clean_environment({})

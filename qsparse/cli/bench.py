"""``qsparse bench``: how fast it is on this machine; each command has a file of its own."""

from __future__ import annotations

import click

from qsparse.cli.bench_allreduce import allreduce
from qsparse.cli.bench_kernels import kernels
from qsparse.cli.bench_ranks import rank
from qsparse.cli.bench_scale import scale
from qsparse.cli.bench_train import train
from qsparse.cli.bench_workers import workers


@click.group("bench")
def bench() -> None:
    """Measure compressors and exchanges on this machine, beside what NumPy, MPI and torch do."""


for command in (kernels, allreduce, scale, train, workers, rank):
    bench.add_command(command)

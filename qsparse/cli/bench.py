"""``qsparse bench``: what exchanges cost on this machine; each command has a file of its own."""

from __future__ import annotations

import click

from qsparse.cli.bench_allreduce import allreduce
from qsparse.cli.bench_ranks import rank
from qsparse.cli.bench_train import train


@click.group("bench")
def bench() -> None:
    """Measure exchanges on this machine, beside what MPI and torch do."""


for command in (allreduce, train, rank):
    bench.add_command(command)

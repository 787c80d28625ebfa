"""``qsparse bench``: measurements of speed."""

from __future__ import annotations

import click

from qsparse.cli.bench_kernels import kernels


@click.group("bench")
def bench() -> None:
    """Measure how fast it is on this machine, beside something that everybody knows."""


bench.add_command(kernels)

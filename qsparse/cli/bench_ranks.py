"""What the commands of ``qsparse bench`` share: starting their ranks, and being one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from qsparse.bench.ranks import Measured, measure, run_rank
from qsparse.cli.launch import environment, mpiexec_command
from qsparse.cli.ranks import on_ranks
from qsparse.errors import SettingError
from qsparse.records import explained


def bench_options(ranks: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: the options of every bench with ranks."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--json", "file", type=click.Path(), help="Write what was measured here."),
            click.option(
                "--rate",
                help="Limit each rank's link, e.g. 1gbit or 100mbit, and count its bytes; Linux, as root. "
                "Else ranks go through shared memory.",
            ),
            click.option("--ranks", type=int, default=ranks, show_default=True, help="Number of ranks."),
        ):  # fmt: skip
            function = option(function)
        return function

    return add


def measured_on_ranks(
    body: str,
    settings: Mapping[str, Any],
    ranks: int,
    rate: str | None,
    file: str | None,
    show: Callable[[Measured], str],
) -> None:
    """Measure, print, and write the JSON file, whose place is looked at first."""
    if file is not None:
        place = Path(file) if Path(file).exists() else Path(file).absolute().parent
        if Path(file).is_dir() or not os.access(place, os.W_OK):
            raise SettingError(f"cannot write to --json {file}: name a file in a folder that exists")
    mpiexec = mpiexec_command(max(ranks, 1))[:-2]
    measured = measure(body, settings, ranks, rate, mpiexec, environment(os.environ))
    click.echo(show(measured))
    if file is not None:
        with explained(file, "make room there, and measure again"):
            Path(file).write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")


@click.command("rank", hidden=True)
@click.argument("folder", type=click.Path())
def rank(folder: str) -> None:
    """Be one rank of a bench; the other commands start it."""
    on_ranks("mpi", None, lambda wire: run_rank(wire, Path(folder)))  # type: ignore[arg-type]

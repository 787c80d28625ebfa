"""What the commands of ``qsparse bench`` share: starting their ranks, and being one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from qsparse.bench.ranks import Measured, measure, run_rank
from qsparse.cli.launch import environment, mpiexec_command
from qsparse.cli.options import PATH, check_json, write_json
from qsparse.cli.ranks import on_ranks


def bench_options(ranks: int | str, **ways: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: the options of every bench with ranks.

    Args:
        ranks: the default of ``--ranks``.
        **ways: what else ``--ranks`` is, where it is not one number.
    """
    number = {"type": int, "default": ranks, "show_default": True, "help": "Number of ranks.", **ways}

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--json", "file", type=PATH, help="Write what was measured here."),
            click.option(
                "--rate",
                help="Limit each rank's link, e.g. 1gbit or 100mbit, and count its bytes; Linux, as root. "
                "Else ranks go through shared memory.",
            ),
            click.option("--ranks", **number),
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
    check_json(file)
    mpiexec = mpiexec_command(max(ranks, 1))[:-2]
    measured = measure(body, settings, ranks, rate, mpiexec, environment(os.environ))
    click.echo(show(measured))
    write_json(file, measured)


@click.command("rank", hidden=True)
@click.argument("folder", type=PATH)
def rank(folder: str) -> None:
    """Be one rank of a bench; the other commands start it."""
    on_ranks("mpi", None, lambda wire: run_rank(wire, Path(folder)))  # type: ignore[arg-type]

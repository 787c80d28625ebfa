"""``qsparse bench scale``."""

from __future__ import annotations

import os

import click

from qsparse.bench.ranks import measure
from qsparse.bench.scale import DOWN, EXCHANGES, UP, check, notes, table
from qsparse.cli.bench_ranks import bench_options
from qsparse.cli.launch import environment, mpiexec_command
from qsparse.cli.options import SEED, check_json, check_length, write_json

_BODY = "qsparse.bench.scale:measure"


def _numbers(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Callback of a list of numbers: each once, in their order."""
    try:
        return tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 2,4,8.") from None


@click.command("scale")
@bench_options(ranks="2,4,8", type=str, callback=_numbers, help="Numbers of ranks, one after the other.")
@click.option(
    "--n",
    type=int,
    callback=check_length,
    default=4_000_000,
    show_default=True,
    help="Coordinates of the vector.",
)
@click.option("--rounds", type=int, default=7, show_default=True, help="Timed rounds, after two untimed.")
@click.option(
    "--exchange", "exchanges", multiple=True, type=click.Choice(EXCHANGES), default=EXCHANGES,
    show_default=True, help="Only this; may be repeated.",
)  # fmt: skip
@click.option(
    "--up", "ups", multiple=True, default=UP, show_default=True,
    help="Compressor of reports, with error feedback; may be repeated.",
)  # fmt: skip
@click.option(
    "--down", "downs", multiple=True, default=DOWN, show_default=True,
    help="Compressor of models, with memory innovation, beside exact answers; may be repeated.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the vectors.")
def scale(
    ranks: tuple[int, ...],
    rate: str | None,
    file: str | None,
    n: int,
    rounds: int,
    exchanges: tuple[str, ...],
    ups: tuple[str, ...],
    downs: tuple[str, ...],
    seed: int,
) -> None:
    """Time one synchronization as ranks grow: every exchange and several links, and MPI's dense Allreduce.

    A synchronization is that of a run: report, exchange, server rule, answer. Prints a table for each
    number of ranks, and refuses figures if models that must be the same bits are not.
    """
    check(n, rounds, ranks, exchanges, ups, downs)
    check_json(file)
    settings = {
        "n": n, "rounds": rounds, "exchanges": exchanges, "ups": ups, "downs": downs, "seed": seed,
        "rate": rate,
    }  # fmt: skip
    jobs = []
    for size in ranks:
        mpiexec = mpiexec_command(size)[:-2]
        jobs.append(measure(_BODY, settings, size, rate, mpiexec, environment(os.environ)))
        click.echo(table(jobs[-1]))
    click.echo(notes(jobs))
    write_json(file, {"jobs": jobs})

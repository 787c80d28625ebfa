"""``qsparse bench workers``."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from qsparse.bench.ranks import measure
from qsparse.bench.workers import ALGORITHMS, MODEL, crews, runs_of, simulate, table
from qsparse.cli.launch import environment, mpiexec_command
from qsparse.cli.options import PATH, check_json, write_json

_BODY = "qsparse.bench.workers:measure"


@click.command("workers")
@click.option("--workers", default="4,8,12", show_default=True, help="Numbers of workers.")
@click.option("--rate", default="100mbit", show_default=True, help="Of each rank's link.")
@click.option(
    "--simulated", is_flag=True,
    help="Over a simulated network, where each rank has a core of its own; else real processes and links, "
    "on Linux, as root.",
)  # fmt: skip
@click.option("--latency", type=float, default=1e-4, show_default=True, help="Seconds, if simulated.")
@click.option("--updates", type=int, default=600, show_default=True, help="Steps of all workers together.")
@click.option(
    "--algorithm", "algorithms", multiple=True, default=ALGORITHMS, show_default=True,
    help="Presets whose workers do not wait; the first is what others are compared with. May be repeated.",
)  # fmt: skip
@click.option("--data", default="mnist", show_default=True, help="As of train.")
@click.option("--data-dir", type=PATH, help="Where the data lies; else QSPARSE_DATA, the cache, a download.")
@click.option("--model", default=MODEL, show_default=True, help="As of train.")
@click.option("--batch", type=int, default=64, show_default=True, help="Examples of a step.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--json", "file", type=PATH, help="Write what was measured here.")
def workers(
    workers: str, rate: str, simulated: bool, latency: float, updates: int, algorithms: tuple[str, ...],
    data: str, data_dir: str | None, model: str, batch: int, seed: int, file: str | None,
) -> None:  # fmt: skip
    """Split the running time of asynchronous workers over limited links, as workers grow in number.

    Every run takes as many steps of all workers together, so more workers finish sooner: until the
    coordinator's link is full, which is what double quantization is for.

    \b
    qsparse bench workers --workers 4,8,12 --rate 100mbit
    """
    check_json(file)
    options = {"data": data, "data_dir": data_dir, "model": model, "batch": batch, "seed": seed}
    runs = []
    for crew in crews(workers):
        mine = runs_of(algorithms, crew, updates, **options)
        if simulated:
            runs += simulate(mine, rate, latency)
        else:
            given = {"runs": [(name, asdict(config)) for name, config in mine]}
            mpiexec = mpiexec_command(crew + 1)[:-2]
            runs += measure(_BODY, given, crew + 1, rate, mpiexec, environment(os.environ))["runs"]
    measured = {"rate": rate, "simulated": simulated, "updates": updates, **options, "runs": runs}
    click.echo(table(measured))
    write_json(file, measured)

"""``qsparse bench train``."""

from __future__ import annotations

import os

import click

from qsparse.bench.ranks import measure
from qsparse.bench.train import METHODS, NAMES, best, check, table
from qsparse.cli.bench_ranks import bench_options, measured_on_ranks
from qsparse.cli.launch import environment, mpiexec_command
from qsparse.cli.options import PATH

_BODY = "qsparse.bench.train:measure"


@click.command("train")
@bench_options(ranks=4)
@click.option("--target", type=float, default=0.975, show_default=True, help="Test accuracy.")
@click.option("--most", type=float, default=600.0, show_default=True, help="Seconds until one gives up.")
@click.option(
    "--method", "names", multiple=True, type=click.Choice(NAMES), help="Only this; may be repeated."
)
@click.option("--tune", is_flag=True, help="Choose the step sizes anew, without a limit, before.")
@click.option("--data-dir", type=PATH, help="Where the data lies; else QSPARSE_DATA, the cache, a download.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the model, shares and batches.")
def train(
    ranks: int, rate: str | None, file: str | None, target: float, most: float, names: tuple[str, ...],
    tune: bool, data_dir: str | None, seed: int,
) -> None:  # fmt: skip
    """Time the way to a test accuracy on MNIST: local steps with compressed reports, and torch's DDP.

    Same model, shares, batches and seeds; each method with its own best step size. What is printed
    is the time of the training steps, evaluations not counted, and the bytes of the link.
    """
    check(target, most)
    methods = [method for method in METHODS if not names or method.name in names]
    runs = [(method.name, method.lr, method.H) for method in methods]
    settings = {"target": target, "most": most, "data_dir": data_dir, "seed": seed}
    if tune:
        trials = [(method.name, lr, method.H) for method in methods for lr in method.rates]
        mpiexec = mpiexec_command(max(ranks, 1))[:-2]
        tuned = measure(_BODY, {**settings, "methods": trials}, ranks, None, mpiexec, environment(os.environ))
        click.echo(f"{table(tuned)}\n")
        runs = best(tuned)
    measured_on_ranks(_BODY, {**settings, "methods": runs}, ranks, rate, file, table)

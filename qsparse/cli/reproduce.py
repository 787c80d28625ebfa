"""``qsparse reproduce``: published experiments, and their figures beside ours."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qsparse.cli.options import PATH


@click.group("reproduce")
def reproduce() -> None:
    """Run a published experiment on real data, and print our figures beside the published ones.

    All workers stand in one process, with the parts and the bits of ranks: as virtual ones, or, with
    asylpg, as threads that do not wait for each other.
    """


def _experiment(name: str, module: str, kind: str) -> Callable[[Callable[..., None]], click.Command]:
    """Decorator: the command of an experiment; what it takes beside the common options are its fields."""

    def add(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def command(data_dir: str | None, out: str, quiet: bool, **settings: Any) -> None:
            from qsparse.reproduce.base import reproduce as run

            made = getattr(importlib.import_module(module), kind)(**settings)
            say = (lambda line: None) if quiet else functools.partial(click.echo, err=True)
            click.echo(run(made, Path(data_dir) if data_dir else None, Path(out), say))

        for option in (
            click.option("--quiet", is_flag=True, help="No lines of progress."),
            click.option(
                "--out", type=PATH, default="reproduced", show_default=True,
                help="Folder of NAME.json and NAME.png.",
            ),
            click.option("--quick", is_flag=True, help="A short version, under a minute."),
            click.option(
                "--data-dir", type=PATH,
                help="Where the data lies; else QSPARSE_DATA, the cache, a download (a9a: no download).",
            ),
        ):  # fmt: skip
            command = option(command)
        return reproduce.command(name)(command)

    return add


def _list(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Callback: values of a kind with commas between them, each once."""

    def parse(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[Any, ...]:
        try:
            return tuple(dict.fromkeys(kind(word.strip()) for word in text.split(",")))
        except ValueError:
            raise click.BadParameter(f"{text!r} is no list of numbers with commas between them.") from None

    return parse


@_experiment("laq", "qsparse.reproduce.laq", "LAQ")
@click.option(
    "--inits", type=int, default=4, show_default=True, help="Random starting points; 1 with --quick."
)
@click.option(
    "--baselines/--no-baselines", default=True, show_default=True, help="GD, QGD, LAG-WK, CGD, and from zero."
)
@click.option("--inits-baselines", is_flag=True, help="The baselines from all of them too.")
@click.option("--solve-reference", is_flag=True, help="Find the smallest loss anew, in float64.")
@click.option(
    "--alpha",
    callback=_list(float),
    default="0.01,0.015,0.02,0.04",
    show_default=True,
    help="Step sizes on the sum over the workers; every combination of the lists is run.",
)
@click.option(
    "--D", "D", callback=_list(int), default="10", show_default=True, help="How many moves are remembered."
)
@click.option(
    "--xi",
    callback=_list(str),
    default="0.8/D",
    show_default=True,
    help="The weight of each move: numbers and quotients, such as 0.8/D,1/160.",
)
@click.option(
    "--coefficients",
    callback=_list(str),
    default="code",
    show_default=True,
    help="Whose weights of the first moves: of the authors' code, their paper, or code,paper.",
)
@click.option(
    "--lyapunov", is_flag=True, help="In place of the tables: how LAQ's Lyapunov function decreases."
)
@click.option("--data", default="mnist", show_default=True, help="Data set, as train takes it: libsvm:PATH.")
def laq() -> None:
    """LAQ on MNIST: iterations, uploads and bits to a residual of 1e-6 (Sun et al., 2019)."""


@_experiment("qsparse", "qsparse.reproduce.qsparse_mnist", "QsparseLocalSGD")
@click.option(
    "--seeds",
    type=int,
    default=3,
    show_default=True,
    help="Seeds of batches and compressors; 1 with --quick.",
)
@click.option("--largest", type=float, default=0.6, show_default=True, help="Step size that is tried.")
def qsparse_local_sgd() -> None:
    """Qsparse-local-SGD on MNIST: bits until a test error of 0.10 (Basu et al., 2019)."""


@_experiment("dist-ef", "qsparse.reproduce.dist_ef", "DistEF")
@click.option(
    "--seeds",
    type=int,
    default=3,
    show_default=True,
    help="Seeds of starting points, batches and compressors; 1 with --quick.",
)
@click.option("--tune", is_flag=True, help="Choose the step sizes anew, on held-out examples.")
def dist_ef() -> None:
    """dist-EF-SGD with blocks and momentum, MNIST and CIFAR-10: accuracy and bits (Zheng et al., 2019)."""


@_experiment("asylpg", "qsparse.reproduce.asylpg", "AsyLPG")
def asylpg() -> None:
    """Double quantization on a9a and MNIST: bits until a common loss (Yu et al., 2019)."""

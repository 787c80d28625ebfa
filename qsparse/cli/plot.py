"""``qsparse plot``: pictures and a table of runs."""

from __future__ import annotations

from pathlib import Path

import click

from qsparse.cli.options import PATH


@click.command("plot")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)
@click.option("--out", type=PATH, default="plots", show_default=True, help="Folder of index.html and PNGs.")
@click.option(
    "--until", "--target", "target", metavar="FIGURE=VALUE",
    help="Mark what it takes to reach it: train_loss=0.17, test_loss=0.3, or a test accuracy alone.",
)  # fmt: skip
@click.option("--title", help="Of the page.  [default: Runs]")
@click.option("--quiet", is_flag=True, help="No table.")
def plot(runs: tuple[str, ...], out: str, target: str | None, title: str | None, quiet: bool) -> None:
    """Draw runs: accuracy and loss against bits, steps and time, the front, and the bytes of each layer.

    RUN is a folder that qsparse train wrote (its --out), or one in which such folders lie. Runs that
    differ in their seeds only (threads, wire and paths apart) are drawn as one method.

    \b
    qsparse plot runs/ --until 0.9
    qsparse plot runs/ --until train_loss=0.17
    """
    from qsparse.report.page import draw_with_table

    drawn = draw_with_table([Path(run) for run in runs], Path(out), target, title)
    if not quiet:
        click.echo(f"{drawn.table}\n\nwritten to {drawn.page}")

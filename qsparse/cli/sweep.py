"""``qsparse sweep``: the methods of a figure over one model and data set."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from qsparse.cli.options import PATH
from qsparse.cli.sweep_runs import SHARED, check_problems, done_before, given, missing, rates, runs_of
from qsparse.cli.train import train
from qsparse.errors import SettingError
from qsparse.process.launchers import launched
from qsparse.run.records import Progress, Recorder, explained, write_whole
from qsparse.sweep import measured, methods
from qsparse.sweep.methods import Method, Sweep
from qsparse.sweep.running import Run, execute

_REMEDY: Final = "make room there, or name another --out; the same command goes on with what is missing"


class _Command(click.Command):
    """Shows the options of train apart."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        ours = [p for p in self.get_params(ctx) if isinstance(p, click.Option) and p not in SHARED]
        for title, options in (("Options", ours), ("Options of every run, as for qsparse train", SHARED)):
            records = [record for p in options if (record := p.get_help_record(ctx)) is not None]
            with formatter.section(title):
                formatter.write_dl(records)


@click.command("sweep", cls=_Command)
@click.argument("sweep", metavar="SWEEP")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="From --seed on.")
@click.option(
    "--method",
    "only",
    multiple=True,
    metavar="NAME",
    help="Run only this method; may be given several times.",
)
@click.option(
    "--lrs",
    metavar="LR,LR,…",
    help="Try each of these learning rates with each method, and show the best: up to --target the one with "
    "the fewest paper bits, else the one with the highest final accuracy.",
)
@click.option(
    "--topk",
    metavar="SETTINGS",
    help=f"Of figure-1's top-k on each tensor, such as k=1000.  [default: {methods.TOPK}]",
)
@click.option(
    "--target",
    type=float,
    help="Test accuracy up to which bits are compared.  [default: the highest that every run reaches]",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option("--out", type=PATH, help="Folder of the runs and results.  [default: runs/SWEEP]")
@click.option("--fresh", is_flag=True, help="Replace runs of other settings in --out; else they are refused.")
@click.option("--dry-run", is_flag=True, help="Check everything, and print the commands of the missing runs.")
@click.option("--quiet", is_flag=True, help="No lines of progress.")
def sweep(
    sweep: str, seeds: int, only: tuple[str, ...], lrs: str | None, topk: str | None,
    target: float | None, jobs: int, out: str | None, fresh: bool, dry_run: bool, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Train with each method of a figure, and hold what they sent against the first of them.

    SWEEP is figure-1 (Qsparse-local-SGD and its special cases), laq (GD, QGD, LAG, LAQ), dist-ef (SGDM,
    dist-EF-SGDM, dist-EF-BlockSGDM, Signum with a majority vote), or a file FILE.toml with a table
    [methods.NAME] of train's options for each method, and before them options that all share.

    What a method sets itself goes before the options of every run. Runs that are done are not run again,
    and the table is of all methods that are done.

    \b
    qsparse sweep figure-1 --data mnist --model cnn --ranks 4 --epochs 3 --lr 0.05
    """
    ctx = click.get_current_context()
    if launched(os.environ):
        raise SettingError("sweep starts the ranks of its runs: start it without a launcher, with --ranks N")
    measured.check_target(target)
    found = methods.find(sweep, topk)
    chosen = found.only(only)
    folder = Path(out or f"runs/{found.name}")
    every = functools.partial(runs_of, found, given(ctx, found, chosen, lrs), rates(lrs), seeds, folder)
    runs = [run for method in chosen for run in every(method)]
    say = (lambda line: None) if quiet else functools.partial(click.echo, err=True)
    # Taken first: where it cannot be, nobody waits for the data to be read.
    hold = None if dry_run else Recorder(folder, Progress()).claim()
    with hold or contextlib.nullcontext():
        left = missing(runs, fresh)
        check_problems(left)
        if dry_run:
            click.echo("\n".join(run.command for run in left))
            return
        if len(left) < len(runs):
            say(f"{len(runs) - len(left)} of {len(runs)} runs are done")
        _work(ctx, found, chosen, runs, left, every, jobs, target, folder, say)


def _work(
    ctx: click.Context, found: Sweep, chosen: Sequence[Method], runs: list[Run], left: Sequence[Run],
    every: Callable[[Method], Iterator[Run]], jobs: int, target: float | None, folder: Path,
    say: Callable[[str], Any],
) -> None:  # fmt: skip
    """Run what is missing, and write down what all runs came to."""
    try:
        failed = execute(left, jobs, say)
    except KeyboardInterrupt:
        done = sum(run.done() for run in runs)
        click.echo(
            f"interrupted with {done} of {len(runs)} runs done: the same command goes on with the others",
            err=True,
        )
        ctx.exit(130)
    others = [method for method in found.methods if method not in chosen and (folder / method.name).is_dir()]
    runs += [run for method in others for run in done_before(method, every)]
    _conclude(found, runs, failed, target, folder)
    if failed:
        ctx.exit(1)


def _conclude(
    found: Sweep, runs: Sequence[Run], failed: Mapping[Run, str], target: float | None, folder: Path
) -> None:
    """Table, sweep.json and plot of the runs that are done, and what became of the others."""
    order = [method.name for method in found.methods]
    in_order = sorted(runs, key=lambda run: order.index(run.method))
    done = [measured.read(run) for run in in_order if run not in failed]
    record: dict[str, Any] = {
        "sweep": found.name,
        "source": found.source,
        "common": dict(found.common),
        "methods": {each.name: dict(each.options) for each in found.methods},
        "runs": done,
        "failed": [{"run": str(run), "folder": str(run.folder), "error": failed[run]} for run in failed],
    }
    written = [folder / "sweep.json"]
    if done:
        record |= measured.measure(found.methods, done, target)
        click.echo(measured.table(record))
        if found.source:
            click.echo(f"\nPublished: {found.source}.")
    with explained(written[0], _REMEDY):
        write_whole(written[0], json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    # Before what draws, which may lack its library.
    for run, error in failed.items():
        click.echo(f"\nFAILED: {run}: {error}\n  {run.command}\n  its output: {run.folder / 'log.txt'}")
    if done:
        from qsparse.report import draw

        shown = [Path(one) for row in record["rows"] for one in row["folders"]]
        # An accuracy that all runs reach may be 0, which is nothing to draw a line at.
        written.append(draw(shown, folder / "plot", target=record["target"] or None, title=found.name))
    click.echo(f"\nwritten to {' and '.join(map(str, written))}")


# Behind the decorators, so that the help has the sweep's own options first.
sweep.params += [p for p in train.params if p.name == "config"] + SHARED

"""``qsparse sweep``: the methods of a figure over one model and data set."""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from qsparse.algorithm import check
from qsparse.cli.ranks import launched
from qsparse.cli.settings import make_settings
from qsparse.cli.train import by_name, config_text, load_data, settle, train
from qsparse.errors import QsparseError, SettingError
from qsparse.records import write_whole
from qsparse.seeds import Seed
from qsparse.sweep import measured, methods
from qsparse.sweep.methods import Method, Sweep
from qsparse.sweep.running import Run, execute

#: Options of train that a sweep chooses by itself.
_OURS: Final = ("out", "quiet", "name", "resume")
#: Of these, one excludes the other; of two places that say it, the nearer one wins.
_LENGTHS: Final = ("epochs", "steps")

#: Options that say what a method is: with one of them a published method would be another one under its name.
_PUBLISHED: Final = ("algorithm", "compressor", "memory", "trigger", "server", "meeting", "sync_every")

#: The options of train that all runs of a sweep may share.
SHARED: Final = [p for p in train.params if p.name not in (*_OURS, "config")]


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
@click.option("--out", type=click.Path(), help="Folder of the runs and results.  [default: runs/SWEEP]")
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
    if launched():
        raise SettingError("sweep starts the ranks of its runs: start it without a launcher, with --ranks N")
    measured.check_target(target)
    found = methods.find(sweep, topk)
    chosen = found.only(only)
    folder = Path(out or f"runs/{found.name}")
    runs_of = functools.partial(_runs, found, _given(ctx, found, chosen, lrs), _rates(lrs), seeds, folder)
    runs = [run for method in chosen for run in runs_of(method)]
    missing = _missing(runs, fresh)
    _check_problems(missing)
    if dry_run:
        click.echo("\n".join(run.command for run in missing))
        return
    say = (lambda line: None) if quiet else functools.partial(click.echo, err=True)
    if len(missing) < len(runs):
        say(f"{len(runs) - len(missing)} of {len(runs)} runs are done")
    try:
        failed = execute(missing, jobs, say)
    except KeyboardInterrupt:
        done = sum(run.done() for run in runs)
        click.echo(
            f"interrupted with {done} of {len(runs)} runs done: the same command goes on with the others",
            err=True,
        )
        ctx.exit(130)
    others = [method for method in found.methods if method not in chosen and (folder / method.name).is_dir()]
    runs += [run for method in others for run in _done_before(method, runs_of)]
    _conclude(found, runs, failed, target, folder)
    if failed:
        ctx.exit(1)


def _given(ctx: click.Context, found: Sweep, chosen: Sequence[Method], lrs: str | None) -> dict[str, Any]:
    """The options of every run that were given, not left at their defaults."""
    given = {}
    for parameter in SHARED:
        name = str(parameter.name)
        source = ctx.get_parameter_source(name)
        value = ctx.params[name]
        if source in (ParameterSource.DEFAULT, None) or value in (None, ()):
            continue
        typed = source is ParameterSource.COMMANDLINE
        flag = parameter.opts[0]
        # What a file says and every method sets has no effect: the config.toml of any run has an algorithm.
        if found.source and name in _PUBLISHED and (typed or not _all_set(name, found.methods)):
            where = flag if typed else f"{name!r} of --config {ctx.params['config']}"
            raise SettingError(
                f"{where} says what a method is, and sweep {found.name} is of published methods: leave it "
                "out, or write a FILE.toml of methods of your own"
            )
        if typed and _all_set(name, chosen):
            raise SettingError(f"{flag} has no effect: every method of this sweep sets it; leave it out")
        if typed and name == "lr" and lrs is not None:
            raise SettingError(
                f"{flag} has no effect: --lrs says which learning rates are tried; leave one of them out"
            )
        given[name] = list(value) if isinstance(value, tuple) else value
    return given


def _all_set(name: str, methods: Sequence[Method]) -> bool:
    return all(name in _named(each.options, f"method {each.name}") for each in methods)


def _rates(lrs: str | None) -> list[str | None]:
    """The learning rates of a grid, cut at commas outside of brackets; [None] without one.

    Those that differ in spaces only are one rate, as they have one folder.

    >>> _rates("0.1, steps(0.1, after=[2, 3]), 0.1, steps( 0.1, after=[2,3])")
    ['0.1', 'steps(0.1, after=[2, 3])']
    """
    if lrs is None:
        return [None]
    rates, depth = [""], 0
    for letter in lrs:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            rates.append("")
        else:
            rates[-1] += letter
    if not all(rate.strip() for rate in rates):
        raise SettingError(f"--lrs must be learning rates with commas between them, not {lrs!r}")
    found: dict[str, str | None] = {}
    for rate in rates:
        found.setdefault(_close(rate), rate.strip())
    return list(found.values())


def _close(rate: str) -> str:
    """A learning rate without spaces."""
    return "".join(rate.split())


def _runs(
    found: Sweep, given: Mapping[str, Any], rates: Sequence[str | None], seeds: int, folder: Path,
    method: Method,
) -> Iterator[Run]:  # fmt: skip
    """All runs of a method in order, every one of them checked."""
    unsaid = tomllib.loads(_config([], f"sweep {found.name}"))
    common = _over(_named(found.common, f"sweep {found.name}"), given)
    first = int(common.pop("seed", 0))
    own = _named(method.options, f"method {method.name}")
    if "seed" in own:
        raise SettingError(f"method {method.name} has a seed: give --seed and --seeds to the sweep")
    for lr in [None] if "lr" in own else rates:
        tried = {} if lr is None else {"lr": lr}
        options = _over(_over(common, tried), own)
        for seed in range(first, first + seeds):
            parts = [method.name, *([] if lr is None else [f"lr-{_close(lr)}"]), f"seed-{seed}"]
            argv = _argv({**options, "seed": seed}, f"method {method.name}")
            argv += _taken("name", f"--name={method.name}")  # what the plot calls it
            config = _config(argv, f"method {method.name}")
            more = _taken("resume", "--resume=auto")
            yield Run(method.name, lr, seed, folder.joinpath(*parts), tuple(argv), config, unsaid, more)


def _done_before(method: Method, runs_of: Callable[[Method], Iterator[Run]]) -> list[Run]:
    """The runs of a method that was not chosen, as far as they are done with these settings.

    Nobody asked for it now, so it is no error if it does not take these options, or was run with others.
    """
    try:
        return [run for run in runs_of(method) if run.done()]
    except QsparseError:
        return []


def _named(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of a file or a sweep by the names of parameters."""
    for name in _OURS:
        if name in options:
            raise SettingError(f"{where} has {name!r}, which a sweep chooses by itself: leave it out")
    return by_name(SHARED, options, where)


def _taken(name: str, word: str) -> tuple[str, ...]:
    """A word for the command line of a run, if train has the option."""
    return (word,) if any(p.name == name for p in train.params) else ()


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others that win over them."""
    hidden = _LENGTHS if any(name in above for name in _LENGTHS) else ()
    return {name: value for name, value in below.items() if name not in hidden} | dict(above)


def _argv(options: Mapping[str, Any], where: str) -> list[str]:
    """Options as words of the command line."""
    words = []
    for parameter in SHARED:
        name = str(parameter.name)
        if name not in options:
            continue
        value, flag = options[name], parameter.opts[0]
        if isinstance(parameter, click.Option) and parameter.is_flag:
            if not isinstance(value, bool):
                raise SettingError(f"{where}: {flag} is true or false, not {value!r}")
            words += [flag] if value else parameter.secondary_opts[:1]
        elif isinstance(value, list) and parameter.multiple:
            words += [f"{flag}={each}" for each in value]
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            words.append(f"{flag}={value}")
        else:
            raise SettingError(f"{where}: {flag} must be a number or a text, not {value!r}")
    return words


def _config(argv: Sequence[str], where: str) -> str:
    """What train writes to config.toml with these words; refuses what train would refuse."""
    try:
        with train.make_context("train", list(argv)) as ctx:
            options = ctx.params
            settle(options)
            settings = make_settings(options)
            check(settings.algorithm, settings.exchange, options["ranks"] or 1)
            return config_text(options, options["ranks"] or 1)
    except click.UsageError as error:
        raise SettingError(f"{where}: {error.format_message()}") from None
    except QsparseError as error:
        raise SettingError(f"{where}: {error}") from None


def _missing(runs: Sequence[Run], fresh: bool) -> list[Run]:
    """The runs that are not done; a run of other settings in their place is refused, or may be replaced."""
    missing = []
    for run in runs:
        conflict = run.conflict()
        if conflict and not fresh:
            raise SettingError(
                f"{run.folder} has a run of other settings: {conflict}; give another --out, or --fresh to "
                "replace it"
            )
        if not run.done():
            missing.append(run)
    return missing


def _check_problems(runs: Sequence[Run]) -> None:
    """Load the data and make the model once, so that what is wrong with them is said before the first run."""
    checked = set()
    for run in runs:
        with train.make_context("train", list(run.argv)) as ctx:
            options = ctx.params
        problem = (options["data"], options["data_dir"], options["model"])
        if problem in checked:
            continue
        checked.add(problem)
        try:
            from qsparse.torch.models import build_model
        except ModuleNotFoundError as error:
            raise SettingError(
                f'sweep needs more than is installed ({error}): pip install "qsparse[train]"'
            ) from None
        data = load_data(options)
        build_model(options["model"], data.shape, data.classes, Seed(0))


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
    folder.mkdir(parents=True, exist_ok=True)
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

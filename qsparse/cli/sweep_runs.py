"""The runs of a sweep out of the options that were given: which there are, all of them checked."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from qsparse.cli.train import config_of, settle, train
from qsparse.errors import QsparseError, SettingError, installing
from qsparse.rules import check
from qsparse.run.config import OPTIONS, by_name
from qsparse.run.making import make_settings
from qsparse.seeds import Seed
from qsparse.sweep.methods import Method, Sweep
from qsparse.sweep.running import Run
from qsparse.torch.models import build_model
from qsparse.train import load_data

#: Options of train that a sweep chooses by itself.
_OURS: Final = (*(name for name, option in OPTIONS.items() if option.by_sweep), "quiet")
#: Of these, one excludes the other; of two places that say it, the nearer one wins.
_LENGTHS: Final = ("epochs", "steps")

#: The options of train that all runs of a sweep may share.
SHARED: Final = [p for p in train.params if p.name not in (*_OURS, "config")]


def given(ctx: click.Context, found: Sweep, chosen: Sequence[Method], lrs: str | None) -> dict[str, Any]:
    """The options of every run that were given, not left at their defaults.

    Raises:
        SettingError: one would make a published method another one, or has no effect.
    """
    said = {}
    for parameter in SHARED:
        name = str(parameter.name)
        source = ctx.get_parameter_source(name)
        value = ctx.params[name]
        if source in (ParameterSource.DEFAULT, None) or value in (None, ()):
            continue
        typed = source is ParameterSource.COMMANDLINE
        flag = parameter.opts[0]
        # What a file says and every method sets has no effect: the config.toml of any run has an algorithm.
        if found.source and OPTIONS[name].says_method and (typed or not _all_set(name, found.methods)):
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
        said[name] = list(value) if isinstance(value, tuple) else value
    return said


def _all_set(name: str, methods: Sequence[Method]) -> bool:
    return all(name in _named(each.options, f"method {each.name}") for each in methods)


def rates(lrs: str | None) -> list[str | None]:
    """The learning rates of a grid, cut at commas outside of brackets; [None] without one.

    Those that differ in spaces only are one rate, as they have one folder.

    >>> rates("0.1, steps(0.1, after=[2, 3]), 0.1, steps( 0.1, after=[2,3])")
    ['0.1', 'steps(0.1, after=[2, 3])']
    """
    if lrs is None:
        return [None]
    parts, depth = [""], 0
    for letter in lrs:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if not all(rate.strip() for rate in parts):
        raise SettingError(f"--lrs must be learning rates with commas between them, not {lrs!r}")
    found: dict[str, str | None] = {}
    for rate in parts:
        found.setdefault(_close(rate), rate.strip())
    return list(found.values())


def _close(rate: str) -> str:
    """A learning rate without spaces."""
    return "".join(rate.split())


def runs_of(
    found: Sweep, said: Mapping[str, Any], lrs: Sequence[str | None], seeds: int, folder: Path, method: Method
) -> Iterator[Run]:
    """All runs of a method in order, every one of them checked.

    Args:
        found: the sweep.
        said: options of every run, as `given` returns them.
        lrs: learning rates to try, as `rates` returns them.
        seeds: how many of them.
        folder: in which each run has its own.
        method: of the sweep.

    Raises:
        SettingError: train would refuse a run.
    """
    unsaid = tomllib.loads(_config([], f"sweep {found.name}"))
    common = _over(_named(found.common, f"sweep {found.name}"), said)
    first = int(common.pop("seed", 0))
    own = _named(method.options, f"method {method.name}")
    if "seed" in own:
        raise SettingError(f"method {method.name} has a seed: give --seed and --seeds to the sweep")
    for lr in [None] if "lr" in own else lrs:
        tried = {} if lr is None else {"lr": lr}
        options = _over(_over(common, tried), own)
        for seed in range(first, first + seeds):
            parts = [method.name, *([] if lr is None else [f"lr-{_close(lr)}"]), f"seed-{seed}"]
            argv = _argv({**options, "seed": seed})
            argv.append(f"--name={method.name}")  # what the plot calls it
            config = _config(argv, f"method {method.name}")
            where = folder.joinpath(*parts)
            yield Run(method.name, lr, seed, where, tuple(argv), config, unsaid, ("--resume=auto",))


def done_before(method: Method, every: Callable[[Method], Iterator[Run]]) -> list[Run]:
    """The runs of a method that was not chosen, as far as they are done with these settings.

    Nobody asked for it now, so it is no error if it does not take these options, or was run with others.
    """
    try:
        return [run for run in every(method) if run.done()]
    except QsparseError:
        return []


def _named(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of a file or a sweep by the names of parameters."""
    for name in _OURS:
        if name in options:
            raise SettingError(f"{where} has {name!r}, which a sweep chooses by itself: leave it out")
    known = {str(p.name): OPTIONS[str(p.name)] for p in SHARED}
    return by_name(known, options, where)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others that win over them."""
    hidden = _LENGTHS if any(name in above for name in _LENGTHS) else ()
    return {name: value for name, value in below.items() if name not in hidden} | dict(above)


def _argv(options: Mapping[str, Any]) -> list[str]:
    """Options, of which each has a value that it can take, as words of the command line."""
    words = []
    for parameter in SHARED:
        name = str(parameter.name)
        if name not in options:
            continue
        value, flag = options[name], parameter.opts[0]
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words += [flag] if value else parameter.secondary_opts[:1]
        elif parameter.multiple:
            words += [f"{flag}={each}" for each in value]
        else:
            words.append(f"{flag}={value}")
    return words


def _config(argv: Sequence[str], where: str) -> str:
    """What train writes to config.toml with these words; refuses what train would refuse."""
    try:
        with train.make_context("train", list(argv)) as ctx:
            config = settle(ctx.params)
            settings = make_settings(config)
            check(settings.algorithm, settings.exchange, config.ranks or 1)
            return config.text(config.ranks or 1)
    except click.UsageError as error:
        raise SettingError(f"{where}: {error.format_message()}") from None
    except QsparseError as error:
        raise SettingError(f"{where}: {error}") from None


def missing(runs: Sequence[Run], fresh: bool) -> list[Run]:
    """The runs that are not done; a run of other settings in their place is refused, or may be replaced."""
    found = []
    for run in runs:
        conflict = run.conflict()
        if conflict and not fresh:
            raise SettingError(
                f"{run.folder} has a run of other settings: {conflict}; give another --out, or --fresh to "
                "replace it"
            )
        if not run.done():
            found.append(run)
    return found


def check_problems(runs: Sequence[Run]) -> None:
    """Load the data and make the model once, so that what is wrong with them is said before the first run."""
    checked = set()
    for run in runs:
        with train.make_context("train", list(run.argv)) as ctx:
            config = config_of(ctx.params)
        problem = (config.data, config.data_dir, config.model)
        if problem in checked:
            continue
        checked.add(problem)
        data = load_data(config)
        try:
            build_model(config.model, data.shape, data.classes, Seed(0))
        except ModuleNotFoundError as error:
            raise SettingError(
                f"sweep needs more than is installed ({error}): {installing('train')}"
            ) from None

"""``qsparse train``: one run from the command line or from a file."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qsparse.cli.naming import default_folder
from qsparse.cli.options import PATH, run_option
from qsparse.cli.progress import ProgressBar, table
from qsparse.cli.ranks import on_ranks
from qsparse.errors import SettingError
from qsparse.files import named_path, read_toml
from qsparse.process import notice
from qsparse.run.config import OPTIONS, Option, RunConfig, by_name
from qsparse.run.making import default_batch, settled
from qsparse.run.outcome import STATUS, TRAINED, verdict
from qsparse.run.records import Progress
from qsparse.train import load_data, shared, train_on
from qsparse.wire.base import Wire

if TYPE_CHECKING:
    from qsparse.data import Dataset


def _read_config(ctx: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Let a file give the defaults; what stands on the command line wins."""
    if path is None:
        return None
    values = read_toml(Path(path), f"--config {path}", SettingError)
    # A sweep of runs has not all options of train, such as --name: what it chooses itself is left out.
    own = {str(p.name): _as_option(p) for p in ctx.command.params if p.name != "config"}
    ctx.default_map = {
        **(ctx.default_map or {}),
        **by_name({**own, "quiet": _QUIET, **OPTIONS}, values, f"--config {path}"),
    }
    return path


def _as_option(parameter: click.Parameter) -> Option:
    """What a file may say of another command's option."""
    kinds: dict[type, type] = {click.types.IntParamType: int, click.types.BoolParamType: bool}
    found = (kind for known, kind in kinds.items() if isinstance(parameter.type, known))
    kind = tuple if parameter.multiple else next(found, str)
    return Option("", str(parameter.name), parameter.opts[0], kind, parameter.default)


def _options(command: Any) -> Any:
    """Give a command the options of a run."""
    for option in reversed(OPTIONS.values()):
        command = run_option(option)(command)
    return command


def config_of(options: Mapping[str, Any]) -> RunConfig:
    """The configuration that options of the command line make."""
    return RunConfig(**{name: options[name] for name in OPTIONS})


#: Of the command alone: what it shows.
_QUIET = Option("No progress bar and no table.", "quiet", "--quiet", bool, False)


@click.command("train")
@click.option(
    "--config",
    type=PATH,
    is_eager=True,
    callback=_read_config,
    help="Read options from a TOML file, such as the config.toml of another run.",
)
@_options
@run_option(_QUIET)
def train(**options: Any) -> None:
    """Train a model on real data with compressed exchanges.

    \b
    qsparse train --ranks 4
    mpirun -n 4 qsparse train --data mnist --algorithm "qsparse-local-sgd(H=8)"
    """
    config = settle(options)
    if config.out is None:
        config = replace(config, out=str(_default_out(config)))
    out = named_path(str(config.out))
    with notice.listening(checkpoints=config.checkpoint_every is not None):
        failed = on_ranks(
            config.wire,
            config.ranks,
            functools.partial(
                _train, config, out, options["quiet"], shared(functools.partial(load_data, config))
            ),
            leaves=lambda: out / "summary.json",
        )
    if failed:
        raise SystemExit(STATUS)


def settle(options: dict[str, Any]) -> RunConfig:
    """The configuration of the options that were read, complete; the modules that it names are imported."""
    _choose_length(options)
    config = config_of(options)
    _refuse_bytes(config)
    return settled(config)


def _default_out(config: RunConfig) -> Path:
    """The folder of the results where none is given."""
    chosen = None if config.batch == default_batch(config) else config.batch
    return default_folder(replace(config, batch=chosen))


def _train(config: RunConfig, out: Path, quiet: bool, load: Callable[[], Dataset], wire: Wire) -> bool:
    """Train on this rank; returns on rank 0 whether the model was not trained: it diverged, or starved."""
    summary = train_on(config, load, wire, ProgressBar(quiet) if wire.rank == 0 else Progress())
    if summary and not quiet:
        click.echo(table(summary, str(out)))
    if word := verdict(summary):
        sys.stdout.flush()
        click.echo(f"warning: {word}", err=True)
    return bool(summary.get("outcome", TRAINED) != TRAINED)


def _choose_length(options: dict[str, Any]) -> None:
    """Of --epochs and --steps, the one on the command line wins over the other from a file."""
    source = click.get_current_context().get_parameter_source
    typed = [name for name in ("epochs", "steps") if source(name) is ParameterSource.COMMANDLINE]
    if len(typed) == 1:
        options["steps" if typed == ["epochs"] else "epochs"] = None


def _refuse_bytes(config: RunConfig) -> None:
    """Refuse what cannot be written to config.toml: bytes of a command line that are no text."""
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        for text in () if option.elsewhere else value if isinstance(value, tuple) else (value,):
            try:
                str(text).encode()
            except UnicodeEncodeError:
                raise SettingError(
                    f"{name} is {text!r}, which has bytes that are not text in this locale's encoding, so "
                    "the run's config.toml cannot hold it: give it other letters"
                ) from None

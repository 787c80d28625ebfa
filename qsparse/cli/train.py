"""``qsparse train``: one run from the command line or from a file."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qsparse.cli.launch import threads_of_a_rank
from qsparse.cli.naming import default_folder
from qsparse.cli.options import PATH
from qsparse.cli.progress import ProgressBar, table
from qsparse.cli.ranks import on_ranks
from qsparse.cli.settings import default_batch, make_settings
from qsparse.errors import SettingError, installing
from qsparse.files import named_path, read_toml
from qsparse.kernels import threads
from qsparse.modules import user_module
from qsparse.process import notice
from qsparse.run import Settings, run
from qsparse.run.checkpoint import Checkpoints
from qsparse.run.outcome import STATUS, TRAINED, verdict
from qsparse.run.records import Progress, Several
from qsparse.seeds import Seed
from qsparse.wire.base import Wire

if TYPE_CHECKING:
    from qsparse.data import Dataset

#: Options that say where a run happens, not what it is: they are not part of its configuration.
_ELSEWHERE = ("config", "out", "quiet", "tensorboard", "checkpoint_every", "keep", "resume")


def _read_config(ctx: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Let a file give the defaults; what stands on the command line wins."""
    if path is None:
        return None
    values = read_toml(Path(path), f"--config {path}", SettingError)
    # A sweep of runs has not all options of train, such as --name: what it chooses itself is left out.
    known = [p for p in (*ctx.command.params, *train.params) if p.name != "config"]
    ctx.default_map = {**(ctx.default_map or {}), **by_name(known, values, f"--config {path}")}
    return path


def by_name(known: Sequence[click.Parameter], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a file by the names of parameters; keys may be written as the flags are.

    Raises:
        SettingError: no option has this name, two keys are one option, or it cannot have such a value.
    """
    flags = {opt.lstrip("-"): str(p.name) for p in known for opt in p.opts}
    parameters = {str(p.name): p for p in known}
    names = flags | {name: name for name in flags.values()}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise SettingError(f"{where} has {key!r}, which is no option of train: {sorted(flags)}")
        name = names[key]
        if name in found:
            raise SettingError(f"{where} has {key!r} in two spellings: keep one")
        # One module need not be a list; click would take its letters for modules.
        value = [value] if name == "imports" and isinstance(value, str) else value
        if wanted := _unlike(parameters[name], value):
            raise SettingError(f"{where}: {parameters[name].opts[0]} {wanted}, not {value!r}")
        found[name] = value
    return found


def _unlike(parameter: click.Parameter, value: Any) -> str:
    """What a value of a file must be, where it is something else: click would guess, or raise a TypeError."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return "" if isinstance(value, bool) else "is true or false"
    if parameter.multiple:
        texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return "" if texts else "must be a list of texts"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return "must be a number or a text"
    if isinstance(parameter.type, click.types.IntParamType):
        return "" if re.fullmatch(r"[+-]?\d+", str(value)) else "must be a whole number"
    return ""


@click.command("train")
@click.option(
    "--config",
    type=PATH,
    is_eager=True,
    callback=_read_config,
    help="Read options from a TOML file, such as the config.toml of another run.",
)
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="digits, mnist, fashion-mnist, cifar10, libsvm:PATH, or yours; see qsparse list data.",
)
@click.option("--data-dir", type=PATH, help="Where the data lies; else QSPARSE_DATA, the cache, a download.")
@click.option(
    "--model",
    default="mlp",
    show_default=True,
    help="softmax, mlp, mlp(WIDTH, …), cnn, cnn(C, C, WIDTH), resnet20, resnet32, resnet18, resnet50, or "
    "yours; see qsparse list models.",
)
@click.option(
    "--algorithm",
    default="qsparse-local-sgd",
    show_default=True,
    help="A preset, as NAME or NAME(SETTING=VALUE, …); see qsparse list algorithms.",
)
@click.option("--compressor", help="Replace the up link's compressor, e.g. 'topk(ratio=0.01) >> sign'.")
@click.option("--memory", help="Replace the up link's memory.")
@click.option("--down", help="Compress the down link, e.g. 'blockwise(sign, size=4096)'.")
@click.option(
    "--down-memory",
    help="The down link's memory.  [default: the algorithm's; innovation if it has none and --down is given]",
)
@click.option("--local", help="Replace the local step, e.g. 'adamw(lr=0.001)'.")
@click.option("--trigger", help="Replace the trigger, e.g. 'randomgap(H=8)'.")
@click.option("--participation", help="Leave workers out of rounds, e.g. 'sample(fraction=0.25)'.")
@click.option("--server", help="Replace the server rule.")
@click.option("--meeting", help="Replace the meeting, e.g. 'asynchronous(ahead=4)'.")
@click.option("--lr", help="Learning rate: a number or a schedule, e.g. 'cosine(0.1)'.")
@click.option("--momentum", type=float, help="Of the local steps.")
@click.option("--nesterov/--no-nesterov", default=None, help="Nesterov's momentum.")
@click.option("--weight-decay", type=float, help="Of the local steps.")
@click.option(
    "--weight-decay-on",
    type=click.Choice(["all", "weights"]),
    default="all",
    show_default=True,
    help="weights: parameters of 2 or more dimensions, so neither biases nor norms.",
)
@click.option("--sync-every", type=int, metavar="H", help="Local steps between meetings.")
@click.option(
    "--exchange",
    help="server, server(root=1, works=false), tree or allgather.  [default: as the algorithm needs it]",
)
@click.option(
    "--wire",
    default="mpi",
    show_default=True,
    help="mpi: ranks are processes; threads: threads of one process; or yours.",
)
@click.option("--ranks", type=int, help="Start this many ranks, unless mpirun did.")
@click.option(
    "--epochs",
    type=float,
    help="Passes over each worker's share.  [default: 60, 400 where each step is one, or as --steps says]",
)
@click.option("--steps", type=int, help="Local steps, instead of epochs.")
@click.option(
    "--batch",
    type=int,
    help="Examples of one worker's step.  [default: 16; its whole share with gd, lag-*, laq and qgd]",
)
@click.option(
    "--augment",
    default="none",
    show_default=True,
    help="none, or crop-flip: pictures moved by up to 4 pixels, and mirrored or not.",
)
@click.option("--label-smoothing", type=float, default=0.0, show_default=True, help="Of cross entropy.")
@click.option("--clip", type=float, metavar="NORM", help="Shorten gradients to this 2-norm.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    help="float32, or bf16: products and convolutions of training in bfloat16.",
)
@click.option(
    "--sharding", default="random", show_default=True, help="contiguous, random, dirichlet(ALPHA), or yours."
)
@click.option("--evaluations", type=int, default=1, show_default=True, help="Evaluations an epoch.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Of torch and of the compressors, in each rank.  [default: OMP_NUM_THREADS, or 1]",
)
@click.option(
    "--out",
    type=PATH,
    help="Folder of the results.  [default: runs/DATA-ALGORITHM, and what differs from the defaults]",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Leave a checkpoint in --out at the first meeting after so many steps, at the end, and on SIGTERM.",
)
@click.option(
    "--keep", type=click.IntRange(min=1), default=3, show_default=True, help="Checkpoints that stay."
)
@click.option(
    "--resume",
    type=PATH,
    default="none",
    show_default=True,
    metavar="auto|PATH|none",
    help="Go on from the newest whole checkpoint in --out, if there is one, or from that of a path.",
)
@click.option(
    "--straggler",
    metavar="RANK:FACTOR",
    help="Slow a rank down, e.g. 2:5, to see what that does to the run.",
)
@click.option(
    "--repeat",
    type=PATH,
    metavar="FILE",
    help="Take asynchronous reports in the order of another run's arrivals.jsonl.",
)
@click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="MODULE",
    help="Import a module that registers parts of your own.",
)
@click.option("--name", help="What figures call the method.  [default: made of algorithm and compressor]")
@click.option("--tensorboard", is_flag=True, help="Scalars for TensorBoard too, in folder tb of --out.")
@click.option("--quiet", is_flag=True, help="No progress bar and no table.")
def train(**options: Any) -> None:  # fmt: skip
    """Train a model on real data with compressed exchanges.

    \b
    qsparse train --ranks 4
    mpirun -n 4 qsparse train --data mnist --algorithm "qsparse-local-sgd(H=8)"
    """
    settle(options)
    load = _shared(lambda: load_data(options))
    with notice.listening(checkpoints=options["checkpoint_every"] is not None):
        failed = on_ranks(
            options["wire"],
            options["ranks"],
            functools.partial(_train, options, load),
            leaves=lambda: _out(options) / "summary.json",
        )
    if failed:
        raise SystemExit(STATUS)


def settle(options: dict[str, Any]) -> None:
    """Complete the options that were read, and import the modules that they name."""
    _choose_length(options)
    _refuse_bytes(options)
    if options["threads"] is None:
        options["threads"] = threads_of_a_rank(os.environ)
    for module in options["imports"]:
        user_module(module, f"import --import {module}")
    if options["batch"] is None:
        options["batch"] = default_batch(options)


def _out(options: Mapping[str, Any]) -> Path:
    """The folder of the results."""
    if options["out"]:
        return named_path(options["out"])
    chosen = None if options["batch"] == default_batch(options) else options["batch"]
    return default_folder({**options, "batch": chosen}, train.params)


def _train(options: Mapping[str, Any], load: Callable[[], Dataset], wire: Wire) -> bool:
    """Train on this rank; returns on rank 0 whether the model was not trained: it diverged, or starved."""
    try:
        from qsparse.torch.problem import Classification, use_threads
        from qsparse.torch.recipe import Recipe
    except ModuleNotFoundError as error:
        raise SettingError(f"train needs more than is installed ({error}): {installing('train')}") from None

    use_threads(options["threads"])
    threads.use(options["threads"])

    def problem(settings: Settings) -> Classification:
        workers = settings.exchange.workers(wire.size)
        share = workers.index(wire.rank) if wire.rank in workers else None
        return Classification(
            load(), options["model"], options["batch"], share, len(workers), options["sharding"],
            Seed(options["seed"]),
            Recipe(options["augment"], options["label_smoothing"], options["clip"], options["precision"]),
        )  # fmt: skip

    out = _out(options)
    watcher = Progress()
    if wire.rank == 0:
        watcher = ProgressBar(options["quiet"])
        if options["tensorboard"]:
            from qsparse.torch.board import Board

            watcher = Several(watcher, Board(Path(out, "tb")))
    summary = run(
        functools.partial(make_settings, options), problem, wire,
        out=out, files={"config.toml": config_text(options, wire.size)}, watcher=watcher,
        checkpoints=Checkpoints(
            Path(out, "checkpoints"), options["checkpoint_every"], options["keep"], options["resume"]
        ),
    )  # fmt: skip
    if summary and not options["quiet"]:
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


def _refuse_bytes(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be written to config.toml: bytes of a command line that are no text."""
    for name in options.keys() - set(_ELSEWHERE):
        value = options[name]
        for text in value if isinstance(value, tuple) else (value,):
            try:
                str(text).encode()
            except UnicodeEncodeError:
                raise SettingError(
                    f"{name} is {text!r}, which has bytes that are not text in this locale's encoding, so "
                    "the run's config.toml cannot hold it: give it other letters"
                ) from None


def load_data(options: Mapping[str, Any]) -> Dataset:
    """The data set."""
    from qsparse.data import load

    data_dir = options["data_dir"]
    return load(options["data"], Path(data_dir) if data_dir else None, progress=sys.stderr.isatty())


def _shared(load: Callable[[], Dataset]) -> Callable[[], Dataset]:
    """Ranks that are threads load the data once and share it."""
    lock = threading.Lock()
    loaded: list[Dataset] = []

    def once() -> Dataset:
        with lock:
            if not loaded:
                loaded.append(load())
            return loaded[0]

    return once


def config_text(options: Mapping[str, Any], ranks: int) -> str:
    """The file that repeats a run."""
    import tomli_w

    kept = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in sorted(options.items())
        if name not in _ELSEWHERE and value not in (None, ())
    }
    return tomli_w.dumps({**kept, "ranks": ranks})

"""A run of a configuration: on one rank, as ``qsparse train`` has it, or from Python."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qsparse.errors import SettingError, installing
from qsparse.files import named_path
from qsparse.kernels import threads
from qsparse.process.launchers import launched
from qsparse.registry import build, spell
from qsparse.rules import natural_exchange
from qsparse.run.checkpoint import Checkpoints
from qsparse.run.config import RunConfig
from qsparse.run.making import make_settings, settled
from qsparse.run.records import Progress, Several
from qsparse.run.settings import Settings
from qsparse.run.training import run
from qsparse.seeds import Seed
from qsparse.wire.base import Ranks, Wire

if TYPE_CHECKING:
    from qsparse.data import Dataset


class Trained(NamedTuple):
    """What a run came to.

    Attributes:
        summary: what the command writes to ``summary.json``; empty on other ranks than 0.
        history: the lines of ``history.jsonl``, one for each evaluation; none on other ranks than 0.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]


class _History(Progress):
    """Keeps what is evaluated."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Keep a line."""
        self.lines.append(dict(record))


def train(config: RunConfig, wire: Wire | None = None) -> Trained:
    """Do what ``qsparse train`` does; `qsparse.run` is this function.

    Ranks are those of the configuration's wire; where that is MPI and no launcher has started this process,
    they are threads of it, as many as the configuration says. Files are left where the configuration has an
    ``out``; checkpoints need one.

    Args:
        config: of the run.
        wire: to run on, of this rank, with all others that call this; None: made here.

    Raises:
        QsparseError: what is wrong here, or RankError with what is wrong elsewhere.
    """
    config = settled(config)
    load = shared(functools.partial(load_data, config))

    def body(wire: Wire) -> Trained:
        history = _History()
        return Trained(train_on(config, load, wire, history), history.lines)

    def launched_body(wire: Wire) -> Trained:
        check_ranks(config.ranks, wire.size)
        trained = body(wire)
        wire.close()
        return trained

    if wire is not None:
        return body(wire)
    part: Ranks = build(config.wire, "wire")
    if part.launched and not launched(os.environ):
        part = build("threads", "wire")
    return part.run(config.ranks or 1, launched_body if part.launched else body)


def check_ranks(asked: int | None, size: int) -> None:
    """Refuse a launcher's number of ranks where another one was asked for."""
    if asked is not None and asked != size:
        raise SettingError(f"--ranks {asked} was asked for and the launcher started {size}")


def train_on(config: RunConfig, load: Callable[[], Dataset], wire: Wire, watcher: Progress) -> dict[str, Any]:
    """Train on this rank, together with all others; collective.

    Args:
        config: of the run, settled.
        load: loads the data.
        wire: between the ranks.
        watcher: sees the run, on rank 0; so does TensorBoard where the configuration says so.

    Returns:
        The summary, on rank 0; an empty dictionary elsewhere.
    """
    try:
        from qsparse.torch.problem import Classification, use_threads
        from qsparse.torch.recipe import Recipe
    except ModuleNotFoundError as error:
        raise SettingError(f"train needs more than is installed ({error}): {installing('train')}") from None

    assert config.threads is not None, "the configuration is settled"
    use_threads(config.threads)
    threads.use(config.threads)

    def problem(settings: Settings) -> Classification:
        workers = settings.exchange.workers(wire.size)
        share = workers.index(wire.rank) if wire.rank in workers else None
        return Classification(
            load(), config.model, config.batch, share, len(workers), config.sharding, Seed(config.seed),
            Recipe(config.augment, config.label_smoothing, config.clip, config.precision),
        )  # fmt: skip

    def files(settings: Settings) -> dict[str, str]:
        other = settings.chooses and settings.exchange != natural_exchange(settings.algorithm)
        made = replace(config, exchange=spell(settings.exchange)) if other else config
        return {"config.toml": made.text(wire.size)}

    out = None if config.out is None else named_path(config.out)
    if config.tensorboard and wire.rank == 0:
        from qsparse.torch.board import Board

        if out is None:
            raise SettingError(
                "TensorBoard's files lie in the folder of a run: give the configuration its out"
            )
        watcher = Several(watcher, Board(Path(out, "tb")))
    return run(
        functools.partial(make_settings, config),
        problem,
        wire,
        out=out,
        files=files,
        watcher=watcher,
        checkpoints=_checkpoints(config, out),
    )


def _checkpoints(config: RunConfig, out: Path | None) -> Checkpoints | None:
    if out is not None:
        return Checkpoints(Path(out, "checkpoints"), config.checkpoint_every, config.keep, config.resume)
    if config.checkpoint_every is not None or config.resume != "none":
        raise SettingError("checkpoints lie in the folder of a run: give the configuration its out")
    return None


def load_data(config: RunConfig) -> Dataset:
    """The data set."""
    from qsparse.data import load

    data_dir = config.data_dir
    return load(config.data, Path(data_dir) if data_dir else None, progress=sys.stderr.isatty())


def shared(load: Callable[[], Dataset]) -> Callable[[], Dataset]:
    """Ranks that are threads load the data once and share it."""
    lock = threading.Lock()
    loaded: list[Dataset] = []

    def once() -> Dataset:
        with lock:
            if not loaded:
                loaded.append(load())
            return loaded[0]

    return once

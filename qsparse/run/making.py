"""The settings of a run out of its configuration."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from qsparse.algorithm import Algorithm
from qsparse.errors import QsparseError, SettingError
from qsparse.files import read_text
from qsparse.local import Local
from qsparse.local.shared import WeightDecay
from qsparse.modules import user_module
from qsparse.process.launchers import threads_of_a_rank
from qsparse.registry import AXES, as_text, build, call, parameters, preset_and_settings, spell
from qsparse.rules import natural_exchange
from qsparse.run.config import OPTIONS, RunConfig
from qsparse.run.settings import Settings
from qsparse.run.target import Target
from qsparse.schedules import Rate

#: Settings of presets, by the options that give them.
_PRESET: Final = {name: option.setting for name, option in OPTIONS.items() if option.setting is not None}


def make_settings(config: RunConfig) -> Settings:
    """The settings of a run.

    Raises:
        QsparseError: what it is configured to do cannot be done, or an option has no effect.
    """
    epochs, steps = config.epochs, config.steps
    if epochs is not None and steps is not None:
        raise SettingError("give either --epochs or --steps")
    algorithm = _algorithm(config)
    passes = 400.0 if algorithm.local.claims.takes_all else 60.0
    _check_recipe(config, algorithm)
    exchange = None if config.exchange == "auto" else config.exchange
    return Settings(
        algorithm=algorithm,
        exchange=natural_exchange(algorithm) if exchange is None else build(exchange, "exchange"),
        chooses=exchange is None,
        link_rate=config.link_rate,
        link_latency=config.link_latency,
        epochs=passes if epochs is None and steps is None else epochs,
        steps=steps,
        seed=config.seed,
        evaluations=config.evaluations,
        order=None if config.repeat is None else _order(config.repeat),
        until=None if config.until is None else Target.read(config.until),
        straggler=None if config.straggler is None else _straggler(config.straggler),
    )


def settled(config: RunConfig) -> RunConfig:
    """The configuration with what goes by the place and by the algorithm; its modules are imported.

    Raises:
        SettingError: a module cannot be imported, or OMP_NUM_THREADS is no number.
    """
    for module in config.imports:
        user_module(module, f"import --import {module}")
    threads = threads_of_a_rank(os.environ) if config.threads is None else config.threads
    batch = default_batch(config) if config.batch is None else config.batch
    return replace(config, threads=threads, batch=batch)


def default_batch(config: RunConfig) -> int | None:
    """Examples of a step where nothing is said: all of a worker's (None) where the algorithm takes these."""
    try:
        return None if _algorithm(config).local.claims.takes_all else 16
    except QsparseError:
        return 16  # it is said where all ranks are told


def _straggler(text: str) -> tuple[int, float]:
    """The rank and the factor of ``RANK:FACTOR``."""
    rank, _, factor = text.partition(":")
    try:
        return int(rank), float(factor)
    except ValueError:
        raise SettingError(f"--straggler must be RANK:FACTOR, such as 2:5, not {text}") from None


def _order(path: str) -> tuple[int, ...]:
    """The ranks of a run's ``arrivals.jsonl``, in order."""
    ranks = []
    for number, line in enumerate(read_text(Path(path), f"--repeat {path}", SettingError).splitlines(), 1):
        try:
            ranks.append(int(json.loads(line)["rank"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise SettingError(
                f"--repeat {path} is no arrivals.jsonl of a run: line {number} has no rank"
            ) from None
    return tuple(ranks)


def _algorithm(config: RunConfig) -> Algorithm:
    name, inner = preset_and_settings(config.algorithm)
    given = _given(config, name)
    for option in given:
        if _PRESET[option] in inner:
            raise SettingError(
                f"{_flag(option)} with --algorithm {config.algorithm!r} gives setting {_PRESET[option]} "
                "twice: keep one"
            )
    # Options are settings of the preset, beside those in its own brackets.
    settings = inner | {_PRESET[option]: value for option, value in given.items()}
    preset = _built(name, settings)
    replaced = _replaced(config, preset)
    if replaced.closed() != replaced and "lr" in given:
        replaced = replaced.with_(lr=given.pop("lr"))
    _check_effects(config, given, preset)
    for setting in inner:
        # One that an option names may go.
        if getattr(config, setting, None) is None:
            without = {key: value for key, value in settings.items() if key != setting}
            _check_setting(config, setting, inner[setting], functools.partial(_built, name, without), preset)
    return replaced


def _given(config: RunConfig, name: str) -> dict[str, Any]:
    """The options that are settings of a preset, with their values."""
    given = {}
    for option, setting in _PRESET.items():
        value = getattr(config, option)
        if value is None:
            continue
        taken = parameters(name, "algorithm")
        if setting not in taken:
            raise SettingError(f"{_flag(option)} does not go with {name}, which has {', '.join(taken)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"{_flag(option)} must be a finite number, not {value}")
        given[option] = _rate(value) if option == "lr" else value
    return given


def _built(name: str, settings: dict[str, Any]) -> Algorithm:
    algorithm: Algorithm = call(name, "algorithm", settings)
    return algorithm.closed()


def _replacing(config: RunConfig) -> list[str]:
    """The axes on which options put another part."""
    return [axis for axis in AXES if getattr(config, axis) is not None]


def _replaced(config: RunConfig, algorithm: Algorithm) -> Algorithm:
    """A preset with the parts that options put in the place of its own."""
    parts = {axis: build(getattr(config, axis), AXES[axis]) for axis in _replacing(config)}
    if "memory" in parts and algorithm.up.memory.claims.resets:
        raise SettingError(
            "reset_memory has no effect: --memory replaces the memory that is reset; give that one its "
            "reset, as in 'errorfeedback(reset=[100])', or leave it out"
        )
    algorithm = algorithm.with_(**parts)
    if config.weight_decay_on != "all":
        algorithm = replace(algorithm, local=_decaying(algorithm.local, config.weight_decay_on))
    return algorithm


def _check_setting(
    config: RunConfig, setting: str, value: Any, make: Callable[[], Algorithm], preset: Algorithm
) -> None:
    """Refuse a setting in a preset's brackets that is of a part which options replace.

    Args:
        config: of the run.
        setting: its name.
        value: what it is given.
        make: makes the preset without it.
        preset: with it.
    """
    try:
        without = make()
        if without == preset or _replaced(config, without) != _replaced(config, preset):
            return
    except QsparseError:
        return  # it is needed
    flags = [_flag(axis) for axis in _replacing(config) if without.part(axis) != preset.part(axis)]
    raise SettingError(
        f"{setting}={as_text(value)} of --algorithm has no effect: {' and '.join(flags)} replaces the part "
        "that it is a setting of; write it there, or leave it out"
    )


def _decaying(local: Local, where: str) -> Local:
    """The local step with a weight decay of these parameters only."""
    if not (isinstance(local, WeightDecay) and local.weight_decay):
        raise SettingError(
            f"--weight-decay-on {where} has no effect: {spell(local)} has no weight decay; "
            "give --weight-decay, or leave it out"
        )
    return replace(local, decay_on=where)  # type: ignore[type-var]


def _flag(option: str) -> str:
    return OPTIONS[option].flag


def _check_effects(config: RunConfig, given: Iterable[str], preset: Algorithm) -> None:
    """Refuse an option that is a setting of a part which another option replaces."""
    for option in given:
        axis = preset.axis_of(_PRESET[option])
        if getattr(config, axis) is not None:
            flag = "--no-nesterov" if getattr(config, option) is False else _flag(option)
            raise SettingError(
                f"{flag} has no effect: {_flag(axis)} replaces the part that it is a setting of; write it in "
                f"{_flag(axis)}, or leave it out"
            )


def _check_recipe(config: RunConfig, algorithm: Algorithm) -> None:
    """Refuse batches, and what is done to them, where gradients are those over the whole share."""
    augment = config.augment != "none"
    for phase in filter(None, (algorithm, algorithm.prelude)):
        if phase.local.claims.needs_mean and (augment or config.clip is not None):
            raise SettingError(
                f"{'--augment' if augment else '--clip'} does not go with {spell(phase.local)}, which "
                "corrects gradients of batches by one over the whole share: that is of the pictures as they "
                "are, and its difference to them is clipped in two; leave it out"
            )
        if augment and phase.local.claims.takes_all:
            raise SettingError(
                f"--augment has no effect: {spell(phase.local)} takes the pictures of the whole share as "
                "they are; leave it out"
            )
    if config.batch is not None and algorithm.local.claims.takes_all:
        batches = f"give --algorithm '{preset_name(config)}(whole=false)', or "
        raise SettingError(
            f"--batch has no effect: {spell(algorithm.local)} takes the gradient over a worker's whole "
            f"share; {batches if config.local is None else ''}leave it out"
        )


def _rate(text: str) -> Rate:
    """A learning rate; a misspelled schedule is refused as a schedule."""
    try:
        rate = float(text)
    except ValueError:
        schedule: Rate = build(text, "schedule")
        return schedule
    if not 0 < rate < math.inf:
        raise SettingError(
            f"--lr must be a positive number or a schedule, such as 0.1 or cosine(0.1), not {text}"
        )
    return rate


def preset_name(config: RunConfig) -> str:
    """The name in ``--algorithm``."""
    return preset_and_settings(config.algorithm)[0]

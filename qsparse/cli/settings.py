"""Settings of a run from the options of ``qsparse train``."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qsparse.algorithm import Algorithm
from qsparse.errors import QsparseError, SettingError
from qsparse.files import read_text
from qsparse.local import Local
from qsparse.local.shared import WeightDecay
from qsparse.registry import AXES, as_text, build, call, parameters, preset_and_settings, spell
from qsparse.rules import natural_exchange
from qsparse.run import Settings
from qsparse.schedules import Rate

#: Options that go into a preset under another name.
_PRESET = {
    "lr": "lr",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "weight_decay": "weight_decay",
    "sync_every": "H",
}


def make_settings(options: Mapping[str, Any]) -> Settings:
    """The settings of a run from the options of ``qsparse train``."""
    epochs, steps = options["epochs"], options["steps"]
    if epochs is not None and steps is not None:
        raise SettingError("give either --epochs or --steps")
    algorithm = _algorithm(options)
    passes = 400.0 if algorithm.local.claims.takes_all else 60.0
    _check_recipe(options, algorithm)
    exchange = options["exchange"]
    return Settings(
        algorithm=algorithm,
        exchange=natural_exchange(algorithm) if exchange is None else build(exchange, "exchange"),
        epochs=passes if epochs is None and steps is None else epochs,
        steps=steps,
        seed=options["seed"],
        evaluations=options["evaluations"],
        order=None if options["repeat"] is None else _order(options["repeat"]),
        straggler=None if options["straggler"] is None else _straggler(options["straggler"]),
    )


def default_batch(options: Mapping[str, Any]) -> int | None:
    """Examples of a step where nothing is said: all of a worker's (None) where the algorithm takes these."""
    try:
        return None if _algorithm(options).local.claims.takes_all else 16
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


def _algorithm(options: Mapping[str, Any]) -> Algorithm:
    name, inner = preset_and_settings(options["algorithm"])
    given = _given(options, name)
    for option in given:
        if _PRESET[option] in inner:
            raise SettingError(
                f"{_flag(option)} with --algorithm {options['algorithm']!r} gives setting {_PRESET[option]} "
                "twice: keep one"
            )
    # Options are settings of the preset, beside those in its own brackets.
    settings = inner | {_PRESET[option]: value for option, value in given.items()}
    preset = _built(name, settings)
    replaced = _replaced(options, preset)
    if replaced.closed() != replaced and "lr" in given:
        replaced = replaced.with_(lr=given.pop("lr"))
    _check_effects(options, given, preset)
    for setting in inner:
        # One that an option names may go.
        if options.get(setting) is None:
            without = {key: value for key, value in settings.items() if key != setting}
            _check_setting(options, setting, inner[setting], functools.partial(_built, name, without), preset)
    return replaced


def _given(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options that are settings of a preset, with their values."""
    given = {}
    for option, setting in _PRESET.items():
        value = options[option]
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


def _replaced(options: Mapping[str, Any], algorithm: Algorithm) -> Algorithm:
    """A preset with the parts that options put in the place of its own."""
    parts = {axis: build(options[axis], kind) for axis, kind in AXES.items() if options[axis] is not None}
    if "memory" in parts and algorithm.up.memory.claims.resets:
        raise SettingError(
            "reset_memory has no effect: --memory replaces the memory that is reset; give that one its "
            "reset, as in 'errorfeedback(reset=[100])', or leave it out"
        )
    algorithm = algorithm.with_(**parts)
    if options["weight_decay_on"] != "all":
        algorithm = replace(algorithm, local=_decaying(algorithm.local, options["weight_decay_on"]))
    return algorithm


def _check_setting(
    options: Mapping[str, Any], setting: str, value: Any, make: Callable[[], Algorithm], preset: Algorithm
) -> None:
    """Refuse a setting in a preset's brackets that is of a part which options replace.

    Args:
        options: of the run.
        setting: its name.
        value: what it is given.
        make: makes the preset without it.
        preset: with it.
    """
    try:
        without = make()
        if without == preset or _replaced(options, without) != _replaced(options, preset):
            return
    except QsparseError:
        return  # it is needed
    before, after = without.axes(), preset.axes()
    flags = [_flag(axis) for axis in AXES if options[axis] is not None and before[axis] != after[axis]]
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
    return f"--{option.replace('_', '-')}"


def _check_effects(options: Mapping[str, Any], given: Iterable[str], preset: Algorithm) -> None:
    """Refuse an option that is a setting of a part which another option replaces."""
    for option in given:
        axis = preset.axis_of(_PRESET[option])
        if options[axis] is not None:
            flag = "--no-nesterov" if options[option] is False else _flag(option)
            raise SettingError(
                f"{flag} has no effect: {_flag(axis)} replaces the part that it is a setting of; write it in "
                f"{_flag(axis)}, or leave it out"
            )


def _check_recipe(options: Mapping[str, Any], algorithm: Algorithm) -> None:
    """Refuse batches, and what is done to them, where gradients are those over the whole share."""
    augment = options["augment"] != "none"
    for phase in filter(None, (algorithm, algorithm.prelude)):
        if phase.local.claims.needs_mean and (augment or options["clip"] is not None):
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
    if options["batch"] is not None and algorithm.local.claims.takes_all:
        batches = f"give --algorithm '{preset_name(options)}(whole=false)', or "
        raise SettingError(
            f"--batch has no effect: {spell(algorithm.local)} takes the gradient over a worker's whole "
            f"share; {batches if options['local'] is None else ''}leave it out"
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


def preset_name(options: Mapping[str, Any]) -> str:
    """The name in ``--algorithm``."""
    return preset_and_settings(options["algorithm"])[0]

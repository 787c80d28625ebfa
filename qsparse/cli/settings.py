"""Settings of a run from the options of ``qsparse train``."""

from __future__ import annotations

import ast
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from qsparse.algorithm import Algorithm
from qsparse.errors import QsparseError, SettingError
from qsparse.files import read_text
from qsparse.link import Link
from qsparse.local import SVRG, Gradient, Local
from qsparse.local.shared import WeightDecay
from qsparse.memory import Innovation, Stateless
from qsparse.registry import build, parameters, spell
from qsparse.rules import natural_exchange
from qsparse.run import Settings

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
    passes = 400.0 if algorithm.local.takes_all else 60.0
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
        return None if _algorithm(options).local.takes_all else 16
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
    name, taken = preset_name(options), parameters(preset_name(options), "algorithm")
    given = {}
    for option, setting in _PRESET.items():
        value = options[option]
        if value is None:
            continue
        if setting not in taken:
            raise SettingError(f"{_flag(option)} does not go with {name}, which has {', '.join(taken)}")
        if option == "lr":
            _check_rate(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"{_flag(option)} must be a finite number, not {value}")
        given[option] = str(value).lower() if isinstance(value, bool) else str(value)
    # Options are settings of the preset, beside those in its own brackets.
    inner = _inner(options["algorithm"])
    settings = [*inner, *((_PRESET[option], value) for option, value in given.items())]
    preset = _built(name, settings)
    replaced = _replaced(options, preset)
    _check_effects(options, given, preset)
    for place, (setting, value) in enumerate(inner):
        # Those behind one that is given by its place would move; one that an option names may go.
        if setting and options.get(setting) is None:
            without = [*settings[:place], *settings[place + 1 :]]
            _check_setting(options, f"{setting}={value}", functools.partial(_built, name, without), preset)
    return replaced


def _inner(text: str) -> list[tuple[str, str]]:
    """The settings in a preset's brackets, names (none where it is given by its place) and values."""
    _, bracket, inner = text.partition("(")
    try:
        call = ast.parse(f"f{bracket}{inner}".strip(), mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or any(word.arg is None for word in call.keywords):
        # It is refused where it is built, by its own words.
        return [("", inner.strip().removesuffix(")"))] if inner.strip().removesuffix(")") else []
    named = [(str(word.arg), ast.unparse(word.value)) for word in call.keywords]
    return [*(("", ast.unparse(value)) for value in call.args), *named]


def _built(name: str, settings: Sequence[tuple[str, str]]) -> Algorithm:
    words = (f"{setting}={value}" if setting else value for setting, value in settings)
    algorithm: Algorithm = build(f"{name}({', '.join(words)})", "algorithm")
    return algorithm


def _replaced(options: Mapping[str, Any], algorithm: Algorithm) -> Algorithm:
    """A preset with the parts that options put in the place of its own."""
    for axis in ("local", "trigger", "server", "meeting"):
        if options[axis] is not None:
            algorithm = replace(algorithm, **{axis: build(options[axis], axis)})
    if options["weight_decay_on"] != "all":
        algorithm = replace(algorithm, local=_decaying(algorithm.local, options["weight_decay_on"]))
    up = algorithm.up
    if options["compressor"] is not None:
        up = replace(up, compressor=build(options["compressor"], "compressor"))
    if options["memory"] is not None:
        if getattr(up.memory, "reset", ()):
            raise SettingError(
                "reset_memory has no effect: --memory replaces the memory that is reset; give that one its "
                "reset, as in 'errorfeedback(reset=[100])', or leave it out"
            )
        up = replace(up, memory=build(options["memory"], "memory"))
    algorithm = replace(algorithm, up=up)
    if options["down"] is not None:
        # A memory of the preset's own is a rule of it, such as the precision that AsyLPG asks for.
        own = Stateless() if algorithm.down is None else algorithm.down.memory
        memory = Innovation() if isinstance(own, Stateless) else own
        down = Link(build(options["down"], "compressor"), memory)
        algorithm = replace(algorithm, down=down)
    if options["down_memory"] is not None:
        down = replace(algorithm.answer, memory=build(options["down_memory"], "memory"))
        algorithm = replace(algorithm, down=down)
    return algorithm


#: Options that replace a part of a preset, and where that lies.
_PLACES: Final[dict[str, Callable[[Algorithm], object]]] = {
    "local": lambda row: row.local,
    "trigger": lambda row: row.trigger,
    "server": lambda row: row.server,
    "meeting": lambda row: row.meeting,
    "compressor": lambda row: row.up.compressor,
    "memory": lambda row: row.up.memory,
    "down": lambda row: row.answer.compressor,
    "down_memory": lambda row: row.answer.memory,
}


def _check_setting(
    options: Mapping[str, Any], said: str, make: Callable[[], Algorithm], preset: Algorithm
) -> None:
    """Refuse a setting in a preset's brackets that is of a part which options replace.

    Args:
        options: of the run.
        said: the setting.
        make: makes the preset without it.
        preset: with it.
    """
    try:
        without = make()
        if without == preset or _replaced(options, without) != _replaced(options, preset):
            return
    except QsparseError:
        return  # it is needed
    flags = [
        _flag(option)
        for option, part in _PLACES.items()
        if options[option] is not None and part(without) != part(preset)
    ]
    raise SettingError(
        f"{said} of --algorithm has no effect: {' and '.join(flags)} replaces the part that it is a setting "
        "of; write it there, or leave it out"
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


def _check_effects(options: Mapping[str, Any], given: Mapping[str, str], preset: Algorithm) -> None:
    """Refuse an option that is a setting of a part which another option replaces."""
    # A preset whose workers report gradients has its step size in the server rule.
    stepper = "server" if preset.local.reports_gradient else "local"
    for option in given:
        axis = {"sync_every": "trigger", "lr": stepper}.get(option, "local")
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
        if isinstance(phase.local, SVRG) and (augment or options["clip"] is not None):
            raise SettingError(
                f"{'--augment' if augment else '--clip'} does not go with {spell(phase.local)}, which "
                "corrects gradients of batches by one over the whole share: that is of the pictures as they "
                "are, and its difference to them is clipped in two; leave it out"
            )
        if augment and isinstance(phase.local, Gradient) and phase.local.whole:
            raise SettingError(
                f"--augment has no effect: {spell(phase.local)} takes the pictures of the whole share as "
                "they are; leave it out"
            )
    if options["batch"] is not None and algorithm.local.takes_all:
        batches = f"give --algorithm '{preset_name(options)}(whole=false)', or "
        raise SettingError(
            f"--batch has no effect: {spell(algorithm.local)} takes the gradient over a worker's whole "
            f"share; {batches if options['local'] is None else ''}leave it out"
        )


def _check_rate(text: str) -> None:
    """Refuse a misspelled schedule as a schedule: among a preset's settings it could be any part."""
    try:
        rate = float(text)
    except ValueError:
        build(text, "schedule")
        return
    if not 0 < rate < math.inf:
        raise SettingError(
            f"--lr must be a positive number or a schedule, such as 0.1 or cosine(0.1), not {text}"
        )


def preset_name(options: Mapping[str, Any]) -> str:
    """The name in ``--algorithm``."""
    name: str = options["algorithm"].partition("(")[0].strip()
    return name

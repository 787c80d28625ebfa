"""Runs as ``qsparse train`` leaves them, or has left them so far."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qsparse.errors import DataError, SettingError
from qsparse.files import read_text, read_toml
from qsparse.ledger import link_bytes
from qsparse.report.base import mean
from qsparse.report.names import same_method, told_apart

Line = dict[str, Any]
#: What is read off a line of a history; None where it was not measured.
Reading = Callable[[Line], float | None]

#: What every line of a history has, and every summary: the way to each number.
_EVALUATION: Final = (
    ("step",), ("epoch",), ("test_accuracy",),
    *((key, way) for key in ("paper_bits", "wire_bytes") for way in ("up", "down")),
)  # fmt: skip
_SUMMARY: Final = tuple((key, way) for key in ("paper_bits", "dense_bits") for way in ("up", "down"))


@dataclass(frozen=True)
class Run:
    """A folder that ``qsparse train`` wrote.

    Args:
        folder: where.
        options: its ``config.toml``; empty where there is none.
        history: its evaluations, at least one.
        summary: how it ended; None where it has not yet.
    """

    folder: Path
    options: dict[str, Any]
    history: list[Line]
    summary: dict[str, Any] | None

    @property
    def last(self) -> Line:
        """Where it stands."""
        return self.history[-1]

    @property
    def rate(self) -> float:
        """Paper bits up in a step, by all workers."""
        return (at("paper_bits", "up")(self.last) or 0.0) / max(int(self.last["step"]), 1)

    def due(self) -> dict[tuple[int, int], Line]:
        """The evaluations by the number of the one that was due, and how many there were of that number.

        Meetings come when they come, so one may be late enough to be that of the next number too, which other
        seeds have apart; at the end of a run there is another one, due or not.
        """
        found: dict[tuple[int, int], Line] = {}
        seen: Counter[int] = Counter()
        for line in self.history:
            number = math.floor(float(line["epoch"]) * int(self.options.get("evaluations", 1)) + 1e-6)
            found[number, seen[number]] = line
            seen[number] += 1
        return found

    def reached(self, target: float) -> Line | None:
        """The first evaluation with this accuracy."""
        return next((line for line in self.history if line["test_accuracy"] >= target), None)


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seeds only."""

    label: str
    runs: list[Run]

    def curve(self, x: Reading, y: Reading) -> list[tuple[float, float, float, float]]:
        """(x, y, least y, largest y) of each evaluation that all runs have; x and y are means."""
        first, *others = (run.due() for run in self.runs)
        points = []
        for number in (number for number in first if all(number in other for other in others)):
            lines = [found[number] for found in (first, *others)]
            xs, ys = (
                [value for value in map(reading, lines) if value is not None and math.isfinite(value)]
                for reading in (x, y)
            )
            if len(xs) == len(ys) == len(lines):
                points.append((mean(xs), mean(ys), min(ys), max(ys)))
        return points

    def ends(self, reading: Reading) -> list[float]:
        """What was read at the last evaluation of each run that has it."""
        values = [reading(run.last) for run in self.runs]
        return [value for value in values if value is not None]

    def until(self, target: float, reading: Reading) -> list[float]:
        """What was read at the first evaluation with this accuracy, of each run that has come to it."""
        lines = filter(None, (run.reached(target) for run in self.runs))
        return [value for value in map(reading, lines) if value is not None]

    def some(self, values: Sequence[float]) -> str:
        """Of how many runs these values are, where that is not all of them."""
        return "" if len(values) == len(self.runs) else f" ({len(values)} of {len(self.runs)} runs)"


def at(*path: str) -> Reading:
    """Reads one number of a line, by the names that lead to it."""

    def reading(line: Line) -> float | None:
        value: Any = line
        for key in path:
            value = (value or {}).get(key)
        return None if value is None else float(value)

    return reading


def whole(name: str) -> Reading:
    """Reads bits or bytes up and down together: ``paper_bits``, or ``link_bytes`` of the busiest link."""

    def reading(line: Line) -> float | None:
        found = link_bytes(line) if name == "link_bytes" else line[name]
        return float(found["up"] + found["down"])

    return reading


def methods(paths: Sequence[Path]) -> list[Method]:
    """The runs in these folders and the folders within them, by method.

    They come in the order of the folders; of those within one, who says most in a step comes first.

    Raises:
        SettingError: a folder holds no run, or no run has come to an evaluation.
        DataError: a file of a run cannot be read.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    started = 0
    for folders in _folders(paths):
        started += len(folders)
        for run in sorted(filter(None, map(read, folders)), key=lambda run: -run.rate):
            groups.setdefault(same_method(run.options), []).append(run)
    if not groups:
        raise SettingError(
            f"none of the {started} runs has come to an evaluation: wait for the first, or give train more "
            "--evaluations"
        )
    return [Method(*each) for each in zip(told_apart(list(groups)), groups.values(), strict=True)]


def _folders(paths: Sequence[Path]) -> Iterator[list[Path]]:
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise SettingError(f"{path} is no folder: name folders that qsparse train wrote (its --out)")
        found = sorted(file.parent for file in path.rglob("history.jsonl"))
        if not found:
            raise SettingError(
                f"{path} has no history.jsonl, nor has a folder in it: name a folder that qsparse train "
                "wrote (its --out), or one that such folders lie in"
            )
        yield [folder for folder in found if folder.resolve() not in seen]
        seen.update(folder.resolve() for folder in found)


def read(folder: Path) -> Run | None:
    """The run in a folder; None before its first evaluation. Errors as in `methods`."""
    path = folder / "history.jsonl"
    lines = read_text(path, str(path)).split("\n")
    history = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _numbers(text, _EVALUATION)
        except ValueError as error:
            if number == len(lines):  # half a line: it is being written, or the run was cut off
                break
            raise DataError(
                f"{path}, line {number}, is no evaluation of qsparse train ({error}): "
                "remove the line, or train again"
            ) from None
        history.append(line)
    if not history:
        return None
    options, summary = {}, None
    path = folder / "config.toml"
    if path.exists():
        options = read_toml(path, str(path))
        if not isinstance(options.get("evaluations", 1), int):
            raise DataError(f"{path} is no config.toml of qsparse train: evaluations is not a whole number")
    else:
        # Of which nothing is known: two of them are two methods.
        options = {"name": folder.name, "folder": str(folder)}
    path = folder / "summary.json"
    if path.exists():
        try:
            summary = _numbers(read_text(path, str(path)), _SUMMARY)
        except ValueError as error:
            raise DataError(
                f"{path} is no summary of qsparse train ({error}): remove it, or train again"
            ) from None
    return Run(folder, options, history, summary)


def _numbers(text: str, ways: Sequence[tuple[str, ...]]) -> Line:
    """A JSON object that has a number at the end of each of these ways.

    Raises:
        ValueError: it is another text, or a number is missing.
    """
    try:
        found: Line = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    for way in ways:
        value: Any = found
        for key in way:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{'.'.join(way)} is missing, or not a number")
    return found

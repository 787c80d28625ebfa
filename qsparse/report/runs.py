"""The runs that ``qsparse train`` has written, finished or not."""

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
from qsparse.run.target import Target

Line = dict[str, Any]
#: Reads a number from a line of a history; None where it was not measured.
Reading = Callable[[Line], float | None]

#: The numbers that every line of a history has, and every summary: the names that lead to each.
_EVALUATION: Final = (
    ("step",), ("epoch",), ("test_accuracy",),
    *((key, way) for key in ("paper_bits", "wire_bytes") for way in ("up", "down")),
)  # fmt: skip
_SUMMARY: Final = tuple((key, way) for key in ("paper_bits", "dense_bits") for way in ("up", "down"))


@dataclass(frozen=True)
class Run:
    """A folder that ``qsparse train`` wrote.

    Args:
        folder: the folder of the run.
        options: its ``config.toml``; empty where there is none.
        history: its evaluations, at least one.
        summary: how it ended; None where it has not ended yet.
    """

    folder: Path
    options: dict[str, Any]
    history: list[Line]
    summary: dict[str, Any] | None

    @property
    def last(self) -> Line:
        """The last evaluation."""
        return self.history[-1]

    @property
    def rate(self) -> float:
        """Paper bits up per step, of all workers together."""
        return (at("paper_bits", "up")(self.last) or 0.0) / max(int(self.last["step"]), 1)

    def due(self) -> dict[tuple[int, int], Line]:
        """The evaluations by the number that was due, and a count of the earlier ones with that number.

        An evaluation waits for a synchronization. So it may be so late that the next number is due as well,
        which has an evaluation of its own in runs with other seeds. The end of a run always has one.
        """
        found: dict[tuple[int, int], Line] = {}
        seen: Counter[int] = Counter()
        for line in self.history:
            number = math.floor(float(line["epoch"]) * int(self.options.get("evaluations", 1)) + 1e-6)
            found[number, seen[number]] = line
            seen[number] += 1
        return found

    def reached(self, target: Target) -> Line | None:
        """The first evaluation that has come to the target, or None."""
        return next(filter(target.reached, self.history), None)


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seeds only."""

    label: str
    runs: list[Run]

    def curve(self, x: Reading, y: Reading) -> list[tuple[float, float, float, float]]:
        """The tuple (x, y, least y, largest y) of each evaluation that all runs have; x and y are means."""
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
        """The number at the last evaluation of each run that has it."""
        values = [reading(run.last) for run in self.runs]
        return [value for value in values if value is not None]

    def until(self, target: Target, reading: Reading) -> list[float]:
        """The number at the first evaluation that has come to the target, for each run that has."""
        lines = filter(None, (run.reached(target) for run in self.runs))
        return [value for value in map(reading, lines) if value is not None]

    def some(self, values: Sequence[float]) -> str:
        """A text with the number of runs that these values are of, if they are not all."""
        return "" if len(values) == len(self.runs) else f" ({len(values)} of {len(self.runs)} runs)"


def at(*path: str) -> Reading:
    """A function that reads one number of a line, by the names that lead to it."""

    def reading(line: Line) -> float | None:
        value: Any = line
        for key in path:
            value = (value or {}).get(key)
        return None if value is None else float(value)

    return reading


def whole(name: str) -> Reading:
    """A function that reads bits or bytes up and down added: ``paper_bits``, or a link's ``link_bytes``."""

    def reading(line: Line) -> float | None:
        found = link_bytes(line) if name == "link_bytes" else line[name]
        return float(found["up"] + found["down"])

    return reading


def methods(paths: Sequence[Path]) -> list[Method]:
    """The runs in these folders and the folders within them, by method.

    They come in the order of the folders; within one folder the method with most bits per step comes first.

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
    """The run in a folder; None before its first evaluation. The errors are those of `methods`."""
    path = folder / "history.jsonl"
    lines = read_text(path, str(path)).split("\n")
    history = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _numbers(text, _EVALUATION)
        except ValueError as error:
            if number == len(lines):  # an incomplete line: it is being written, or the run was cut off
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
        # Nothing is known of such a run, so each is a method of its own.
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
    """Read a JSON object that has a number under each of these paths of names.

    Raises:
        ValueError: the text is not such an object, or a number is missing.
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

"""What every reproduction is, and how it is run, written down and held against what was published.

An experiment measures; its tables, bars and figure are made of what it measured and of nothing else,
so that the JSON file holds whatever is shown.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from qsparse import _version
from qsparse.errors import DataError, SettingError, installing
from qsparse.report.base import Table, new_figure, number
from qsparse.run.folder import Hold
from qsparse.run.records import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qsparse.data import Dataset

#: What a run measured, by name: numbers, texts, lists and dictionaries.
Measured = dict[str, Any]
#: Takes a line of progress.
Say = Callable[[str], None]


class Bar(NamedTuple):
    """What is claimed of a figure: it lies from ``low`` to ``high``."""

    claim: str
    ours: float
    low: float
    high: float = math.inf

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.low <= self.ours <= self.high

    def __str__(self) -> str:
        wanted = f"at least {number(self.low)}"
        if self.high < math.inf:
            wanted = f"{number(self.low)} to {number(self.high)}"
        return f"{'met' if self.met else 'NOT MET'}: {self.claim}: {number(self.ours)}, wanted {wanted}"


@dataclass(frozen=True)
class Experiment(ABC):
    """One published experiment; its fields are what may be chosen.

    Args:
        quick: a short version of the same code, whose figures are not held against the bars.
    """

    name: ClassVar[str]
    #: Who published it, and where.
    source: ClassVar[str]

    quick: bool = False

    @abstractmethod
    def measure(self, data_dir: Path | None, say: Say) -> Measured:
        """Run it; what is returned can be written as JSON."""

    @abstractmethod
    def tables(self, measured: Measured) -> list[Table]:
        """Ours beside the published figures."""

    @abstractmethod
    def bars(self, measured: Measured) -> list[Bar]:
        """What the whole experiment should show."""

    @abstractmethod
    def draw(self, measured: Measured, figure: Figure) -> None:
        """Draw it."""


def reproduce(experiment: Experiment, data_dir: Path | None, out: Path, say: Say) -> str:
    """Run an experiment and write ``out/NAME.json`` and ``out/NAME.png``; returns what is to be printed.

    Raises:
        SettingError: a library is missing, the folder cannot be made, or the same experiment is under way
            there; before the run.
        DataError: the data is nowhere, or the files cannot be written; then with what was measured.
    """
    figure = new_figure("reproduce", 11, 4.5)
    try:
        hold = Hold(out, name=f".{experiment.name}.lock")
    except OSError as error:
        raise SettingError(f"cannot write to --out {out}: {error.strerror}") from None
    with hold:
        return _reproduce(experiment, data_dir, out, say, figure)


def _reproduce(experiment: Experiment, data_dir: Path | None, out: Path, say: Say, figure: Figure) -> str:
    begin = time.perf_counter()
    measured = experiment.measure(data_dir, say)
    seconds = time.perf_counter() - begin
    tables = experiment.tables(measured)
    bars = [] if experiment.quick else experiment.bars(measured)
    record = {
        "experiment": experiment.name,
        "source": experiment.source,
        "settings": asdict(experiment),
        "seconds": seconds,
        "versions": _versions(),
        "measured": measured,
        "tables": [table._asdict() for table in tables],
        "bars": [{**bar._asdict(), "met": bar.met} for bar in bars],
    }
    file = out / f"{experiment.name}.json"
    text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    held = [str(bar) for bar in bars] or ["quick: too short to be held against what was published"]
    shown = "\n\n".join([*map(str, tables), "\n".join(held)])
    try:
        write_whole(file, text)
        experiment.draw(measured, figure)
        figure.savefig(file.with_suffix(".png"), dpi=150)
    except OSError as error:
        raise DataError(f"cannot write to --out {out}: {error.strerror}; it measured\n\n{shown}") from None
    return f"{shown}\n\n{seconds:,.0f} seconds; written to {file} and {file.with_suffix('.png')}"


def dataset(name: str, data_dir: Path | None) -> Dataset:
    """A data set by name; SettingError where the libraries that load it are missing."""
    try:
        from qsparse.data import load

        return load(name, data_dir)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"reproduce needs more than is installed ({error}): {installing('train')}"
        ) from None


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    return statistics.median(values)


def _versions() -> dict[str, Any]:
    """What figures may depend on."""
    found = {"qsparse": _version.__version__, "python": platform.python_version()}
    for library in ("numpy", "numba", "scipy", "torch", "matplotlib"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "machine": platform.machine(), "cores": os.cpu_count()}


def _plain(value: Any) -> Any:
    """As JSON can have it: there is no infinity, so what is not finite is null."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

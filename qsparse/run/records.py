"""The files that a run writes, and watchers that follow a run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qsparse.errors import DataError, SettingError
from qsparse.run.folder import Hold


class Progress:
    """Follows a run on rank 0; all methods of this class do nothing."""

    def started(self, steps: int, after: int = 0) -> None:
        """Training begins, or goes on after a step; then old lines of the history are given first."""

    def stepped(self, t: int, loss: float | None) -> None:
        """A step was taken."""

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """A line of the history was written."""

    def warned(self, text: str) -> None:
        """There is a warning; the run goes on."""

    def noted(self, text: str) -> None:
        """There is something to know about this run, before its first step."""

    def stopped(self) -> None:
        """Training ended, with success or not."""


class Several(Progress):
    """Watchers that see the same run."""

    def __init__(self, *watchers: Progress) -> None:
        self.watchers = watchers

    def started(self, steps: int, after: int = 0) -> None:
        """Tell all watchers that training begins."""
        for watcher in self.watchers:
            watcher.started(steps, after)

    def stepped(self, t: int, loss: float | None) -> None:
        """Tell all watchers of a step."""
        for watcher in self.watchers:
            watcher.stepped(t, loss)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Tell all watchers of a line of the history."""
        for watcher in self.watchers:
            watcher.evaluated(record)

    def warned(self, text: str) -> None:
        """Tell all watchers of a warning."""
        for watcher in self.watchers:
            watcher.warned(text)

    def noted(self, text: str) -> None:
        """Tell all watchers what there is to know."""
        for watcher in self.watchers:
            watcher.noted(text)

    def stopped(self) -> None:
        """Tell all watchers that training ended."""
        for watcher in self.watchers:
            watcher.stopped()


class Recorder:
    """Writes the files of a run: whole files or whole lines, never half of one."""

    def __init__(self, out: Path | None, watcher: Progress) -> None:
        self.out, self.watcher = out, watcher
        #: Further files to write, text by name.
        self.files: Mapping[str, str] = {}
        self._history: Any = None
        self._arrivals: Any = None
        self._lines = {"history": 0, "arrivals": 0}
        #: The warnings, each once.
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Give a warning to the watcher, each text once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.watcher.warned(text)

    def claim(self) -> Hold | None:
        """Take the folder for this run alone, before anything is trained, written or removed.

        Raises:
            SettingError: another job has the folder, or it cannot be written.
        """
        if self.out is None:
            return None
        above = self.out
        while not above.exists() and above != above.parent:
            above = above.parent
        if not above.is_dir():
            raise SettingError(f"cannot write to --out {self.out}: {above} is not a folder")
        try:
            return Hold(self.out)
        except OSError as error:
            raise SettingError(f"cannot write to --out {self.out}: {error.strerror}") from None

    def open(
        self, steps: int, after: int = 0, lines: Mapping[str, int] | None = None, source: Path | None = None
    ) -> None:
        """Make the folder, and remove the summary of an older run there.

        Args:
            steps: the steps of the run.
            after: the step after which the run goes on.
            lines: where a run goes on, the earlier result of `lines`; lines written later are removed.
            source: the folder of the run that it goes on from; the run's own folder unless given.

        Raises:
            DataError: a line of the earlier history cannot be read, or a file cannot be written.
        """
        self.watcher.started(steps, after)
        if self.out is not None:
            with explained(self.out):
                self._open(self.out, after, lines or {}, source)

    def _open(self, out: Path, after: int, lines: Mapping[str, int], source: Path | None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        for name in self._lines:
            file = f"{name}.jsonl"
            if source is not None:
                _copied(source / file, out / file)
            self._lines[name] = _shortened(out / file, lines.get(name, 0))
            if self._lines[name] < lines.get(name, 0):
                warnings.warn(
                    f"{out / file} had {lines[name]} lines after step {after}, and "
                    f"{self._lines[name]} of them are left: what was measured before is missing",
                    RuntimeWarning,
                    stacklevel=2,
                )
        (out / "summary.json").unlink(missing_ok=True)
        for name, text in self.files.items():
            write_whole(out / name, text)
        self._history = (out / "history.jsonl").open("a+", encoding="utf-8", errors="replace")
        self._history.seek(0)
        for number, line in enumerate(self._history, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{self._history.name}, line {number}, is no JSON ({error}): mend or remove the line, "
                    "and resume"
                ) from None
            self.watcher.evaluated(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one line of the history."""
        self.watcher.evaluated(record)
        if self._history is not None:
            with explained(self._history.name):
                self._history.write(json.dumps(record) + "\n")
                self._history.flush()
            self._lines["history"] += 1

    def arrived(self, rank: int, step: int, about: int, staleness: int) -> None:
        """Write one line of the arrivals."""
        if self.out is None:
            return
        path = self.out / "arrivals.jsonl"
        what = "statistics" if about else "model"
        line = {"rank": rank, "step": step, "about": what, "staleness": staleness}
        with explained(path):
            if self._arrivals is None:
                self._arrivals = path.open("a", encoding="utf-8")
            self._arrivals.write(json.dumps(line) + "\n")
        self._lines["arrivals"] += 1

    def lines(self) -> dict[str, int]:
        """The number of lines of each file, all of which are on the disk."""
        for file in (self._history, self._arrivals):
            if file is not None:
                with explained(file.name):
                    file.flush()
                    os.fsync(file.fileno())
        return dict(self._lines)

    def write(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, last of all: if it is there, the run came to its end."""
        if self.out is not None:
            with explained(self.out / "summary.json"):
                write_whole(self.out / "summary.json", json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Close the history."""
        self.watcher.stopped()
        for file in (self._history, self._arrivals):
            if file is not None:
                with explained(file.name):
                    file.close()
        self._history = self._arrivals = None


@contextlib.contextmanager
def explained(
    path: Path | str, remedy: str = "make room there, and resume from the newest checkpoint, if there is one"
) -> Iterator[None]:
    """Explain an error of the system in the block, with the file that it names, else with ``path``.

    Raises:
        DataError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        # The error may name another file in place of this one, such as the temporary file next to it.
        named = error.filename if isinstance(error.filename, str) and error.filename2 is None else None
        file = path if named is None or Path(named).name.startswith(".") else named
        raise DataError(f"cannot write {file}: {error.strerror or error}; {remedy}") from None


def _copied(source: Path, path: Path) -> None:
    """Replace ``path`` by a copy of ``source``, where that exists."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(source, path)


def _shortened(path: Path, lines: int) -> int:
    """Cut a file after so many lines; return how many lines are left, 0 without a file."""
    if not lines or not path.exists():
        path.unlink(missing_ok=True)
        return 0
    with path.open("rb+") as file:
        # The last line may be incomplete.
        whole = [line for line in itertools.islice(file, lines) if line.endswith(b"\n")]
        file.truncate(sum(map(len, whole)))
    return len(whole)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it exists as a whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # A path may have bytes that are not text; they are written as JSON writes them.
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise

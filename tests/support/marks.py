"""Markers of tests, set in one place: by what a test uses, and by what it took when it was last recorded.

``pytest --record`` runs the tests and writes `RECORD`: which start processes, and which take half a second.
A test that is in none of the sets is ``quick``; under ``-m quick`` it fails where it starts a process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from links import limited

RECORD: Final = Path(__file__).resolve().parent.parent / "marks.json"
#: Seconds of a test, with what it sets up, from which on it is slow.
SLOW: Final = 0.5
MARKERS: Final = {
    "job": "starts processes, such as a job of mpiexec",
    "slow": "took half a second or more when it was recorded",
    "data": "reads real data sets, and is skipped without them",
    "root": "limits links, as root",
    "gpu": "compares a device with the host",
    "quick": "none of these",
}

_started: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork"):
        _started.append(event)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--record``."""
    parser.addoption(
        "--record", action="store_true", help=f"write {RECORD.name}: what is slow or starts jobs"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers, and see which tests start processes."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    sys.addaudithook(_audit)
    if config.getoption("--record") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(), "recorder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    for item in items:
        name, fixtures = _named(item), set(getattr(item, "fixturenames", ()))
        marks = {
            "job": name in record["job"],
            "slow": name in record["slow"] or bool(fixtures & set(record["fixtures"].get(_file(item), ()))),
            "data": "data_dir" in fixtures,
            "root": limited.mark in item.iter_markers("skipif"),
            "gpu": _file(item).endswith("test_gpu.py"),
        }
        for mark in [mark for mark, is_so in marks.items() if is_so] or ["quick"]:
            item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the processes that a test starts."""
    before = len(_started)
    result = yield
    count = len(_started) - before
    item.user_properties.append(("processes", count))
    if count and item.config.getoption("markexpr") == "quick":
        pytest.fail("a quick test has started a process: pytest --record takes it down as a job")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Note what a test shares with others, whose setup it may pay for."""
    result = yield
    known = getattr(item, "_fixtureinfo", None)
    shared = [
        name
        for name, found in (known.name2fixturedefs.items() if known else ())
        if found[-1].scope == "module"
    ]
    item.user_properties.append(("shared", shared))
    return result


class Recorder:
    """Takes down what every test took, and writes the record when all have been run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.whole: dict[str, float] = {}
        self.jobs: set[str] = set()
        self.fixtures: dict[str, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test."""
        name, found = report.nodeid.partition("[")[0], dict(report.user_properties)
        if report.when == "setup":
            self.whole[report.nodeid] = 0.0
            if report.duration >= SLOW and found.get("shared"):
                self.fixtures.setdefault(name.partition("::")[0], set()).update(found["shared"])
                return
        self.whole[report.nodeid] = self.whole.get(report.nodeid, 0.0) + report.duration
        self.seconds[name] = max(self.seconds.get(name, 0.0), self.whole[report.nodeid])
        if found.get("processes"):
            self.jobs.add(name)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """What was not run now stays as it was."""
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        run = set(self.seconds)
        slow = {name for name, seconds in self.seconds.items() if seconds >= SLOW}
        fixtures = {**record["fixtures"], **{file: sorted(names) for file, names in self.fixtures.items()}}
        new = {
            "job": sorted((set(record["job"]) - run) | self.jobs),
            "slow": sorted((set(record["slow"]) - run) | slow),
            "fixtures": dict(sorted(fixtures.items())),
        }
        RECORD.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _named(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]

"""A run and its results: settings, problem, history, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsparse.run.config import RunConfig
    from qsparse.run.problem import Problem, Score
    from qsparse.run.settings import Settings
    from qsparse.run.training import run

__all__ = ["Problem", "RunConfig", "Score", "Settings", "run"]

_HOMES = {
    "Problem": "problem",
    "RunConfig": "config",
    "Score": "problem",
    "Settings": "settings",
    "run": "training",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, because reading a history needs no kernels.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Import paths of earlier releases, and where they lead now: code that uses them goes on working."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType
from typing import Any, Final

#: Module of an earlier release → module, below ``qsparse``.
MOVED: Final = {
    "agreement": "exchange.collectives",
    "checkpoint": "run.checkpoint",
    "folder": "run.folder",
    "guard": "process.guard",
    "job": "run.job",
    "launchers": "process.launchers",
    "notice": "process.notice",
    "outcome": "run.outcome",
    "records": "run.records",
    "report.pictures": "report.plots",
    "resharding": "run.resharding",
    "rounds.saved": "rounds.state",
    "statefile": "run.statefile",
    "supervisor": "process.supervisor",
    "torch.data": "data",
    "torch.data.augment": "data.augment",
    "torch.data.dataset": "data.dataset",
    "torch.data.decoded": "data.cache",
    "torch.data.libsvm": "data.libsvm",
    "torch.data.pictures": "data.images",
    "torch.data.places": "data.download",
    "torch.data.readers": "data.readers",
    "torch.data.shards": "data.shards",
    "torch.data.sources": "data.sources",
    "triggers.asking": "participation.ask",
    "triggers.gaps": "triggers.periodic",
    "triggers.joined": "triggers.base",
    "warming": "rounds.warming",
    "watching": "run.watching",
}


class _Alias(Loader):
    """Gives the module of today under its name of before."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, not a copy: what is set in one is set in the other."""
        module = import_module(self.target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; what the import of the old name has written over is put back."""
        module.__spec__ = self._spec

    def get_code(self, name: str) -> CodeType | None:
        """For ``python -m`` with the old name."""
        spec = find_spec(self.target)
        loader: Any = spec.loader if spec is not None else None
        code: CodeType | None = loader.get_code(self.target) if loader is not None else None
        return code


class _Finder(MetaPathFinder):
    """Looks old names up."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The alias of a moved module; None for all others."""
        package, _, rest = name.partition(".")
        if package != "qsparse" or rest not in MOVED:
            return None
        return spec_from_loader(name, _Alias(f"qsparse.{MOVED[rest]}"))


def install() -> None:
    """Let old names be found, once; asked first, as files of a moved package lie below its old name, too."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

"""Sweeps as data: the methods of published figures, as options of ``qsparse train``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qsparse.errors import SettingError, UnknownPart
from qsparse.files import named_path, read_toml


@dataclass(frozen=True)
class Method:
    """One row of a sweep.

    Args:
        name: what its publication calls it; also the folder of its runs.
        options: of ``qsparse train``, by flag or name; they go before those that all methods share.
        published: how many times fewer bits than the first method, in the publication's words.
    """

    name: str
    options: Mapping[str, Any]
    published: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise SettingError(
                f"{self.name!r} cannot name a method, whose runs have a folder of that name: use letters, "
                "digits and _ . + -"
            )


@dataclass(frozen=True)
class Sweep:
    """Methods that are held against the first of them.

    Args:
        name: of the sweep.
        methods: at least one.
        common: options of ``qsparse train`` for all methods; those of the command line win.
        source: who published the figure, and of what the published ratios speak; nothing where the methods
            are the user's own.
    """

    name: str
    methods: tuple[Method, ...]
    common: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def only(self, names: tuple[str, ...]) -> tuple[Method, ...]:
        """The methods of these names, in the order of the sweep; all without names."""
        known = [method.name for method in self.methods]
        for name in names:
            if name not in known:
                raise _unknown("method", f"of sweep {self.name} ", name, known)
        return tuple(method for method in self.methods if not names or method.name in names)


#: Top-k of figure-1 where nothing else is said, for each tensor.
TOPK: Final = "ratio=0.01"


def figure_1(topk: str = TOPK) -> Sweep:
    """Qsparse-local-SGD and its special cases (Basu et al., 2019, figure 1), and two rows both ways.

    Args:
        topk: the settings of top-k, which works on each tensor by itself; the paper has k=1000, that is
            k = min(1000, d_t), with ResNet-50.
    """
    top = f"blockwise(topk({topk}), layers=true)"
    signs = f"blockwise(topk({topk}) >> sign, layers=true)"

    def row(compressor: str, H: int) -> dict[str, Any]:
        return {"algorithm": f"qsparse-local-sgd(H={H})", "compressor": compressor}

    def both(H: int) -> dict[str, Any]:
        return {"algorithm": f"qsparse-local-sgd-2way(H={H})", "compressor": signs, "down": signs}

    return Sweep(
        "figure-1",
        (
            Method("SGD", {"algorithm": "sgd"}, "1"),
            Method("SGD_4L", {"algorithm": "local-sgd(H=4)"}, "2.83"),
            Method("EF-signSGD", {"algorithm": "ef-signsgd"}, "16"),
            Method("TopK", row(top, 1), "128"),
            Method("SignTopK", row(signs, 1)),
            Method("SignTopK_4L", row(signs, 4)),
            Method("SignTopK_8L", row(signs, 8), "> 1024"),
            Method("SignTopK_16L", row(signs, 16), "> 1024"),
            Method("SignTopK_8L_2way", both(8)),
            Method("SignTopK_16L_2way", both(16)),
        ),
        # Of the authors' code.
        common={"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        source=(
            "Basu et al., 2019, figure 1: bits up to 70 % top-1 on ImageNet, ResNet-50, 8 workers, "
            "k = min(1000, d_t) with positions of 32 bits"
        ),
    )


def _laq() -> Sweep:
    return Sweep(
        "laq",
        (
            Method("GD", {"algorithm": "gd"}, "1"),
            Method("QGD", {"algorithm": "qgd"}, "8.04"),
            Method("LAG", {"algorithm": "lag-wk"}, "11.8"),
            Method("LAQ", {"algorithm": "laq"}, "365"),
        ),
        source=(
            "Sun et al., 2019, table 2, and of LAQ their response to reviewers: bits up to a residual of "
            "1e-6 of the loss, softmax regression on MNIST, 10 workers; not to an accuracy"
        ),
    )


def _dist_ef() -> Sweep:
    return Sweep(
        "dist-ef",
        (
            Method("SGDM", {"algorithm": "sgd", "lr": "0.01", "momentum": 0.9, "nesterov": True}),
            Method("dist-EF-SGDM", {"algorithm": "dist-ef-sgdm"}),
            Method("dist-EF-BlockSGDM", {"algorithm": "dist-ef-blocksgdm"}),
            # A step has the length η in every coordinate, whatever the gradient's: it has an η of its own.
            Method("Signum-majority", {"algorithm": "signum-majority", "lr": "0.001"}),
        ),
        source="Zheng et al., 2019: about 32 times fewer bits each way, by the formula",
    )


_OTHERS: Final = {"laq": _laq, "dist-ef": _dist_ef}
#: The sweeps that come with qsparse.
NAMES: Final = ("figure-1", *_OTHERS)


def find(name: str, topk: str | None = None) -> Sweep:
    """The sweep of a name, or the one in a file of methods.

    Args:
        name: one of `NAMES`, or a path that ends in ``.toml``.
        topk: for figure-1.

    Raises:
        UnknownPart: there is no such sweep.
        SettingError: the file cannot be read, or has no methods; ``topk`` where no method takes it.
    """
    if name == "figure-1":
        return figure_1(TOPK if topk is None else topk)
    if topk is not None:
        raise SettingError(f"--topk is for figure-1; write the compressors into the methods of {name}")
    if name.endswith(".toml"):
        return _from_file(named_path(name))
    if name not in _OTHERS:
        raise _unknown("sweep", "", name, list(NAMES), " or a FILE.toml")
    return _OTHERS[name]()


def _from_file(path: Path) -> Sweep:
    """Options that all methods share, then ``[methods.NAME]`` with the options of each."""
    values = read_toml(path, str(path), SettingError)
    tables = values.pop("methods", None)
    if not isinstance(tables, dict) or not tables or not all(isinstance(t, dict) for t in tables.values()):
        raise SettingError(f"{path} has no methods: write a table [methods.NAME] of train's options for each")
    methods = []
    for name, options in tables.items():
        published = options.pop("published", "")
        methods.append(Method(name, options, str(published)))
    return Sweep(path.stem, tuple(methods), values)


def _unknown(kind: str, where: str, name: str, known: list[str], more: str = "") -> UnknownPart:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownPart(f"no {kind} {where}is named {name!r}: {hint}known: {', '.join(known)}{more}")

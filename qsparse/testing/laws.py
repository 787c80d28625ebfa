"""The laws that every compressor keeps, for built-in parts and for those of strangers.

A law is a function of a part, the name of a vector and the vector. It returns whether it applies,
and raises `Broken` with the reason where it does not hold. `check` tries every law on every vector
and never stops at a failure; random parts are measured over fixed seeds, so results repeat.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qsparse.compressors import Compressor
from qsparse.errors import NotFinite, SettingError
from qsparse.registry import build, spell

# Importing the two modules of laws fills the table.
from qsparse.testing import frames, values
from qsparse.testing.base import HUGE, LAWS, Broken, Law, law, layout
from qsparse.testing.vectors import hostile
from qsparse.types import Vector

__all__ = [
    "EXAMPLES",
    "LAWS",
    "Broken",
    "Check",
    "Law",
    "Report",
    "check",
    "examples",
    "frames",
    "law",
    "load",
    "run",
    "values",
]

#: Spellings that `run` tries where it is given nothing; every registered name occurs in one.
EXAMPLES: Final = (
    "float32",
    "everything",
    "float16",
    "bfloat16",
    "sign",
    "sign(norm=2)",
    "sign(norm=none)",
    "qsgd",
    "qsgd(levels=1)",
    "qsgd(levels=4, scaled=true)",
    "minmax",
    "minmax(levels=255)",
    "uniform",
    "uniform(bits=1)",
    "uniform(bits=11)",
    "lowprecision",
    "lowprecision(bits=2)",
    "lowprecision(bits=5, delta=0.125)",
    "ternary",
    "topk(k=3)",
    "topk(ratio=0.01)",
    "topk(ratio=0.9)",
    "randk(k=3)",
    "randk(ratio=0.6)",
    "randsparse",
    "randsparse(budget=2)",
    "topk(k=5) >> float16",
    "topk(k=5) >> bfloat16",
    "topk(k=5) >> sign",
    "topk(ratio=0.1) >> qsgd(levels=7)",
    "topk(ratio=0.1) >> minmax(levels=3)",
    "topk(ratio=0.1) >> uniform(bits=2)",
    "topk(ratio=0.1) >> lowprecision(bits=4)",
    "topk(ratio=0.1) >> ternary",
    "randk(k=5) >> sign",
    "randsparse >> lowprecision(bits=4)",
    "blockwise(sign, size=8)",
    "blockwise(sign, size=4096)",
    "blockwise(topk(k=3) >> sign, size=64)",
    "blockwise(qsgd(levels=4), layers=true)",
    "blockwise(blockwise(uniform, size=5), size=16)",
    "bysize(float32, topk(ratio=0.05) >> sign, limit=10)",
    "*.bias: float32; conv.*: topk(k=4) >> uniform; *: sign",
)


class Check(NamedTuple):
    """One law of one part on one vector; ``reason`` is None where it holds."""

    part: str
    law: str
    vector: str
    reason: str | None


@dataclass
class Report:
    """What `run` found: how much was checked, how often each law, and what failed."""

    parts: int = 0
    vectors: int = 0
    checks: int = 0
    per_law: dict[str, int] = field(default_factory=dict)
    failures: list[Check] = field(default_factory=list)


def run(
    parts: Iterable[Compressor] | None = None, vectors: Mapping[str, npt.NDArray[Any]] | None = None
) -> Report:
    """Check parts (the examples unless given) on vectors (the hostile ones unless given)."""
    tried = hostile() if vectors is None else dict(vectors)
    report = Report(vectors=len(tried), per_law=dict.fromkeys(LAWS, 0))
    for part in examples() if parts is None else parts:
        report.parts += 1
        for found in check(part, tried):
            report.checks += 1
            report.per_law[found.law] = report.per_law.get(found.law, 0) + 1
            if found.reason is not None:
                report.failures.append(found)
    return report


def check(part: Compressor, vectors: Mapping[str, npt.NDArray[Any]] | None = None) -> list[Check]:
    """Every law on every vector that fits the part's settings.

    The part is bound to a model of three layers, and a k beyond a vector's size is lowered to it.
    """
    text = name_of(part)
    checks = []
    unfit = "no vector was given"
    for name, x in (hostile() if vectors is None else vectors).items():
        try:
            fitted = part.bind(layout(x.size)).limited(x.size)
            fitted.check(x.size)
        except Exception as error:
            unfit = f"its settings fit no vector: {type(error).__name__}: {error}"
            continue
        if x.size:
            unfit = ""
        fine = sendable(x)
        for title, holds in LAWS.items():
            if (title == "refusal") is fine:
                continue
            # The text of a bound part may leave out the layers, which are the model's.
            applies, reason = _try(title, holds, part if title == "text" else fitted, name, x)
            if applies:
                checks.append(Check(text, title, name, reason))
    if unfit:
        checks.append(Check(text, "fit", "all", unfit))
    return checks


def _try(title: str, holds: Law, part: Compressor, name: str, x: Vector) -> tuple[bool, str | None]:
    """Whether a law applies, and why it does not hold."""
    # A part that changes its input must not change it for the next law.
    given = x.copy() if x.flags.writeable and x.flags.c_contiguous else x
    try:
        return holds(part, name, given), None
    except Broken as broken:
        return True, str(broken)
    except Exception as error:
        # What cannot be sent for its size is the concern of one law.
        if isinstance(error, NotFinite) and title != "finite" and np.max(np.abs(x)) > HUGE:
            return False, None
        return True, f"raised {type(error).__name__}: {error}"


def examples() -> list[Compressor]:
    """New parts of `EXAMPLES`."""
    return [build(text, "compressor") for text in EXAMPLES]


def load(where: str) -> list[Compressor]:
    """The parts at ``module:name``: a compressor, a class made with its defaults, or a list of them.

    Raises:
        SettingError: there is no such module or name, or it holds something else.
    """
    module, colon, name = where.partition(":")
    if not colon or not module or not name:
        raise SettingError(f"cannot read {where!r}: write MODULE:NAME, as in my.parts:Mine")
    try:
        found = importlib.import_module(module)
        for attribute in name.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise SettingError(f"cannot load {where!r}: {error}") from None
    several = found if isinstance(found, list | tuple) else [found]
    parts = [_made(item, where) for item in several]
    if not parts:
        raise SettingError(f"{where!r} is an empty list: put compressors into it")
    return parts


def _made(item: object, where: str) -> Compressor:
    if isinstance(item, type) and issubclass(item, Compressor):
        try:
            item = item()
        except (TypeError, SettingError) as error:
            raise SettingError(f"{where!r} has no defaults ({error}): name an instance of it") from None
    if not isinstance(item, Compressor):
        raise SettingError(f"{where!r} holds {item!r}, which is no compressor")
    return item


def name_of(part: Compressor) -> str:
    try:
        return spell(part)
    except (AttributeError, TypeError):
        return repr(part)


def sendable(x: npt.NDArray[Any]) -> bool:
    shaped = x.dtype in (np.float32, np.float64) and x.ndim == 1 and x.flags.c_contiguous
    return bool(shaped and np.all(np.isfinite(x)))

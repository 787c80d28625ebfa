"""The laws that parts of every kind keep, for built-in parts and for those of strangers.

A law is a function of a part, the name of a vector and the vector. It returns whether it applies,
and raises `Broken` with the reason where it does not hold. `check` tries every law of the part's kind
on every vector (or once, where a law has nothing to do with vectors) and never stops at a failure;
random parts are measured over fixed seeds, so results repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from qsparse.compressors import Compressor
from qsparse.errors import NotFinite, SettingError
from qsparse.modules import user_module
from qsparse.registry import build, kinds, spell

# Importing the modules of laws fills the tables.
from qsparse.testing import (
    algorithm,
    compressor_frames,
    compressor_values,
    exchange,
    local,
    memory,
    participation,
    parts,
    problem,
    server,
    trigger,
    wire,
)
from qsparse.testing.algorithm import Row
from qsparse.testing.base import HUGE, LAWS, Broken, Law, Rule, law, layout
from qsparse.testing.vectors import hostile
from qsparse.types import Vector

__all__ = [
    "EXAMPLES",
    "LAWS",
    "NOWHERE",
    "Broken",
    "Check",
    "Law",
    "Report",
    "Rule",
    "algorithm",
    "check",
    "compressor_frames",
    "compressor_values",
    "examples",
    "exchange",
    "law",
    "load",
    "local",
    "memory",
    "participation",
    "parts",
    "problem",
    "run",
    "server",
    "trigger",
    "wire",
]

#: The vector of laws that have nothing to do with vectors.
NOWHERE: Final = "–"

#: Spellings of compressors that `run` tries where it is given nothing, beside those of other kinds
#: (`qsparse.testing.parts.EXAMPLES`); every registered name occurs in one.
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
    "qsgd(levels=4, coder='ans')",
    "minmax",
    "minmax(levels=255)",
    "minmax(levels=1, coder='ans')",
    "uniform",
    "uniform(bits=1)",
    "uniform(bits=11)",
    "uniform(coder='ans')",
    "uniform(bits=14, coder='ans')",
    "lowprecision",
    "lowprecision(bits=2)",
    "lowprecision(bits=5, delta=0.125)",
    "lowprecision(delta=1.0, coder='ans')",
    "lowprecision(bits=4, clip=0.9)",
    "ternary",
    "ternary(coder='ans')",
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
    "topk(ratio=0.5) >> uniform(bits=3, coder='ans')",
    "randk(k=5) >> sign",
    "randsparse >> lowprecision(bits=4)",
    "blockwise(sign, size=8)",
    "blockwise(sign, size=4096)",
    "blockwise(topk(k=3) >> sign, size=64)",
    "blockwise(qsgd(levels=4), layers=true)",
    "blockwise(blockwise(uniform, size=50), size=160)",
    "blockwise(qsgd(levels=1, coder='ans'), size=100)",
    "blockwise(sign, bucket=20)",
    "bysize(float32, topk(ratio=0.05) >> sign, limit=10)",
    "*.bias: float32; conv.*: topk(k=4) >> uniform; *: sign",
)


class Check(NamedTuple):
    """One law of one part on one vector (or `NOWHERE`); ``reason`` is None where it holds."""

    part: str
    law: str
    vector: str
    reason: str | None
    kind: str = "compressor"


@dataclass
class Report:
    """What `run` found: how much was checked, how often each law by kind and name, and what failed."""

    parts: int = 0
    vectors: int = 0
    checks: int = 0
    per_law: dict[tuple[str, str], int] = field(default_factory=dict)
    failures: list[Check] = field(default_factory=list)


def run(parts: Iterable[Any] | None = None, vectors: Mapping[str, npt.NDArray[Any]] | None = None) -> Report:
    """Check parts (the examples of all kinds unless given) on vectors (the hostile ones unless given)."""
    tried = hostile() if vectors is None else dict(vectors)
    report = Report(vectors=len(tried))
    for part in [one for kind in kinds() for one in examples(kind)] if parts is None else parts:
        report.parts += 1
        for title in LAWS[_kind_of(part)]:
            report.per_law.setdefault((_kind_of(part), title), 0)
        for found in check(part, tried):
            report.checks += 1
            key = (found.kind, found.law)
            report.per_law[key] = report.per_law.get(key, 0) + 1
            if found.reason is not None:
                report.failures.append(found)
    return report


def check(part: Any, vectors: Mapping[str, npt.NDArray[Any]] | None = None) -> list[Check]:
    """Every law of the part's kind on every vector that fits its settings.

    A compressor is bound to a model of three layers, and a k beyond a vector's size is lowered to it.
    A preset function is called with its defaults.
    """
    kind, text = _kind_of(part), name_of(part)
    if kind == "algorithm":
        try:
            part = parts.row_of(part)
        except Exception as error:
            return [Check(text, "fit", NOWHERE, f"cannot be made: {type(error).__name__}: {error}", kind)]
    checks = []

    def tried(title: str, on: Any, name: str, x: Vector) -> None:
        applies, reason = _try(title, LAWS[kind][title].holds, on, name, x)
        if applies:
            checks.append(Check(text, title, name, reason, kind))

    for title, rule in LAWS[kind].items():
        if rule.once:
            tried(title, part, NOWHERE, np.empty(0, np.float32))
    unfit = "no vector was given"
    for name, x in (hostile() if vectors is None else vectors).items():
        fitted = part
        if kind == "compressor":
            try:
                fitted = part.bind(layout(x.size)).limited(x.size)
                fitted.check(x.size)
            except Exception as error:
                unfit = f"its settings fit no vector: {type(error).__name__}: {error}"
                continue
        if x.size:
            unfit = ""
        fine = sendable(x)
        for title, rule in LAWS[kind].items():
            if rule.once or (title == "refusal") is fine:
                continue
            # The text of a bound part may leave out the layers, which are the model's.
            tried(title, part if title == "text" else fitted, name, x)
    if unfit:
        checks.append(Check(text, "fit", "all", unfit, kind))
    return checks


def _kind_of(part: Any) -> str:
    kind = parts.kind_of(part)
    if not kind:
        raise SettingError(f"{part!r} is no compressor and no other part")
    return kind


def _try(title: str, holds: Law, part: Any, name: str, x: Vector) -> tuple[bool, str | None]:
    """Whether a law applies, and why it does not hold."""
    # A part that changes its input must not change it for the next law.
    given = x.copy() if x.flags.writeable and x.flags.c_contiguous else x
    try:
        with np.errstate(over="ignore") if not isinstance(part, Compressor) else nullcontext():
            return holds(part, name, given), None
    except Broken as broken:
        return True, str(broken)
    except Exception as error:
        # What cannot be sent for its size is the concern of one law.
        if isinstance(error, NotFinite) and title != "finite" and np.max(np.abs(x), initial=0) > HUGE:
            return False, None
        return True, f"raised {type(error).__name__}: {error}"


def examples(kind: str = "compressor") -> list[Any]:
    """New parts of the examples of a kind."""
    if kind == "compressor":
        return [build(text, kind) for text in EXAMPLES]
    return [parts.example(text, kind) for text in parts.EXAMPLES[kind]]


def load(where: str) -> list[Any]:
    """The parts at ``module:name``: one of any kind, a class made with its defaults, a preset, or a list.

    Raises:
        SettingError: there is no such module or name, or it holds something else.
    """
    module, colon, name = where.partition(":")
    if not colon or not module or not name:
        raise SettingError(f"cannot read {where!r}: write MODULE:NAME, as in my.parts:Mine")
    found: Any = user_module(module, f"load {where!r}")
    try:
        for attribute in name.split("."):
            found = getattr(found, attribute)
    except AttributeError as error:
        raise SettingError(f"cannot load {where!r}: {error}") from None
    # A part may be a tuple by itself.
    several = found if isinstance(found, list | tuple) and not parts.kind_of(found) else [found]
    loaded = [_made(item, where) for item in several]
    if not loaded:
        raise SettingError(f"{where!r} is an empty list: put parts into it")
    return loaded


def _made(item: Any, where: str) -> Any:
    kind = parts.kind_of(item)
    if kind and isinstance(item, type):
        try:
            item = item()
        except (TypeError, SettingError) as error:
            raise SettingError(f"{where!r} has no defaults ({error}): name an instance of it") from None
    if not kind:
        raise SettingError(f"{where!r} holds {item!r}, which is no compressor and no other part")
    return item


def name_of(part: Any) -> str:
    """How a part is spelled, or shown where nothing spells it."""
    if isinstance(part, Row) and part.text:
        return part.text
    try:
        if not isinstance(part, type) and callable(part) and not hasattr(part, "kind"):
            return str(part.registered_name)
        return spell(part.algorithm if isinstance(part, Row) else part)
    except (AttributeError, TypeError):
        return repr(part)


def sendable(x: npt.NDArray[Any]) -> bool:
    """Whether a vector is one that compressors take: contiguous, of float32 or float64, finite."""
    shaped = x.dtype in (np.float32, np.float64) and x.ndim == 1 and x.flags.c_contiguous
    return bool(shaped and np.all(np.isfinite(x)))

"""What every registered part claims, and the rules that go by it, as the Markdown of docs/capabilities.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, Final

from qsparse.registry import names, spell
from qsparse.rules import RULES

#: The kinds of parts that claim something, and what many of them are.
_CLAIMING: Final = {
    "compressor": "Compressors",
    "memory": "Memories",
    "local": "Local steps",
    "trigger": "Triggers",
    "participation": "Participations",
    "server": "Server rules",
    "exchange": "Exchanges",
    "meeting": "Meetings",
}
#: The length of the vector that claims of compressors are asked about.
_N: Final = 1000
_DASH: Final = "–"


def capabilities() -> str:
    """All tables, one kind of part after the other, and then the rules."""
    sections = [_section(kind, title) for kind, title in _CLAIMING.items()]
    return "\n\n".join([*sections, _rules()])


def _section(kind: str, title: str) -> str:
    parts = _examples(kind)
    columns = [field.name for field in fields(parts[0].claims)]
    # What depends on more than the settings is shown for one case of it.
    case = (_N,) if kind == "compressor" else (1, 1)
    rows = [
        [f"`{spell(part)}`", *(_shown(getattr(part.claims, name), case) for name in columns)]
        for part in parts
    ]
    table = _table(["", *(f"`{name}`" for name in columns)], rows)
    legend = [f"- `{name}`: {text}" for name, text in _attributes(type(parts[0].claims))]
    asked = [f"Figures are those for vectors of {_N:,} values.", ""] if kind == "compressor" else []
    return "\n".join([f"## {title}", "", *asked, *table, "", *legend])


def _examples(kind: str) -> list[Any]:
    """One part of every registered name: the first of the examples that are held to the laws."""
    from qsparse.testing import laws

    found: dict[str, Any] = {}
    for part in laws.examples(kind):
        found.setdefault(getattr(part, "registered_name", ""), part)
    return [found[name] for name in names(kind) if name in found]


def _shown(claim: Any, case: tuple[int, ...]) -> str:
    """A claim in a cell."""
    claim = claim(*case) if callable(claim) else claim
    if isinstance(claim, bool):
        return "yes" if claim else _DASH
    if claim is None or claim == ():
        return _DASH
    if isinstance(claim, float):
        return f"{claim:,.4g}"
    if isinstance(claim, int):
        return f"{claim:,}"
    return claim if isinstance(claim, str) else spell(claim)


def _attributes(claims: type) -> Iterator[tuple[str, str]]:
    """What each claim means, from the docstring of the class."""
    text = (claims.__doc__ or "").partition("Attributes:\n")[2]
    for name, meaning in re.findall(r"^ {8}(\w+): ((?:.*\n)(?: {12}.*\n)*)", text, re.MULTILINE):
        yield name, " ".join(meaning.split())


def _rules() -> str:
    table = _table(["rule", "what must be so"], ([rule.name, rule.sentence] for rule in RULES))
    return "\n".join(["## Rules", "", *table])


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]

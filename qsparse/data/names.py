"""Names with numbers as text, ``mlp(200, 100)``, for models and shards."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from qsparse.errors import SettingError, UnknownPart

_CALL = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*")


def parse(text: str) -> tuple[str, tuple[str, ...]]:
    """Split a name from what stands in its brackets.

    Raises:
        SettingError: the text is not ``name`` or ``name(a, b, ...)``.

    >>> parse("mlp(200, 100)"), parse("softmax")
    (('mlp', ('200', '100')), ('softmax', ()))
    """
    match = _CALL.fullmatch(text)
    if match is None:
        raise SettingError(f"{text!r} is not of the form name or name(number, ...)")
    name, inside = match.group(1), match.group(2)
    if inside is None or not inside.strip():
        return name, ()
    return name, tuple(word.strip() for word in inside.split(","))


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownPart:
    """The error for a name that is not in a list.

    >>> str(unknown("model", "resnet", ["mlp", "resnet18"]))
    "no model is named 'resnet': did you mean 'resnet18'? known: mlp, resnet18"
    """
    listed = list(known)
    near = difflib.get_close_matches(name.lower(), listed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownPart(f"no {kind} is named {name!r}: {hint}known: {', '.join(listed)}")

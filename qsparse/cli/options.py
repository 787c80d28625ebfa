"""Options that several commands have: their types, and what is done with them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from qsparse.errors import DataError, SettingError
from qsparse.files import named_path


class _Path(click.Path):
    """A path, with a tilde at its beginning replaced by the home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path as text; a usage error where it cannot be one."""
        if not isinstance(value, str):
            self.fail(f"{value!r} is not a path.", param, ctx)
        try:
            found = named_path(value)
        except SettingError as error:
            self.fail(f"{error}.", param, ctx)
        return str(found) if value.startswith("~") else value


#: Of a vector that is made: longer ones have no memory, and NumPy no answer in a sentence.
LENGTH: Final = click.IntRange(min=1, max=2**48)
#: Of NumPy's generators.
SEED: Final = click.IntRange(min=0)
#: Of every option and argument that is a path.
PATH: Final = _Path()


def check_json(file: str | None) -> None:
    """Refuse a ``--json`` that cannot be written, before minutes are spent on what goes there."""
    if file is None:
        return
    place = file if os.path.exists(file) else Path(file).absolute().parent
    if os.path.isdir(file) or not os.access(place, os.W_OK):
        raise SettingError(f"cannot write to --json {file}: name a file in a folder that exists")


def write_json(file: str | None, found: Mapping[str, Any]) -> None:
    """Write what was found, and printed, to ``--json``, if it was given."""
    if file is None:
        return
    try:
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        Path(file).write_text(text, "utf-8", "backslashreplace")  # a path may have bytes that are no text
    except OSError as error:
        raise DataError(
            f"cannot write to --json {file}: {error.strerror}; what goes there stands above"
        ) from None

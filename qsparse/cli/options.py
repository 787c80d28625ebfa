"""Options that several commands have: their types, and what is done with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from qsparse.errors import DataError, SettingError
from qsparse.files import named_path
from qsparse.run.config import Option


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


#: Values of a vector that no memory holds; of much more, NumPy does not speak of memory any more.
_LONGEST: Final = 2**48
#: Of NumPy's generators.
SEED: Final = click.IntRange(min=0)
#: Of every option and argument that is a path.
PATH: Final = _Path()


def check_length(ctx: click.Context, parameter: click.Parameter, n: int) -> int:
    """Callback of a length: refuse a vector that can be nowhere."""
    if n > _LONGEST:
        raise click.BadParameter(f"{n} values are more than any memory holds.")
    return n


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


def run_option(option: Option) -> Callable[[Any], Any]:
    """The decorator that gives a command an option of a run: the same name, help and parsing everywhere."""
    known: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "default": option.default}
    flags = option.flag
    if option.type is bool and option.default is None:
        flags += f"/--no-{option.flag.removeprefix('--')}"
    elif option.type is bool:
        known["is_flag"] = True
    elif option.type is tuple:
        known["multiple"] = True
    elif option.is_path:
        known["type"] = PATH
    elif option.choices:
        known["type"] = click.Choice(option.choices)
    elif option.least is not None:
        known["type"] = click.IntRange(min=option.least)
    else:
        known["type"] = option.type
    known["show_default"] = option.default is not None and option.type not in (bool, tuple)
    return click.option(flags, option.name, **known)

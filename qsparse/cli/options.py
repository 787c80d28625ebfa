"""Types of options that several commands have."""

from __future__ import annotations

from typing import Any, Final

import click

from qsparse.errors import SettingError
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


#: Of every option and argument that is a path.
PATH: Final = _Path()

"""Modules of the user's, such as those that register parts."""

from __future__ import annotations

import importlib
import sys
import textwrap
import traceback
from types import ModuleType

from qsparse.errors import SettingError


def user_module(name: str, doing: str) -> ModuleType:
    """Import a module of the folder where the command was called, or of PYTHONPATH.

    Args:
        name: of the module, such as ``mine`` or ``my.parts``.
        doing: what for, as messages have it: ``import --import mine``.

    Raises:
        SettingError: there is none of this name, or it fails; then with its own traceback.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module that ends the program would do so with status 0
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        if missing or not all(part.isidentifier() for part in name.split(".")):
            raise SettingError(
                f"cannot {doing}: {error}; name a module of this folder or of PYTHONPATH"
            ) from None
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, *_MACHINERY):
            trace = trace.tb_next
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        shown = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
        raise SettingError(f"cannot {doing}: it fails with {said}\n{textwrap.indent(shown, '  ')}") from None


#: The frames between us and the module.
_MACHINERY = (importlib.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")

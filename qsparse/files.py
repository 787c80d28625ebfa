"""Paths that a user names, and text files that a user, an editor or a run wrote."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path
from typing import Any, Final

from qsparse.errors import DataError, QsparseError, SettingError

#: The byte order mark, which some editors write before the first letter of a text.
MARK: Final = "\ufeff"


def named_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user means: a tilde at its beginning is a home folder, as in a shell.

    Shells leave a tilde as it is behind ``=`` and in a variable, and nobody replaces those in a file.

    Args:
        path: as it was given; ``~`` and ``~/...`` are the home folder, ``~name/...`` is that of a user, if
            there is one.

    Raises:
        SettingError: it is empty or too long, has no home folder, or cannot be a path on this machine.

    >>> named_path("runs/~").parts
    ('runs', '~')
    """
    text = os.fspath(path)
    if not text:
        raise SettingError("a path is empty: name a file or a folder, or leave the option out")
    try:
        possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise SettingError(
            f"{text!r} cannot be a path on this machine: it has a letter that the locale's encoding lacks, "
            "or a NUL"
        )
    found = os.path.expanduser(text)
    if found == text and text.startswith("~") and not os.path.lexists(text):
        user = text[1:].partition(os.sep)[0]
        whose = f"of a user {user!r}" if user else "of this user, and HOME is not set"
        raise SettingError(f"{text}: there is no home folder {whose}; write ./{text} if its name has a tilde")
    try:
        os.lstat(found)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SettingError(f"a path has {len(found)} letters: {error.strerror}: {found[:60]}…") from None
    return Path(found)


def read_text(path: Path, called: str, kind: type[QsparseError] = DataError) -> str:
    """All of a text in UTF-8; a byte order mark before it is skipped.

    Args:
        path: of the file.
        called: what messages call it.
        kind: of the error.

    Raises:
        QsparseError: of this kind; the file cannot be read, or is in another encoding: where.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise kind(f"cannot read {called}: {error.strerror or error}") from None
    try:
        return data.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise kind(
            f"{called} is not text in UTF-8: byte 0x{data[error.start]:02x} in line {line}, column {column}, "
            "is of another encoding; save it as UTF-8"
        ) from None


def read_toml(path: Path, called: str, kind: type[QsparseError] = DataError) -> dict[str, Any]:
    """The values of a TOML file; arguments and errors as for `read_text`."""
    try:
        return tomllib.loads(read_text(path, called, kind))
    except (ValueError, RecursionError) as error:
        if isinstance(error, QsparseError):
            raise
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise kind(f"{called} is not valid TOML: {why}") from None

"""The folder of a run that was given none: runs of other settings get other folders."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

#: Options that may change while a run goes on, or that say where and how it is run: no part of the name.
_FREE: Final = frozenset(
    (
        "config", "out", "quiet", "tensorboard", "checkpoint_every", "keep", "resume", "name", "imports",
        "ranks", "wire", "threads", "epochs", "steps", "straggler", "data_dir", "data", "algorithm",
    )
)  # fmt: skip
#: A longer name is cut off, and told apart by a checksum.
_LENGTH: Final = 100


def default_folder(options: Mapping[str, Any], parameters: list[click.Parameter]) -> Path:
    """``runs/DATA-ALGORITHM``, followed by what differs from the defaults, such as ``-seed-1``.

    Args:
        options: of ``qsparse train``.
        parameters: which options there are, with their defaults.
    """
    words = [Path(options["data"].replace(":", "-")).name, options["algorithm"]]
    for parameter in parameters:
        name = str(parameter.name)
        value = options.get(name)
        if name in _FREE or value is None or value == parameter.default:
            continue
        flag = parameter.opts[0].lstrip("-")
        words.append(flag if value is True else f"no-{flag}" if value is False else f"{flag}-{value}")
    whole = "-".join(_plain(word) for word in words)
    if len(whole) > _LENGTH:
        digest = hashlib.blake2b(repr(words).encode(), digest_size=4).hexdigest()
        whole = f"{whole[: _LENGTH - 9].rstrip('-')}-{digest}"
    return Path("runs", whole)


def _plain(text: str) -> str:
    """Without what a shell or a file system might take for something else."""
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-")

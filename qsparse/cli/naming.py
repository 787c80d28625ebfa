"""The folder of a run that was given none: runs of other settings get other folders."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from qsparse.run.config import OPTIONS, RunConfig

#: A longer name is cut off, and told apart by a checksum.
_LENGTH: Final = 100


def default_folder(config: RunConfig) -> Path:
    """``runs/DATA-ALGORITHM``, followed by what differs from the defaults, such as ``-seed-1``."""
    words = [Path(config.data.replace(":", "-")).name, config.algorithm]
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        if option.elsewhere or not option.names_folder or value is None or value == option.default:
            continue
        flag = option.flag.lstrip("-")
        words.append(flag if value is True else f"no-{flag}" if value is False else f"{flag}-{value}")
    whole = "-".join(_plain(word) for word in words)
    if len(whole) > _LENGTH:
        digest = hashlib.blake2b(repr(words).encode(), digest_size=4).hexdigest()
        whole = f"{whole[: _LENGTH - 9].rstrip('-')}-{digest}"
    return Path("runs", whole)


def _plain(text: str) -> str:
    """Without what a shell or a file system might take for something else."""
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-")

"""Data that was unpacked once, and is then mapped into the memory of every process of the machine.

Ranks that map one file share its pages, and nothing is unpacked or copied when a run starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qsparse.data import download
from qsparse.errors import DataError

Arrays = dict[str, npt.NDArray[np.uint8]]

#: The first line of a file; the second says what is in it, as JSON, and where that begins.
_MAGIC: Final = b"qsparse decoded data 1\n"
#: Arrays begin at multiples of this.
_LINE: Final = 64


def decoded(name: str, files: Sequence[Path], decode: Callable[[], Arrays]) -> Arrays:
    """Arrays of bytes that are made of files: mapped from the cache, or made, and kept there.

    The file in the cache names its sources by what is in them, and has a checksum: what is damaged, or was
    made of other bytes, is made anew, and copies of a data set share a file wherever they lie. One process
    of a machine makes it while the others wait. Where nothing can be written, every process has the arrays
    in its own memory.

    Args:
        name: of the data set.
        files: what ``decode`` reads.
        decode: makes the arrays, of uint8, by name.

    Returns:
        The arrays, read-only.
    """
    try:
        sources = [_source(file) for file in files]
    except OSError:
        return _locked(decode())  # who reads it says what is wrong
    # Of its sources' name: a file that another run has mapped is not replaced by one of other contents.
    digest = hashlib.blake2b(json.dumps(sources).encode(), digest_size=8).hexdigest()
    try:
        path = download.cache() / "decoded" / f"{name}-{digest}.bin"
    except DataError:  # a user without a home folder
        return _locked(decode())
    found = _mapped(path, sources)
    if found is not None:
        return found
    made: Arrays | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with download.alone(path.parent / "lock"):
            # Another process may have made it while this one waited.
            found = _mapped(path, sources)
            if found is None:
                download.tidy(path.parent)
                made = decode()
                _write(path, sources, made)
                found = _mapped(path, sources)
    except OSError:
        pass  # no folder, no room, no right to write: a cache is no condition
    if found is None:
        found = _locked(decode() if made is None else made)
    return found


def _source(file: Path) -> list[Any]:
    """Name, size and digest of a file.

    Of all its bytes, because somebody may change a few labels within a file; the 170 MB of CIFAR-10 take a
    quarter of a second. Neither folder nor time of change: a job that unpacks its data into a folder of its
    own would leave a file in the cache each time.
    """
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return [file.name, opened.tell(), digest]


def _locked(arrays: Arrays) -> Arrays:
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _write(path: Path, sources: list[Any], arrays: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Write a file so that it is there whole or not at all."""
    checksum = 0
    for array in arrays.values():
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    head = _MAGIC + json.dumps({"sources": sources, "arrays": shapes, "crc32": checksum}).encode() + b"\n"
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(head)
            for array in arrays.values():
                file.write(bytes(-file.tell() % _LINE))
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        download.publish(Path(part), path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _mapped(path: Path, sources: list[Any]) -> Arrays | None:
    """The arrays of a file, if it is there, whole, and made of these sources."""
    try:
        with path.open("rb") as file:
            if file.readline(len(_MAGIC)) != _MAGIC:
                return None
            head = json.loads(file.readline())
            if head["sources"] != sources:
                return None
            arrays: Arrays = {}
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            at, checksum = file.tell(), 0
            for name, shape in head["arrays"].items():
                at += -at % _LINE
                array = np.frombuffer(memory, np.uint8, math.prod(shape), at).reshape(shape)
                checksum = zlib.crc32(array.data, checksum)
                arrays[name] = array
                at += array.size
            return arrays if (at, checksum) == (len(memory), head["crc32"]) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # not there, or not what it should be

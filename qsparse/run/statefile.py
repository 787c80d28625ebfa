"""The file with the state of one rank: arrays as tensors of safetensors, everything else as JSON."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from qsparse.errors import CheckpointError, installing
from qsparse.types import State

#: The types of safetensors that NumPy has.
_TYPES: Final = {
    "BOOL": "?", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
    "I64": "<i8", "U64": "<u8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


def write(path: Path, state: State) -> None:
    """Write the state of a rank, and wait until it is on the disk.

    An array becomes a tensor whose name is its path in the state. Everything else is JSON, under ``state`` in
    the metadata of the file.

    Raises:
        CheckpointError: something in it is not an array, number, text, list or dictionary of such.
        OSError: the file could not be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ModuleNotFoundError:
        raise CheckpointError(f"checkpoints need the package safetensors: {installing('train')}") from None
    arrays: dict[str, Any] = {}
    text = json.dumps(_packed(state, "", arrays))
    try:
        save_file(arrays, path, {"state": text})
    except SafetensorError as error:
        # This error has the number of the system's error only in its text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
    # safetensors makes the file readable for its owner only; the manifest next to it is readable for all.
    path.chmod(0o644)
    sync(path)


def read(path: Path) -> State:
    """Read a file of `write`; the arrays are read-only maps of the file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
    text = header.pop("__metadata__")["state"]
    # A file without arrays has nothing to map.
    some = path.stat().st_size > start
    data = np.asarray(np.memmap(path, np.uint8, "r", start)) if some else np.empty(0, np.uint8)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[name] = data[begin:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    state: State = _unpacked(json.loads(text), arrays)
    return state


def _packed(value: Any, way: str, arrays: dict[str, Any]) -> Any:
    """JSON with references to arrays, which are collected; types that JSON lacks are marked with an @."""
    if isinstance(value, np.ndarray | np.generic):
        name = way
        while name in arrays:
            name += "'"
        arrays[name] = np.asarray(value, order="C")
        return {"@scalar" if isinstance(value, np.generic) else "@array": name}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("@") for key in value):
            return {key: _packed(each, f"{way}/{key}".lstrip("/"), arrays) for key, each in value.items()}
        return {"@pairs": [[key, _packed(each, f"{way}/{key}", arrays)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        packed = [_packed(each, f"{way}/{i}", arrays) for i, each in enumerate(value)]
        return packed if isinstance(value, list) else {"@tuple": packed}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{way} is a {type(value).__name__}, which cannot be saved: a part's state is arrays, numbers, text, "
        "and lists and dictionaries of them"
    )


def _unpacked(value: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, arrays) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        match next(iter(value.items())):
            case "@array", name:
                return arrays[name]
            case "@scalar", name:
                return arrays[name][()]
            case "@tuple", items:
                return tuple(_unpacked(items, arrays))
            case "@pairs", items:
                return {key: _unpacked(each, arrays) for key, each in items}
    return {key: _unpacked(each, arrays) for key, each in value.items()}


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot do this for a folder.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)

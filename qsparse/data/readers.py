"""Bytes of the published file formats to arrays; each file is checked as a whole before it is used."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from qsparse.errors import DataError

Bytes = npt.NDArray[np.uint8]


#: What a packed file begins with, and what opens it: its name may tell otherwise.
_OPENERS: Final[dict[bytes, Callable[[Path], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
#: What else is not the data itself.
_OTHERS: Final = {
    b"PK\3\4": "a ZIP archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
}

#: The endings that names may carry: plain or packed.
SUFFIXES: Final = ("", ".gz", ".bz2", ".xz")

#: Bytes of one CIFAR picture: three colour planes of 32 x 32.
_PIXELS: Final = 3 * 32 * 32


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, unpacked if it begins as gzip, bzip2 or xz do, whatever its name.

    Raises:
        DataError: the file cannot be read, its packing is damaged, or it is an archive.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(6)
            for magic, what in _OTHERS.items():
                if begin.startswith(magic):
                    raise DataError(f"{path} is {what}: unpack it, and name what was in it")
            unpack = next((opener for magic, opener in _OPENERS.items() if begin.startswith(magic)), None)
            if unpack is None:
                return begin + file.read()
        with unpack(path) as file:
            data: bytes = file.read()
            return data
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Read an idx file of unsigned bytes, the format of MNIST.

    Args:
        path: plain or compressed.
        dimensions: 3 for pictures, 1 for labels.

    Raises:
        DataError: another magic number, or not as many bytes as the header says.
    """
    data = read_bytes(path)
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise DataError(f"{path} has {len(data)} bytes, fewer than the {header} of an idx header")
    magic, *sizes = struct.unpack_from(f">{1 + dimensions}I", data)
    if magic != 0x0800 + dimensions:
        raise DataError(
            f"{path} starts with the number {magic:#010x}, not with {0x0800 + dimensions:#010x}: "
            f"it is no idx file of bytes with {dimensions} dimension{'s' if dimensions > 1 else ''}"
        )
    if len(data) - header != math.prod(sizes):
        shape = " x ".join(map(str, sizes))
        raise DataError(
            f"{path} announces {shape} bytes and has {len(data) - header}: it is incomplete or damaged"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(sizes)


def read_cifar_binary(path: Path, classes: int = 10) -> tuple[Bytes, Bytes]:
    """Read a file of CIFAR in the binary layout: pictures ``(n, 3, 32, 32)`` and labels ``(n,)``.

    Args:
        path: plain or compressed.
        classes: 10, or 100, where the label stands behind that of one of 20 groups.

    Raises:
        DataError: no whole number of records.
    """
    data = read_bytes(path)
    labels = 1 if classes == 10 else 2
    record = labels + _PIXELS
    if not data or len(data) % record:
        raise DataError(
            f"{path} has {len(data)} bytes, not a whole number of CIFAR-{classes} records of {record}: "
            "it is incomplete or damaged"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    return records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1]


def read_cifar_pickle(path: Path, classes: int = 10) -> tuple[Bytes, Bytes]:
    """Read a file of CIFAR in the Python layout, without running what the pickle may ask for.

    Args:
        path: plain or compressed.
        classes: 10, or 100, where there are labels of 20 groups as well.

    Raises:
        DataError: the pickle names anything but arrays, or does not hold pictures and labels.
    """
    try:
        batch = _PlainUnpickler(io.BytesIO(read_bytes(path)), encoding="bytes").load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path} is no CIFAR-{classes} batch: {type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(
            f"{path} is no CIFAR-{classes} batch: it holds a {type(batch).__name__}, not a dictionary"
        )
    x = _array(path, batch, "data")
    y = _array(path, batch, "labels" if classes == 10 else "fine_labels")
    if y.ndim != 1 or x.dtype != np.uint8 or x.shape != (len(y), _PIXELS) or not len(y):
        raise DataError(
            f"{path} holds data of {x.dtype} and shape {x.shape} with labels of shape {y.shape}: "
            f"expected uint8, (n, {_PIXELS}) and (n,)"
        )
    if y.min() < 0 or y.max() > 255:
        raise DataError(f"{path} has labels from {y.min()} to {y.max()}")
    return x.reshape(-1, 3, 32, 32), y.astype(np.uint8)


def _array(path: Path, batch: dict[Any, Any], key: str) -> npt.NDArray[Any]:
    value = batch.get(key, batch.get(key.encode()))
    try:
        return value.array() if isinstance(value, _Array) else np.array(value, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} has no usable entry {key!r}: {error}") from error


class _Dtype:
    """Stands for numpy.dtype while a pickle is read; keeps the type code only."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode("ascii") if isinstance(state[1], bytes) else str(state[1])

    def dtype(self) -> np.dtype[Any]:
        if self.code not in ("u1", "i1", "i2", "i4", "i8"):
            raise ValueError(f"an array of type {self.code!r}, where integers are expected")
        order = getattr(self, "order", "|")
        return np.dtype(("" if order in "|=" else order) + self.code)


class _Array:
    """Stands for numpy.ndarray while a pickle is read; keeps shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = ()
        self.type: Any = None
        self.fortran = False
        self.raw: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, self.fortran, self.raw = state

    @classmethod
    def of_buffer(cls, raw: bytes, type_: Any, shape: tuple[int, ...], order: str) -> _Array:
        array = cls()
        array.__setstate__((1, shape, type_, order == "F", raw))
        return array

    def array(self) -> npt.NDArray[Any]:
        if not isinstance(self.type, _Dtype):
            raise TypeError("an array without a type")
        flat = np.frombuffer(self.raw, self.type.dtype())
        return np.ascontiguousarray(flat.reshape(self.shape, order="F" if self.fortran else "C"))


def _latin1(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes into a pickle of protocol 2.
    return text.encode("latin-1")


#: All that a pickle of arrays may name, with the stand-in it gets: not one function of the
#: interpreter or of NumPy is reachable from the file.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Array.of_buffer for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no batch of pictures needs; it was not run"
            ) from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")

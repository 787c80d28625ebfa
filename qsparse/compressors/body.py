"""The bytes of a body: integers, numbers and arrays, one after another."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from qsparse.errors import Corrupted
from qsparse.payload import Bytes, Floats, raw


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, lowest first; all but the last byte have the top bit set."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_size(value: int) -> int:
    """Bytes of a `varint`."""
    return max(1, -(-value.bit_length() // 7))


class Writer:
    """Collects the sections of a body."""

    def __init__(self) -> None:
        self.sections: list[Bytes | Floats] = []

    def u8(self, value: int) -> None:
        """One byte."""
        self.sections.append(bytes((value,)))

    def u64(self, value: int) -> None:
        """Eight bytes."""
        self.sections.append(value.to_bytes(8, "little"))

    def f32(self, value: float) -> None:
        """A float32."""
        self.sections.append(struct.pack("<f", value))

    def varint(self, value: int) -> None:
        """See `varint`."""
        self.sections.append(varint(value))

    def array(self, values: npt.NDArray[Any]) -> None:
        """The bytes of a contiguous array, little endian."""
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        self.sections.append(raw(little))


class Reader:
    """Reads a body from its beginning; a body that ends too early is refused as Corrupted."""

    def __init__(self, body: memoryview, coded: bool = False) -> None:
        self.rest = body
        #: How deep the part that is being read lies within pieces of pieces.
        self.depth = 0
        #: Bytes that were read so far of tables that say where bodies begin.
        self.tables = 0
        #: Whether the quantizer section that is being read has entropy-coded values.
        self.coded = coded

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count > len(self.rest):
            raise Corrupted(f"the body of a frame ends {count - len(self.rest)} bytes too early")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def peek(self, count: int) -> npt.NDArray[np.uint8]:
        """The next bytes, which stay; fewer where the body ends."""
        return _frozen(np.frombuffer(self.rest[:count], np.uint8))

    def u8(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def u64(self) -> int:
        """Eight bytes."""
        return int.from_bytes(self.take(8), "little")

    def f32(self) -> float:
        """A float32."""
        return float(struct.unpack("<f", self.take(4))[0])

    def varint(self) -> int:
        """A number written by `Writer.varint`."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise Corrupted("the body of a frame holds a number of more than 64 bits")

    def array(self, count: int, dtype: str) -> npt.NDArray[Any]:
        """The next ``count`` values of a dtype."""
        kind = np.dtype(dtype).newbyteorder("<")
        return _frozen(np.frombuffer(self.take(count * kind.itemsize), kind))


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Read-only whatever the frame lies in, so that kernels are compiled for one type of array."""
    array.flags.writeable = False
    return array

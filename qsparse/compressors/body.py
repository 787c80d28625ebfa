"""The bytes of a body: integers, numbers and arrays, one after another."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from qsparse.errors import Corrupted
from qsparse.payload import Bytes, Floats, raw


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits in a byte, lowest first; the top bit says that more bytes follow."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_size(value: int) -> int:
    """The number of bytes of a `varint`."""
    return max(1, -(-value.bit_length() // 7))


def joined(sections: Iterable[Bytes | Floats]) -> bytes:
    """A copy of the sections, end to end."""
    return b"".join(cast(Any, sections))


class Writer:
    """Collects the sections of a body."""

    def __init__(self) -> None:
        self.sections: list[Bytes | Floats] = []

    def u8(self, value: int) -> None:
        """Append one byte."""
        self.sections.append(bytes((value,)))

    def u64(self, value: int) -> None:
        """Append eight bytes."""
        self.sections.append(value.to_bytes(8, "little"))

    def f32(self, value: float) -> None:
        """Append a float32."""
        self.sections.append(struct.pack("<f", value))

    def varint(self, value: int) -> None:
        """Append a number as `varint` writes it."""
        self.sections.append(varint(value))

    def array(self, values: npt.NDArray[Any]) -> None:
        """Append the bytes of a contiguous array, little endian."""
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        self.sections.append(raw(little))


class Reader:
    """Reads a body from its beginning; a body that ends too early is refused as Corrupted."""

    def __init__(self, body: memoryview, coded: bool = False) -> None:
        self.rest = body
        #: How deep the part that is being read is nested.
        self.depth = 0
        #: Bytes that were read so far of tables of stretches.
        self.tables = 0
        #: Whether the quantizer section that is being read has entropy-coded values.
        self.coded = coded
        #: How many values may be made of almost no bytes: of a key, or of codes that take no bits.
        self.most: int | None = None

    def take(self, count: int) -> memoryview:
        """Read the next bytes."""
        if count > len(self.rest):
            raise Corrupted(f"the body of a frame ends {count - len(self.rest)} bytes too early")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def peek(self, count: int) -> npt.NDArray[np.uint8]:
        """Look at the next bytes without reading on; there are fewer where the body ends."""
        return _frozen(np.frombuffer(self.rest[:count], np.uint8))

    def u8(self) -> int:
        """Read one byte."""
        return self.take(1)[0]

    def u64(self) -> int:
        """Read eight bytes."""
        return int.from_bytes(self.take(8), "little")

    def f32(self) -> float:
        """Read a float32."""
        return float(struct.unpack("<f", self.take(4))[0])

    def scale(self) -> float:
        """Read a float32 that multiplies codes: finite, and not negative."""
        value = self.f32()
        if not 0 <= value < math.inf or math.copysign(1, value) < 0:
            raise Corrupted(f"a frame has a scale of {value:g}, which no quantizer writes")
        return value

    def varint(self) -> int:
        """Read a number of `Writer.varint`; one in more bytes than necessary is refused."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise Corrupted("the body of a frame holds a number of more than 64 bits")
        if value >> 64 or (shift > 7 and byte == 0):
            raise Corrupted("the body of a frame holds a number in more bytes than it takes")
        return value

    def array(self, count: int, dtype: str) -> npt.NDArray[Any]:
        """Read the next ``count`` values of a dtype."""
        kind = np.dtype(dtype).newbyteorder("<")
        return _frozen(np.frombuffer(self.take(count * kind.itemsize), kind))

    def packed(self, count: int, bits: int) -> npt.NDArray[np.uint8]:
        """Read the bytes of ``count`` numbers of ``bits`` bits each; the rest of the last byte is zero."""
        data = self.array((count * bits + 7) // 8, "u1")
        last = count * bits % 8
        if last and data[-1] >> last:
            raise Corrupted("the last byte of packed numbers is filled with something else than zeros")
        return data

    def make(self, count: int) -> None:
        """Refuse to make too many values of almost no bytes, unless the expected number is known."""
        if self.most is not None and count > self.most:
            raise Corrupted(
                f"a frame says that it spells {count} values in a few bytes: where so many are expected, say "
                "it, as in unpack(payload, n=…)"
            )


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make an array read-only, so that kernels are compiled for one type of array only."""
    array.flags.writeable = False
    return array

"""The frame: one contiguous run of bytes that says what it is.

Header, 48 bytes, little endian::

    offset  size  field
         0     4  magic     b"QSPF"
         4     1  version   1
         5     1  kind      0 DATA, 1 SKIP, 2 STOP, 3 ERROR
         6     1  way       0 UP (worker to coordinator), 1 DOWN, 2 CONTROL
         7     1  asked     0, or the number of the signal by which a rank was asked to stop
         8     4  codec     grammar of the body (0: plain bytes)
        12     4  origin    rank that spoke; 0xFFFFFFFF for the coordinator
        16     4  step      local step at which it spoke
        20     4  checksum  CRC-32 of the body, continued over the header with this field zero
        24     8  n         length of the vector
        32     8  nbits     what the papers count for this message
        40     8  nbytes    length of the body

``nbits`` is the paper's count, ``len(payload)`` the bytes of the wire; both are reported and never
mixed. The body of a DATA frame is described in ``docs/wire-format.md``.
"""

from __future__ import annotations

import enum
import math
import struct
import sys
import threading
import zlib
from collections.abc import Iterable
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from qsparse.errors import Corrupted, ForeignFrame, NotFinite, Truncated

MAGIC: Final = b"QSPF"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBBBBIIIIQQQ")
HEADER_BYTES: Final = _HEADER.size
_CHECKSUM: Final = slice(20, 24)
_ASKED: Final = 7
_LAST_SIGNAL: Final = 31
#: Where a kernel copies and checks faster than zlib. Shorter frames load no kernels: commands and greetings.
_LONG: Final = 1 << 16
#: Frames from here on are made where earlier ones were.
_HUGE: Final = 1 << 20
#: In how many places.
_PLACES: Final = 2

#: Anything that exposes contiguous bytes.
Bytes = bytes | bytearray | memoryview


class Floats(np.ndarray[Any, np.dtype[np.float32]]):
    """A section of float32 values, contiguous: `Payload.build` sees to it that they are finite."""


def raw(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, where they lie."""
    # A view of no elements cannot be cast.
    return memoryview(cast(Any, array)).cast("B") if array.size else memoryview(b"")


class Kind(enum.IntEnum):
    """What a frame is there for."""

    DATA = 0
    SKIP = 1
    STOP = 2
    ERROR = 3


class Way(enum.IntEnum):
    """Up is worker to coordinator, down is back; beside are greetings, reports and errors."""

    UP = 0
    DOWN = 1
    CONTROL = 2


class Payload:
    """One frame, header and body.

    Attributes:
        frame: all bytes, header included; what a wire carries.
        kind, way, codec, origin, step, n, nbits, asked: the header's fields.
    """

    __slots__ = ("asked", "codec", "frame", "kind", "n", "nbits", "origin", "step", "way")

    def __init__(
        self,
        frame: memoryview,
        *,
        kind: Kind,
        way: Way,
        codec: int,
        origin: int,
        step: int,
        n: int,
        nbits: int,
        asked: int = 0,
    ) -> None:
        self.frame = frame
        self.kind = kind
        self.way = way
        self.codec = codec
        self.origin = origin
        self.step = step
        self.n = n
        self.nbits = nbits
        self.asked = asked

    def skip(self) -> Payload:
        """The SKIP that stands in its place."""
        skip = Payload.build(kind=Kind.SKIP, way=self.way, origin=self.origin, step=self.step, n=self.n)
        return skip.asking(self.asked)

    def asking(self, signal: int) -> Payload:
        """Itself, marked before it is sent: a rank was asked to stop by a signal of this number (0: none)."""
        if signal != self.asked:
            self.asked = signal
            self.frame[_ASKED] = signal
            self.frame[_CHECKSUM] = _checksum(self.frame).to_bytes(4, "little")
        return self

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        return (
            f"<Payload {self.kind.name} {self.way.name} origin={self.origin} step={self.step} "
            f"n={self.n} nbits={self.nbits} bytes={len(self)}>"
        )

    @property
    def body(self) -> memoryview:
        """The bytes after the header."""
        return self.frame[HEADER_BYTES:]

    @property
    def text(self) -> str:
        """The body as text, for plain frames (errors, greetings)."""
        return bytes(self.body).decode("utf-8", "replace")

    @classmethod
    def build(
        cls,
        sections: Iterable[Bytes | Floats] = (),
        *,
        kind: Kind = Kind.DATA,
        way: Way = Way.UP,
        codec: int = 0,
        origin: int = 0,
        step: int = 0,
        n: int = 0,
        nbits: int = 0,
    ) -> Payload:
        """Make a frame of a body given in sections, which are copied.

        Raises:
            NotFinite: a section of `Floats` has a value that is not finite; which one is not said.
        """
        pieces = [s for s in sections if len(s)]
        if sum(map(len, pieces)) < _LONG and not any(isinstance(piece, Floats) for piece in pieces):
            # Most frames are short: looking at each section as an array would take longer than copying it.
            body = b"".join(cast(list[Bytes], pieces))
            nbytes, checksum = len(body), zlib.crc32(body)
            view = raw(_room(HEADER_BYTES + nbytes))
            view[HEADER_BYTES:] = body
        else:
            arrays = [_bytes(piece) for piece in pieces]
            nbytes = sum(data.size for data in arrays)
            frame = _room(HEADER_BYTES + nbytes)
            at, checksum = HEADER_BYTES, 0
            for piece, data in zip(pieces, arrays, strict=True):
                checksum = _put(data, checksum, frame[at : at + data.size], isinstance(piece, Floats))
                at += data.size
            view = raw(frame)
        _HEADER.pack_into(
            view, 0, MAGIC, VERSION, kind, way, 0, codec, origin, step & 0xFFFF_FFFF, 0, n, nbits, nbytes
        )
        view[_CHECKSUM] = zlib.crc32(view[:HEADER_BYTES], checksum).to_bytes(4, "little")
        return cls(view, kind=kind, way=way, codec=codec, origin=origin, step=step, n=n, nbits=nbits)

    @classmethod
    def parse(cls, data: Bytes) -> Payload:
        """Read exactly one frame.

        Raises:
            ForeignFrame: the bytes do not start with a header of this version.
            Truncated: fewer bytes than the header announces.
            Corrupted: the checksum does not match, or bytes follow the frame.
        """
        payload, rest = cls._parse_first(memoryview(data).cast("B"))
        if len(rest):
            raise Corrupted(f"{len(rest)} bytes follow a frame of {len(payload)} bytes: expected one frame")
        return payload

    @classmethod
    def split(cls, data: Bytes) -> list[Payload]:
        """Read a message of frames laid end to end; raises as `parse` does."""
        rest = memoryview(data).cast("B")
        payloads = []
        while len(rest):
            payload, rest = cls._parse_first(rest)
            payloads.append(payload)
        return payloads

    @classmethod
    def _parse_first(cls, view: memoryview) -> tuple[Payload, memoryview]:
        if bytes(view[:4]) != MAGIC[: len(view)]:
            raise ForeignFrame(
                f"a message starts with {bytes(view[:4])!r}, not {MAGIC!r}: it was not sent by qsparse"
            )
        if len(view) < HEADER_BYTES:
            raise Truncated(f"a message has {len(view)} bytes, fewer than the {HEADER_BYTES} of a header")
        _, version, kind, way, asked, codec, origin, step, _, n, nbits, nbytes = _HEADER.unpack_from(view)
        if version != VERSION:
            raise ForeignFrame(
                f"a frame has version {version} and this qsparse speaks version {VERSION}: "
                "install the same release on every rank"
            )
        end = HEADER_BYTES + nbytes
        if len(view) < end:
            raise Truncated(
                f"a frame from rank {origin}, step {step}, announces {nbytes} bytes of body "
                f"and has {len(view) - HEADER_BYTES}"
            )
        frame = view[:end]
        if _checksum(frame) != int.from_bytes(frame[_CHECKSUM], "little"):
            raise Corrupted(
                f"the checksum of a frame of {end} bytes does not match: it was altered on the way"
            )
        if kind not in Kind.__members__.values() or way not in Way.__members__.values():
            raise ForeignFrame(
                f"a frame has kind {kind} and way {way}, which version {VERSION} does not know"
            )
        if asked > _LAST_SIGNAL:
            raise ForeignFrame(f"a frame speaks of signal {asked}, which version {VERSION} does not know")
        if kind != Kind.DATA and (codec or nbits or (nbytes and kind != Kind.ERROR)):
            raise Corrupted(
                f"a frame of kind {Kind(kind).name} has codec {codec}, {nbits} bits and a body of {nbytes} "
                "bytes, which no sender gives it"
            )
        payload = cls(
            frame, kind=Kind(kind), way=Way(way), codec=codec, origin=origin, step=step, n=n, nbits=nbits,
            asked=asked,
        )  # fmt: skip
        return payload, view[end:]


def _checksum(frame: memoryview) -> int:
    header = bytearray(frame[:HEADER_BYTES])
    header[_CHECKSUM] = bytes(4)
    body = frame[HEADER_BYTES:]
    if len(body) < _LONG:
        return zlib.crc32(header, zlib.crc32(body))
    from qsparse.kernels.checksum import crc32

    return zlib.crc32(header, crc32(_bytes(body)))


def _put(data: npt.NDArray[np.uint8], checksum: int, out: npt.NDArray[np.uint8], floats: bool) -> int:
    """out = data; the checksum that continues with them."""
    if data.size < _LONG and not floats:
        out[:] = data
        return zlib.crc32(raw(data), checksum)
    from qsparse.kernels.checksum import copy

    checksum, largest = copy(data, checksum, out)
    if floats and not math.isfinite(largest):
        raise NotFinite("a value is not finite", -1)
    return checksum


def _bytes(data: Bytes | Floats) -> npt.NDArray[np.uint8]:
    """Bytes as an array; read-only, whatever they lie in, so that kernels are compiled for one type."""
    array = np.frombuffer(data, np.uint8)
    array.flags.writeable = False
    return array


class _Places(threading.local):
    def __init__(self) -> None:
        self.arrays: list[npt.NDArray[np.uint8]] = []


_places: Final = _Places()


def _room(size: int) -> npt.NDArray[np.uint8]:
    """Memory for a frame, of any content. A large one gets that of one of the same thread that is gone.

    The operating system clears fresh memory, page by page, which takes longer than to fill it.
    """
    if size < _HUGE:
        return np.empty(size, np.uint8)
    for array in _places.arrays:
        # Referred to by the list, by the loop and by the call: nobody has a view of it any more.
        if size <= array.size <= size + size // 8 and sys.getrefcount(array) == 3:
            return array[:size]
    array = np.empty(size + size // 16, np.uint8)
    _places.arrays[:] = [array, *_places.arrays[: _PLACES - 1]]
    return array[:size]

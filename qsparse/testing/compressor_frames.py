"""Laws about text, frames and bytes, altered ones included."""

from __future__ import annotations

import itertools
import random as python_random
from collections.abc import Iterator
from typing import Final

import numpy as np

from qsparse.compressors import Compressor, decompress, unpack
from qsparse.compressors.blockwise import Piecewise
from qsparse.compressors.cutting import cut
from qsparse.compressors.decoding import subtract_from
from qsparse.compressors.sums import LARGEST, Sum
from qsparse.errors import Corrupted, ForeignFrame, Truncated, WireError
from qsparse.kernels import vector
from qsparse.payload import HEADER_BYTES, Payload, Way
from qsparse.registry import build, spell
from qsparse.testing.base import SEED, Broken, decoded, hold, is_random, law, same
from qsparse.types import Vector

#: Bytes that the wire may take beyond 1.1 times the paper bits, for each stretch: the codings and
#: counts of an index section, the quantizer's code and its settings.
OVERHEAD_BYTES: Final = 24
_MUTATIONS: Final = 200


@law("text")
def _text(part: Compressor, name: str, x: Vector) -> bool:
    """build(spell(part)) == part."""
    part = part.limited(x.size)
    text = spell(part)
    again = build(text, "compressor")
    hold(again == part, f"build({text!r}) gives {again!r}, not {part!r}")
    return True


@law("frame")
def _frame(part: Compressor, name: str, x: Vector) -> bool:
    """A frame read from its bytes has the same header and spells the same values."""
    sent = part.compress(x, SEED)
    heard = Payload.parse(bytes(sent.frame))
    for attribute in ("kind", "way", "codec", "origin", "step", "n", "nbits"):
        was, now = getattr(sent, attribute), getattr(heard, attribute)
        hold(was == now, f"{attribute} was {was} and reads {now}")
    header = (heard.way, heard.origin, heard.step, heard.n)
    hold(header == (Way.UP, 1, 5, x.size), f"way, origin, step, n read {header}")
    same(decoded(heard), decoded(sent), "values read from the bytes")
    down = part.compress(x, SEED.at(use="down"))
    hold(down.way is Way.DOWN, "a frame for use 'down' does not go down")
    return True


@law("self-described")
def _self_described(part: Compressor, name: str, x: Vector) -> bool:
    """Bytes alone are enough: decoding needs neither the part nor its settings."""
    frame = bytes(part.compress(x, SEED).frame)
    own = part.decompress(Payload.parse(frame), np.empty(x.size, np.float32))
    same(own, decoded(Payload.parse(frame)), "values decoded by the part, against those of the bytes")
    return True


@law("determinism")
def _determinism(part: Compressor, name: str, x: Vector) -> bool:
    """The same seed gives the same bytes, whatever came between; global generators stay untouched."""
    state, numpy_state = python_random.getstate(), np.random.get_state(legacy=False)
    try:
        np.random.seed(1)
        python_random.seed(1)
        first = bytes(part.compress(x, SEED).frame)
        part.compress(np.cos(np.arange(x.size)).astype(np.float32), SEED.at(step=8))
        np.random.seed(2)
        python_random.seed(2)
        drawn = repr((np.random.get_state(legacy=False), python_random.getstate()))
        again = bytes(part.compress(x, SEED).frame)
        untouched = repr((np.random.get_state(legacy=False), python_random.getstate()))
    finally:
        python_random.setstate(state)
        np.random.set_state(numpy_state)
    hold(first == again, "the same seed gave other bytes at a later call")
    hold(drawn == untouched, "a global random generator was advanced")
    return True


@law("seeding")
def _seeding(part: Compressor, name: str, x: Vector) -> bool:
    """A random part draws anew for every step and rank."""
    if x.size < 1000 or not is_random(part, x.size):
        return False
    first = bytes(part.compress(x, SEED).body)
    for other in (SEED.at(step=6), SEED.at(rank=2), SEED.at(use="down")):
        hold(bytes(part.compress(x, other).body) != first, f"{other} gives the bytes of {SEED}")
    return True


@law("input")
def _input(part: Compressor, name: str, x: Vector) -> bool:
    """The vector that is compressed is not changed."""
    before = x.tobytes()
    part.compress(x, SEED)
    hold(x.tobytes() == before, "compress changed its input")
    return True


@law("sum")
def _sum(part: Compressor, name: str, x: Vector) -> bool:
    """A sum that is compressed while it is added has the bytes of one that was added before, and its rest."""
    y = np.roll(x, 1)
    for scale in (1.0, -1.0, 0.5):
        wanted, left = np.empty_like(x), np.empty_like(x)
        vector.add_scaled(x, scale, y, wanted)
        if not np.all(np.abs(wanted) <= LARGEST):
            return False
        frame = bytes(part.compress(wanted, SEED).frame)
        once = part.compress_sum(Sum(x, scale, y, left), SEED)
        hold(bytes(once.frame) == frame, f"x + {scale:g}·y differs")
        same(left, wanted, "the sum that is left")
        # What is said may lie so far from the values that their difference leaves the range.
        with np.errstate(over="ignore"):
            again = part.compress_sum(Sum(x, scale, y, left, rest=True), SEED)
            rest = subtract_from(again, wanted)
        hold(bytes(again.frame) == frame, f"x + {scale:g}·y differs where the rest is left")
        same(left, rest, "the rest that is left")
    return True


@law("cut")
def _cut(part: Compressor, name: str, x: Vector) -> bool:
    """A frame that is cut spells in each stretch what it spelled there, in frames that any receiver reads."""
    payload = part.compress(x, SEED)
    whole = decoded(payload)
    for count in (2, 3):
        edges = [place * x.size // count for place in range(count + 1)]
        bounds = list(itertools.pairwise(edges))
        frames = [Payload.parse(bytes(each.frame)) for each in cut(payload, bounds)]
        hold(sum(each.nbits for each in frames) == payload.nbits, "the parts have other paper bits together")
        for (start, stop), frame in zip(bounds, frames, strict=True):
            same(decoded(frame), whole[start:stop], f"coordinates {start} to {stop - 1}, cut into {count}")
    return True


@law("bits")
def _bits(part: Compressor, name: str, x: Vector) -> bool:
    """nbits is what is claimed, and the wire carries little more: 1.1 × nbits and `OVERHEAD_BYTES`
    for each stretch."""
    payload = part.compress(x, SEED)
    claimed = part.claims.bits(x.size)
    hold(claimed is None or payload.nbits == claimed, f"nbits is {payload.nbits}, claimed are {claimed}")
    stretches = len(part.parts(x.size)) if isinstance(part, Piecewise) else 1
    stretches = max(stretches, sum(1 for _ in unpack(payload)))
    most = 1.1 * payload.nbits + 8 * OVERHEAD_BYTES * stretches
    hold(8 * len(payload.body) <= most, f"the body has {8 * len(payload.body)} bits for {payload.nbits}")
    return True


@law("alteration")
def _alteration(part: Compressor, name: str, x: Vector) -> bool:
    """A frame with one bit flipped anywhere is refused."""
    frame = bytes(part.compress(x, SEED).frame)
    draw = np.random.default_rng(len(frame))
    places = {*range(HEADER_BYTES), *draw.integers(0, len(frame), 40).tolist(), len(frame) - 1}
    for place in sorted(places):
        altered = bytearray(frame)
        altered[place] ^= 1 << int(draw.integers(8))
        refused(altered, (Corrupted, ForeignFrame, Truncated), f"a frame with byte {place} altered")
    return True


@law("truncation")
def _truncation(part: Compressor, name: str, x: Vector) -> bool:
    """A frame that ends early is Truncated, one with bytes behind it Corrupted."""
    frame = bytes(part.compress(x, SEED).frame)
    for length in {0, 3, 4, HEADER_BYTES - 1, HEADER_BYTES, len(frame) // 2, len(frame) - 1}:
        if length < len(frame):
            refused(frame[:length], (Truncated,), f"{length} of {len(frame)} bytes")
    refused(frame + b"\0", (Corrupted,), "a frame with a byte behind it")
    return True


@law("foreign")
def _foreign(part: Compressor, name: str, x: Vector) -> bool:
    """Bytes that do not start with a header of this version are no frame."""
    frame = bytes(part.compress(x, SEED).frame)
    for start in (b"GET / HTTP/1.1\r\n", b"\0\0\0\0", b"QSPG", b"QSPF\x02"):
        refused(start + frame[len(start) :], (ForeignFrame,), f"bytes that start with {start!r}")
    return True


@law("forgery")
def _forgery(part: Compressor, name: str, x: Vector) -> bool:
    """A nonsensical body under a valid checksum raises WireError or gives n values, and writes nowhere
    else."""
    if not 0 < x.size <= 64:
        return False
    payload = part.compress(x, SEED)
    draw = np.random.default_rng(x.size)
    guarded = np.empty(x.size + 64, np.float32)
    out = guarded[32:-32]
    for body in _mutations(bytes(payload.body), draw):
        codec = payload.codec if draw.random() < 0.9 else int(draw.integers(4))
        forged = Payload.build([body], codec=codec, n=x.size, nbits=payload.nbits)
        guarded[...] = 7
        try:
            with np.errstate(all="ignore"):
                decompress(forged, out)
        except WireError:
            pass
        except Exception as error:
            raise Broken(f"{type(error).__name__} ({error}) for the body {body.hex()}") from None
        inside = np.all(guarded[:32] == 7) and np.all(guarded[-32:] == 7)
        hold(inside, f"wrote outside for the body {body.hex()}")
    return True


def _mutations(body: bytes, draw: np.random.Generator) -> Iterator[bytes]:
    """Bodies near a valid one: bytes replaced (most often early ones), cut off, added; or all random."""
    for number in range(_MUTATIONS):
        mutant = bytearray(body)
        for _ in range(1 + number % 3):
            if mutant:
                early = draw.random() < 0.6
                place = int(draw.integers(min(len(mutant), 8) if early else len(mutant)))
                mutant[place] = int(draw.choice(np.array([0, 1, 2, 255, 127, draw.integers(256)])))
        if number % 5 == 3:
            del mutant[int(draw.integers(len(mutant) + 1)) :]
        elif number % 5 == 4:
            mutant += draw.bytes(int(draw.integers(1, 20)))
        yield draw.bytes(int(draw.integers(40))) if number % 11 == 10 else bytes(mutant)


def refused(data: bytes | bytearray, errors: tuple[type[WireError], ...], what: str) -> None:
    """Broken unless the data are refused as a frame, by one of the errors."""
    try:
        Payload.parse(data)
    except errors:
        return
    raise Broken(f"{what} was read as a frame")

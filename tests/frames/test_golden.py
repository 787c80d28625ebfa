"""Bytes that earlier releases wrote: they are written again, and read, for ever.

``python tests/frames/test_golden.py --write`` adds what is missing and never changes what is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from qsparse.compressors import decompress
from qsparse.payload import Payload
from qsparse.registry import build
from qsparse.seeds import Seed
from qsparse.testing.laws import EXAMPLES
from qsparse.types import Layer

BOOK = Path(__file__).parent / "golden" / "frames.json"
LAYERS = (Layer("conv.weight", 0, 20), Layer("conv.bias", 20, 25), Layer("head.weight", 25, 40))
SEED = Seed(2019, rank=1, step=5, use="up")


def vector():
    """40 values that float32 holds exactly, with zeros, ties and both signs."""
    x = [((37 * i) % 83 - 41) / 16 / 2 ** (i % 5) for i in range(40)]
    x[7] = x[30] = 0.0
    x[11], x[12] = 1.25, -1.25
    return np.array(x, np.float32)


def spelled(text):
    """The frame of a part's text for the vector."""
    return build(text, "compressor").bind(LAYERS).limited(40).compress(vector(), SEED)


def values(payload):
    """What a payload spells."""
    return decompress(payload, np.empty(payload.n, np.float32))


def book():
    """The stored frames and values by text."""
    return json.loads(BOOK.read_text()) if BOOK.exists() else {}


def test_every_example_is_in_the_book():
    assert set(EXAMPLES) <= set(book()), "run python tests/frames/test_golden.py --write"


@pytest.mark.parametrize("text", sorted(book()))
def test_frames_are_written_as_before(text):
    assert spelled(text).frame.hex() == book()[text]["frame"]


@pytest.mark.parametrize("text", sorted(book()))
def test_frames_are_read_as_before(text):
    payload = Payload.parse(bytes.fromhex(book()[text]["frame"]))
    assert values(payload).astype("<f4").tobytes().hex() == book()[text]["values"]


def write():
    """Add the examples that are missing; refuse to change the others."""
    stored = book()
    for text in EXAMPLES:
        payload = spelled(text)
        entry = {"frame": payload.frame.hex(), "values": values(payload).astype("<f4").tobytes().hex()}
        if stored.setdefault(text, entry) != entry:
            sys.exit(f"{text}: the stored bytes are held; a change of the format needs a new version")
    BOOK.parent.mkdir(exist_ok=True)
    BOOK.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{len(stored)} entries in {BOOK}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("write: python tests/frames/test_golden.py --write")
    write()

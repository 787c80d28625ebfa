"""Prints, as JSON, the bytes and values that every example makes of the short hostile vectors."""

from __future__ import annotations

import json

import numpy as np

from qsparse.compressors import decompress
from qsparse.errors import NotFinite, SettingError
from qsparse.seeds import Seed
from qsparse.testing.laws import EXAMPLES, examples
from qsparse.testing.vectors import REFUSED, hostile

LONGEST = 200


def spelled() -> dict[str, str]:
    """By part, vector and type: frame and decoded values in hex, or why there is none."""
    found = {}
    vectors = {name: x for name, x in hostile().items() if name not in REFUSED and x.size <= LONGEST}
    for text, part in zip(EXAMPLES, examples(), strict=True):
        for name, x in vectors.items():
            for kind in (np.float32, np.float64):
                key = f"{text} | {name} | {kind.__name__}"
                try:
                    fitted = part.limited(x.size)
                    payload = fitted.compress(x.astype(kind), Seed(7, rank=3, step=11, use="up"))
                except NotFinite as error:
                    found[key] = f"NotFinite {error.index}: {error}"
                except SettingError as error:
                    found[key] = f"SettingError: {error}"
                else:
                    values = decompress(payload, np.empty(x.size, kind))
                    found[key] = f"{payload.frame.hex()} {values.tobytes().hex()}"
    return found


if __name__ == "__main__":
    print(json.dumps(spelled()))

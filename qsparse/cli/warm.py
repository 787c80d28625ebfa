"""``qsparse warm``: compile the kernels before anybody waits for them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from tabulate import tabulate

from qsparse.errors import QsparseError
from qsparse.registry import build, names

if TYPE_CHECKING:
    from qsparse.algorithm import Algorithm
    from qsparse.types import Layout, Vector

#: How positions are written depends on how many there are.
_LENGTHS: Final = (40, 70_000)


@click.command("warm")
def warm() -> None:
    """Compile all kernels now, and say how long that took and where they are kept.

    Runs every registered part once on small vectors of both types. A run does this by itself, for the
    kernels that it needs, on one rank of each machine while the others wait.
    """
    from qsparse.kernels import jit

    begin = time.perf_counter()
    for rehearse in _rehearsals():
        # Parts that may not be composed, or not with the settings of the example, are left out.
        with suppress(QsparseError):
            rehearse()
    seconds = time.perf_counter() - begin
    if (trouble := jit.trouble()) is not None:
        sys.stderr.write(f"warning: {trouble}\n")
    rows = [
        ("compiled", f"{len(jit.compiled())} kernels, one for each combination of types"),
        ("loaded", f"{len(jit.loaded())} that were there"),
        ("seconds", f"{seconds:.1f}, with running every part"),
        ("folder", jit.folder() or "none"),
    ]
    click.echo(tabulate(rows, tablefmt="plain"))


def _rehearsals() -> Iterator[Callable[[], None]]:
    """One for every part, length and type of vector."""
    from qsparse.link import Link
    from qsparse.rounds.warming import rehearse_link
    from qsparse.testing.base import layout

    compressors, memories = _parts("compressor"), _parts("memory")
    rows = _parts("algorithm")
    plain = build("sgd", "algorithm")
    for axis in ("local", "trigger", "participation", "server"):
        rows += [replace(plain, **{axis: part}) for part in _parts(axis)]
    for kind in (np.float32, np.float64):
        for n in _LENGTHS:
            start: Vector = np.linspace(-1, 1, n, dtype=kind)
            layers = layout(n)
            for compressor in compressors:
                for memory in memories if n == _LENGTHS[0] else memories[:1]:
                    yield partial(rehearse_link, Link(compressor.limited(n), memory), start, layers)
            if n == _LENGTHS[0]:
                for row in rows:
                    yield partial(_rehearse_row, row, start, layers)


def _rehearse_row(row: Algorithm, start: Vector, layers: Layout) -> None:

    from qsparse.rounds.warming import rehearse_algorithm
    from qsparse.rules import check, natural_exchange

    row = row.over(6)
    check(row, natural_exchange(row), 3)
    rehearse_algorithm(row, start, layers)


def _parts(kind: str) -> list[Any]:
    """The examples of a kind, and what others have registered, with its defaults."""
    from qsparse.testing.laws import EXAMPLES
    from qsparse.testing.parts import EXAMPLES as OTHERS

    found = []
    for text in dict.fromkeys((*(EXAMPLES if kind == "compressor" else OTHERS[kind]), *names(kind))):
        with suppress(QsparseError):
            found.append(build(text, kind))
    return found

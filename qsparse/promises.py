"""What a link may be doubted for: a memory that keeps errors, behind a compressor that lets them grow."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import numpy as np

from qsparse.compressors import Compressor
from qsparse.compressors.decoding import decompress
from qsparse.memory import Memory
from qsparse.registry import spell
from qsparse.seeds import Seed

#: A relative error, in squared length, that no memory minds: formats of 16 bits are far below, though they
#: promise nothing for numbers that they cannot hold.
_TINY: Final = 1e-3


def doubt(compressor: Compressor, memory: Memory, n: int) -> str | None:
    """Why errors may grow without bound on a link for vectors of n values; None where they do not.

    A memory that keeps what was not said, or sends news of what is known, says it later; that converges if
    the compressor is a contraction, E‖x − C(x)‖² ≤ (1 − γ)‖x‖² with γ > 0, or one in the maximum norm.

    Args:
        compressor: bound to the model, if it goes by layers.
        memory: of the same link.
        n: length of the vectors.
    """
    if not (memory.claims.keeps_error or memory.claims.skip_repeats) or n == 0:
        return None
    claims = compressor.claims
    if claims.gamma(n) is not None or claims.gamma_max(n) is not None:
        return None
    if _loss(compressor, n) < _TINY:
        return None
    return (
        f"memory {spell(memory)} says later what {spell(compressor)} leaves unsaid now, and this compressor "
        f"promises no contraction (γ > 0) for {n:,} values: its errors may grow without bound; use one that "
        "does, such as topk >> sign or qsgd(scaled=true), or more levels, bits or blocks"
    )


def doubts(links: Iterable[tuple[str, Compressor, Memory]], n: int) -> list[str]:
    """The sentences about the links of an algorithm, each with the link's name, if it has one, before it."""
    told = ((name, doubt(compressor, memory, n)) for name, compressor, memory in links)
    return [f"on the {name} link, {text}" if name else text for name, text in told if text is not None]


def warn(links: Iterable[tuple[str, Compressor, Memory]], n: int, rank: int) -> None:
    """Log what `doubts` says, on rank 0, under the name ``qsparse``; where nobody listens it is printed."""
    if rank == 0:
        for text in doubts(links, n):
            logging.getLogger("qsparse").warning(text)


def _loss(compressor: Compressor, n: int) -> float:
    """‖x − C(x)‖²/‖x‖² of a vector of independent gaussians, the mildest there is."""
    x = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    said = decompress(compressor.compress(x, Seed(0, use="up")), np.empty_like(x))
    return float(np.sum((x - said) ** 2, dtype=np.float64) / np.sum(x**2, dtype=np.float64))

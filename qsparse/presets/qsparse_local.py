"""Qsparse-local-SGD: synchronous, compressed both ways, and asynchronous."""

from __future__ import annotations

from dataclasses import replace

from qsparse.algorithm import Algorithm
from qsparse.compressors import Compressor, Sign, TopK
from qsparse.errors import SettingError
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.meeting import Async
from qsparse.memory import ErrorFeedback, Innovation, Memory
from qsparse.registry import register
from qsparse.schedules import Rate, Steps
from qsparse.triggers import Every, RandomGap
from qsparse.triggers.periodic import Gap


@register("qsparse-local-sgd", "algorithm")
def qsparse_local_sgd(
    lr: Rate | None = None,
    H: Gap = 8,
    compressor: Compressor = TopK(ratio=0.01) >> Sign(),
    memory: Memory | None = None,
    random_gaps: bool = False,
    reset_memory: bool = False,
) -> Algorithm:
    """u_r = m_r + x − x̂_r after H local steps; g_r = C(u_r); m_r ← u_r − g_r; x ← x − (1/R)Σ_r g_r.

    Qsparse-local-SGD, synchronous (Basu et al., 2019, Algorithm 1). C is Top_1% >> Sign unless
    given; ``random_gaps`` draws the synchronisation set with gaps of 1 … H; ``reset_memory`` drops m_r
    where a learning rate of steps falls, as the authors' code does.
    """
    falls = lr.after if isinstance(lr, Steps) else None
    if reset_memory and (memory is not None or falls is None):
        raise SettingError(
            "reset_memory goes with a learning rate of steps, such as steps(start=0.1, after=[100]), and "
            "without a memory of your own: give that one its reset"
        )
    kept = ErrorFeedback(reset=falls) if reset_memory and falls else ErrorFeedback()
    trigger = RandomGap(H) if random_gaps else Every(H)
    return Algorithm(SGD(lr), trigger, Link(compressor, memory or kept))


@register("qsparse-local-sgd-2way", "algorithm")
def qsparse_local_sgd_2way(
    lr: Rate | None = None,
    H: Gap = 8,
    compressor: Compressor = TopK(ratio=0.01) >> Sign(),
    down: Compressor = TopK(ratio=0.01) >> Sign(),
) -> Algorithm:
    """As qsparse-local-sgd, and models are compressed as well: x̂ ← x̂ + D(x − x̂), at both ends.

    x̂ is the model that workers go on from, and x − x̂ is the error memory of the server, as in dist-EF-SGD
    (Zheng et al., 2019). C is ``compressor`` and D is ``down``, Top_1% >> Sign both unless given.
    """
    row = qsparse_local_sgd(lr=lr, H=H, compressor=compressor)
    return replace(row, down=Link(down, Innovation()))


@register("qsparse-local-sgd-async", "algorithm")
def qsparse_local_sgd_async(
    lr: Rate | None = None,
    H: Gap = 8,
    compressor: Compressor = TopK(ratio=0.01) >> Sign(),
    memory: Memory | None = None,
    reset_memory: bool = False,
) -> Algorithm:
    """As qsparse-local-sgd, but worker r meets at steps of its own: x ← x − (1/R)·g_r, told to r alone.

    Qsparse-local-SGD, asynchronous (Basu et al., 2019, Algorithm 2). The gaps of each worker are drawn
    from 1 … H; ``ahead`` bounds how many meetings a worker may be ahead of the slowest. ``lr`` is that of a
    worker's own steps, of which a report counts 1/R: as much as in qsparse-local-sgd.
    """
    row = qsparse_local_sgd(
        lr=lr, H=H, compressor=compressor, memory=memory, random_gaps=True, reset_memory=reset_memory
    )
    return replace(row, meeting=Async())

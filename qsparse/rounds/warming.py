"""The first call of a kernel compiles it: done once on a machine, before the first step of a run.

Which kernels a run needs, its parts know only by running: how positions are written depends on n and
k, whether a rule is asked on what was said. So one process of a machine rehearses the first step, at
the run's own size, while the others sleep; they load from the disk what it has compiled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.compressors import TopK, unpack
from qsparse.compressors.changes import compress_changes, put_changes
from qsparse.compressors.cutting import cut
from qsparse.compressors.decoding import accumulate_into
from qsparse.compressors.reports import bundle, handed_on, merged, vote
from qsparse.errors import Imprecise
from qsparse.exchange import ParameterServer
from qsparse.exchange.base import Stretch
from qsparse.kernels import jit
from qsparse.ledger import Ledger
from qsparse.link import Link, Receiver, Sender
from qsparse.meeting import Sync
from qsparse.rounds.node import Node
from qsparse.rounds.synchronous import rounds
from qsparse.seeds import Seed
from qsparse.triggers import Every
from qsparse.types import Layout, Vector
from qsparse.wire.threads import ThreadWire

#: Who compiles may have been stopped: after so many seconds the others go on by themselves.
_PATIENCE: Final = 300.0
#: What this process has made sure of.
_rehearsed: Final[set[str]] = set()


def warm_algorithm(algorithm: Algorithm, start: Vector, layout: Layout, rank: int) -> None:
    """Have the kernels of an algorithm compiled; returns once they are on the disk.

    Args:
        algorithm: what will be run.
        start: the starting point, (n,); not changed.
        layout: the model's layers.
        rank: rank 0 speaks for those that nobody waits for.
    """
    _warm(
        lambda: rehearse_algorithm(algorithm, start, layout),
        f"{algorithm.spelling()} {start.dtype} {start.size}",
        rank,
    )


def warm_link(link: Link, start: Vector, rank: int, also: Callable[[], object] = lambda: None) -> None:
    """Have the kernels of a link's two ends compiled; see `warm_algorithm`.

    Args:
        link: compressor and memory.
        start, rank: as of `warm_algorithm`.
        also: what else is rehearsed then, such as a choice that compresses.
    """

    def rehearse() -> None:
        rehearse_link(link, start)
        also()

    _warm(rehearse, f"{link.spelling()} {start.dtype} {start.size}", rank)


def warm_answers(
    link: Link, down: Link | None, start: Vector, stretches: Sequence[Stretch], rank: int
) -> None:
    """Have the kernels compiled by which what was said on a link is answered; see `rehearse_answers`."""
    said = down.spelling() if down is not None else "exact"
    what = f"{link.spelling()}, {said} {start.dtype} {[stretch.size for stretch in stretches]}"
    _warm(lambda: rehearse_answers(link, down, start, stretches), what, rank)


def rehearse_algorithm(algorithm: Algorithm, start: Vector, layout: Layout) -> None:
    """Take a step, alone, on noise for a gradient."""
    # What would be said to workers that do not wait is the same, so one that waits will do.
    row = replace(algorithm, meeting=Sync(), prelude=None, length=None)
    _step(replace(row, trigger=Every(1)), 1, start, layout)
    # Alone, nothing is divided.
    rehearse_link(row.up, start, layout)
    if row.votes:
        _rehearse_votes(start)
    if row.answer.memory.claims.needs_precision:
        _rehearse_precisions(row.answer, start, layout)
    if row.trigger.claims.may_skip or row.participation.claims.chooses:
        # Asked of a draft that is then perhaps not sent; of a model by comparison with the one before.
        _step(row, 2, start, layout)


def _step(row: Algorithm, steps: int, start: Vector, layout: Layout) -> None:
    noise, calls = _noise(start), itertools.count(1)

    def oracle(x: Vector, batch: Any, out: Vector) -> float:
        # Never the same twice: who reports the difference of two gradients has something to say.
        np.multiply(noise, next(calls), out=out)
        return 0.0

    (wire,) = ThreadWire.group(1)
    x = start.copy()
    node = Node(row, ParameterServer(), wire, x, Seed(0), layout, Ledger())
    for _ in rounds(node, x, steps, oracle, lambda t: None):
        pass
    if row.answer.memory.claims.exact:
        _rehearse_changes(start.dtype)


def _rehearse_votes(start: Vector) -> None:
    """Tell a vote, and one with a tie."""
    u = _noise(start)
    for _ in range(2):
        merged(vote(u, Seed(0)), np.empty_like(start))
        u[:1] = 0


def _rehearse_precisions(link: Link, start: Vector, layout: Layout) -> None:
    """Tell a model coarsely, finely, and as it is: the more bits, the wider are codes in memory."""
    x, sender, receiver = _noise(start), Sender(link, start, layout), Receiver(link, start)
    for share in (1e-1, 1e-5, 0.0):
        # A grid of one's own may be too coarse, and then it is never told so finely.
        with contextlib.suppress(Imprecise):
            fitted = sender.compressor.within(x, share * float(np.square(x).sum()))
            receiver.merge([fitted.compress(x, Seed(0))])


def _rehearse_changes(kind: np.dtype[Any]) -> None:
    """Tell what has changed where few entries have, half of them, and one of two: all codings of places."""
    draw = np.random.default_rng(0)
    for n, k in ((100_000, 200), (1000, 500), (2, 1)):
        x, known = np.zeros(n, kind), np.zeros(n, kind)
        x[draw.choice(n, k, replace=False)] = 1
        put_changes(compress_changes(x, known, Seed(0)), known)


def rehearse_link(link: Link, start: Vector, layout: Layout = ()) -> None:
    """Say noise once, and hear it as if two had spoken."""
    sender, receiver = Sender(link, start, layout), Receiver(link, start, 2)
    draft = sender.draft(_noise(start), Seed(0, step=1, use="up"))
    sender.commit(draft)
    # Few entries and many are added in different ways; how many ranks make many, is not asked here.
    accumulate_into(draft.payload, receiver.merge([draft.payload]))
    # How positions are written depends on where they lie, too: one of two is written at full width.
    one = TopK(k=1).compress(np.arange(2, dtype=start.dtype), Seed(0))
    for _ in unpack(one, start.dtype):
        pass


def rehearse_answers(link: Link, down: Link | None, start: Vector, stretches: Sequence[Stretch]) -> None:
    """Merge noise about the first stretch of each size, as if two had spoken, and tell the result.

    Args:
        link: on which it was said.
        down: on which the result is said; None: exactly.
        start: like the whole vector, (n,); not changed.
        stretches: of it.
    """
    said = Sender(link, start).draft(_noise(start), Seed(0, step=1, use="up")).payload
    parts = cut(said, [(stretch.start, stretch.stop) for stretch in stretches])
    for size, part in {part.n: part for part in reversed(parts)}.items():
        like = start[:size]
        result = Receiver(link, like, 2).merge([part, part])
        if down is not None:
            rehearse_link(down, like)
            continue
        Receiver(Link(), like).merge([compress_changes(result, np.zeros_like(result), Seed(0))])
        Receiver(link, like, 2).merge(handed_on(bundle([part, part], size, Seed(0))))
    if down is None:
        _rehearse_changes(start.dtype)


def _noise(like: Vector) -> Vector:
    """A gaussian block, again and again: drawing millions would take longer than compressing them."""
    return np.resize(np.random.default_rng(0).standard_normal(4099).astype(like.dtype), like.size)


def _warm(rehearse: Callable[[], object], what: str, rank: int) -> None:
    if what in _rehearsed:
        return
    jit.get_ready()  # every rank for itself, so not while others wait
    speaks = _once(rehearse, what) if jit.folder() is not None else _alone(rehearse, rank)
    sentence = jit.trouble()
    # What was so from the start every rank knows, and rank 0 says; what compiling met, who compiled.
    if sentence is not None and (rank == 0 if jit.ill_from_the_start() else speaks):
        warnings.warn(sentence, RuntimeWarning, stacklevel=4)
    _rehearsed.add(what)


def _alone(rehearse: Callable[[], object], rank: int) -> bool:
    rehearse()
    return rank == 0


def _once(act: Callable[[], object], what: str) -> bool:
    """Act, unless another process of this machine does the same just now: then sleep until it has.

    The lock is one of the kernel on a file of this machine, so it is gone when its owner is, however
    it ended. Machines that share a folder of kernels do not wait for each other.

    Returns:
        Whether it was this process that acted.
    """
    begin = time.monotonic_ns()
    try:
        lock = os.open(_lock_path(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        act()
        return True
    key = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
    try:
        if _acquire(lock) and _done_since(begin, key, os.pread(lock, 100, 0)):
            return False
        act()
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{key} {time.monotonic_ns()}".encode(), 0)
        return True
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # a forked child may have the file open
        os.close(lock)


def _lock_path() -> str:
    folder = hashlib.blake2b(str(jit.folder()).encode(), digest_size=8).hexdigest()
    return os.path.join(tempfile.gettempdir(), f"qsparse-{os.getuid()}-{folder}.lock")


def _acquire(lock: int) -> bool:
    """Take the lock, asleep while another process has it; no: this place has no locks, or time is over."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return False
    return False


def _done_since(begin: int, key: str, note: bytes) -> bool:
    """Was the same done while this process waited? What was done before may be gone from the disk."""
    words = note.decode("ascii", "replace").split()
    return len(words) == 2 and words[0] == key and words[1].isdecimal() and int(words[1]) > begin

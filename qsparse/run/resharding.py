"""Re-sharding: a checkpoint of some ranks becomes one of fewer or more, and nothing unsaid is lost.

The error memories of the ranks that are gone are given to those that stay. Sums of floats round, so the part
that an addition loses is computed exactly (TwoSum: Knuth, 1969; Møller, 1965) and kept at another rank. In
the end the vectors of the new ranks have the same sum as those of the old ones, as real numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from qsparse.algorithm import Algorithm
from qsparse.errors import CheckpointError
from qsparse.exchange import Exchange, Stretch
from qsparse.ledger import combine
from qsparse.memory import Memory
from qsparse.registry import spell
from qsparse.rounds.node import averaging
from qsparse.rounds.state import CoordinatorState, NodeState, WalkState, joined, within
from qsparse.run.state import RankState
from qsparse.types import State, Vector

R = TypeVar("R", bound=RankState)

#: The vectors of all ranks, (ranks, n).
Rows = npt.NDArray[Any]

#: What a coordinator remembers for each coordinate.
_VECTORS: Final = ("receiver", "sender", "server", "decoupled_decay")

#: The number of columns at a time: a few rows of them fit the caches.
_COLUMNS: Final = 1 << 14


# --- sums without rounding ----------------------------------------------------------------------------


def two_sum(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """The rounded sum s = fl(a + b), and the rest a + b − s, which is a float again (Knuth, 1969)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def distilled(rows: Rows) -> Rows:
    """Rows with the same exact sum in each column; the last row is that sum, rounded, the others the rest.

    Each entry is less than half a unit in the last place of the one below it, or zero if that one is zero. So
    a column has the sum zero only if all of it is zero, and the last row is the rounded sum (Ogita et al.,
    2005).
    """
    rows = rows.copy()
    while True:
        before = rows.copy()
        for i in range(1, len(rows)):
            rows[i], rows[i - 1] = two_sum(rows[i], rows[i - 1])
        if np.array_equal(rows, before, equal_nan=True):
            return rows


def shared(rows: Rows, count: int) -> Rows:
    """Rows for ``count`` ranks, (count, n), with the same sums as the given rows, each near to its old row.

    New ranks get zeros. The rows of ranks that are gone are added to others. What is lost in rounding goes to
    the smallest entry of the column, which has the finest unit. Where even that is too coarse, one rank gets
    the sum of the column, a different rank from column to column, and the others get the rest of it. The sum
    is rounded only where ``count`` floats cannot hold it.
    """
    ranks, n = rows.shape
    kept = np.zeros((count, n), rows.dtype)
    kept[: min(ranks, count)] = rows[:count]
    lost = np.zeros((max(ranks - count, 0), n), rows.dtype)
    for number, row in enumerate(rows[count:]):
        kept[number % count], lost[number] = two_sum(kept[number % count], row)
    for number, row in enumerate(lost):
        finest = np.argmin(np.abs(kept), axis=0)[None]
        least, lost[number] = two_sum(np.take_along_axis(kept, finest, 0)[0], row)
        np.put_along_axis(kept, finest, least[None], 0)
    coarse = np.flatnonzero(lost.any(axis=0))
    if coarse.size:
        sums = distilled(np.concatenate([lost[:, coarse], kept[:, coarse]]))[-count:]
        order = (np.arange(count)[:, None] + coarse) % count
        kept[order, coarse] = sums
    return kept


def difference(before: Rows, after: Rows) -> float:
    """The largest |Σ before − Σ after| of a column; 0 only if the sums are equal as real numbers."""
    if not before.size:
        return 0.0
    return float(np.abs(distilled(np.concatenate([before, -after])).sum(axis=0, dtype=np.float64)).max())


# --- what the ranks of a walk remember ----------------------------------------------------------------


def reshard(
    walks: Sequence[WalkState], algorithm: Algorithm, exchange: Exchange, rank: int, size: int
) -> tuple[WalkState, dict[str, float]]:
    """The state that rank ``rank`` of ``size`` goes on from, and how exactly the sums were kept.

    Workers keep their numbers. New workers have no error, the model that all received last, and the mean of
    the others' momentum, or of the other vectors of the local step. The buffers are averaged.
    Where memories hold a shared vector, every worker takes that of the coordinator, the mean. A
    coordinator that asks workers begins its asking again.

    Args:
        walks: the states of all ranks before.
        algorithm, exchange: those of the run.
        rank, size: the number of this rank now, and the number of ranks now.

    Returns:
        The state for `Walk.restore`, and two differences by name: how far the sums over the workers of their
        error memories (``memory_difference``), and of everything else that they have not said
        (``update_difference``), are from those before. Each is the largest entry, 0 only if the sums are
        equal as real numbers.

    Raises:
        CheckpointError: workers do not wait for each other, or it is not known whether a memory adds up.
    """
    walks = [_landed(walk) for walk in walks]
    rows = [("main", algorithm), ("prelude", algorithm.prelude)]
    phases = {name: phase for name, phase in rows if phase is not None}
    if any(not phase.meeting.claims.waits for phase in phases.values()):
        raise CheckpointError(
            f"the checkpoint is one of {len(walks)} ranks, and workers that do not wait for each other have "
            "steps of their own: go on with as many ranks"
        )
    if exchange.claims.groups:
        raise CheckpointError(
            f"the checkpoint is one of {len(walks)} ranks, and under {spell(exchange)} what was not said is "
            "remembered by machine, for ranks that would be on other machines now: go on with as many ranks"
        )
    old, new = exchange.workers(len(walks)), exchange.workers(size)
    mine = new.index(rank) if rank in new else None
    if mine is None:
        base = walks[next(other for other in range(len(walks)) if other not in old)]
    else:
        base = walks[old[mine] if mine < len(old) else old[0]]
    walk = replace(base, phases={})
    largest = 0.0
    for name, nodes in base.phases.items():
        parts = [phases[name], averaging(phases[name])]
        walk.phases[name] = []
        for k, (part, node) in enumerate(zip(parts, nodes, strict=False)):
            before = [each.phases[name][k] for each in walks]
            n = (walks[0].x, walks[0].buffers)[k].size
            coordinator = _whole([each.coordinator for each in before], exchange.stretches(n, len(walks)))
            workers = [before[other] for other in old]
            sender, lost = _sender(part.up.memory, workers, coordinator, mine, len(new))
            largest = max(largest, lost)
            state = NodeState(node.worker)
            if mine is not None:
                state = _worker(part, workers, coordinator, mine)
                state.worker = replace(state.worker, sender=sender, asked=True)
            if exchange.coordinates(rank):
                anew = part.participation.claims.chooses
                state.coordinator = replace(coordinator, asking=None if anew else coordinator.asking)
                if len(stretches := exchange.stretches(n, size)) > 1:
                    state.coordinator = _part(state.coordinator, stretches, rank, n)
            walk.phases[name].append(state)
    differences = {"memory_difference": largest, "update_difference": 0.0}
    here = [each.phases[base.phase][0] for each in walks]
    if not phases[base.phase].local.claims.reports_gradient:
        models, local = [walks[other].x for other in old], here[old[0]].local
        assert local is not None
        x, differences["update_difference"] = _models(models, local["anchor"], mine, len(new))
        walk.x = base.x if mine is None else x
    elif mine is not None:
        local = walk.phases[base.phase][0].local
        assert local is not None
        walk.x = local["anchor"]
    if mine is not None:
        buffers = [walks[other].buffers for other in old]
        mean: Vector = np.mean(buffers, axis=0, dtype=np.float64)
        walk.buffers = mean.astype(buffers[0].dtype)
    return walk, differences


def _landed(walk: WalkState) -> WalkState:
    """The state in which an answer that was still to be adopted is adopted; see `Local.landed`."""
    node, *others = walk.phases[walk.phase]
    if node.answer is None or node.answer.model is None or node.local is None:
        return walk
    x = walk.x - node.local["anchor"] + node.answer.model
    node = replace(node, local={**node.local, "anchor": node.answer.model}, answer=None)
    return replace(walk, x=x, phases={**walk.phases, walk.phase: [node, *others]})


def _worker(
    part: Algorithm, workers: Sequence[NodeState], coordinator: CoordinatorState, mine: int
) -> NodeState:
    """The states of the worker end and of the local step of the ``mine``-th worker."""
    base = workers[mine if mine < len(workers) else 0]
    if base.local is None:
        return NodeState(base.worker)
    local = base.local if mine < len(workers) else _mean([each.local or {} for each in workers])
    # Who was not asked is told the model now, as it will be asked.
    told = {"anchor": part.server.model(coordinator.server)} if part.participation.claims.chooses else {}
    if part.up.memory.claims.skip_repeats:  # whose contents are other ones now
        local = part.local.afresh(local)
    return NodeState(base.worker, local={**local, **told})


def _whole(parts: Sequence[CoordinatorState | None], stretches: Sequence[Stretch]) -> CoordinatorState:
    """The state of one coordinator of the whole model, of what the ranks have of theirs."""
    if len(stretches) == 1:
        return next(part for part in parts if part is not None)
    owned = [part for stretch in stretches if (part := parts[stretch.owner or 0]) is not None]
    vectors = {name: joined([getattr(part, name) for part in owned], stretches) for name in _VECTORS}
    return replace(owned[0], **vectors)


def _part(
    whole: CoordinatorState, stretches: Sequence[Stretch], rank: int, n: int
) -> CoordinatorState | None:
    """What a rank has of it; None where it coordinates nothing."""
    for stretch in stretches:
        if stretch.owner == rank:
            return replace(whole, **{name: within(getattr(whole, name), stretch, n) for name in _VECTORS})
    return None


def merged(states: Sequence[R], rank: int) -> R:
    """The rest of a rank's state: rank 0 takes over all counters, and seconds are the mean of the ranks."""
    snapshots = [each.ledger for each in states]
    counted = combine(snapshots) | {"staleness": snapshots[0]["staleness"]}
    if rank:
        for name in ("paper_bits", "wire_bytes", "link_bytes", "messages"):
            counted[name] = dict.fromkeys(counted[name], 0)
        counted["skips"] = counted["starved"] = 0
    first = [each.first for each in states if each.first is not None]
    losses = [each.losses for each in states]
    return replace(
        states[0],
        ledger=counted,
        first=sum(first) / len(first) if first else None,
        losses=np.sum(losses, axis=0) if rank == 0 else np.zeros_like(losses[0]),
    )


def _sender(
    memory: Memory, workers: Sequence[NodeState], coordinator: CoordinatorState, mine: int | None, count: int
) -> tuple[State | None, float]:
    """The memory of the ``mine``-th of ``count`` workers, and how far the sum of all is from the old one."""
    states = [each.worker.sender or {} for each in workers]
    if memory.claims.skip_repeats:
        return coordinator.receiver, 0.0
    if not memory.claims.keeps_error:
        if memory.claims.per_receiver:
            raise CheckpointError(
                f"memory {spell(memory)} does not say whether what it keeps adds up over the workers, so it "
                "cannot be given to another number of them: go on with as many ranks"
            )
        return states[0], 0.0
    state = dict(states[mine if mine is not None and mine < len(states) else 0])
    largest = 0.0
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            state[name], lost = _spread([each[name] for each in states], mine, count)
            largest = max(largest, lost)
    return state, largest


def _spread(vectors: Sequence[Vector], mine: int | None, count: int) -> tuple[Vector, float]:
    """The ``mine``-th of ``count`` vectors with the same sum as the given ones, and the error of the sum."""
    out = np.zeros(vectors[0].shape, vectors[0].dtype)
    largest = 0.0
    for part in _parts(out.size):
        before = np.stack([vector[part] for vector in vectors])
        after = shared(before, count)
        if mine is not None:
            out[part] = after[mine]
        largest = max(largest, difference(before, after))
    return out, largest


def _models(models: Sequence[Vector], anchor: Vector, mine: int | None, count: int) -> tuple[Vector, float]:
    """Spread anchor − x, unsaid in addition to the memory; return the worker's x, and the error."""
    out = np.array(anchor)
    largest = 0.0
    for part in _parts(out.size):
        at, x = anchor[part], np.stack([model[part] for model in models])
        before = at - x
        after = shared(before, count)
        moved = at - after
        stay = min(len(x), count)
        # A worker that is given nothing keeps its x, whatever rounding the subtractions do.
        moved[:stay] = np.where(after[:stay] == before[:stay], x[:stay], moved[:stay])
        if mine is not None:
            out[part] = moved[mine]
        anchors = (np.broadcast_to(at, each.shape) for each in (x, moved))
        signed = (np.concatenate([a, -b]) for a, b in zip(anchors, (x, moved), strict=True))
        largest = max(largest, difference(*signed))
    return out, largest


def _mean(states: Sequence[State]) -> State:
    """The state of a new worker: the means of the others' vectors, and the first's anchor and numbers."""
    state = dict(states[0])
    for name, value in state.items():
        if name != "anchor" and isinstance(value, np.ndarray) and value.dtype.kind == "f":
            total = np.zeros(value.shape)
            for each in states:
                total += each[name]
            state[name] = (total / len(states)).astype(value.dtype)
    return state


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, start + _COLUMNS) for start in range(0, n, _COLUMNS))

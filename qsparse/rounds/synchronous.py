"""Meetings as workers see them, and the loop around them.

In synchronous rounds everybody meets at the same steps, and this file is all there is; where workers
do not wait for each other, the coordinator's side is in `asynchronous.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qsparse.local import Oracle
from qsparse.rounds.node import Node
from qsparse.types import Vector


def rounds(
    node: Node,
    x: Vector,
    steps: int,
    oracle: Oracle,
    batch: Callable[[int], Any],
    gradient: Vector | None = None,
    on_sync: Callable[[int, bool], bool] | None = None,
    begin: Callable[[int], None] | None = None,
    delay: int = 0,
) -> Iterator[tuple[int, float | None, bool]]:
    """Train: yields (step, loss, whether this rank met) after each step.

    The last step always meets; where nobody waits, the coordinator says when it is over.

    Args:
        node: this rank's place in the meetings; its pace says where to go on, and its local step moves x.
        x: this rank's model at the common starting point, (n,); holds the new model after a meeting.
        steps: T.
        oracle: gradients of the training loss.
        batch: step t = 1, 2, … → this rank's batch.
        gradient: where the oracle leaves gradients, (n,), if it has a place of its own.
        on_sync: called at every meeting, for what is exchanged beside the model, with the step and whether
            it is the last; returns whether the coordinator has stopped this rank there.
        begin: called with the step before each step.
        delay: how many local steps come between a report and its answer.
    """
    worker, pace = node.worker, node.pace
    if worker.state is None:
        worker.begin(x, gradient)
    alone = not node.algorithm.meeting.claims.waits
    end = pace.clock + steps
    over = False
    while not over and not node.stopped:
        pace.t += 1
        pace.clock = min(pace.clock + 1, end)
        t = pace.t
        # Who does not wait may come here again: the coordinator says when it is over.
        last = pace.clock == end
        over = last and not alone
        if begin is not None:
            begin(t)
        loss = None
        # A rank that only serves has no step of its own.
        if node.works and worker.asked:
            with node.ledger.timed("compute"):
                loss = worker.advance(oracle, batch(t), pace.clock)
        met = node.stepped(t, last, over, delay)
        if met and on_sync is not None and on_sync(t, last):
            node.stopped = True
        yield t, loss, met

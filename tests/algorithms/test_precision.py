"""Models with a grid that clips, under the condition of AsyLPG: real runs whose every answer is looked at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import oracles
import pytest
from bowl import LEFTOVERS, Bowl, N

from qsparse.compressors import Float32, LowPrecision
from qsparse.errors import Imprecise, QsparseError, RankError
from qsparse.memory import Memory, Snapshot
from qsparse.registry import build
from qsparse.rounds.asynchronous import Answered, Order
from qsparse.rounds.phases import Walk
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.types import Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

WORKERS = 2
INNER = 12
PHASES = 3
#: Whose reports come in a phase: in turn, and after the last one that is asked for one that is under way.
ORDER = (*(1, 2) * INNER, 1) * PHASES


class Told(NamedTuple):
    """A model, what the workers were told of it in how many bits a value, and what the memory allowed."""

    model: Vector
    bits: int
    allowed: float


def answers(preset: str, down: LowPrecision) -> list[Told]:
    """What the coordinator of a run says before each phase ends; the same in every run."""
    row = build(preset, "algorithm").with_(down=down)
    exchange = natural_exchange(row)
    check(row, exchange, WORKERS + 1)

    def body(wire: Wire) -> list[Told]:
        problem, found = Bowl(wire.rank), []
        walk = Walk(row, exchange, wire, problem.vector, Seed(4), order=Order(ORDER))
        try:
            steps = PHASES * (INNER + 1)
            for happened in walk.steps(steps, problem.gradient, problem.batch, problem.gradient_vector):
                if isinstance(happened, Answered) and happened.reply.nbits != 32 * N:
                    (coordinator,) = walk.coordinators
                    memory: Memory = coordinator.sender.memory
                    allowed = memory.tolerance(coordinator.sender.state, coordinator.model)
                    bits = (happened.reply.nbits - 32) // N
                    found.append(Told(coordinator.model.copy(), bits, allowed))
        except QsparseError as error:
            exchange.notify(wire, error, walk.pace.t)
            raise
        return found

    return run_threads(WORKERS + 1, body, timeout=60)[0]


def expected(x: Vector, bits: int, part: LowPrecision) -> float:
    """E‖Q(x) − x‖², in exact fractions, clipping included."""
    half = 1 << (bits - 1)
    most = part.clip * float(np.abs(x).max()) if part.delta is None else part.delta * (half - 1)
    low = -half if part.clip == 1 else 1 - half
    return oracles.expected_error(x, float(np.float32(most)) / (half - 1), low, half - 1)


@pytest.mark.parametrize(
    ("preset", "part"),
    [
        (f"asylpg(inner={INNER}, lr=0.05)", LowPrecision(2, delta=2.0**-9)),
        (f"acc-asylpg(inner={INNER}, lr=0.05)", LowPrecision(2, delta=2.0**-9)),
        # Nothing of its way is small beside the model here, so what is clipped may be, too.
        (f"asylpg(inner={INNER}, lr=0.3)", LowPrecision(2, clip=0.97)),
    ],
    ids=["fixed", "fixed, accelerated", "clipped"],
)
def test_every_answer_has_the_fewest_bits_that_keep_to_the_condition(preset: str, part: LowPrecision) -> None:
    told = answers(preset, part)
    assert len(told) >= PHASES * (2 * INNER - 1)
    for model, bits, allowed in told:
        assert 0 < expected(model, bits, part) <= allowed
        assert all(expected(model, fewer, part) > allowed for fewer in range(2, bits))
    assert max(each.bits for each in told) > 3


@LEFTOVERS
@pytest.mark.parametrize(
    ("part", "why"),
    [
        (
            LowPrecision(2, delta=0.5),
            r"with 16 bits, and .* is allowed: use a smaller delta, or leave delta out\b",
        ),
        (
            LowPrecision(2, delta=1e-6),
            r"the grid ends at 0\.0328, the largest value is .*: leave delta out\b",
        ),
        (LowPrecision(2, clip=0.5), r"the largest value .* is clipped to .*: use a larger clip, or none\b"),
    ],
    ids=["coarse", "short", "clipped"],
)
def test_a_run_ends_where_no_number_of_bits_keeps_to_it(part: LowPrecision, why: str) -> None:
    """Told at the coordinator, with its step, and to the workers, none of which waits for it."""
    with pytest.raises((Imprecise, RankError), match=why) as caught:
        answers(f"asylpg(inner={INNER}, lr=0.05)", part)
    said = str(caught.value)
    assert "at the coordinator, step 2: lowprecision(bits=2" in said
    assert "E‖Q(x) − x‖² is " in said


def test_a_model_that_has_not_moved_is_told_exactly() -> None:
    """A tolerance of 0 asks for x itself, whatever the grid; a model on the grid needs no float32."""
    memory = Snapshot()
    x = np.linspace(-1, 1, N, dtype=np.float32)
    state = memory.init(x)
    assert memory.tolerance(state, x) == 0
    for part in (LowPrecision(delta=2.0**-9), LowPrecision(clip=0.5), LowPrecision()):
        assert part.within(x, memory.tolerance(state, x)) == Float32()
    on_grid = np.array([0.25, -0.5, 8], np.float32)
    assert LowPrecision(2, delta=0.25).within(on_grid, 0) == LowPrecision(7, delta=0.25)

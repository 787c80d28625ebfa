"""Parts of strangers are held to what ours are: by what they claim, whatever their class."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from qsparse.algorithm import Algorithm
from qsparse.compressors import Float16, Float32, Sign
from qsparse.errors import CompositionError
from qsparse.exchange import ExchangeClaims, Nodes, ParameterServer
from qsparse.kernels import vector
from qsparse.link import Link
from qsparse.local import SGD, Gradient, Local, LocalClaims
from qsparse.meeting import Async
from qsparse.memory import ErrorFeedback, Innovation, Memory, MemoryClaims
from qsparse.participation import Everyone
from qsparse.rules import check
from qsparse.schedules import Cosine, Rate
from qsparse.server import Descend, ServerClaims, ServerRule
from qsparse.testing import laws
from qsparse.testing.vectors import hostile
from qsparse.triggers import Drift, Every, TriggerClaims
from qsparse.types import aligned

SOME = {name: hostile()[name] for name in ("nine", "spiky")}


def broken(part: Any) -> set[str]:
    """The laws that a part breaks, but for the text of a part that nobody registered."""
    return {found.law for found in laws.check(part, SOME) if found.reason is not None} - {"text"}


def held(part: Any) -> set[str]:
    """The laws that apply to a part."""
    return {found.law for found in laws.check(part, SOME)}


# --- parts of strangers --------------------------------------------------------------------------


@dataclass(frozen=True)
class Mine(Memory):
    """An error memory of somebody's own: what is left unsaid, times ``kept``, is said later."""

    registered_name: ClassVar[str] = "mine"
    kept: float = 1.0

    @property
    def claims(self) -> MemoryClaims:
        return MemoryClaims(keeps_error=True, adds_nothing=True)

    def init(self, start):
        return {"residual": aligned(start)}

    def addend(self, state, t):
        return 1.0, state["residual"]

    def commit(self, state, draft):
        free, state["residual"] = state["residual"], draft.rest
        state["residual"] *= np.float32(self.kept)
        return free

    def restore(self, state, total):
        return total


@dataclass(frozen=True)
class Step(ServerRule):
    """A server rule with a step of ``sign`` times its rate."""

    registered_name: ClassVar[str] = "step"
    lr: Rate = 0.5
    sign: float = -1.0

    @property
    def claims(self) -> ServerClaims:
        return ServerClaims(rate=self.lr)

    def absorb(self, state, u, t):
        vector.add_scaled(state["x"], self.sign * self.lr, u, state["x"])


@dataclass(frozen=True)
class Walk(Local):
    """A local step of ``sign`` times its rate."""

    registered_name: ClassVar[str] = "walk"
    lr: float = 0.1
    sign: float = -1.0

    def advance(self, state, oracle, batch, t):
        loss = oracle(state["x"], batch, state["gradient"])
        vector.add_scaled(state["x"], self.sign * self.lr, state["gradient"], state["x"])
        return loss


def test_honest_parts_of_strangers_keep_the_laws_of_meaning():
    for part in (Mine(), Step(), Walk()):
        assert broken(part) == set(), part
    assert {"accounts", "repetition"} <= held(Mine())
    assert {"descends", "steps by its rate"} <= held(Step())
    assert {"descends", "steps along its gradient"} <= held(Walk())


# --- the four bad parts --------------------------------------------------------------------------


def test_a_memory_that_loses_half_its_error_is_refused():
    assert "accounts" in broken(Mine(kept=0.5))


def test_a_server_rule_that_climbs_is_refused():
    assert broken(Step(sign=1.0)) == {"descends", "steps by its rate"}


def test_a_local_step_that_climbs_is_refused():
    assert broken(Walk(sign=1.0)) == {"descends", "steps along its gradient"}


def test_an_error_memory_of_ones_own_is_composed_as_ours_is():
    def reason(local, up, server=Descend()):
        with pytest.raises(CompositionError) as caught:
            check(Algorithm(local, up=up, server=server), ParameterServer(), 2)
        return str(caught.value)

    scheduled = SGD(Cosine(0.1, steps=9))
    for local, compressor, server in (
        (scheduled, Float16(), Descend()),
        (SGD(0.1), Sign(), Descend(Cosine(0.1, steps=9))),
        (SGD(0.1), Float32(), Descend()),
    ):
        ours = reason(local, Link(compressor, ErrorFeedback()), server)
        assert reason(local, Link(compressor, Mine()), server) == ours
    check(Algorithm(scheduled, up=Link(Sign(), Mine())), ParameterServer(), 2)


FOUR = """
    from dataclasses import dataclass
    import numpy as np
    from qsparse.kernels import vector
    from qsparse.local import Local
    from qsparse.memory import Memory, MemoryClaims
    from qsparse.registry import register
    from qsparse.server import ServerClaims, ServerRule

    @register("leaky", "memory")
    @dataclass(frozen=True)
    class Leaky(Memory):
        @property
        def claims(self):
            return MemoryClaims(keeps_error=True)

        def init(self, start):
            return {"residual": np.zeros_like(start)}

        def addend(self, state, t):
            return 1.0, state["residual"]

        def commit(self, state, draft):
            state["residual"] = draft.rest * 0.5

        def restore(self, state, total):
            return total

    @register("climb", "server")
    @dataclass(frozen=True)
    class Climb(ServerRule):
        lr: float = 0.1

        @property
        def claims(self):
            return ServerClaims(rate=self.lr)

        def absorb(self, state, u, t):
            vector.add_scaled(state["x"], self.lr, u, state["x"])

    @register("ascend", "local")
    @dataclass(frozen=True)
    class Ascend(Local):
        lr: float = 0.1

        def advance(self, state, oracle, batch, t):
            loss = oracle(state["x"], batch, state["gradient"])
            vector.add_scaled(state["x"], self.lr, state["gradient"], state["x"])
            return loss

    bad = [Leaky(), Climb(), Ascend()]
"""


def test_the_command_names_the_laws_that_bad_parts_break(tmp_path: Path) -> None:
    (tmp_path / "strangers.py").write_text(textwrap.dedent(FOUR))
    done = subprocess.run(
        [sys.executable, "-m", "qsparse", "laws", "strangers:bad"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])},
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for part, law in (
        ("leaky", "accounts"),
        ("climb", "steps by its rate"),
        ("climb", "descends"),
        ("ascend", "steps along its gradient"),
        ("ascend", "descends"),
    ):
        assert f"FAILED Check(part='{part}', law='{law}'" in done.stderr
    # Laws that have nothing to say of these parts are not counted as checks.
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert any("replays" in line and "not applicable" in line for line in done.stdout.splitlines()), rows


# --- claims that are not kept --------------------------------------------------------------------


def test_claims_of_memories_are_held():
    @dataclass(frozen=True)
    class Exact(ErrorFeedback):
        @property
        def claims(self):
            return MemoryClaims(exact=True)

    @dataclass(frozen=True)
    class Shifted(Innovation):
        def shared(self, state):
            return state["known"] + 1

    @dataclass(frozen=True)
    class Blank(ErrorFeedback):
        @property
        def claims(self):
            return replace(super().claims, remembers=False)

    @dataclass(frozen=True)
    class Whole(ErrorFeedback):
        @property
        def claims(self):
            return replace(super().claims, decay=0.5)

    @dataclass(frozen=True)
    class Unsaid(Mine):
        @property
        def claims(self):
            return MemoryClaims()

    for part in (Shifted(), Blank(), Whole(), Exact(), Unsaid(), Unsaid(kept=0.5)):
        assert "accounts" in broken(part), part


def test_claims_of_server_rules_are_held():
    @dataclass(frozen=True)
    class Faster(Step):
        @property
        def claims(self):
            return ServerClaims(rate=10 * self.lr)

    @dataclass(frozen=True)
    class Still(Step):
        @property
        def claims(self):
            return ServerClaims(holds=True, keeps_mean=True)

    @dataclass(frozen=True)
    class Counting(Step):
        def init(self, start):
            return super().init(start) | {"steps": 0}

        @property
        def claims(self):
            return ServerClaims(rate=self.lr, replayable=True)

        def absorb(self, state, u, t):
            state["steps"] += 1
            super().absorb(state, u, t)

    @dataclass(frozen=True)
    class Constant(Descend):
        @property
        def claims(self):
            return replace(super().claims, rate=0.1)

    @dataclass(frozen=True)
    class Elsewhere(Descend):
        def leave(self, state):
            return state["x"] + 1

    @dataclass(frozen=True)
    class Heavy(Step):
        def init(self, start):
            return super().init(start) | {"m": np.zeros_like(start)}

        def absorb(self, state, u, t):
            state["m"] = 0.5 * state["m"] + u
            super().absorb(state, state["m"], t)

    assert broken(Faster()) == {"steps by its rate"}
    assert broken(Still()) == {"holds"}
    assert broken(Counting()) == {"replays"}
    assert "schedule" in broken(Constant(Cosine(0.1)))
    assert broken(Elsewhere()) == {"model"}
    assert "coordinates" in broken(Heavy())


def test_claims_of_local_steps_are_held():
    @dataclass(frozen=True)
    class Silent(SGD):
        lr: Rate = 0.1

        @property
        def claims(self):
            return LocalClaims()

    @dataclass(frozen=True)
    class Unsaid(Gradient):
        @property
        def claims(self):
            return LocalClaims()

    @dataclass(frozen=True)
    class Twice(Gradient):
        def advance(self, state, oracle, batch, t):
            super().advance(state, oracle, batch, t)
            return super().advance(state, oracle, batch, t)

    @dataclass(frozen=True)
    class Loud(Gradient):
        def change(self, state):
            return 1.0

    assert broken(Loud()) == {"report"}
    assert broken(Silent(Cosine(0.1))) == {"schedule"}
    assert "report" in broken(Unsaid())
    assert broken(Twice()) == {"in place"}


def test_claims_of_triggers_and_exchanges_are_held():
    @dataclass(frozen=True)
    class Always(Every):
        H: int = 2

        @property
        def claims(self):
            return replace(super().claims, always_due=True)

    @dataclass(frozen=True)
    class Reluctant(Drift):
        delta: float = 1e30

        @property
        def claims(self):
            return TriggerClaims(always_due=True)

    @dataclass(frozen=True)
    class Choosing(Everyone):
        def invited(self, state, changes, model, t):
            return [False] * len(changes)

    @dataclass(frozen=True)
    class Serving(ParameterServer):
        @property
        def claims(self):
            return ExchangeClaims(serves=True)

    @dataclass(frozen=True)
    class Alike(ParameterServer):
        def broadcast_to(self, wire, reply, asked):
            return super().broadcast_to(wire, reply, None)

    @dataclass(frozen=True)
    class Hidden(Nodes):
        @property
        def claims(self):
            return replace(super().claims, groups=False)

    @dataclass(frozen=True)
    class Louder(Nodes):
        def post(self, wire):
            return super().post(wire)._replace(divisor=1.0)

    @dataclass(frozen=True)
    class Twice(Nodes):
        @property
        def claims(self):
            return replace(super().claims, recompresses=not self.recompress)

    assert broken(Hidden(ParameterServer(), 2)) == {"posts"}
    assert broken(Twice(ParameterServer(), 2)) == broken(Twice(ParameterServer(), 2, True)) == {"posts"}
    assert broken(Louder(ParameterServer(), 2)) == {"posts"}
    assert broken(Always()) == {"due"}
    assert broken(Reluctant()) == {"worth"}
    assert broken(Choosing()) == {"invited"}
    assert "workers" in broken(Serving())
    assert broken(Alike()) == {"some"}


def test_asynchronous_workers_go_by_the_claim_of_the_exchange():
    row = Algorithm(SGD(0.1), meeting=Async())
    with pytest.raises(CompositionError, match="only serves"):
        check(row, ParameterServer(), 3)
    check(row, ParameterServer(works=False), 3)

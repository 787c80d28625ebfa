"""Every part has an example, and parts of each kind that break a law are caught by it."""

from __future__ import annotations

import functools
import math
import sys
import types
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from qsparse.algorithm import Algorithm
from qsparse.compressors import Float32, Sign, TopK, accumulate_into
from qsparse.compressors.floats import Float16
from qsparse.data.base import Sharding, Source
from qsparse.data.shards import Random
from qsparse.data.sources import Digits
from qsparse.errors import PeerGone, SettingError, WireError
from qsparse.exchange import AllGather, Exchange, ParameterServer, TreeBroadcast
from qsparse.exchange.base import receive_any_kind, receive_one
from qsparse.exchange.notes import same_step
from qsparse.link import Link
from qsparse.local import SGD, Gradient, Local
from qsparse.meeting import Async, Meeting, MeetingClaims, Sync
from qsparse.memory import ErrorFeedback, Innovation, Memory
from qsparse.participation import Sample
from qsparse.payload import Payload
from qsparse.presets import classic
from qsparse.registry import build, kinds, names
from qsparse.schedules import Cosine, Schedule
from qsparse.server import Descend, Majority, ServerRule
from qsparse.testing import laws, parts
from qsparse.testing.base import Broken
from qsparse.testing.vectors import REFUSED, hostile
from qsparse.torch.models import MLP, Model, Softmax
from qsparse.triggers import Every, RandomGap, Trigger
from qsparse.wire.threads import Threads

NINE = {"nine": hostile()["nine"]}
OTHERS = [kind for kind in kinds() if kind != "compressor"]


def broken(part: Any, vectors: dict[str, np.ndarray] | None = None) -> set[str]:
    """The laws that a part breaks, but for the text of a part that nobody registered."""
    return {check.law for check in laws.check(part, vectors) if check.reason is not None} - {"text"}


# --- the examples --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OTHERS)
def test_every_registered_name_has_an_example(kind):
    assert {text.partition("(")[0] for text in parts.EXAMPLES[kind]} == set(names(kind))


def test_every_kind_has_examples_and_laws():
    assert set(parts.EXAMPLES) == set(OTHERS)
    assert all(len(laws.LAWS[kind]) >= 4 for kind in kinds())


@pytest.mark.parametrize("kind", OTHERS)
def test_the_examples_keep_the_laws(kind):
    report = laws.run(laws.examples(kind))
    assert not report.failures, "\n".join(map(str, report.failures[:20]))
    assert report.parts == len(parts.EXAMPLES[kind])
    assert set(report.per_law) == {(kind, law) for law in laws.LAWS[kind]}
    assert min(report.per_law.values()) > 0


def test_vectors_that_can_be_sent_reach_every_law_about_vectors():
    sendable = set(hostile()) - set(REFUSED)
    for kind, part in (("local", SGD(0.1)), ("server", Descend()), ("trigger", Every()), ("meeting", Sync())):
        titles = {title for title, rule in laws.LAWS[kind].items() if not rule.once}
        found = {(check.law, check.vector) for check in laws.check(part)}
        seen = {vector for law, vector in found if law in titles}
        assert seen == sendable, kind


def test_two_way_compositions_keep_the_laws():
    both = Link(TopK(k=2) >> Sign(), Innovation())
    algorithm = Algorithm(local=SGD(0.1, 0.9), up=Link(TopK(k=2), ErrorFeedback()), down=both)
    assert broken(algorithm) == set()
    assert broken(replace(algorithm, meeting=Async(ahead=1))) == set()


# --- settings ------------------------------------------------------------------------------------


def test_settings_that_can_be_changed_or_not_hashed_are_caught():
    @dataclass
    class Open(Trigger):
        H: int = 1

        def due(self, state, t):
            return True

    @dataclass(frozen=True)
    class Listed(Every):
        steps: list[int] = field(default_factory=list)

    class Bare(Trigger):
        def due(self, state, t):
            return True

    assert broken(Open()) == broken(Listed()) == broken(Bare()) == {"settings"}


def test_a_part_whose_text_makes_another_one_is_caught():
    @dataclass(frozen=True)
    class Shy(Every):
        def spelling(self):
            return "every"

    (failure,) = [check for check in laws.check(Shy(H=3), NINE) if check.reason]
    assert failure.law == "text"


def test_a_part_that_swallows_unknown_settings_is_caught(monkeypatch):
    from qsparse import registry

    def lenient(name, kind, settings, positional=()):
        return registry.find(name, kind)()

    monkeypatch.setattr(parts, "call", lenient)
    assert broken(Every(), NINE) == {"unknown setting"}


# --- memories ------------------------------------------------------------------------------------


def test_a_memory_that_moves_before_the_commit_is_caught():
    @dataclass(frozen=True)
    class Eager(ErrorFeedback):
        def addend(self, state, t):
            state["residual"] += 1
            return super().addend(state, t)

    assert "draft" in broken(Eager(), NINE)

    @dataclass(frozen=True)
    class Greedy(Memory):
        def init(self, start):
            return {}

        def addend(self, state, t):
            return None

        def commit(self, state, draft):
            draft.total.x[...] += 1

        def restore(self, state, total):
            return total

    assert "commit" in broken(Greedy(), NINE)


def test_a_memory_that_keeps_the_draft_is_caught():
    @dataclass(frozen=True)
    class Clinging(ErrorFeedback):
        def commit(self, state, draft):
            state["residual"] = draft.rest

    assert {"commit", "draft"} <= broken(Clinging(), NINE)


def test_a_memory_that_keeps_what_the_next_merge_overwrites_is_caught():
    @dataclass(frozen=True)
    class Aliasing(Innovation):
        def restore(self, state, total):
            total += state["known"]
            state["known"] = total
            return total

    assert "restore" in broken(Aliasing(), NINE)


def test_a_memory_that_loses_or_invents_is_caught():
    @dataclass(frozen=True)
    class Forgetful(ErrorFeedback):
        def commit(self, state, draft):
            state["residual"][...] = 0

    assert broken(Forgetful(), NINE) == {"accounts", "repetition", "hands on"}

    @dataclass(frozen=True)
    class Stubborn(Innovation):
        def commit(self, state, draft):
            pass

    assert {"accounts", "lossless"} <= broken(Stubborn(), NINE)

    @dataclass(frozen=True)
    class Louder(Innovation):
        def commit(self, state, draft):
            accumulate_into(draft.payload, state["known"])
            state["known"] *= np.float32(1.001)

    assert "accounts" in broken(Louder(), NINE)


def test_a_memory_that_shares_its_start_or_hides_its_state_is_caught():
    @dataclass(frozen=True)
    class Sharing(Innovation):
        def init(self, start):
            return {"known": start}

    assert "start" in broken(Sharing(), NINE)

    @dataclass(frozen=True)
    class Hiding(ErrorFeedback):
        kept: ClassVar[dict[str, Any]] = {}

        def init(self, start):
            return super().init(start) | {"hidden": object()}

    assert {"draft", "resume"} <= broken(Hiding(), NINE)


def test_a_memory_that_remembers_beside_its_state_is_caught():
    counts = []

    @dataclass(frozen=True)
    class Beside(ErrorFeedback):
        def addend(self, state, t):
            counts.append(1)
            decay, residual = super().addend(state, t)
            return decay + 1e-3 * len(counts), residual

    assert {"draft", "resume"} <= broken(Beside(), NINE)


# --- triggers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing(RandomGap):
    """A RandomGap that registers nothing; each subclass spoils one thing."""

    H: int = 4


def test_an_honest_trigger_breaks_nothing():
    assert broken(Drawing()) == set()


def test_a_trigger_that_depends_on_more_than_seed_and_step_is_caught():
    @dataclass(frozen=True)
    class Global(Drawing):
        def _gap(self, state, t):
            return int(np.random.randint(1, 5))

    assert "due" in broken(Global(), NINE)

    @dataclass(frozen=True)
    class Hearing(Drawing):
        def heard(self, state, model):
            state["next"] += 1

    assert "due" in broken(Hearing(), NINE)


def test_a_trigger_with_wrong_gaps_is_caught():
    @dataclass(frozen=True)
    class Late(Drawing):
        def _gap(self, state, t):
            return super()._gap(state, t) + 1

    @dataclass(frozen=True)
    class Short(Drawing):
        def _gap(self, state, t):
            return min(super()._gap(state, t), 3)

    @dataclass(frozen=True)
    class Onward(Every):
        def due(self, state, t):
            state["asked"] = t - 1
            return super().due(state, t)

    @dataclass(frozen=True)
    class OneForAll(Every):
        def _gap(self, state, t):
            return self.longest(1, t)

    assert broken(Late(), NINE) == broken(Short(), NINE) == broken(OneForAll((2, 3)), NINE) == {"gaps"}
    assert broken(Onward(4), NINE) == {"gaps"}


def test_a_trigger_that_ignores_the_rank_is_caught():
    @dataclass(frozen=True)
    class Alike(Drawing):
        def init(self, seed):
            return super().init(seed.at(rank=0))

    assert broken(Alike(), NINE) == {"seeding"}


def test_a_trigger_whose_users_share_a_state_is_caught():
    common: dict[str, Any] = {}

    @dataclass(frozen=True)
    class Shared(Drawing):
        def init(self, seed):
            return common or common.update(super().init(seed)) or common

    assert "state" in broken(Shared(), NINE)


def test_a_trigger_that_changes_what_it_is_shown_is_caught():
    @dataclass(frozen=True)
    class Touching(Every):
        def worth(self, state, draft):
            draft.target[:1] += 1
            return True

    @dataclass(frozen=True)
    class Vague(Every):
        def worth(self, state, draft):
            return float(draft.target[0])

    assert broken(Touching(), NINE) == broken(Vague(), NINE) == {"worth"}


# --- schedules -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve(Schedule):
    """1/t; each subclass spoils one thing."""

    def at(self, t):
        return 1 / t


def failed(part: Any) -> set[str]:
    """As `broken`; what was never registered has no text for `over` to read either."""
    return {
        check.law
        for check in laws.check(part, NINE)
        if check.reason is not None and "registered_name" not in check.reason
    }


def test_schedules_that_break_a_law_are_caught():
    class Negative(Curve):
        def at(self, t):
            return 10.0 - t

    class Endless(Curve):
        def at(self, t):
            return float("inf") if t == 700 else 1.0

    class Zero(Curve):
        def at(self, t):
            return 0.0

    assert failed(Curve()) == set()
    assert failed(Negative()) == failed(Endless()) == failed(Zero()) == {"finite"}


def test_a_schedule_that_counts_its_calls_is_caught():
    calls = []

    class Counting(Curve):
        def at(self, t):
            calls.append(t)
            return 1 / len(calls)

    assert failed(Counting()) == {"determinism"}


def test_a_schedule_that_takes_another_length_each_time_is_caught():
    @dataclass(frozen=True)
    class Stretching(Cosine):
        peak: float = 1.0

        def over(self, steps):
            return replace(self, steps=steps)

    assert failed(Stretching()) - {"text"} == {"over"}


# --- local steps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step(SGD):
    """SGD; each subclass spoils one thing."""

    lr: float = 0.1


def test_an_honest_local_step_breaks_nothing():
    assert broken(Step()) == set()


def test_a_local_step_that_moves_another_array_is_caught():
    class Replacing(Step):
        def advance(self, state, oracle, batch, t):
            loss = oracle(state["x"], batch, state["gradient"])
            state["x"] = state["x"] - np.float32(self.lr) * state["gradient"]
            return loss

    class Lossless(Step):
        def advance(self, state, oracle, batch, t):
            super().advance(state, oracle, batch, t)
            return 0.0

    class Elsewhere(Step):
        def init(self, x, gradient=None):
            return super().init(x)

    for part in (Replacing(), Lossless(), Elsewhere()):
        assert broken(part, NINE) == {"in place"}, part


def test_a_report_that_is_something_else_is_caught():
    class Backwards(Step):
        def report(self, state, out):
            return np.subtract(state["x"], state["anchor"], out=out)

    class Using(Step):
        def report(self, state, out):
            super().report(state, out)
            state["anchor"][...] = state["x"]
            return out

    class Own(Step):
        def report(self, state, out):
            return state["anchor"] - state["x"]

    @dataclass(frozen=True)
    class Halved(Gradient):
        def report(self, state, out):
            return np.divide(state["gradient"], 2, out=out)

    for part in (Using(), Own(), Halved(momentum=0.5), Halved()):
        assert broken(part, NINE) == {"report"}, part
    assert broken(Backwards(), NINE) == {"report", "descends", "steps along its gradient"}


def test_a_local_step_that_adopts_badly_is_caught():
    class Keeping(Step):
        def adopt(self, state, model):
            np.copyto(state["x"], model)
            state["anchor"] = model

    class Half(Step):
        def adopt(self, state, model):
            np.copyto(state["x"], model)

    class Taking(Step):
        def adopt(self, state, model):
            super().adopt(state, model)
            model[...] = 0

    for part in (Keeping(), Half(), Taking()):
        assert "adopt" in broken(part, NINE), part


def test_a_local_step_that_never_rests_is_caught():
    class Restless(Step):
        def advance(self, state, oracle, batch, t):
            loss = super().advance(state, oracle, batch, t)
            state["x"] *= np.float32(0.99)
            return loss

    assert broken(Restless(), NINE) == {"rest"}


def test_a_local_step_that_remembers_beside_its_state_is_caught():
    steps = []

    class Beside(Step):
        def advance(self, state, oracle, batch, t):
            steps.append(t)
            loss = super().advance(state, oracle, batch, t)
            state["x"] += state["gradient"] * np.float32(1e-3 * len(steps))
            return loss

    class Common(Step):
        buffer: ClassVar[np.ndarray] = np.zeros(9, np.float32)

        def init(self, x, gradient=None):
            return super().init(x, gradient) | {"momentum": self.buffer}

    class Opaque(Step):
        def init(self, x, gradient=None):
            return super().init(x, gradient) | {"rule": self}

    for part in (Beside(), Common(), Opaque()):
        assert broken(part, NINE) == {"resume"}, part


# --- server rules --------------------------------------------------------------------------------


def test_an_honest_server_rule_breaks_nothing():
    @dataclass(frozen=True)
    class Same(Descend):
        pass

    assert broken(Same()) == set()


def test_a_server_rule_that_moves_for_nothing_is_caught():
    class Drifting(Descend):
        def absorb(self, state, u, t):
            super().absorb(state, u + np.float32(1e-6), t)

    class Signed(Majority):
        def absorb(self, state, u, t):
            state["x"] -= np.where(u >= 0, self.lr, -self.lr).astype(u.dtype)

    assert broken(Drifting(), NINE) == {"zero", "step", "coordinates"}
    assert broken(Signed(0.1)) == {"zero", "step", "coordinates"}


def test_a_server_rule_that_is_not_linear_is_caught():
    class Clipped(Descend):
        def absorb(self, state, u, t):
            super().absorb(state, np.clip(u, -0.1, 0.1), t)

    assert broken(Clipped(), NINE) == {"step", "steps by its rate"}


def test_a_server_rule_that_shares_or_copies_is_caught():
    class Sharing(Descend):
        def init(self, start):
            return {"x": start}

    class Scribbling(Descend):
        def absorb(self, state, u, t):
            u *= -np.float32(self.lr)
            state["x"] += u

    class Keeping(Descend):
        def absorb(self, state, u, t):
            super().absorb(state, u, t)
            state["last"] = u

    class Copying(Descend):
        def model(self, state):
            return state["x"].copy()

    assert "start" in broken(Sharing(), NINE)
    assert "input" in broken(Scribbling(), NINE)
    assert broken(Keeping(), NINE) == {"input"}
    assert broken(Copying(), NINE) == {"model"}


def test_a_server_rule_that_counts_beside_its_state_is_caught():
    rounds = []

    @dataclass(frozen=True)
    class Counting(ServerRule):
        def absorb(self, state, u, t):
            rounds.append(1)
            state["x"] -= u * np.float32(1 / len(rounds))

    assert broken(Counting(), NINE) == {"resume"}


# --- exchanges -----------------------------------------------------------------------------------


def test_honest_exchanges_break_nothing():
    for part in (ParameterServer(root=4), TreeBroadcast(root=2), AllGather()):
        assert broken(part, {}) == {"fit"}, part
        assert broken(part, NINE) == set(), part


def test_an_exchange_that_gathers_badly_is_caught():
    class Reversed(ParameterServer):
        def gather(self, wire, news):
            payloads = super().gather(wire, news)
            return payloads and payloads[::-1]

    class Everywhere(ParameterServer):
        def gather(self, wire, news):
            return super().gather(wire, news) or [news]

    assert broken(Reversed(), NINE) == {"gather", "stretches"}
    assert {"gather"} <= broken(Everywhere(), NINE)


def test_an_exchange_that_answers_badly_is_caught():
    class Stale(ParameterServer):
        def broadcast(self, wire, reply):
            answer = super().broadcast(wire, reply)
            return Payload.build([b"answer 0"], way=answer.way) if wire.rank == 2 else answer

    class Deaf(TreeBroadcast):
        def _children(self, wire):
            return [child for child in super()._children(wire) if child != wire.size - 1]

    assert broken(Stale(), NINE) == {"broadcast", "stretches"}
    assert "broadcast" in broken(Deaf(), NINE)


def test_an_exchange_that_keeps_errors_to_itself_is_caught():
    class Silent(ParameterServer):
        def notify(self, wire, error, step):
            pass

    class Unrelayed(TreeBroadcast):
        def relays(self, rank):
            return False

    class Swallowing(AllGather):
        def gather(self, wire, news):
            for rank in range(wire.size):
                if rank != wire.rank:
                    wire.send([news], rank)
            heard = [r if r == wire.rank else receive_any_kind(wire, r)[1] for r in range(wire.size)]
            return same_step([news if one == wire.rank else one for one in heard])

    assert {"error"} <= broken(Silent(), NINE)
    assert {"error"} <= broken(Unrelayed(), NINE)
    assert {"error"} <= broken(Swallowing(), NINE)


def test_an_exchange_that_mixes_steps_is_caught():
    class Mixing(ParameterServer):
        def gather(self, wire, news):
            if wire.rank != self.root:
                wire.send([news], self.root)
                return None
            others = [receive_one(wire, rank)[1] for rank in range(wire.size) if rank != self.root]
            return [news, *others]

    assert broken(Mixing(), NINE) == {"steps"}


def test_an_exchange_with_odd_workers_or_no_fit_is_caught():
    class Odd(ParameterServer):
        def workers(self, size):
            return list(range(size))[::-1]

    assert "workers" in broken(Odd(), NINE)
    assert "workers" in broken(ParameterServer(root=50), NINE)


def test_messages_that_nobody_reads_are_caught():
    class Chatty(ParameterServer):
        def broadcast(self, wire, reply):
            answer = super().broadcast(wire, reply)
            if wire.rank == 1:
                wire.send([answer], 0)
            return answer

    assert {"gather", "broadcast"} <= broken(Chatty(), NINE)


# --- models, data sets, shardings and wires -------------------------------------------------------


def test_a_model_that_makes_too_few_numbers_is_caught():
    @dataclass(frozen=True)
    class Few(Model):
        shared: ClassVar[list[Any]] = []

        def module(self, shape, classes):
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), classes - 1))

    @dataclass(frozen=True)
    class One(Few):
        def module(self, shape, classes):
            if not self.shared:
                self.shared.append(MLP(4).module(shape, classes))
            return self.shared[0]

    @dataclass(frozen=True)
    class Picky(Few):
        def module(self, shape, classes):
            raise SettingError("not these")

    @dataclass(frozen=True)
    class Empty(Few):
        def module(self, shape, classes):
            return torch.nn.Flatten()

    assert all(broken(part) == {"classes"} for part in (Few(), One(), Picky(), Empty()))
    assert broken(MLP(4)) == set()


def test_a_data_set_that_differs_from_time_to_time_is_caught():
    @dataclass(frozen=True)
    class Drawn(Source):
        often: ClassVar[list[int]] = []

        def load(self, data_dir, *, progress=False):
            self.often.append(1)
            found = Digits().load(None)
            return replace(found, train_x=found.train_x + np.float32(len(self.often)))

    assert broken(Drawn()) == {"repetition"}


def test_a_sharding_that_loses_doubles_or_draws_is_caught():
    @dataclass(frozen=True)
    class Dealt(Sharding):
        how: Any

        def deal(self, labels, ranks, seed):
            return self.how(Random().deal(labels, ranks, seed))

    rng = np.random.default_rng(0)
    for how in (
        lambda shares: [share[1:] for share in shares],
        lambda shares: [np.r_[share, 0] for share in shares],
        lambda shares: shares[:-1],
        lambda shares: [np.concatenate(shares), *(share[:0] for share in shares[1:])],
        lambda shares: list(np.array_split(rng.permutation(np.concatenate(shares)), len(shares))),
    ):
        assert broken(Dealt(how)) == {"dealing"}


def test_a_wire_with_other_ranks_or_other_messages_is_caught():
    @dataclass(frozen=True)
    class Fewer(Threads):
        def run(self, ranks, body):
            return super().run(max(1, ranks - 1), body)

    @dataclass(frozen=True)
    class Swapped(Threads):
        def run(self, ranks, body):
            def live(wire):
                receive, got = wire.receive, []

                def late(source):
                    if not got:
                        got.extend(receive(source) for _ in range(3))
                    return got.pop()

                wire.receive = late
                return body(wire)

            return super().run(ranks, live)

    assert broken(Fewer()) == {"ring"}
    assert broken(Swapped()) >= {"ring", "keeps the order of each pair"}


def changed(**methods):
    """Threads whose wires have other methods; each is given the wire and its own method."""

    @dataclass(frozen=True)
    class Changed(Threads):
        def run(self, ranks, body):
            def live(wire):
                for name, method in methods.items():
                    setattr(wire, name, functools.partial(method, wire, getattr(wire, name)))
                return body(wire)

            return super().run(ranks, live)

    return Changed()


def breaks(part, law):
    """Whether a wire breaks one law; all of them take long."""
    try:
        laws.LAWS["wire"][law].holds(part, "", np.empty(0, np.float32))
    except Broken:
        return True
    return False


def test_a_wire_whose_clock_is_wrong_is_caught():
    def stopped(wire, worked, *work):
        wire.now = lambda: 0.0

    assert breaks(changed(sleep=lambda wire, sleep, seconds: None), "keeps time")
    assert breaks(changed(now=lambda wire, now: -now()), "keeps time")
    assert breaks(changed(worked=stopped), "keeps time")
    # The ledger's clock is another one.
    assert breaks(changed(now=lambda wire, now: now() / 100), "keeps time")
    assert not breaks(changed(), "keeps time")


def test_a_wire_that_promises_too_much_is_caught():
    def uncounted(wire, count, payloads):
        count(payloads[:1])

    def first_only(wire, receive, *source):
        rank, payloads = receive(*source)
        return rank, payloads[:1]

    def vague(wire, receive, *source):
        try:
            return receive(*source)
        except PeerGone as error:
            raise WireError(str(error)) from None

    assert breaks(changed(_count=uncounted), "counts what it sends")
    assert breaks(changed(receive=first_only), "carries several frames")
    assert breaks(changed(receive=vague), "departure")
    assert breaks(changed(close=lambda wire, close: None), "close")
    assert breaks(changed(abort=lambda wire, abort, status: None), "failure")


# --- meetings and algorithms ---------------------------------------------------------------------


def test_a_meeting_of_ones_own_is_what_it_claims():
    @dataclass(frozen=True)
    class Together(Meeting):
        registered_name: ClassVar[str] = "together"

    @dataclass(frozen=True)
    class Hurried(Together):
        registered_name: ClassVar[str] = "hurried"

        @property
        def claims(self) -> MeetingClaims:
            return MeetingClaims(waits=False, ahead=1)

    @dataclass(frozen=True)
    class Vague(Together):
        @property
        def claims(self) -> None:
            return None

    assert not broken(Together(), NINE)
    assert not broken(Hurried(), NINE)
    assert broken(Vague(), NINE) == {"meet"}


def test_an_algorithm_that_may_not_be_composed_is_caught():
    bare = Algorithm(local=Gradient(), trigger=Every(2))
    assert broken(bare, NINE) >= {"composition"}
    inhomogeneous = Algorithm(local=SGD(Cosine(0.1)), up=Link(Float16(), ErrorFeedback()))
    assert "composition" in broken(inhomogeneous, NINE)


def test_an_algorithm_whose_axes_make_another_one_is_caught():
    @dataclass(frozen=True)
    class Shy(SGD):
        def spelling(self):
            return "sgd(lr=0.5)"

    assert broken(Algorithm(local=Shy(0.1)), NINE) == {"axes"}


def test_an_algorithm_whose_ranks_drift_apart_is_caught():
    @dataclass(frozen=True)
    class Uneven(Innovation):
        def restore(self, state, total):
            super().restore(state, total)
            state["known"] += np.float32(id(state) % 1000) * np.float32(1e-3)
            return state["known"]

    assert {"round", "training"} <= broken(Algorithm(local=SGD(0.1), down=Link(Sign(), Uneven())), NINE)


def test_an_algorithm_that_lets_nan_through_is_caught():
    @dataclass(frozen=True)
    class Swallowing(Float32):
        def compress_sum(self, total, seed):
            return super().compress_sum(total._replace(x=np.nan_to_num(total.x)), seed)

    algorithm = Algorithm(local=SGD(0.1), up=Link(Swallowing()))
    assert "refusal" in broken(algorithm, {"nan": hostile()["nan"]})


def test_an_algorithm_that_refuses_what_can_be_sent_is_caught():
    @dataclass(frozen=True)
    class Fearful(Float32):
        def compress_sum(self, total, seed):
            x = total.x * np.float32("inf") if np.any(np.abs(total.x) > 1) else total.x
            return super().compress_sum(total._replace(x=x), seed)

    assert "round" in broken(Algorithm(local=SGD(0.1), up=Link(Fearful())), {"spiky": hostile()["spiky"]})


def test_a_preset_that_cannot_be_made_is_reported():
    def needy(lr):
        return Algorithm(local=SGD(lr))

    def wrong():
        return SGD(0.1)

    for preset, reason in ((needy, "lr"), (wrong, "makes a SGD")):
        preset.registered_name = "mine"  # type: ignore[attr-defined]
        (failure,) = laws.check(preset)
        assert (failure.part, failure.law, failure.kind) == ("mine", "fit", "algorithm")
        assert reason in (failure.reason or "")


# --- loading -------------------------------------------------------------------------------------


@pytest.fixture
def stranger(monkeypatch):
    module = types.ModuleType("stranger_parts")
    module.mixed = [
        ErrorFeedback(),
        Every,
        Sample(0.5),
        SGD(0.1),
        Descend(),
        Cosine(0.1),
        AllGather,
        Sync,
        classic.qsgd,
        Softmax,
        Digits,
        Random(),
        Threads,
    ]
    module.algorithm = classic.sgd()
    module.Needy = Majority
    module.payload = Payload.build()
    module.bound = build
    monkeypatch.setitem(sys.modules, "stranger_parts", module)
    return module


def test_parts_of_any_kind_are_loaded_and_held_to_their_laws(stranger):
    loaded = laws.load("stranger_parts:mixed")
    assert loaded[1] == Every()
    assert [parts.kind_of(part) for part in loaded] == [
        "memory", "trigger", "participation", "local", "server", "schedule", "exchange", "meeting",
        "algorithm", "model", "data", "sharding", "wire",
    ]  # fmt: skip
    report = laws.run(loaded, NINE)
    assert not report.failures
    assert {kind for kind, _ in report.per_law} == set(OTHERS)
    assert laws.load("stranger_parts:algorithm") == [classic.sgd()]
    assert {check.kind for check in laws.check(classic.sgd(), NINE)} == {"algorithm"}


def test_what_is_no_part_is_refused(stranger):
    for name in ("Needy", "payload", "bound"):
        with pytest.raises(SettingError, match="stranger_parts"):
            laws.load(f"stranger_parts:{name}")
    with pytest.raises(SettingError, match="no compressor and no other part"):
        laws.check(3)


def test_abstract_parts_have_no_defaults(monkeypatch):
    module = types.ModuleType("abstract_parts")
    module.several = [Local]
    module.one = Exchange
    monkeypatch.setitem(sys.modules, "abstract_parts", module)
    for name in ("several", "one"):
        with pytest.raises(SettingError, match="has no defaults"):
            laws.load(f"abstract_parts:{name}")

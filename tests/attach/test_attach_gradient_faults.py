"""What goes wrong in a loop in which the algorithm takes the steps is said on all ranks, and none waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qsparse.errors import DisagreementError, QsparseError, RankError, SettingError
from qsparse.wire.base import Wire

torch = pytest.importorskip("torch")

from loops import LEFTOVERS, batch, net, on_threads  # noqa: E402
from torch.nn import functional  # noqa: E402

from qsparse.torch import attach  # noqa: E402

#: One whose ranks wait for each other, one whose workers do not, one of both kinds, and one that asks some.
#: The bound keeps the run from being over before a slow rank has come to its mistake.
KINDS = ["laq", "qsparse-local-sgd-async(H=2, ahead=1)", "asylpg(inner=3, ahead=1)", "lag-ps"]


class Loop:
    """A loop that may do something else at a step of one rank."""

    def __init__(self, wire: Wire, text: str, steps: int | None = 12) -> None:
        self.wire, self.model = wire, net(wire.rank)
        self.fails = self.silent = False
        self.loss: Any = None
        self.link = attach(self.model, algorithm=text, comm=wire, gradient=self.gradient, steps=steps)

    def gradient(self, examples: Any) -> Any:
        if self.fails:
            raise ValueError("no such picture")
        x, y = batch(self.wire.rank, 0) if examples is None else examples
        loss = functional.cross_entropy(self.model(x), y)
        if not self.silent:
            loss.backward()
        return loss if self.loss is None else self.loss

    def steps(self, count: int | None = None) -> None:
        taken = 0
        while not self.link.over and taken != count:
            self.link.step(batch(self.wire.rank, self.link.steps))
            taken += 1


def fails_in(act: Any, wire: Wire, rank: int, kind: type[Exception], reason: str) -> None:
    """One rank raises its own error, and all others are told of it."""
    with pytest.raises((kind, RankError), match=reason) as caught:
        act()
    assert type(caught.value) is (kind if wire.rank == rank else RankError)


@LEFTOVERS
@pytest.mark.parametrize("text", KINDS)
def test_a_gradient_that_fails_ends_the_loop_on_all_ranks(text: str) -> None:
    def body(wire: Wire) -> None:
        loop = Loop(wire, text)
        loop.fails = wire.rank == 1
        fails_in(loop.steps, wire, 1, ValueError, "no such picture")
        # Who goes on all the same is told once more.
        with pytest.raises((ValueError, RankError), match="no such picture"):
            loop.link.step(batch(wire.rank, 0))
        with pytest.raises((ValueError, RankError), match="no such picture"):
            loop.link.finish()

    on_threads(3, body)


@LEFTOVERS
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("text", KINDS)
def test_an_error_of_the_loop_itself_reaches_all_ranks(text: str, rank: int) -> None:
    """Within a with block; on the rank that serves, too."""

    def body(wire: Wire) -> None:
        loop = Loop(wire, text)

        def act() -> None:
            with loop.link:
                loop.steps(2)
                if wire.rank == rank:
                    raise KeyError("a mistake")
                loop.steps()

        fails_in(act, wire, rank, KeyError, "a mistake")

    on_threads(3, body)


@LEFTOVERS
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("text", KINDS[1:])
def test_a_rank_that_leaves_before_the_end_is_named(text: str, rank: int) -> None:
    """Its finish() comes too early; asylpg is past its prelude by then."""

    def body(wire: Wire) -> None:
        loop = Loop(wire, text)

        def act() -> None:
            loop.steps(3 if wire.rank == rank else None)
            loop.link.finish()

        with pytest.raises(QsparseError, match=r"finish\(\)"):
            act()

    on_threads(3, body)


@LEFTOVERS
@pytest.mark.parametrize("saves", [(0,), (1, 2)])
@pytest.mark.parametrize("text", ["lag-ps", "laq", "asylpg(inner=3)"])
def test_a_checkpoint_that_some_ranks_leave_out_is_told(tmp_path: Path, text: str, saves: Any) -> None:
    """After the first step, which all ranks take together."""

    def body(wire: Wire) -> None:
        loop = Loop(wire, text)

        def act() -> None:
            loop.steps(1)
            if wire.rank in saves:
                loop.link.save(tmp_path)
            loop.steps()

        with pytest.raises((DisagreementError, RankError), match=r"save\(\) must be called by all ranks"):
            act()

    on_threads(3, body)


@LEFTOVERS
@pytest.mark.parametrize("text", ["lag-ps", "laq"])
def test_unlike_calls_of_ranks_are_named(tmp_path: Path, text: str) -> None:
    """The rank that serves is one of them."""

    def body(wire: Wire) -> None:
        link = Loop(wire, text).link
        said = r"rank 0 in resume\(\) at step 0; ranks 1, 2 in save\(\) at step 0"
        with pytest.raises((DisagreementError, RankError), match=said):
            link.resume(tmp_path) if wire.rank == 0 else link.save(tmp_path)

    on_threads(3, body)


@LEFTOVERS
@pytest.mark.parametrize(
    ("loss", "silent", "reason"),
    [
        ("much", False, "gradient returned str in place of the loss on rank 1"),
        (torch.ones(2), False, "gradient returned Tensor in place of the loss on rank 1"),
        (None, True, "gradient has left no gradient in the parameters of rank 1"),
    ],
)
def test_a_gradient_that_is_none_is_refused(loss: Any, silent: bool, reason: str) -> None:
    def body(wire: Wire) -> None:
        loop = Loop(wire, "sgd", None)
        if wire.rank == 1:
            loop.loss, loop.silent = loss, silent
        fails_in(lambda: loop.steps(1), wire, 1, SettingError, reason)

    on_threads(2, body)


def test_steps_after_the_last_and_a_worker_that_serves_are_refused() -> None:
    """Both are mistakes of a call, and the loop is as it was."""

    def body(wire: Wire) -> None:
        loop = Loop(wire, "lag-ps", 3)
        if wire.rank == 0:
            loop.link.serve()
        else:
            with pytest.raises(SettingError, match="rank 1 works, so its steps need batches"):
                loop.link.serve()
            loop.steps()
        with pytest.raises(SettingError, match=f"over after step 3, and rank {wire.rank} has called step"):
            loop.link.step()
        loop.link.finish()
        with pytest.raises(SettingError, match=r"call step\(\) before finish\(\)"):
            loop.link.step()

    on_threads(2, body)


@LEFTOVERS
def test_ranks_that_end_at_different_steps_are_told() -> None:
    def body(wire: Wire) -> None:
        loop = Loop(wire, "sgd", None)

        def act() -> None:
            loop.steps(2 + wire.rank)
            loop.link.finish()

        with pytest.raises(
            (DisagreementError, RankError), match=r"at different steps .* has called finish\(\)"
        ):
            act()

    on_threads(2, body)


@LEFTOVERS
@pytest.mark.parametrize("text", KINDS)
def test_an_optimizer_that_steps_as_well_is_refused_at_once(text: str) -> None:
    def body(wire: Wire) -> None:
        loop = Loop(wire, text)
        optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)

        def act() -> None:
            loop.steps(1)
            if wire.rank == 1:
                optimizer.step()
            loop.steps()

        fails_in(act, wire, 1, SettingError, r"SGD has stepped the model on rank 1 after step 1")
        with pytest.raises(QsparseError):
            loop.link.finish()
        optimizer.step()

    on_threads(3, body)


def test_what_else_moves_the_parameters_is_found_at_the_end() -> None:
    def body(wire: Wire) -> None:
        loop = Loop(wire, "signum-majority", 3)
        loop.steps()
        if wire.rank == 1:
            with torch.no_grad():
                loop.model[0].bias += 1  # type: ignore[index, operator]
        with pytest.raises(DisagreementError, match=r"let nothing but step\(\) change the parameters"):
            loop.link.finish()

    on_threads(2, body)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"optimizer": True}, "was given an optimizer and gradient=…: leave the optimizer out"),
        ({"gradient": 3}, "gradient must be a function of a batch, not 3"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": 2.0}, "steps must be a whole number of at least 1, not 2.0"),
        ({"algorithm": None}, "needs an algorithm or its text, .* not None"),
        ({"algorithm": "asylpg", "steps": 1}, "1 steps are over with the prelude"),
        ({"optimizer": True, "gradient": None, "steps": 3}, "steps=3 goes with gradient=…"),
        ({"gradient": None}, "needs a torch.optim.Optimizer .* not None"),
    ],
)
def test_what_does_not_go_together_is_refused_and_the_model_left_alone(
    given: dict[str, Any], reason: str
) -> None:
    def body(wire: Wire) -> None:
        model = net()
        places = [p.data_ptr() for p in model.parameters()]
        settings: dict[str, Any] = {"algorithm": "sgd", "gradient": lambda batch: 0.0, **given}
        if given.get("optimizer"):
            settings["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(SettingError, match=reason):
            attach(model, comm=wire, **settings)
        assert places == [p.data_ptr() for p in model.parameters()]

    on_threads(2, body)


def test_ranks_of_which_some_have_an_optimizer_disagree() -> None:
    def body(wire: Wire) -> None:
        model = net()
        given: dict[str, Any] = {"gradient": lambda batch: 0.0}
        if wire.rank == 1:
            given = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        with pytest.raises(DisagreementError, match="the ranks disagree about optimizer"):
            attach(model, algorithm="sgd", comm=wire, **given)

    on_threads(2, body)

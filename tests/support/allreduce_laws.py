"""What the compressed allreduce keeps, over threads and over processes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from qsparse.allreduce import CompressedAllreduce
from qsparse.compressors import QSGD, TopK
from qsparse.errors import DisagreementError, NotFinite, RankError, SettingError
from qsparse.memory import Draft, ErrorFeedback, Innovation, Stateless
from qsparse.seeds import Seed
from qsparse.wire.base import Wire


def share(rank: int, step: int = 0, shape: tuple[int, ...] = (23,), dtype: Any = np.float32) -> np.ndarray:
    """What a rank brings: values that float32 holds exactly."""
    return np.random.default_rng((rank, step)).normal(size=shape).astype(np.float32).astype(dtype)


def sum_in_order(arrays: list[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(arrays[0])
    for array in arrays:
        total += array
    return total


def mean_in_order(arrays: list[np.ndarray]) -> np.ndarray:
    return sum_in_order(arrays) / arrays[0].dtype.type(len(arrays))


@dataclass(frozen=True)
class Counting(ErrorFeedback):
    """Error feedback that forgets by the number of messages: its state holds a number and a text."""

    registered_name = "counting"

    def init(self, start: np.ndarray) -> dict[str, Any]:
        return super().init(start) | {"messages": 0, "mood": "new"}

    def commit(self, state: dict[str, Any], draft: Draft) -> np.ndarray:
        assert (state["mood"] == "new") == (state["messages"] == 0)
        free = super().commit(state, draft)
        state["messages"] += 1
        state["mood"] = "old"
        state["residual"] /= state["messages"]
        return free


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What `numpy.savez` and `numpy.load` make of a state: everything is an array."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def identity_is_the_exact_mean(wire: Wire) -> None:
    """To the bit, in rank order; in place, into ``out``, of any shape and both types; the sum, too."""
    for dtype in (np.float32, np.float64):
        for shape in ((23,), (4, 5), (2, 3, 4), (1,), (), (0,), (3, 0)):
            allreduce = CompressedAllreduce(wire, "float32", "stateless")
            summing = CompressedAllreduce(wire, "float32", "stateless", op="sum")
            for step in range(3):
                arrays = [share(rank, step, shape, dtype) for rank in range(wire.size)]
                expected = mean_in_order(arrays)

                x = arrays[wire.rank].copy()
                assert allreduce(x) is x
                assert x.dtype == dtype
                assert np.array_equal(x, expected)
                assert x.shape == shape

                x, out = arrays[wire.rank].copy(), np.full(shape, np.nan, dtype)
                x.flags.writeable = False
                assert allreduce(x, out) is out
                assert np.array_equal(out, expected)
                assert np.array_equal(x, arrays[wire.rank]), "x stays as it is where out is given"

                assert np.array_equal(summing(x, out), sum_in_order(arrays))
                assert np.array_equal(x, arrays[wire.rank])


def every_rank_gets_the_same_bits(wire: Wire) -> None:
    """With random operators and memories; seen by a second, exact, allreduce of the difference."""
    exact = CompressedAllreduce(wire, "float32", "stateless", op="sum")
    for compressor in ("topk(k=5) >> qsgd(levels=3)", "randk(k=5) >> sign", "blockwise(ternary, size=7)"):
        for memory in ("stateless", "errorfeedback", "innovation"):
            allreduce = CompressedAllreduce(wire, compressor, memory, seed=5)
            for step in range(5):
                mine = allreduce(share(wire.rank, step))
                zero = mine if wire.rank == 0 else np.zeros_like(mine)
                assert mine.tobytes() == exact(zero.copy()).tobytes()


def it_is_the_mean_of_what_compressors_make(wire: Wire) -> None:
    """Against the compressor itself and a memory by hand."""
    compressor = TopK(k=5) >> QSGD(7)
    allreduce = CompressedAllreduce(wire, compressor, ErrorFeedback(), seed=9)
    residuals = [np.zeros(23) for _ in range(wire.size)]
    for step in range(1, 8):
        said = []
        for rank in range(wire.size):
            target = residuals[rank] + share(rank, step, dtype=np.float64)
            payload = compressor.compress(target, Seed(9, rank=rank, step=step, use="up"))
            said.append(compressor.decompress(payload, np.empty(23)))
            residuals[rank] = target - said[-1]
        result = allreduce(share(wire.rank, step, dtype=np.float64))
        assert np.array_equal(result, mean_in_order(said))


def error_feedback_reaches_the_mean(wire: Wire) -> None:
    """On a standing vector the mean of T results is off by O(1/T); without a memory it stays off."""
    dense = np.mean([share(rank, dtype=np.float64) for rank in range(wire.size)], axis=0)
    errors = {}
    for memory in ("errorfeedback", "stateless"):
        allreduce = CompressedAllreduce(wire, "topk(k=3)", memory)
        total, seen = np.zeros(23), []
        for _ in range(200):
            total += allreduce(share(wire.rank, dtype=np.float64))
            seen.append(total.copy())
        errors[memory] = [float(np.abs(seen[T - 1] / T - dense).max()) for T in (20, 200)]
    assert errors["errorfeedback"][1] < 0.15 * errors["errorfeedback"][0]
    assert errors["errorfeedback"][1] < 0.05
    assert errors["stateless"][1] > 0.1


def _told(
    wire: Wire, allreduce: CompressedAllreduce, guilty: int, call: Callable[[], Any], error: Any
) -> None:
    """The guilty rank's call raises the error there, and RankError with its words everywhere else."""
    name = error.__name__
    step = allreduce.calls + 1
    if wire.rank == guilty:
        with pytest.raises(error):
            call()
    else:
        with pytest.raises(RankError, match=f"rank {guilty}, step {step}: {name}: .") as caught:
            allreduce(share(wire.rank))
        assert (caught.value.rank, caught.value.step) == (guilty, step)


def a_failed_call_leaves_no_trace(wire: Wire) -> None:
    """What is wrong is raised on every rank, nobody waits, and the next call finds the memory unharmed."""
    frozen = share(wire.rank)
    frozen.flags.writeable = False
    poison = share(wire.rank)
    poison[7] = np.nan
    for guilty in range(wire.size):
        for memory in ("errorfeedback", "innovation"):
            allreduce, twin = (CompressedAllreduce(wire, "topk(k=3) >> sign", memory) for _ in range(2))
            for step in range(3):
                assert np.array_equal(allreduce(share(wire.rank, step)), twin(share(wire.rank, step)))
            calls: list[tuple[Callable[[], Any], Any]] = [
                (lambda a=allreduce: a(poison), NotFinite),  # type: ignore[misc]
                (lambda a=allreduce: a(np.zeros(23, np.int64)), SettingError),  # type: ignore[misc]
                (lambda a=allreduce: a([1.0] * 23), SettingError),  # type: ignore[misc]
                (lambda a=allreduce: a(np.zeros(46, np.float32)[::2]), SettingError),  # type: ignore[misc]
                (lambda a=allreduce: a(frozen), SettingError),  # type: ignore[misc]
                (lambda a=allreduce: a(share(0), np.zeros(22, np.float32)), SettingError),  # type: ignore[misc]
                (lambda a=allreduce: a(np.zeros(22, np.float32)), SettingError),  # type: ignore[misc]
                (lambda a=allreduce: a(np.zeros(23)), SettingError),  # type: ignore[misc]
            ]
            for call, error in calls:
                _told(wire, allreduce, guilty, call, error)
            # The number of a call names its random numbers; these parts have none.
            for step in range(3, 6):
                assert np.array_equal(allreduce(share(wire.rank, step)), twin(share(wire.rank, step)))


def ranks_with_different_arrays_or_settings_disagree(wire: Wire) -> None:
    """On every rank alike, before anything is exchanged; and the objects go on once they agree."""
    if wire.size == 1:
        return
    last = wire.rank == wire.size - 1
    allreduce = CompressedAllreduce(wire, "topk(ratio=0.2)")
    with pytest.raises(DisagreementError, match=rf"elements: rank 0 has 22 and rank {wire.size - 1} has 23"):
        allreduce(np.ones(23 if last else 22, np.float32))
    with pytest.raises(DisagreementError, match=r"type: rank 0 has 'float32' and rank . has 'float64'"):
        allreduce(np.ones(5, np.float64 if last else np.float32))
    for name, ours, theirs in (
        ("link", {}, {"compressor": "sign"}),
        ("op", {}, {"op": "sum"}),
        ("seed", {"seed": 1}, {"seed": 2}),
    ):
        with pytest.raises(DisagreementError, match=f"disagree about {name}"):
            CompressedAllreduce(wire, **{"compressor": "topk(k=1)", **(theirs if last else ours)})
    # A part that one rank cannot make is told to the others, which would wait for it otherwise.
    with pytest.raises(SettingError if last else RankError, match="k must be a whole number"):
        CompressedAllreduce(wire, "topk(k=0)" if last else "topk(k=1)")
    one, four = np.eye(5, dtype=np.float32)[[0, 4]]
    assert np.array_equal(allreduce(one + 4 * four), 4 * four)


def a_saved_memory_goes_on(wire: Wire) -> None:
    """Saved after three of six calls and loaded into a new object: the bits of an uninterrupted run."""
    for memory in (Stateless(), ErrorFeedback(0.9), Innovation(), Counting()):
        for stored in (dict, through_a_file):
            make = lambda memory=memory: CompressedAllreduce(wire, TopK(k=4) >> QSGD(3), memory, seed=2)  # noqa: E731
            whole, first, second = make(), make(), make()
            for step in range(3):
                assert np.array_equal(whole(share(wire.rank, step)), first(share(wire.rank, step)))
            state = stored(first.state_dict())
            kept = {name: np.copy(value) for name, value in state.items()}
            first(share(wire.rank, 77))
            assert all(np.array_equal(state[name], kept[name]) for name in kept), "a saved state is a copy"
            second.load_state_dict(state, like=share(wire.rank))
            for step in range(3, 6):
                assert np.array_equal(whole(share(wire.rank, step)), second(share(wire.rank, step)))
            assert all(np.array_equal(state[name], kept[name]) for name in kept), "and stays one"

            # The state of an object that was never called starts a used one anew.
            first.load_state_dict(stored(make().state_dict()), like=share(wire.rank))
            assert first.calls == 0
            anew = make()
            for step in range(2):
                assert np.array_equal(first(share(wire.rank, step)), anew(share(wire.rank, step)))


def a_state_that_does_not_fit_changes_nothing(wire: Wire) -> None:
    """What differs is said, whatever it is, and the object that refused goes on as it was."""
    compressor, zeros = "topk(k=4)", np.zeros(23, np.float32)
    used, twin = (CompressedAllreduce(wire, compressor, "errorfeedback") for _ in range(2))
    states = {}
    for memory in ("stateless", "errorfeedback"):
        saved = CompressedAllreduce(wire, compressor, memory)
        states[memory] = saved.state_dict(), (saved(share(wire.rank)), saved.state_dict())[1]
    for step in range(2):
        assert np.array_equal(used(share(wire.rank, step)), twin(share(wire.rank, step)))

    def refused(match: str, state: dict[str, Any], like: np.ndarray = zeros, **settings: Any) -> None:
        if settings:
            made = CompressedAllreduce(
                wire, **{"compressor": compressor, "memory": "errorfeedback", **settings}
            )
            with pytest.raises(SettingError, match=match):
                made.load_state_dict(state, like)
            assert (made.calls, made._ends) == (0, None)
        else:
            with pytest.raises(SettingError, match=match):
                used.load_state_dict(state, like)

    fresh, good = states["errorfeedback"]
    for state in states["stateless"]:
        refused(r"link is .* stateless' there and .* errorfeedback' here: load it into", state)
    for state in (fresh, good):
        refused(r"link is .* errorfeedback' there and .* stateless' here", state, memory="stateless")
        refused("op is 'mean' there and 'sum' here", state, op="sum")
        refused("seed is 0 there and 1 here", state, seed=1)
        refused("ranks is 9 there", state | {"ranks": 9})
        for name in ("link", "calls"):
            refused(f"{name} .*there", {key: value for key, value in state.items() if key != name})
        refused("calls is 'three' there", state | {"calls": "three"})
    refused("elements is 23 there and 2 here", good, np.zeros(2, np.float32))
    refused("type is 'float32' there and 'float64' here", good, np.zeros(23))
    refused("op is 'mean' there and 'sum' here; seed is 0 there and 1 here", good, op="sum", seed=1)
    refused("no sender.residual there", {k: v for k, v in good.items() if k != "sender.residual"})
    refused("no sender.other here", good | {"sender.other": 1})
    refused(r"receiver.residual is float32\(1,\) there", good | {"receiver.residual": np.ones(1, np.float32)})
    refused("receiver.residual is float64", good | {"receiver.residual": np.ones(23)})
    refused("receiver.residual is 7 there", good | {"receiver.residual": 7})
    for step in range(2, 5):
        assert np.array_equal(used(share(wire.rank, step)), twin(share(wire.rank, step)))


def ranks_that_go_on_from_different_calls_disagree(wire: Wire) -> None:
    """A state that only some ranks loaded, or the states of two calls, are no start."""
    if wire.size == 1:
        return
    allreduce = CompressedAllreduce(wire, "topk(k=4)")
    states = []
    for step in range(2):
        allreduce(share(wire.rank, step))
        states.append(allreduce.state_dict())
    resumed, partly = (CompressedAllreduce(wire, "topk(k=4)") for _ in range(2))
    resumed.load_state_dict(states[wire.rank == 0], like=share(wire.rank))
    with pytest.raises(DisagreementError, match="calls: rank 0 has 2 and rank 1 has 1"):
        resumed(share(wire.rank))
    if wire.rank == 0:
        partly.load_state_dict(states[1], like=share(wire.rank))
    with pytest.raises(DisagreementError, match="calls: rank 0 has 2 and rank 1 has 0"):
        partly(share(wire.rank))
    resumed.load_state_dict(states[1], like=share(wire.rank))
    assert np.array_equal(resumed(share(wire.rank, 2)), allreduce(share(wire.rank, 2)))


LAWS = (
    identity_is_the_exact_mean,
    every_rank_gets_the_same_bits,
    it_is_the_mean_of_what_compressors_make,
    error_feedback_reaches_the_mean,
    a_failed_call_leaves_no_trace,
    ranks_with_different_arrays_or_settings_disagree,
    a_saved_memory_goes_on,
    a_state_that_does_not_fit_changes_nothing,
    ranks_that_go_on_from_different_calls_disagree,
)

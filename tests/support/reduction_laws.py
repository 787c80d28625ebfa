"""What the compressed allreduce keeps over every exchange, over threads and over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from allreduce_laws import mean_in_order, share, sum_in_order, through_a_file

from qsparse.allreduce import CompressedAllreduce
from qsparse.errors import DisagreementError, NotFinite, RankError, SettingError
from qsparse.wire.base import Wire

#: Those whose exact results are the same bits; with a root that is not rank 0, too.
ALIKE = ("allgather", "server", "tree(root=1)", "sharded")
#: Where a rank that speaks for a machine compresses what it has heard compressed.
TWICE = "nodes(outer=server, ranks=2, recompress=true)"
#: And machines of two ranks, which say their mean.
EXCHANGES = (*ALIKE, "nodes(outer=server, ranks=2)", "nodes(outer=sharded, ranks=2)", TWICE)

Law = Callable[[Wire, str], None]


def fits(memory: str, exchange: str) -> bool:
    """A memory that knows what the other end knows is refused where there is another end at home."""
    return memory != "innovation" or exchange != TWICE


def results(
    wire: Wire, shape: tuple[int, ...], dtype: Any = np.float32, calls: int = 4, **settings: Any
) -> bytes:
    """What a rank gets in some calls, by turns in place and elsewhere."""
    allreduce = CompressedAllreduce(wire, **settings)
    found = []
    for step in range(calls):
        x = share(wire.rank, step, shape, dtype)
        found.append(allreduce(x, np.full_like(x, np.nan) if step % 2 else None).tobytes())
    return b"".join(found)


def exact_results_do_not_depend_on_it(wire: Wire, exchange: str) -> None:
    """Bit for bit: all memories and both types, arrays that some ranks have no stretch of, mean and sum."""
    for compressor, memory, shape, dtype, op in (
        ("float32", "stateless", (23,), np.float32, "sum"),
        ("float32", "stateless", (3, 2), np.float64, "mean"),
        ("topk(k=2) >> qsgd(levels=3, scaled=true)", "errorfeedback", (2,), np.float32, "mean"),
        ("topk(k=2) >> qsgd(levels=3, scaled=true)", "errorfeedback", (23,), np.float32, "mean"),
        ("topk(k=2) >> sign", "innovation", (23,), np.float32, "sum"),
        ("topk(k=2) >> sign", "innovation", (23,), np.float64, "mean"),
        ("blockwise(sign, size=5)", "errorfeedback", (23,), np.float64, "sum"),
    ):
        if not fits(memory, exchange):
            continue
        same: dict[str, Any] = {"compressor": compressor, "memory": memory, "seed": 4, "op": op}
        found = results(wire, shape, dtype, exchange=exchange, **same)
        if exchange in ALIKE[1:]:
            assert found == results(wire, shape, dtype, exchange="allgather", **same), (same, shape)
        mine = np.frombuffer(found, np.uint8).astype(np.float32)
        total = CompressedAllreduce(wire, "float32", "stateless", op="sum")(mine.copy())
        assert np.array_equal(total, wire.size * mine), "every rank has the same bytes"


def a_dense_result_is_the_mean(wire: Wire, exchange: str) -> None:
    """In rank order; over machines but for rounding, and the sum, too; of nothing as well."""
    for op, combined in (("mean", mean_in_order), ("sum", sum_in_order)):
        for shape in ((4, 5), (0,)):
            allreduce = CompressedAllreduce(wire, "float32", "stateless", exchange=exchange, op=op)
            for step in range(2):
                wanted = combined([share(rank, step, shape) for rank in range(wire.size)])
                found = allreduce(share(wire.rank, step, shape))
                if exchange in ALIKE:
                    assert found.tobytes() == wanted.tobytes()
                assert np.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def compressed_results_lose_nothing(wire: Wire, exchange: str) -> None:
    """Over one coordinator, or over none, the same bits; and later calls say the rest."""
    same: dict[str, Any] = {"compressor": "topk(k=5)", "down": "topk(ratio=0.3) >> sign", "seed": 4}
    found = results(wire, (23,), np.float64, exchange=exchange, **same)
    if exchange in ALIKE and exchange != "sharded":
        assert found == results(wire, (23,), np.float64, exchange="allgather", **same)
    dense = np.mean([share(rank, dtype=np.float64) for rank in range(wire.size)], axis=0)
    allreduce = CompressedAllreduce(wire, exchange=exchange, **same)
    total, mine, off = np.zeros(23), share(wire.rank, dtype=np.float64), []
    for step in range(1, 41):
        total += allreduce(mine, np.empty(23))
        off.append(float(np.abs(total / step - dense).max()))
    assert off[-1] < 0.3 * off[5]
    assert off[-1] < 0.4


def what_fails_on_a_rank_leaves_no_trace(wire: Wire, exchange: str) -> None:
    """It is raised on every rank, nobody waits, and the next call finds all memories as they were."""
    poison = share(wire.rank)
    poison[7] = np.inf
    for memory, down in (("innovation", None), ("errorfeedback", "topk(ratio=0.4)")):
        if not fits(memory, exchange):
            continue
        settings: dict[str, Any] = {"compressor": "topk(k=3) >> sign", "memory": memory, "exchange": exchange}
        allreduce, twin = (CompressedAllreduce(wire, **settings, down=down) for _ in range(2))
        for guilty in range(wire.size):
            bad: tuple[tuple[Any, type[Exception]], ...] = (
                (poison.copy(), NotFinite),
                ([1.0] * 23, SettingError),
                (np.zeros(22, np.float32), SettingError),
            )
            for x, error in bad:
                with pytest.raises((error, RankError)) as caught:
                    allreduce(x if wire.rank == guilty else share(wire.rank))
                assert type(caught.value) is (error if wire.rank == guilty else RankError)
                if isinstance(caught.value, RankError):
                    assert (caught.value.rank, caught.value.step) == (guilty, allreduce.calls)
                    assert caught.value.reason.startswith(f"{error.__name__}: ")
            mine = share(wire.rank, guilty)
            assert np.array_equal(allreduce(mine.copy()), twin(mine.copy()))


def a_memory_goes_on_over_it(wire: Wire, exchange: str) -> None:
    """Saved after two calls and loaded into a new object, which keeps the exchange."""
    for memory, down, dtype in (
        ("errorfeedback", "topk(ratio=0.3) >> sign", np.float32),
        ("innovation", None, np.float64),
        ("innovation", "qsgd(levels=3, scaled=true)", np.float32),
    ):
        if not fits(memory, exchange):
            continue
        settings: dict[str, Any] = {"compressor": "topk(k=4)", "memory": memory, "down": down, "seed": 2}
        first = CompressedAllreduce(wire, exchange=exchange, **settings)
        second = CompressedAllreduce(wire, **settings)
        for step in range(2):
            first(share(wire.rank, step, dtype=dtype))
        second.load_state_dict(through_a_file(first.state_dict()), like=np.zeros(23, dtype))
        assert second.exchange == first.exchange
        for step in range(2, 4):
            x = share(wire.rank, step, dtype=dtype)
            assert np.array_equal(first(x.copy()), second(x.copy()))


def other_settings_are_refused(wire: Wire, exchange: str) -> None:
    """On every rank; an object with another exchange, or other answers, takes no state of this one."""
    mine = "topk(ratio=0.3)" if wire.rank == 0 else "topk(ratio=0.4)"
    with pytest.raises(DisagreementError, match="disagree about down: rank 0 has 'topk"):
        CompressedAllreduce(wire, exchange=exchange, down=mine)
    other = "sharded" if exchange != "sharded" else "server"
    with pytest.raises(DisagreementError, match=r"disagree about exchange: rank 0 has '.*' and rank 1 has '"):
        CompressedAllreduce(wire, exchange=exchange if wire.rank == 0 else other)
    allreduce = CompressedAllreduce(wire, "topk(k=4)", exchange=exchange)
    allreduce(share(wire.rank))
    state = allreduce.state_dict()
    for match, made in (
        ("exchange is '.*' there and '.*' here", {"exchange": other}),
        ("down is 'exact' there and 'sign | errorfeedback", {"exchange": exchange, "down": "sign"}),
    ):
        with pytest.raises(SettingError, match=match):
            CompressedAllreduce(wire, "topk(k=4)", **made).load_state_dict(state, np.zeros(23, np.float32))


REDUCTION_LAWS: tuple[Law, ...] = (
    exact_results_do_not_depend_on_it,
    a_dense_result_is_the_mean,
    compressed_results_lose_nothing,
    what_fails_on_a_rank_leaves_no_trace,
    a_memory_goes_on_over_it,
    other_settings_are_refused,
)

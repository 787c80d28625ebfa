"""Which arrays a `CompressedAllreduce` takes, and that every rank brings one of the same shape."""

from __future__ import annotations

import array
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import mpi_run

from qsparse.allreduce import CompressedAllreduce
from qsparse.errors import DisagreementError, RankError, SettingError
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

F = np.float32


class Meters(np.ndarray):
    """Values that mean more than their memory says, as arrays with units do."""


def masked() -> Any:
    return np.ma.array(np.array([1, 1e20, 3, 4], F), mask=[False, True, False, False])


def misaligned() -> np.ndarray:
    return np.frombuffer(bytearray(17), np.uint8)[1:].view(F)


def read_only() -> np.ndarray:
    x = np.ones(4, F)
    x.flags.writeable = False
    return x


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (masked, r"masked array, .* would be sent: pass x.filled\(0\), or x.data"),
    "nothing masked": (lambda: np.ma.ones(4, F), "masked array"),
    "matrix": (
        lambda: np.ones((2, 2), F).view(np.matrix),
        r"not of type numpy.matrix: pass numpy.asarray\(x\)",
    ),
    "subclass": (lambda: np.ones(4, F).view(Meters), r"not of type .*Meters: pass numpy.asarray\(x\)"),
    "records": (lambda: np.rec.array(np.zeros(2, [("a", F)])), "not of type numpy.*recarray"),
    "structured": (lambda: np.zeros(2, [("a", F)]), "not one of .*'a'"),
    "objects": (lambda: np.array([1.0, None], object), "not one of object"),
    "other bytes": (
        lambda: np.ones(4, np.dtype(F).newbyteorder()),
        "bytes are in another order than the machine",
    ),
    "half": (lambda: np.ones(4, np.float16), r"not one of float16: pass its values as float32 \(astype\)"),
    "long": (lambda: np.ones(4, np.longdouble), "not one of float"),
    "complex": (lambda: np.ones(4, np.complex64), "not one of complex64"),
    "whole": (lambda: np.ones(4, np.int64), "not one of int64"),
    "truth": (lambda: np.ones(4, bool), "not one of bool"),
    "list": (lambda: [1.0, 2.0], r"not of type builtins.list: pass numpy.asarray\(x, numpy.float32\)"),
    "bytes": (lambda: memoryview(np.ones(4, F)), "not of type builtins.memoryview"),
    "array": (lambda: array.array("f", [1, 2]), "not of type array.array"),
    "scalar": (lambda: F(3), "not of type numpy.float32"),
    "nothing": (lambda: None, "not of type builtins.NoneType"),
    "columns": (lambda: np.asfortranarray(np.ones((2, 3), F)), r"pass numpy.ascontiguousarray\(x\)"),
    "gaps": (lambda: np.ones(8, F)[::2], "contiguous"),
    "backwards": (lambda: np.ones(4, F)[::-1], "contiguous"),
    "spread": (lambda: np.broadcast_to(F(1), (4,)), "contiguous"),
    "misaligned": (misaligned, r"does not begin at a multiple of 4 bytes of memory: pass x.copy\(\)"),
    "read-only": (read_only, "nowhere to go: x is read-only, give out="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_array_is_refused(name: str) -> None:
    """On the rank that brought it, with what to do; the others are told, and all go on with the next call."""
    make, reason = REFUSED[name]

    def body(wire: Wire) -> None:
        allreduce = CompressedAllreduce(wire, "float32", "stateless", op="sum")
        x = make() if wire.rank == 1 else np.ones(4, F)
        with pytest.raises((SettingError, RankError), match=reason) as caught:
            allreduce(x)
        assert type(caught.value) is (SettingError if wire.rank == 1 else RankError)
        assert allreduce(np.ones(4, F)).tolist() == [2.0] * 4

    run_threads(2, body, timeout=60)


def test_a_tensor_is_refused() -> None:
    torch = pytest.importorskip("torch")

    def body(wire: Wire) -> None:
        with pytest.raises(SettingError, match=r"x must be .* not of type torch.Tensor: pass x.numpy\(\)"):
            CompressedAllreduce(wire)(torch.ones(4))

    run_threads(1, body)


def test_where_the_result_goes_is_looked_at_as_well() -> None:
    def body(wire: Wire) -> None:
        allreduce = CompressedAllreduce(wire, "float32", "stateless")
        x = np.arange(4, dtype=F)
        for out, reason in (
            (np.ma.zeros(4, F), "out is a masked array"),
            (np.zeros(8, F)[::2], "out must be contiguous"),
            (read_only(), "nowhere to go: out is read-only"),
            (np.zeros((4, 1), F), r"out is float32\(4, 1\) and x float32\(4,\)"),
            (np.zeros(4), r"out is float64\(4,\) and x float32\(4,\)"),
        ):
            with pytest.raises(SettingError, match=reason):
                allreduce(x, out)
        assert x.tolist() == [0, 1, 2, 3]

    run_threads(1, body)


def test_memory_that_is_mapped_or_overlaps_is_taken(tmp_path: Path) -> None:
    def body(wire: Wire) -> None:
        allreduce = CompressedAllreduce(wire, "float32", "stateless", op="sum")
        mapped = np.memmap(tmp_path / f"{wire.rank}", F, "w+", shape=(4,))
        mapped[:] = [1, 2, 3, 4]
        assert allreduce(mapped) is mapped
        assert mapped.tolist() == [2, 4, 6, 8]
        room = np.arange(5, dtype=F)
        assert allreduce(room[:-1], room[1:]).tolist() == [0, 2, 4, 6]
        assert room.tolist() == [0, 0, 2, 4, 6]

    run_threads(2, body, timeout=60)


# --- shapes --------------------------------------------------------------------------------------


def test_ranks_bring_the_same_shape() -> None:
    """As many elements in another order are other elements."""

    def body(wire: Wire) -> None:
        allreduce = CompressedAllreduce(wire, "float32", "stateless")
        x = np.arange(6, dtype=F).reshape((2, 3) if wire.rank == 0 else (3, 2))
        with pytest.raises(DisagreementError, match=r"shape: rank 0 has \[2, 3\] and rank 1 has \[3, 2\]"):
            allreduce(x)
        assert x.ravel().tolist() == [0, 1, 2, 3, 4, 5]
        assert allreduce(np.full((2, 3), wire.rank, F)).tolist() == [[0.5] * 3] * 2

    run_threads(2, body, timeout=60)


@pytest.mark.parametrize("other", [(3, 2), (6,), (1, 6), (2, 3, 1), (2, 4), ()])
@pytest.mark.parametrize("changing", [(0,), (1,), (0, 1)], ids=str)
def test_a_shape_does_not_change_between_calls(other: tuple[int, ...], changing: tuple[int, ...]) -> None:
    """On one rank or on all: every rank is told both, and the object goes on as if nothing had been asked."""

    def body(wire: Wire) -> None:
        allreduce, twin = (CompressedAllreduce(wire, "topk(k=2)", "errorfeedback") for _ in range(2))
        x = np.arange(6, dtype=F).reshape(2, 3) + wire.rank
        for once in (allreduce, twin):
            once(x.copy())
        reason = re.escape(f"serves arrays of float32(2, 3), and was called with float32{other}: make one")
        with pytest.raises((SettingError, RankError), match=reason):
            allreduce(np.zeros(other, F) if wire.rank in changing else x.copy())
        assert np.array_equal(allreduce(x.copy()), twin(x.copy()))

    run_threads(2, body, timeout=60)


def test_a_saved_state_knows_its_shape() -> None:
    def body(wire: Wire) -> None:
        saved, fresh, old = (CompressedAllreduce(wire, "topk(k=2)", "errorfeedback") for _ in range(3))
        x = np.arange(6, dtype=F).reshape(2, 3)
        saved(x.copy())
        state = saved.state_dict()
        with pytest.raises(SettingError, match=r"shape is '\(2, 3\)' there and '\(3, 2\)' here"):
            fresh.load_state_dict(state, like=np.zeros((3, 2), F))
        fresh.load_state_dict(state, like=x)
        with pytest.raises(
            SettingError, match=r"arrays of float32\(2, 3\), and was called with float32\(6,\)"
        ):
            fresh(np.zeros(6, F))
        # Versions before this one did not save it; then the array that is like it says.
        del state["shape"]
        old.load_state_dict(state, like=x)
        wanted = saved(x.copy())
        assert np.array_equal(fresh(x.copy()), wanted)
        assert np.array_equal(old(x.copy()), wanted)

    run_threads(1, body)


# --- versions ------------------------------------------------------------------------------------


def test_ranks_of_different_versions_disagree_at_the_start() -> None:
    pytest.importorskip("mpi4py")
    program = """
        from mpi4py import MPI
        import qsparse
        from qsparse.errors import DisagreementError
        from qsparse.wire.mpi import MpiWire

        comm = MPI.COMM_WORLD
        if comm.rank == 1:
            qsparse._version.__version__ = "99.0"
        wire = MpiWire(comm)
        try:
            qsparse.CompressedAllreduce(wire)
        except DisagreementError as error:
            print(f"{error}\\n", end="", flush=True)
        wire.close()
    """
    lines = mpi_run(2, program, timeout=150).stdout.splitlines()
    assert len(lines) == 2
    assert all("disagree about qsparse: rank 0 has" in line and "rank 1 has '99.0'" in line for line in lines)

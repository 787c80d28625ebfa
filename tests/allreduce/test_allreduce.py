"""`CompressedAllreduce` as bodies for any wire; over threads here, over processes below."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from allreduce_laws import LAWS, share
from mpirun import clean_environment, mpi_run

from qsparse.allreduce import CompressedAllreduce
from qsparse.compressors import Float32, Sign, TopK
from qsparse.errors import SettingError
from qsparse.kernels import threads as kernel_threads
from qsparse.memory import ErrorFeedback
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

SIZES = (1, 2, 3, 4)


# --- laws: bodies for any wire -------------------------------------------------------------------


# --- over threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("size", SIZES)
def test_threads_obey(law: Callable[[Wire], None], size: int) -> None:
    run_threads(size, law, timeout=30)


def test_parts_are_given_as_parts_or_as_text() -> None:
    def body(wire: Wire) -> None:
        text = CompressedAllreduce(wire, "topk(k=2) >> sign", "errorfeedback(decay=0.5)")
        assert text.link == CompressedAllreduce(wire, TopK(k=2) >> Sign(), ErrorFeedback(0.5)).link
        default = CompressedAllreduce(wire)
        assert default.link.compressor == TopK(ratio=0.01) >> Sign()
        assert default.link.memory == ErrorFeedback()

    run_threads(1, body)


@pytest.mark.parametrize("op", ["max", "Mean", "", None])
def test_an_op_is_mean_or_sum(op: Any) -> None:
    def body(wire: Wire) -> None:
        with pytest.raises(SettingError, match=f"op must be 'mean' or 'sum', not {op!r}"):
            CompressedAllreduce(wire, op=op)

    run_threads(1, body)


def test_the_ledger_counts() -> None:
    """Paper bits of one message a call; wire bytes of the copies that were sent."""

    def body(wire: Wire) -> dict[str, Any]:
        allreduce = CompressedAllreduce(wire, Float32(), "stateless")
        for _ in range(4):
            allreduce(share(wire.rank))
        return allreduce.ledger.snapshot()

    for counted in run_threads(3, body, timeout=30):
        assert counted["messages"] == {"up": 4, "down": 0}
        assert counted["paper_bits"] == {"up": 4 * 32 * 23, "down": 0}
        frame = 48 + 2 + 4 * 23  # header, coding of the indices and of the values, values
        assert counted["wire_bytes"]["up"] == 4 * 2 * frame


# --- over processes ------------------------------------------------------------------------------


def test_processes_obey() -> None:
    """On the four of COMM_WORLD, on both halves of it at the same time, and on three of it beside one."""
    pytest.importorskip("mpi4py")
    program = """
        from mpi4py import MPI
        import numpy as np
        import qsparse.allreduce
        from allreduce_laws import LAWS
        from reduction_laws import what_fails_on_a_rank_leaves_no_trace, exact_results_do_not_depend_on_it
        from qsparse.wire.mpi import MpiWire

        world = MPI.COMM_WORLD
        half = world.Split(world.rank % 2, key=-world.rank)
        three = world.Split(world.rank == 3)
        for law in LAWS:
            wire = MpiWire(world)
            law(wire)
            wire.close()
        for exchange in ("tree(root=1)", "sharded", "nodes(outer=server)"):
            wire = MpiWire(world)
            exact_results_do_not_depend_on_it(wire, exchange)
            what_fails_on_a_rank_leaves_no_trace(wire, exchange)
            wire.close()
        for part in (half, three):
            wire = MpiWire(part)
            for law in LAWS:
                law(wire)
            wire.close()
        for comm in (world, half, three, MPI.COMM_SELF):
            allreduce = qsparse.allreduce.CompressedAllreduce(comm, "float32", "stateless", op="sum")
            x = np.full((2, 2), 1.0 + comm.rank, np.float32)
            assert allreduce(x)[1, 1] == comm.size * (comm.size + 1) / 2
            allreduce.close()
        print(f"obeyed on {world.size}, {half.size} and {three.size}\\n", end="", flush=True)
        half.Free()
        three.Free()
    """
    printed = mpi_run(4, program, timeout=90, env={"PYTHONWARNINGS": "error"}).stdout.splitlines()
    assert sorted(printed) == ["obeyed on 4, 2 and 1", *["obeyed on 4, 2 and 3"] * 3]


def test_torch_is_not_needed() -> None:
    pytest.importorskip("mpi4py")
    program = (
        "import sys, numpy\n"
        "from mpi4py import MPI\n"
        "from qsparse.allreduce import CompressedAllreduce\n"
        "x = CompressedAllreduce(MPI.COMM_SELF, 'topk(k=1) >> sign')(numpy.array([1.0, -2.0]))\n"
        "assert x.tolist() == [0, -2], x\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=clean_environment())


def test_threads_change_no_bits_and_at_least_one_is_needed() -> None:
    x = np.random.default_rng(1).standard_normal(400_000).astype(np.float32)

    def told(threads: int) -> list[bytes]:
        def body(wire: Wire) -> list[bytes]:
            allreduce = CompressedAllreduce(wire, "topk(ratio=0.01) >> qsgd(levels=3)", threads=threads)
            return [
                allreduce(x * np.float32(wire.rank + step), np.empty_like(x)).tobytes() for step in (1, 2)
            ]

        try:
            return run_threads(2, body)[1]
        finally:
            kernel_threads.use(1)

    assert told(2) == told(1)
    with pytest.raises(SettingError, match="a rank has at least one thread, not 0"):
        run_threads(1, lambda wire: CompressedAllreduce(wire, threads=0))

"""Each preset is its paper's algorithm: compared, step by step, with `transcriptions`.

Those whose workers do not wait are in `test_presets_async`, but for real processes. Everything runs in
float64 from a float32 start, so that selections and signs, which a rounding could tip, are the same on both
sides; what travels is float32 on both sides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mpirun import mpi_run
from paper_runs import CASES, STEPS, WORKERS, Case, Still, compare, counted, made, trained
from paper_runs_async import CASES as WITHOUT_WAITING

from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import AllGather, Exchange, ParameterServer, TreeBroadcast
from qsparse.registry import build
from qsparse.rounds.node import Node, averaging
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_preset_is_its_paper(case: Case) -> None:
    algorithm = made(case)
    star = natural_exchange(algorithm)
    models, *others = run_threads(
        WORKERS + (not star.works), lambda wire: trained(wire, algorithm, star, case.still), timeout=60
    )
    for other in others:
        # Who is not asked is not told, but in the end all are.
        told = [STEPS] if algorithm.participation.claims.chooses else models
        assert all(np.array_equal(models[t], other[t]) for t in told)
    compare(case, models)


def test_blocks_are_of_a_size_or_of_layers() -> None:
    """Not both."""
    for name in ("dist-ef-blocksgd", "dist-ef-blocksgdm"):
        with pytest.raises(SettingError, match="give one of size, layers and bucket"):
            build(f"{name}(size=8, bucket=9)", "algorithm")


def test_lazy_workers_skip() -> None:
    """Some rounds, not all; each step is a message or a skip; a skip costs no paper bits."""
    for text, still in (
        ("lag-wk(lr=0.05)", True), ("laq(lr=0.05)", True), ("lag-ps(lr=0.05)", True),
        ("slaq(lr=0.05, floor=2.0)", False), ("lasg-wk1(lr=0.05)", False), ("lasg-wk2(lr=0.05)", False),
    ):  # fmt: skip
        _, spoken, skipped = counted(text, still)
        assert spoken + skipped == WORKERS * STEPS
        assert WORKERS < spoken < 0.9 * WORKERS * STEPS, text
        assert skipped > 0


def test_batch_statistics_are_averaged_though_workers_are_lazy() -> None:
    """What is averaged beside a lazy algorithm meets every time: a skipped statistic would count as zero."""
    beside = averaging(build("laq", "algorithm"))

    def body(wire: Wire) -> list[float]:
        node = Node(beside, ParameterServer(), wire, np.zeros(2), Seed(0), (), wire.ledger)
        # Reports that shrink, which a lazy worker would keep to itself.
        means = [float(node.meet(np.full(2, -(wire.rank + 1.0) / t), t)[0]) for t in range(1, 30)]
        assert wire.ledger.skips == 0
        return means

    wanted = np.cumsum([2.0 / t for t in range(1, 30)])
    for means in run_threads(3, body, timeout=30):
        np.testing.assert_allclose(means, wanted, rtol=1e-5)


def test_lazy_needs_a_server_with_a_step_size() -> None:
    """The rule is relative to it."""
    with pytest.raises(CompositionError, match=r"lazy.*step size"):
        check(replace(build("laq", "algorithm"), server=Still()), ParameterServer(), 2)


@pytest.fixture(scope="module")
def star() -> dict[int, np.ndarray]:
    """The models of the last case, over a star."""
    algorithm = made(CASES[-1])
    return run_threads(WORKERS, lambda wire: trained(wire, algorithm, ParameterServer()), timeout=60)[0]


@pytest.mark.parametrize("exchange", [TreeBroadcast(root=2), AllGather(), ParameterServer(root=1)], ids=repr)
def test_exchange_does_not_matter(star: dict[int, np.ndarray], exchange: Exchange) -> None:
    """Random operators included: the same bits, whoever coordinates."""
    algorithm = made(CASES[-1])
    for models in run_threads(WORKERS, lambda wire: trained(wire, algorithm, exchange), timeout=60):
        assert models.keys() == star.keys()
        assert all(np.array_equal(models[t], star[t]) for t in star)


#: Fewer than over threads, whole rounds of every case; a wire has no say in how an algorithm goes on.
STEPS_OVER_MPI = 56


def test_presets_over_mpi() -> None:
    """One case of each, in one job of real processes: those that wait on three ranks of four.

    Where workers wait, all models are the same bit for bit.
    """
    pytest.importorskip("mpi4py")
    program = """
        import sys
        from mpi4py import MPI
        import paper_runs as together
        import paper_runs_async as apart
        from qsparse.exchange import TreeBroadcast
        from qsparse.wire.mpi import MpiWire

        steps, world = int(sys.argv[1]), MPI.COMM_WORLD
        working = world.Split(world.rank == 0, world.rank)
        if world.rank:
            wire = MpiWire(working)
            for case in together.one_of_each(together.CASES):
                algorithm = together.made(case, steps)
                # A coordinator that asks needs a rank of its own, and answers nobody alike.
                if not algorithm.participation.claims.chooses:
                    models = together.trained(wire, algorithm, TreeBroadcast(root=1), case.still, steps)
                    bits = working.gather({t: model.tobytes() for t, model in models.items()})
                    if wire.rank == 0:
                        together.compare(case, models, steps)
                        assert all(each == bits[0] for each in bits), case.text
                        print("compared", case.name)
            wire.close()
        wire = MpiWire()
        for case in together.one_of_each(apart.CASES):
            run = apart.trained(wire, apart.made(case.text))
            if wire.rank == 0:
                apart.compare(case, run)
                assert len({rank for rank, _ in run.order}) == wire.size - 1
                print("compared", case.name)
        wire.close()
    """
    printed = mpi_run(WORKERS + 1, program, STEPS_OVER_MPI, timeout=150).stdout.splitlines()
    cases = {case.name: made(case) for case in CASES}
    wait = [name for name, algorithm in cases.items() if not algorithm.participation.claims.chooses]
    assert sorted(printed) == sorted(
        f"compared {name}" for name in {*wait, *(c.name for c in WITHOUT_WAITING)}
    )

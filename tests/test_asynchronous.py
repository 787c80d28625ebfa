"""Workers that do not wait for each other, on threads and under mpirun."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mpirun import mpi_run

from qsparse.algorithm import Algorithm, Async, Sync, check
from qsparse.compressors import Float32, decompress
from qsparse.errors import CompositionError, RankError, SettingError
from qsparse.exchange import AllGather, ParameterServer
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.registry import build
from qsparse.rounds.asynchronous import Answered, leave, serve
from qsparse.rounds.synchronous import Station, rounds
from qsparse.seeds import Seed
from qsparse.triggers import Every, RandomGap
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

N = 40
SERVER = ParameterServer(works=False)
START = np.linspace(-1, 1, N, dtype=np.float32)


def algorithm(**parts: Any) -> Algorithm:
    """Plain parts unless given."""
    return replace(Algorithm(local=SGD(0.1), meeting=Async()), **parts)


class Reports:
    """Oracle of a quadratic whose minimum depends on the rank; collects what a rank reports."""

    def __init__(self, rank: int) -> None:
        self.target = np.full(N, rank, np.float32)

    def __call__(self, x: np.ndarray, batch: Any, out: np.ndarray) -> float:
        np.subtract(x, self.target, out=out)
        return float(np.sum(out * out) / 2)


def job(chosen: Algorithm, steps: int, begin: Any = None) -> Any:
    """A body for `run_threads`: the arrivals and the model at the coordinator, the model elsewhere."""

    def body(wire: Wire) -> tuple[list[Answered], np.ndarray]:
        x = START.copy()
        station = Station(chosen, SERVER, wire, x, Seed(3), (), Ledger())
        workers = SERVER.workers(wire.size)
        if (desk := station.desk) is not None:
            meeting = chosen.meeting
            assert isinstance(meeting, Async)
            return list(serve([desk], meeting, wire, workers)), desk.model
        hook = None if begin is None else lambda t: begin(wire.rank, t)
        try:
            for _ in rounds(chosen, station, x, steps, Reports(wire.rank), lambda t: None, begin=hook):
                pass
        except Exception as error:
            SERVER.tell(wire, error, 1)
            raise
        (final,) = leave(wire, 0, steps)
        return [], decompress(final, x)

    return body


def test_one_worker_is_synchronous_bit_for_bit() -> None:
    """With nobody to wait for, waiting makes no difference."""
    chosen = algorithm(
        trigger=RandomGap(4), up=Link(build("topk(k=5) >> sign", "compressor"), ErrorFeedback())
    )
    ((_, at_server), (_, at_worker)) = run_threads(2, job(chosen, 60), timeout=60)

    def synchronous(wire: Wire) -> np.ndarray:
        x = START.copy()
        # The same stream of gaps: an asynchronous worker draws its own, here rank 1's.
        own = replace(chosen, meeting=Sync())
        station = Station(own, SERVER, wire, x, Seed(3), (), Ledger())
        station.seat.trigger_state = own.trigger.init(Seed(3, rank=1, use="trigger"))
        for _ in rounds(own, station, x, 60, Reports(wire.rank), lambda t: None):
            pass
        return x

    together = run_threads(2, synchronous, timeout=60)
    assert at_server.tobytes() == at_worker.tobytes() == together[1].tobytes()


@pytest.mark.parametrize("down", [Link(), Link(build("blockwise(sign, size=8)", "compressor"), Innovation())])
def test_every_report_counts_once_with_one_over_r(down: Link) -> None:
    """The final model is the start minus a third of all reports, and every rank ends with it."""
    chosen = algorithm(trigger=RandomGap(5), down=down)
    (arrivals, model), *others = run_threads(4, job(chosen, 50), timeout=60)
    reports = np.zeros(N)
    for arrival in arrivals:
        reports += decompress(arrival.report, np.empty(N, np.float32))
    np.testing.assert_allclose(model, START - reports / 3, rtol=1e-4, atol=1e-5)
    assert all(x.tobytes() == model.tobytes() for _, x in others)
    # Each worker took part until its last step, at steps of its own.
    steps = {rank: [a.report.step for a in arrivals if a.rank == rank] for rank in (1, 2, 3)}
    assert all(found[-1] == 50 and max(np.diff([0, *found])) <= 5 for found in steps.values())
    assert len({tuple(found) for found in steps.values()}) == 3
    # Staleness is what others said since the answer before.
    last: dict[int, int] = {}
    for number, arrival in enumerate(arrivals):
        if arrival.rank in last:
            assert 0 <= arrival.staleness <= number - last[arrival.rank] - 1
        last[arrival.rank] = number


def test_a_down_link_remembers_each_worker_by_itself() -> None:
    """With innovations down, each worker is answered with the model, whatever others were told."""
    chosen = algorithm(down=Link(Float32(), Innovation()))

    def body(wire: Wire) -> list[np.ndarray]:
        station = Station(chosen, SERVER, wire, START, Seed(3), (), Ledger())
        if (desk := station.desk) is not None:
            models: dict[int, list[np.ndarray]] = {1: [], 2: []}
            for arrival in serve([desk], Async(), wire, (1, 2)):
                models[arrival.rank].append(desk.model.copy())
            return models[1] + models[2]
        v = np.random.default_rng(wire.rank).standard_normal(N).astype(np.float32)
        heard = [station.meet(v, t).copy() for t in range(1, 20)]
        leave(wire, 0, 19)
        return heard

    said, *heard = run_threads(3, body, timeout=60)
    np.testing.assert_allclose(said, heard[0] + heard[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ahead", [0, 2])
def test_nobody_runs_further_ahead_than_allowed(ahead: int) -> None:
    """While rank 1 stands still at its fourth step, the others get as far as the bound, and no further."""
    moved_on = threading.Event()
    too_far: list[int] = []

    def begin(rank: int, t: int) -> None:
        if rank == 1 and t == 4:
            time.sleep(0.5)
            moved_on.set()
        elif rank != 1 and t > 4 + ahead and not moved_on.is_set():
            too_far.append(t)

    (arrivals, _), *_ = run_threads(4, job(algorithm(meeting=Async(ahead)), 12, begin), timeout=60)
    assert not too_far
    count = dict.fromkeys((1, 2, 3), 0)
    for arrival in arrivals:
        # Who reports was answered before, when the bound held; since then it has moved on by one.
        assert count[arrival.rank] - min(count.values()) <= ahead
        count[arrival.rank] += 1
    assert set(count.values()) == {12}


def test_who_waited_is_told_the_model_of_the_moment() -> None:
    """Held back until the slowest has caught up, an answer has in it what came meanwhile."""
    chosen = algorithm(meeting=Async(ahead=0))
    order: list[int] = []

    def body(wire: Wire) -> Any:
        station = Station(chosen, SERVER, wire, np.zeros(1, np.float32), Seed(0), (), Ledger())
        if (desk := station.desk) is not None:
            answered = []
            for each in serve([desk], Async(ahead=0), wire, (1, 2)):
                order.append(each.rank)
                answered.append((each.rank, each.staleness))
            return answered
        heard = []
        for t in (1, 2):
            if wire.rank == 2:
                time.sleep(0.3)  # rank 1 reports first each time, and must wait
            heard.append(float(station.meet(np.full(1, 10.0**wire.rank, np.float32), t)[0]))
        leave(wire, 0, 2)
        return heard

    answered, one, _ = run_threads(3, body, timeout=30)
    assert one[0] == -(10 + 100) / 2, "its own report, and rank 2's"
    assert answered[:2] == [(1, 0), (2, 1)], "rank 2 was last told nothing, rank 1's report came since"
    assert answered[2] == (1, 0), "what came while it waited was in its answer"


def test_without_a_bound_nobody_waits() -> None:
    """The others finish all their steps while rank 1 stands at its second."""
    done = threading.Barrier(3)

    def begin(rank: int, t: int) -> None:
        if (rank == 1 and t == 2) or (rank != 1 and t == 30):
            done.wait(30)  # breaks, and fails the test, if the others cannot get there

    (arrivals, _), *_ = run_threads(4, job(algorithm(), 30, begin), timeout=60)
    first = [a.rank for a in arrivals].index(1)
    second = [a.rank for a in arrivals].index(1, first + 1)
    assert second >= 2 * 29


def test_a_failing_worker_ends_the_job() -> None:
    """Everybody learns which rank failed."""

    def begin(rank: int, t: int) -> None:
        if rank == 2 and t == 5:
            raise ArithmeticError("out of luck")

    told: dict[int, str] = {}

    def body(wire: Wire) -> Any:
        try:
            return job(algorithm(), 1000, begin)(wire)
        except RankError as error:
            told[wire.rank] = str(error)
            SERVER.tell(wire, error, 0)
            raise

    with pytest.raises(ArithmeticError, match="out of luck"):
        run_threads(4, body, timeout=60)
    assert told == dict.fromkeys((0, 1, 3), "rank 2, step 1: ArithmeticError: out of luck")


def test_two_stations_take_turns() -> None:
    """A worker meets about the model and about what is averaged beside it."""

    def body(wire: Wire) -> np.ndarray:
        chosen = algorithm(trigger=Every(1))
        x, beside = START.copy(), np.full(3, wire.rank, np.float32)
        zero = np.zeros(3, np.float32)
        stations = [
            Station(chosen, SERVER, wire, start, Seed(0), (), Ledger()) for start in (x, zero)
        ]  # fmt: skip
        desks = [station.desk for station in stations if station.desk is not None]
        if desks:
            list(serve(desks, Async(), wire, SERVER.workers(wire.size)))
            return desks[1].model
        for t in range(1, 4):
            stations[0].meet(np.zeros(N, np.float32), t)
            stations[1].meet(-beside, t)
        return decompress(leave(wire, 0, 3)[1], zero)

    for values in run_threads(3, body, timeout=60):
        np.testing.assert_allclose(values, 3 * (1 + 2) / 2)


def test_refusals() -> None:
    """A coordinator that works, or none at all, and a bound below 0."""
    for exchange in (ParameterServer(), AllGather(), ParameterServer(root=1, works=False)):
        with pytest.raises(CompositionError, match=r"server\(works=false\)"):
            check(algorithm(), exchange, 3)
    check(algorithm(up=Link(Float32())), SERVER, 3)
    with pytest.raises(SettingError, match="ahead"):
        Async(ahead=-1)
    with pytest.raises(CompositionError, match="asynchronous"):
        check(algorithm(meeting=build("asynchronous(ahead=2)", "meeting")), ParameterServer(), 3)


def test_trains_under_mpirun(tmp_path: Any) -> None:
    """Real processes train digits, with batch statistics too, and all that was promised is written."""
    import json

    common = ["--exchange", "server(works=false)", "--trigger", "randomgap(H=4)"]
    done = mpi_run(
        4,
        ["-m", "qsparse", "train", *common, "--meeting", "asynchronous(ahead=8)", "--epochs", "15",
         "--out", str(tmp_path)],
        timeout=120,
    )  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.9, done
    assert summary["workers"] == 3
    assert summary["messages"]["up"] == summary["messages"]["down"] > 0
    assert summary["staleness"]["max"] >= summary["staleness"]["mean"] >= 0
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[-1]["paper_bits"] == summary["paper_bits"]
    assert lines[-1]["messages"] == summary["messages"]
    # The coordinator counts what it hears and says as it goes; every step is evaluated once.
    assert len(lines) > 5
    for name in ("paper_bits", "wire_bytes", "messages"):
        ups = [line[name]["up"] for line in lines]
        assert ups == sorted(set(ups)), name
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert set(lines[0]) <= set(lines[-1])
    mpi_run(
        3,
        ["-m", "qsparse", "train", *common, "--meeting", "asynchronous", "--model", "resnet20", "--steps",
         "6", "--out", str(tmp_path)],
        timeout=120,
    )  # fmt: skip

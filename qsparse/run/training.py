"""A complete run, from settings to history."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.exchange import Exchange
from qsparse.exchange.collectives import agree
from qsparse.planning import exchange_for, links_for
from qsparse.registry import build
from qsparse.rounds.state import typed
from qsparse.rounds.warming import warm_algorithm
from qsparse.rules import check
from qsparse.run.checkpoint import Checkpoints, Found, find, try_out
from qsparse.run.job import Job
from qsparse.run.problem import Problem
from qsparse.run.rate import meaning_of_rate
from qsparse.run.records import Progress, Recorder
from qsparse.run.settings import Settings
from qsparse.run.state import JobState
from qsparse.wire.base import Wire


def run(
    make_settings: Callable[[], Settings],
    make_problem: Callable[[Settings], Problem],
    wire: Wire,
    *,
    out: Path | None = None,
    files: Callable[[Settings], Mapping[str, str]] | None = None,
    watcher: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    """Train on this rank, together with all others; collective.

    Args:
        make_settings: called once, on every rank; returns the settings, the same on all of them.
        make_problem: called with the settings, once, on every rank.
        wire: the wire between the ranks.
        out: the folder in which rank 0 writes ``summary.json``, ``history.jsonl`` and ``files``; made if
            missing. No other run can have it until this one ends.
        files: makes further files, text by name, of the settings, e.g. the configuration that repeats the
            run; their exchange is the one that was chosen.
        watcher: is told of the progress on rank 0. Where it or ``out`` is given, messages are looked at.
        checkpoints: whether and where the run writes checkpoints, and from which it goes on; the same on all
            ranks.

    Returns:
        The summary, on rank 0; an empty dictionary elsewhere.

    Raises:
        QsparseError: an error of this rank, or RankError with the error of another rank.
    """
    with contextlib.ExitStack() as held:
        return _run(make_settings, make_problem, wire, held, out, files, watcher, checkpoints)


def _run(
    make_settings: Callable[[], Settings],
    make_problem: Callable[[Settings], Problem],
    wire: Wire,
    held: contextlib.ExitStack,
    out: Path | None,
    files: Callable[[Settings], Mapping[str, str]] | None,
    watcher: Progress | None,
    checkpoints: Checkpoints | None,
) -> dict[str, Any]:
    recorder = Recorder(out if wire.rank == 0 else None, watcher or Progress())
    watched = out is not None or watcher is not None

    def claim() -> tuple[None, Mapping[str, Any]]:
        if (hold := recorder.claim()) is not None:
            held.enter_context(hold)
        # The ranks look for a checkpoint together, so all must look for the same one.
        return None, {"checkpoints": repr(checkpoints)}

    agree(wire, claim)
    found = None if checkpoints is None else find(wire, checkpoints)

    def prepare() -> tuple[Job, Mapping[str, Any]]:
        settings = make_settings()
        settings = replace(settings, exchange=settings.exchange.on(wire))
        settings.exchange.check(wire.size)
        algorithm = settings.algorithm.among(len(settings.exchange.workers(wire.size)))
        check(algorithm, settings.exchange, wire.size)
        _check_ranks(settings, wire.size)
        problem = make_problem(settings)
        steps = _total_steps(settings, problem, wire.size, found)
        prelude = settings.algorithm.prelude
        if prelude is not None and prelude.server.claims.holds and steps <= (prelude.length or 0):
            raise SettingError(
                f"{steps} steps are over with the prelude, which never moves the model: give more steps or "
                "epochs"
            )
        algorithm = algorithm.over(steps)
        warm_algorithm(algorithm, problem.vector, problem.layout, wire.rank)
        if settings.chooses:
            # Messages are made to see how long they are: with kernels that one rank has compiled by now.
            settings = replace(settings, exchange=_chosen(settings, algorithm, problem, wire, found))
        job = Job(settings, algorithm, problem, wire, steps, recorder, watched, checkpoints)
        if found is not None:
            job.resume(found)
        return job, job.fingerprint

    job = agree(wire, prepare)
    if checkpoints is not None and checkpoints.every:
        try_out(wire, checkpoints.folder)
    for text in job.doubts:
        recorder.warn(text)
    workers = len(job.settings.exchange.workers(wire.size))
    if wire.rank == 0 and (note := meaning_of_rate(job.algorithm, workers)) is not None:
        recorder.watcher.noted(note)
    try:
        recorder.files = {} if files is None else files(job.settings)
        recorder.open(job.steps, job.clock, job.lines, _other(found, checkpoints))
        wire.ledger.on_arrival = recorder.arrived
        summary = job.train()
        recorder.write(summary)
        return summary
    except BaseException as error:
        if not job.notified:
            job.settings.exchange.notify(wire, error, job.step)
        raise
    finally:
        recorder.close()


def _chosen(
    settings: Settings, algorithm: Algorithm, problem: Problem, wire: Wire, found: Found | None
) -> Exchange:
    """The exchange of a run that was not told one; a run that goes on keeps its own."""
    if found is not None and (text := found.manifest["settings"].get("exchange")) is not None:
        exchange: Exchange = build(text, "exchange")
        return exchange
    links = links_for(settings.link_rate, settings.link_latency, wire.links)
    return exchange_for(algorithm, problem.vector.size, wire.size, problem.layout, links)


def _total_steps(settings: Settings, problem: Problem, size: int, found: Found | None) -> int:
    """The number T of steps; after a change of ranks an epoch has another number of steps."""
    if found is None or settings.epochs is None:
        return settings.total_steps(problem.steps_per_epoch)
    state = typed(JobState, found.state(0))
    begin, epoch, _ = state.stretches[-1] if found.ranks == size else (found.step, state.epoch, size)
    # Fewer steps than were taken are refused later, when the run goes on; schedules refuse 0 before that.
    left = (settings.epochs - epoch) * problem.steps_per_epoch
    # If an epoch has fewer steps now, a part of a step counts as one.
    return max(1, int(begin + (round(left) or left > 1e-6)))


def _other(found: Found | None, checkpoints: Checkpoints | None) -> Path | None:
    """The folder of the run that this one goes on from, where it is another folder and has a history."""
    if found is None or checkpoints is None:
        return None
    other = found.folder.resolve().parent.parent
    its_own = other == checkpoints.folder.resolve().parent
    return other if not its_own and (other / "history.jsonl").is_file() else None


def _check_ranks(settings: Settings, size: int) -> None:
    """Refuse ranks in the settings that do not exist."""
    workers = set(settings.exchange.workers(size))
    if settings.straggler is not None and settings.straggler[0] not in workers:
        raise SettingError(f"rank {settings.straggler[0]} cannot be the straggler: it is none of the workers")
    if settings.order is None:
        return
    rows = (settings.algorithm, settings.algorithm.prelude)
    if not any(row is not None and not row.meeting.claims.waits for row in rows):
        raise SettingError("an order of arrivals repeats runs whose workers do not wait: this one's do")
    strangers = set(settings.order) - workers
    if strangers:
        raise SettingError(
            f"the order of arrivals has rank {min(strangers)}, which is none of the workers: repeat a run "
            "with as many ranks as it had"
        )

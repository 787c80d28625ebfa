"""The training part of a run on one rank: its steps, reports, evaluations and checkpoints."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from qsparse import _version
from qsparse.algorithm import Algorithm
from qsparse.compressors import Compressor
from qsparse.errors import CheckpointError, SettingError, Stopped
from qsparse.exchange.base import receive_one
from qsparse.exchange.notes import error_payload
from qsparse.ledger import Snapshot, combine
from qsparse.local import Oracle
from qsparse.memory import Memory
from qsparse.payload import Payload, Way, raw
from qsparse.process import notice
from qsparse.promises import doubts
from qsparse.registry import spell
from qsparse.rounds.asynchronous import Answered, Order
from qsparse.rounds.phases import Walk
from qsparse.rounds.state import plain, typed
from qsparse.run import watching
from qsparse.run.checkpoint import GIVEN, Checkpoints, Found, save
from qsparse.run.outcome import Starving, judged
from qsparse.run.records import Recorder
from qsparse.run.resharding import merged, reshard
from qsparse.run.state import JobState
from qsparse.run.summary import summarized
from qsparse.seeds import Seed
from qsparse.types import Vector
from qsparse.wire.base import Wire

if TYPE_CHECKING:
    from qsparse.run import Settings
from qsparse.run.problem import Problem, Score

#: Settings that may change while a run goes on; see `qsparse.run.checkpoint.Found.compare`.
_FREE: Final = ("ranks", "steps", "straggler")


class Job:
    """The training part of a run on one rank."""

    def __init__(
        self,
        settings: Settings,
        algorithm: Algorithm,
        problem: Problem,
        wire: Wire,
        steps: int,
        recorder: Recorder,
        watched: bool,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.settings, self.algorithm, self.problem = settings, algorithm, problem
        self.wire, self.steps, self.recorder = wire, steps, recorder
        wire.ledger.clock = wire
        self.checkpoints = checkpoints
        self._begun = self._spent = 0.0
        self._losses = np.zeros(2)  # sum and number since the last report, or the last epoch
        #: The losses of the last whole epoch, for a worker that reports at the end only.
        self._whole: npt.NDArray[np.float64] | None = None
        self._evaluated = self._watched = 0
        self._record: dict[str, Any] = {}
        self._reported = 0  # the step of the last report
        self._saved = 0  # checkpoints that were due so far
        #: Stretches of the run with the same ranks: the step and the epoch where each began, its workers.
        self._stretches = [(0, 0.0, len(settings.exchange.workers(wire.size)))]
        self._resumed: list[dict[str, Any]] = []
        self.lines: dict[str, int] = {}
        #: Whether an error was told to all ranks.
        self.notified = False
        #: The warnings before the first step.
        self.doubts = doubts(self._links(), problem.vector.size) if wire.rank == 0 else []
        #: The loss at which this rank's first step began.
        self._first: float | None = None
        self._taken = 0  # steps of this rank
        self._end: dict[str, Any] = {}
        self.walk = Walk(
            algorithm, settings.exchange, wire, problem.vector, Seed(settings.seed), problem.layout,
            problem.buffers, Order(settings.order),
        )  # fmt: skip
        self._starving = Starving(self.walk.node.voices)
        # Only the messages of one worker are looked at by layers.
        closely = wire.rank == settings.exchange.workers(wire.size)[0]
        self._sight = watching.Probe(wire.ledger, problem.layout, closely) if watched else None
        # Reports of progress need all ranks; the coordinator of asynchronous workers reports by itself.
        rows = (algorithm, algorithm.prelude)
        meetings = [row.meeting for row in rows if row is not None]
        self._together = all(meeting.claims.waits for meeting in meetings)
        if checkpoints is not None and checkpoints.every and all(not m.claims.waits for m in meetings):
            raise SettingError(
                "workers that do not wait for each other never stand at one step together, so there is no "
                "moment for a checkpoint: use meeting synchronous, or leave checkpoints out"
            )
        self.fingerprint = self._fingerprint()
        # So does evaluating, and all must be told every model.
        self._shared = self._together and not any(
            row is not None and row.participation.claims.chooses for row in rows
        )
        # Workers that do not wait tell their losses at the end; a run that goes by it has it looked at.
        aim = settings.until
        self._looks = not self._together and aim is not None and aim.figure == "train_loss"

    @property
    def step(self) -> int:
        """The step at which this rank is."""
        return self.walk.pace.t

    @property
    def clock(self) -> int:
        """The steps that the run has taken."""
        return self.walk.pace.clock

    def _links(self) -> Iterator[tuple[str, Compressor, Memory]]:
        """The links of all phases, with compressors for this model."""
        for row in filter(None, (self.algorithm, self.algorithm.prelude)):
            for way, link in (("up", row.up), ("down", row.answer)):
                yield way, link.compressor.bind(self.problem.layout), link.memory

    def _fingerprint(self) -> dict[str, Any]:
        """The settings that must be equal on all ranks before the first message."""
        problem = self.problem
        return {
            "qsparse": _version.__version__,
            **self.algorithm.axes(),
            "exchange": spell(self.settings.exchange),
            "ranks": self.wire.size,
            "steps": self.steps,
            "evaluations": self.settings.evaluations,
            "seed": self.settings.seed,
            "straggler": self.settings.straggler,
            "layers": [[layer.name, layer.size] for layer in problem.layout],
            "start": zlib.crc32(raw(problem.vector)) ^ zlib.crc32(raw(problem.buffers)),
            "data": problem.description,
        }

    def _given(self) -> dict[str, Any]:
        """The algorithm as given, before the length of the run, which changes with the ranks, is known."""
        return {f"{axis}{GIVEN}": text for axis, text in self.settings.algorithm.axes().items()}

    def train(self) -> dict[str, Any]:
        """Take all steps; return the summary on rank 0."""
        self._begun = self.wire.now() - self._spent
        problem = self.problem
        oracle = self._oracle()
        # A run that had come to its aim, and then left its last checkpoint, is over.
        over = bool(self.clock) and self._is_over(self.clock)
        for happened in self.walk.steps(
            self.steps, oracle, problem.batch, problem.gradient_vector, self._look, self._is_used
        ):
            if isinstance(happened, Answered):
                self._watch()
                continue
            t = happened.t
            if happened.loss is not None:
                self._losses += (happened.loss, 1)
                self._taken += 1
                if self._first is None:
                    self._first = happened.loss
            if self._together:
                self.recorder.watcher.stepped(t, happened.loss)
                if happened.met and (self._is_due(t) or t == self.steps):
                    self._record = self._report(t)
                    over = self._is_over(t)
            elif t % problem.steps_per_epoch == 0:
                self._whole, self._losses = self._losses, np.zeros(2)
            if happened.met and happened.phase.meeting.claims.waits:
                self._save_if_due()
            if over:
                break
        self.steps = self.clock if self.walk.pace.over else self.steps
        if self._reported != self.steps:
            self._record = self._report(self.steps)
        if self.wire.rank != 0:
            return {}
        return summarized(
            self._record, self._end, self.settings, self.algorithm, problem, self.wire, self.steps,
            self._stretches, self._resumed, self.recorder.warnings, over or self.walk.pace.over,
        )  # fmt: skip

    def _is_over(self, t: int) -> bool:
        """Whether the run has come to what it aims at, as rank 0 tells all; collective."""
        target, wire = self.settings.until, self.wire
        if target is None or t == self.steps or not self._together:
            return False
        if wire.rank == 0:
            over = target.reached(self._record)
            word = Payload.build([b"over" if over else b"on"], way=Way.CONTROL, step=t)
            for rank in range(1, wire.size):
                wire.send([word], rank)
            wire.flush()
        else:
            with wire.at(f"the word whether the run is over after step {t}"):
                over = receive_one(wire, 0)[1].text == "over"
        self.steps = t if over else self.steps
        return over

    def _oracle(self) -> Oracle:
        """The problem's gradient, by the wire's clock; it is slowed down on a straggler."""
        problem, wire, straggler = self.problem, self.wire, self.settings.straggler
        slower = straggler[1] - 1 if straggler is not None and straggler[0] == wire.rank else 0.0

        def gradient(x: Vector, batch: Any, out: Vector) -> float:
            begin = wire.now()
            loss = problem.gradient(x, batch, out)
            wire.worked("compute", problem.steps_per_epoch if batch is None else 1)
            if slower:
                wire.sleep(slower * (wire.now() - begin))
            return loss

        return gradient

    def _look(self, t: int) -> None:
        """Have the messages of step t looked at, if its synchronization may be evaluated."""
        if self._sight is None:
            return
        node = self.walk.node
        if node.flight is not None:
            return  # whose message would be seen depends on how far the round is
        # A worker that does not wait reports at the end only, and counts by its own steps until then. It is
        # not known how many these will be, so its first message is looked at as well.
        alone = not self._together and node.works
        if t == self.steps or (alone and t == 1) or self._is_due(t, note=alone):
            self._sight.look(node)

    def _watch(self) -> None:
        """Evaluate now and then, as the coordinator of workers that do not wait."""
        problem, clock = self.problem, self.walk.pace.clock
        while self._watched < clock:
            self._watched += 1
            self.recorder.watcher.stepped(self._watched, None)
        if clock < self.steps and self._is_due(clock):
            for vector, coordinator in zip(
                (problem.vector, problem.buffers), self.walk.coordinators, strict=False
            ):
                np.copyto(vector, coordinator.model)
            record = {
                "step": clock,
                "epoch": self._epoch(clock),
                "train_loss": problem.training_loss() if self._looks else None,
                **problem.evaluate().figures(),
                **self.walk.tallied(),
                "link_bytes": dict(self.wire.ledger.link_bytes),
                "staleness": self._stale(),
                "seconds": {"total": self.wire.now() - self._begun},
            }
            if self._sight is not None:
                record |= watching.combine([self._sight.report()])
                self._sight.look(self.walk.node)
            self.recorder.add(record)
            aim = self.settings.until
            self.walk.pace.over |= aim is not None and aim.reached(record)

    def _stale(self) -> dict[str, float]:
        counts = self.wire.ledger.staleness
        return {"mean": sum(age * n for age, n in counts.items()) / counts.total(), "max": max(counts)}

    def _is_due(self, t: int, note: bool = True) -> bool:
        """Whether the next evaluation is due at step t, counted in whole numbers, so that none comes twice.

        If ``note`` is true, the evaluation is noted as done.
        """
        per_epoch, evaluations = self.problem.steps_per_epoch, self.settings.evaluations
        t -= self._stretches[-1][0]
        if t * evaluations < (self._evaluated + 1) * per_epoch:
            return False
        if note:
            self._evaluated = t * evaluations // per_epoch
        return True

    def _is_used(self, t: int) -> bool:
        """Whether the model of the synchronization at step t will be evaluated."""
        return not self._together or self._is_due(t, note=False)

    def _epoch(self, t: int) -> float:
        begin, epoch, _ = self._stretches[-1]
        return epoch + (t - begin) / self.problem.steps_per_epoch

    def _is_checkpoint_due(self) -> bool:
        if self.checkpoints is None or not self.checkpoints.every:
            return False
        due, self._saved = self._saved, self.clock // self.checkpoints.every
        return self._saved > due or self.clock == self.steps

    def _save_if_due(self) -> None:
        """Leave a checkpoint where one is due or some rank was asked to stop; all ranks stand at one step.

        Raises:
            Stopped: some rank was asked to stop before the last step.
        """
        due, asked = self._is_checkpoint_due(), self.walk.pace.asked
        where = self.checkpoints
        if where is None or not where.every or not (due or asked):
            return
        try:
            left = save(
                self.wire, where.folder, self.clock, self._state, self.fingerprint | self._given(),
                where.keep, _FREE,
            )  # fmt: skip
        except Exception:
            self.notified = True
            raise
        if asked and self.clock < self.steps:
            self.notified = True
            own = notice.asked() or asked
            some = "" if notice.asked() else " on another rank"
            raise Stopped(
                f"{signal.Signals(own).name}{some} at step {self.clock}: checkpoint {left} left; the same "
                "command with --resume auto goes on from it",
                asked,
            )

    def _state(self) -> dict[str, Any]:
        """What this rank goes on from; random streams and data order are functions of seed and step."""
        state = JobState(
            walk=self.walk.state(),
            ledger=self.wire.ledger.snapshot(),
            losses=self._losses,
            whole=self._whole,
            evaluated=self._evaluated,
            watched=self._watched,
            reported=self._reported,
            record=self._record,
            epoch=self._epoch(self.clock),
            stretches=self._stretches,
            first=self._first,
            taken=self._taken,
            end=self._end,
            resumed=self._resumed,
            seconds=self.wire.now() - self._begun,
            lines=self.recorder.lines(),
            seen=None if self._sight is None else self._sight.state(),
        )
        saved: dict[str, Any] = plain(state)
        return saved

    def resume(self, found: Found) -> None:
        """Take up the state of a checkpoint.

        Raises:
            CheckpointError: it belongs to another run or to one that is over, or it cannot be read.
        """
        with found.understood():
            self._resume(found)

    def _resume(self, found: Found) -> None:
        given = self._given()
        # With other ranks the same epochs are another number of steps, which schedules use. Step sizes for
        # the sum of the workers change as well.
        unbound = self.settings.algorithm
        by_ranks = self.settings.epochs is not None or unbound.among(1) != unbound
        stretched = found.ranks != self.wire.size and by_ranks
        free = (*_FREE, *(self.algorithm.axes() if stretched else given))
        found.compare(self.fingerprint | given, free)
        # A shorter run cannot end at a step of a longer one, which did not end with a report there.
        if found.step > self.steps or (
            found.step == self.steps and self.steps < found.manifest["settings"]["steps"]
        ):
            raise CheckpointError(
                f"the checkpoint {found.folder} was made after step {found.step}, and the run has "
                f"{self.steps}: give it more, or start afresh with resume none"
            )
        note: dict[str, Any] = {"checkpoint": found.folder.name, "step": found.step, "ranks": self.wire.size}
        resharded = found.ranks != self.wire.size
        if resharded:
            states = [typed(JobState, found.state(rank)) for rank in range(found.ranks)]
            state = merged(states, self.wire.rank)
            state.walk, kept = reshard(
                [each.walk for each in states],
                self.algorithm,
                self.settings.exchange,
                self.wire.rank,
                self.wire.size,
            )
            note |= {"from_ranks": found.ranks, **kept}
        else:
            state = typed(JobState, found.state(self.wire.rank))
        self.walk.restore(state.walk, self.problem.gradient_vector)
        self.wire.ledger.resume(state.ledger)
        self._losses += state.losses
        self._whole = state.whole
        self._record, self._reported = state.record, state.reported
        self._watched = state.watched
        self._first, self._taken = state.first, state.taken
        self._end = state.end  # of a checkpoint of the last step
        self._stretches = [tuple(each) for each in state.stretches]
        if resharded:
            workers = len(self.settings.exchange.workers(self.wire.size))
            self._stretches.append((found.step, state.epoch, workers))
        else:
            self._evaluated = state.evaluated
            if self._sight is not None and state.seen is not None:
                self._sight.restore(state.seen, self.walk.node)
        self._resumed = [*state.resumed, note]
        self.lines = state.lines
        self._spent = state.seconds
        if self.checkpoints is not None and self.checkpoints.every:
            self._saved = self.clock // self.checkpoints.every

    def _report(self, t: int) -> dict[str, Any]:
        """Bring counters, losses and scores of all ranks to rank 0, apart from the training."""
        seconds = self.wire.now() - self._begun
        self._reported = t
        losses = self._losses if self._whole is None else self._whole
        mine: dict[str, Any] = {"ledger": self.wire.ledger.snapshot(), "losses": losses.tolist()}
        self._losses[:] = 0
        if self._sight is not None:
            mine["seen"] = self._sight.report()
        if ending := t == self.steps or self.settings.until is not None:
            mine |= {"taken": self._taken, "first": self._first, "again": self._first_again()}
        if self._shared:
            try:
                mine["score"] = self._evaluate(self.wire.rank, self.wire.size)
            except Exception as error:
                if self.wire.rank != 0:  # rank 0 waits for this report, whichever rank coordinates
                    reason = f"{type(error).__name__}: {error}"
                    self.wire.send([error_payload(self.wire.rank, t, reason)], 0)
                raise
        if self.wire.rank != 0:
            body = json.dumps(mine).encode()
            self.wire.send([Payload.build([body], way=Way.CONTROL, origin=self.wire.rank, step=t)], 0)
            return {}
        reports = [mine]
        for rank in range(1, self.wire.size):
            reports.append(json.loads(receive_one(self.wire, rank)[1].text))
        total, count = np.sum([report["losses"] for report in reports], axis=0)
        counted: Snapshot = combine(report["ledger"] for report in reports)
        counted["seconds"]["total"] = seconds
        if self.wire.ledger.staleness:
            counted["staleness"] = self._stale() | {"counts": mine["ledger"]["staleness"]}
        # In rank order, so that the last bit of the loss does not depend on which rank was first.
        scores = [Score(*report["score"]) for report in reports] if self._shared else [self._evaluate()]
        score = Score.total(scores)
        if (word := self._starving.look(counted)) is not None:
            self.recorder.warn(word)
        if ending:
            told = [[each[name] for each in reports if each[name] is not None] for name in ("first", "again")]
            self._end = judged(told[0], told[1], counted, self._epoch(t))
            if not self._together:
                workers = self.settings.exchange.workers(self.wire.size)
                self._end["worker_steps"] = {str(rank): reports[rank]["taken"] for rank in workers}
        record = {
            "step": t,
            "epoch": self._epoch(t),
            # None where no rank has taken a step since the last evaluation, e.g. because no worker was asked.
            "train_loss": total / count if count else None,
            **({"train_loss": self.problem.training_loss()} if self._looks else {}),
            **score.figures(),
            **counted,
            **watching.combine(
                [report["seen"] for report in reports if "seen" in report],
                self.settings.exchange.claims.divides,
            ),
        }
        self.recorder.add(record)
        return record

    def _evaluate(self, rank: int = 0, ranks: int = 1) -> Score:
        """The score of the model that was received last, without what this rank has not reported yet."""
        vector, node = self.problem.vector, self.walk.node
        state = node.worker.state
        ahead = node.algorithm.trigger.claims.may_skip or node.algorithm.meeting.claims.delay > 0
        if state is None or not ahead:
            return self.problem.evaluate(rank, ranks)
        own = vector.copy()
        np.copyto(vector, state["anchor"])
        try:
            return self.problem.evaluate(rank, ranks)
        finally:
            np.copyto(vector, own)

    def _first_again(self) -> float | None:
        """The loss of this rank's first batch at the model that was received last; no state changes."""
        if self._first is None:
            return None
        problem, state = self.problem, self.walk.node.worker.state
        begin, _ = next(self.algorithm.phases(1))
        vectors = (problem.vector, problem.gradient_vector, problem.buffers)
        own = [vector.copy() for vector in vectors]
        try:
            if state is not None and self.walk.node.algorithm.trigger.claims.may_skip:
                np.copyto(problem.vector, state["anchor"])
            batch = None if begin.local.claims.takes_all else problem.batch(1)
            return problem.gradient(problem.vector, batch, problem.gradient_vector)
        finally:
            for vector, before in zip(vectors, own, strict=True):
                np.copyto(vector, before)

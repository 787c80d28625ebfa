"""All ranks in one thread, for more workers than there are cores.

In synchronous rounds the parts, the seeds and the order of sums are those of real ranks, so the bits
are too; only the exchange is missing. Whoever drives the rounds computes the gradients of all workers,
and of many runs, at once: where the model is small, that is one matrix product in place of hundreds.

Asynchronous workers keep the common clock of the papers here: each takes one step at a time, and those
whose sets hold the step meet (Basu et al., 2019, Algorithm 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.registry import spell
from qsparse.rounds.coordinator import Coordinator
from qsparse.rounds.worker import WorkerEnd
from qsparse.rules import check, natural_exchange
from qsparse.seeds import Seed
from qsparse.types import Layout, Vector


class Virtual:
    """The workers and the coordinator of one run.

    Args:
        algorithm: what they do.
        workers: R.
        start: the common starting point, (n,).
        seed: of the run.
        layout: the model's layers.
        ledger: what all of them say together; made here unless given.

    Attributes:
        models: (R, n), each worker's model in a row.
        gradients: (R, n), to be filled with the gradients at ``models`` before each step.
        t: how many steps were taken.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        workers: int,
        start: Vector,
        *,
        seed: Seed = Seed(0),
        layout: Layout = (),
        ledger: Ledger | None = None,
    ) -> None:
        alone = not algorithm.meeting.claims.waits
        exchange = natural_exchange(algorithm)
        size = workers + (not exchange.works)
        algorithm = algorithm.among(workers)
        check(algorithm, exchange, size)
        if algorithm.prelude is not None:
            raise SettingError("virtual workers have one phase")
        if algorithm.meeting.claims.delay:
            raise SettingError("virtual workers adopt answers at once: use delay=0")
        if alone and algorithm.answer.memory.claims.exact:
            algorithm = replace(algorithm, down=Link(algorithm.answer.compressor))  # to the same models
        if alone and algorithm.answer.memory.claims.remembers:
            raise SettingError(
                f"virtual workers that meet at steps of their own share one down link, which cannot remember "
                f"what each of them knows: use down memory stateless, not {spell(algorithm.answer.memory)}"
            )
        if not algorithm.local.claims.asks_once:
            raise SettingError(
                "virtual workers are given one gradient a step, and the local step asks for more"
            )
        self._chooses = algorithm.participation.claims.chooses
        self._exact = algorithm.answer.memory.claims.exact
        self.ledger = ledger or Ledger()
        self.models = np.tile(start, (workers, 1))
        self.gradients = np.zeros_like(self.models)
        self.t = 0
        self._workers = [
            WorkerEnd(algorithm, start, seed.at(rank=rank), layout, self.ledger, True)
            for rank in exchange.workers(size)
        ]
        report = np.empty_like(start)
        for worker, x, gradient in zip(self._workers, self.models, self.gradients, strict=True):
            worker.begin(x, gradient, report)
        self._coordinator = Coordinator(algorithm, start, workers, seed, layout, self.ledger)

    @property
    def model(self) -> Vector:
        """The coordinator's model."""
        return self._coordinator.model

    def step(self, last: bool = False) -> bool:
        """Every worker takes a step with its gradient; those meet for whom it is due, or all at the last.

        Returns:
            Whether anybody met.
        """
        self.t += 1
        for worker in self._workers:
            if worker.asked:
                worker.advance(_filled, None, self.t)
        meeting = [worker for worker in self._workers if worker.due(self.t) or last]
        if meeting:
            self._synchronize(meeting, last)
        return bool(meeting)

    def _synchronize(self, meeting: Sequence[WorkerEnd], last: bool) -> None:
        payloads = []
        for worker in meeting:
            report, change = worker.report()
            payloads.append(worker.message(report, self.t, self.t, change, last))
        # Divided by the number of all workers, however few speak.
        self._coordinator.take(payloads, self.t)
        reply = self._coordinator.reply(self.t, self._coordinator.sender)
        asked = [True] * len(meeting)
        if self._chooses:
            asked = self._coordinator.invited(payloads, self.t, last)
        model = None
        for worker, told in zip(meeting, asked, strict=True):
            answer = reply if told else reply.skip()
            self.ledger.count_message(answer)
            # What one of them makes of an exact answer is the model of all.
            if model is None or not self._exact:
                model = worker.hear([answer], self.t)
            else:
                worker.note(model)
            worker.adopt(model)


def _filled(x: Vector, batch: None, out: Vector) -> float:
    """The oracle: the gradient lies in ``out`` already."""
    return 0.0

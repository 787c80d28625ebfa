"""All ranks in one thread, for more workers than there are cores.

In synchronous rounds the parts, the seeds and the order of sums are those of real ranks, so the bits
are too; only the exchange is missing. Whoever drives the rounds computes the gradients of all workers,
and of many runs, at once: where the model is small, that is one matrix product in place of hundreds.

Asynchronous workers keep the common clock of the papers here: each takes one step at a time, and those
whose sets hold the step meet (Basu et al., 2019, Algorithm 2).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qsparse.algorithm import Algorithm, Async
from qsparse.errors import SettingError
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.memory import Stateless
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
        alone = isinstance(algorithm.meeting, Async)
        exchange = natural_exchange(algorithm)
        size = workers + (not exchange.works)
        algorithm = algorithm.among(workers)
        check(algorithm, exchange, size)
        if algorithm.prelude is not None:
            raise SettingError("virtual workers have one phase")
        if alone and algorithm.answer.memory.exact:
            algorithm = replace(algorithm, down=Link(algorithm.answer.compressor))  # to the same models
        if alone and not isinstance(algorithm.answer.memory, Stateless):
            raise SettingError(
                f"virtual workers that meet at steps of their own share one down link, which cannot remember "
                f"what each of them knows: use down memory stateless, not {spell(algorithm.answer.memory)}"
            )
        if not algorithm.local.asks_once:
            raise SettingError(
                "virtual workers are given one gradient a step, and the local step asks for more"
            )
        self.local = algorithm.local.bind(layout)
        self._asks = algorithm.trigger.asks
        self._exact = algorithm.answer.memory.exact
        self.ledger = ledger or Ledger()
        self.models = np.tile(start, (workers, 1))
        self.gradients = np.zeros_like(self.models)
        self.t = 0
        self._states = [self.local.init(x, g) for x, g in zip(self.models, self.gradients, strict=True)]
        self._seats = [
            WorkerEnd(algorithm, start, seed.at(rank=rank), layout, self.ledger, True)
            for rank in exchange.workers(size)
        ]
        self._desk = Coordinator(algorithm, start, workers, seed, layout, self.ledger)
        self._report = np.empty_like(start)

    @property
    def model(self) -> Vector:
        """The coordinator's model."""
        return self._desk.model

    def step(self, last: bool = False) -> bool:
        """Every worker takes a step with its gradient; those meet for whom it is due, or all at the last.

        Returns:
            Whether anybody met.
        """
        self.t += 1
        for worker, state in zip(self._seats, self._states, strict=True):
            if worker.asked:
                self.local.advance(state, _filled, None, self.t)
        due = [worker.due(self.t) for worker in self._seats]  # each keeps a count of its own
        pairs = zip(self._seats, self._states, due, strict=True)
        meeting = [(worker, state) for worker, state, now in pairs if now or last]
        if not meeting:
            return False
        payloads = [
            worker.message(
                self.local.report(state, self._report), self.t, self.t, self.local.change(state), last
            )
            for worker, state in meeting
        ]
        # Divided by the number of all workers, however few speak.
        self._desk.take(payloads, self.t)
        reply = self._desk.reply(self.t, self._desk.sender)
        asked = [True] * len(meeting)
        if self._asks:
            asked = self._desk.asks(payloads, self.t, last)
        model = None
        for (worker, state), told in zip(meeting, asked, strict=True):
            answer = reply if told else reply.skip()
            self.ledger.count_message(answer)
            # What one of them makes of an exact answer is the model of all.
            if model is None or not self._exact:
                model = worker.hear(answer, self.t)
            else:
                worker.note(model)
            self.local.heard(state, model, worker.sent)
        return True


def _filled(x: Vector, batch: None, out: Vector) -> float:
    """The oracle: the gradient lies in ``out`` already."""
    return 0.0

"""The settings of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError
from qsparse.exchange import Exchange, ParameterServer
from qsparse.planning import links_for
from qsparse.run.target import Target


@dataclass(frozen=True)
class Settings:
    """What a run does, apart from its problem.

    Args:
        algorithm: the parts; a learning rate that is open becomes the usual one.
        exchange: the pattern of messages.
        chooses: that is the algorithm's own exchange, and another one takes its place where it is faster
            with this model, algorithm and number of ranks (`qsparse.planning.exchange_for`).
        link_rate, link_latency: of the links for which it is chosen, as text; None: what the wire knows, else
            the usual (`qsparse.planning.links_for`).
        epochs: how often a worker sees its share of the data; or
        steps: how many steps a worker takes.
        seed: the seed of everything random.
        evaluations: how many evaluations there are in an epoch, each at the next synchronization.
        order: the ranks whose reports are taken one after the other, to repeat a run whose workers did
            not wait for each other; its ``arrivals.jsonl`` has them.
        until: the run is over at the first evaluation with this figure; None: after all steps.
        straggler: (rank, factor), to see the effect of a slow rank on a run: its gradients take so many
            times as long as they would.
    """

    algorithm: Algorithm
    exchange: Exchange = field(default_factory=ParameterServer)
    chooses: bool = False
    link_rate: str | None = None
    link_latency: str | float | None = None
    epochs: float | None = None
    steps: int | None = None
    seed: int = 0
    evaluations: int = 1
    order: tuple[int, ...] | None = None
    until: Target | None = None
    straggler: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "algorithm", self.algorithm.closed())
        links_for(self.link_rate, self.link_latency)  # refuses what is no rate, or no time
        if (self.epochs is None) == (self.steps is None):
            raise SettingError("give either epochs or steps")
        for name in ("epochs", "steps", "evaluations"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingError(f"{name} must be positive and finite, not {value}")
        if self.straggler is not None and not 1 <= self.straggler[1] <= 1000:
            raise SettingError(
                f"a straggler takes 1 to 1000 times as long as others, not {self.straggler[1]}"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number T of steps."""
        return self.steps or max(1, round((self.epochs or 0) * steps_per_epoch))

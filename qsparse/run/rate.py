"""What a learning rate is the rate of, where workers do not wait for each other."""

from __future__ import annotations

from qsparse.algorithm import Algorithm
from qsparse.registry import spell


def meaning_of_rate(algorithm: Algorithm, workers: int) -> str | None:
    """A sentence about the step size of asynchronous workers; None where all meet, as it is usual then.

    A step of the run is one step of each worker. Where a server rule takes each report for itself, as AsyLPG
    does, its step size is that of one report, so a step of the run moves the model R times. Elsewhere a
    report counts 1/R, so the reports of R workers move it together as those of one synchronous round would.

    Args:
        algorithm: the parts.
        workers: R, how many report.

    >>> from qsparse.registry import build
    >>> meaning_of_rate(build("qsparse-local-sgd-async(lr=0.1)", "algorithm"), 4).partition(":")[0]
    'the learning rate is per step of a worker'
    >>> meaning_of_rate(build("asylpg", "algorithm"), 4).partition(":")[0]
    'the learning rate is per report'
    """
    if algorithm.meeting.claims.waits:
        return None
    local, server = spell(algorithm.local), spell(algorithm.server)
    if algorithm.server.claims.per_arrival:
        return (
            f"the learning rate is per report: {server} takes a whole step at each report, so {workers} "
            f"workers move the model {workers} times in one step of the run"
        )
    if algorithm.local.claims.reports_gradient:
        return (
            f"the learning rate is per step of the run: {server} takes 1/{workers} of a step at each report, "
            f"as all {workers} workers report once in one step of the run"
        )
    return (
        f"the learning rate is per step of a worker: {local} takes whole steps, and each report of them "
        f"counts 1/{workers}, as in the mean over {workers} workers that meet"
    )

"""What the double-quantization experiment measured, beside what was published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from qsparse.report.base import Table, mean, number, spread
from qsparse.reproduce.asylpg_rows import DECAY, PUBLISHED, ROWS, UPDATES, Row
from qsparse.reproduce.base import Measured, median


class _Reached(NamedTuple):
    """Where a run first reached a loss."""

    epoch: float
    up: float
    down: float


class Held(NamedTuple):
    """A row beside its baseline: medians of the repetitions.

    Attributes:
        target: the loss to be reached.
        reached: where it was, in each repetition; never: at infinity.
        gain_up, gain: bits of the baseline over those of the row until then, up, and both ways.
    """

    target: float
    reached: list[_Reached]
    gain_up: float
    gain: float


def compare(measured: Measured, case: Measured, row: Row) -> Held:
    """A row beside its baseline."""
    theirs = of(measured, case, row.baseline)
    ours = of(measured, case, row.name)
    targets = [(1 + case["tolerance"]) * _after(run, case["compared"]) for run in theirs]
    reached = [_first(run, target) for run, target in zip(ours, targets, strict=True)]
    base = [_first(run, target) for run, target in zip(theirs, targets, strict=True)]
    pairs = list(zip(base, reached, strict=True))
    return Held(
        median(targets),
        reached,
        median([b.up / r.up for b, r in pairs]),
        median([(b.up + b.down) / (r.up + r.down) for b, r in pairs]),
    )


def _after(run: Measured, epochs: int) -> float:
    return next(float(loss) for epoch, _, _, loss in run["curve"] if epoch == epochs)


def _first(run: Measured, target: float) -> _Reached:
    for epoch, up, down, loss in run["curve"]:
        if loss <= target:
            return _Reached(epoch, up, down)
    return _Reached(math.inf, math.inf, math.inf)


def until(case: Measured, found: dict[str, Held]) -> Table:
    """Bits until the common loss, and gains."""
    rows = []
    for row in ROWS:
        held = found[row.name]
        epochs, up, down = (list(column) for column in zip(*held.reached, strict=True))
        theirs = "" if row.published is None else f"{row.published[PUBLISHED[case['name']]]}"
        rows.append(
            [
                *(row.name, f"{held.target:.5f}", _count(median(epochs)), _spread(epochs)),
                *(_count(median(up)), _count(median(down)), _gain(row, held.gain_up), _gain(row, held.gain)),
                theirs,
            ]
        )
    beside = "real-sim" if case["name"] == "a9a" else "MNIST"
    return Table(
        f"{case['title']}, {case['workers']} workers: paper bits of all workers until a common loss",
        ("", "loss", "epochs", "range", "bits up", "bits down", "gain up", "gain", "published"),
        rows,
        f"Loss: {1 + case['tolerance']:g} times that of AsyFPG (of Acc-AsyFPG where accelerated) after "
        f"{case['compared']} epochs; gains: over it.\n"
        "All dense messages are counted: full gradients up, snapshots down. Medians, repetitions: "
        f"{case['repetitions']}.\n"
        f"Batches of {case['batch']}, {case['inner']} steps between snapshots, b = {case['bits']}, "
        f"μ = {case['mu']:g}{case['also']},\nη = {case['lr']:g} for all rows (also tried: "
        f"{', '.join(f'{lr:g}' for lr in case['tried'])}).\n"
        f"Published: {beside}, not checked against the paper's text.",
    )


def whole(measured: Measured, case: Measured) -> Table:
    """Losses, bits and bytes of the whole runs."""
    rows = []
    for row in ROWS:
        runs = of(measured, case, row.name)
        losses = [run["loss"] for run in runs]
        over = [
            run["loss"] / other["loss"]
            for run, other in zip(runs, of(measured, case, row.baseline), strict=True)
        ]
        counts = [
            number(median([run[kind][way] for run in runs]))
            for kind in ("paper_bits", "wire_bytes")
            for way in ("up", "down")
        ]
        stale = max(run["staleness"]["max"] for run in runs)
        rows.append(
            [
                *(row.name, f"{median(losses):.5f}", _digits(losses), f"{median(over):.4f}"),
                *(*counts, str(stale)),
            ]
        )
    return Table(
        f"{case['title']}: after {case['epochs']} epochs",
        ("", "loss", "range", "over", "paper bits up", "down", "wire bytes up", "down", "stalest"),
        rows,
        f"Loss: f(x) + ({DECAY:g}/2)‖x‖² over all training examples; over: over the loss of the baseline.\n"
        "Stalest: how many reports were taken at most between a model and the report on it.",
    )


def precision(measured: Measured, case: Measured) -> Table:
    """How the models kept the condition, and with how many bits."""
    rows = []
    for row in ROWS:
        pulls = [run["pulls"] for run in of(measured, case, row.name) if run["pulls"]]
        if not pulls:
            continue
        total = sum(each["number"] for each in pulls)
        beyond = sum(each["realised_beyond"] for each in pulls)
        first = pulls[0]
        rows.append(
            [
                *(row.name, number(total)),
                *(
                    f"{max(each[f'{kind}_over_allowed'] for each in pulls):.6f}"
                    for kind in ("expected", "realised")
                ),
                f"{beyond / total:.1%}",
                *(f"{mean([each['bits'] for each in pulls]):.2f}", f"{first['bits_by_epoch'][0]:.1f}"),
                *(f"{first['bits_by_epoch'][-1]:.1f}", f"{first['error_by_epoch'][0]:.2g}"),
                f"{first['error_by_epoch'][-1]:.2g}",
            ]
        )
    return Table(
        f"{case['title']}: the precision of models at every pull",
        ("", "pulls", "expected", "realised", "beyond", "b_x", "first", "last", "error", "last"),
        rows,
        "Expected: the largest E‖Q(x) − x‖² over μ‖x − x̃‖² (times θₛ where accelerated), which may not\n"
        "exceed 1; realised: the largest ‖Q(x) − x‖² over it; beyond: in how many pulls that exceeded 1.\n"
        "b_x and ‖Q(x) − x‖²: means of all pulls, of the first epoch, of the last.",
    )


def other_mus(measured: Measured) -> Table:
    """What μ changes."""
    case = measured["cases"][0]
    own = next(run for run in of(measured, case, "AsyLPG") if run["repetition"] == 0)
    runs = sorted([{**own, "mu": case["mu"]}, *measured["mus"]], key=lambda run: float(run["mu"]))
    rows = [
        [
            *(f"{run['mu']:g}", f"{run['loss']:.5f}", f"{run['pulls']['bits']:.2f}"),
            *(number(run["paper_bits"][way]) for way in ("up", "down")),
        ]
        for run in runs
    ]
    return Table(
        f"{case['title']}: AsyLPG with other μ, after {case['epochs']} epochs",
        ("μ", "loss", "b_x", "paper bits up", "down"),
        rows,
    )


def seconds(measured: Measured) -> Table:
    """Where the seconds go, with more and more workers."""
    rows = []
    for run in measured["split"]:
        worker, coordinator = run["seconds"]["worker"], run["seconds"]["coordinator"]
        rows.append(
            [
                *(f"{run['row']}, {run['workers']} workers", f"{run['loss']:.4f}"),
                *(f"{run['seconds']['total']:.2f}", f"{worker['compute']:.2f}"),
                f"{worker['encode'] + worker['exchange'] + worker['decode']:.2f}",
                *(f"{worker[activity]:.2f}" for activity in ("exchange", "encode", "decode")),
                *(f"{coordinator[activity]:.2f}" for activity in ("encode", "decode")),
                number(sum(run["wire_bytes"][way] for way in ("up", "down")) / 1e6),
            ]
        )
    (case,) = (each for each in measured["cases"] if each["name"] == measured["split"][0]["case"])
    epochs = measured["split"][0]["epochs"]
    return Table(
        f"{case['title']}: seconds for {epochs} epoch{'s' * (epochs > 1)} of {UPDATES} steps of all "
        "workers together",
        (
            *("", "loss", "all", "computing", "communicating", "exchange", "encode", "decode"),
            *("coord. encode", "decode", "wire MB"),
        ),
        rows,
        "Seconds of a worker, the mean over the workers; communicating = exchange + encode + decode.\n"
        "Exchange includes waiting for the coordinator and for a core. Ranks are threads of one machine: a\n"
        "message is copied in memory, which takes next to no time, and workers beyond the cores make\n"
        "nothing quicker. So the seconds show what coding costs, not what fewer bytes save on a network.",
    )


def of(measured: Measured, case: Measured, name: str) -> list[Measured]:
    """The repetitions of a row."""
    return [run for run in measured["runs"] if (run["case"], run["row"]) == (case["name"], name)]


def _gain(row: Row, value: float) -> str:
    return "" if row.name == row.baseline else f"{value:.2f}"


def _count(value: float) -> str:
    return number(value) if value < math.inf else "not reached"


def _spread(values: Sequence[float]) -> str:
    return spread([value for value in values if value < math.inf] or [math.inf])


def _digits(values: Sequence[float]) -> str:
    return f"{min(values):.5f} … {max(values):.5f}" if len(values) > 1 else ""

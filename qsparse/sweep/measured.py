"""What the runs of a sweep measured, and the table of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

from tabulate import tabulate

from qsparse.errors import SettingError
from qsparse.ledger import gains, link_bytes
from qsparse.report.runs import read as left_behind
from qsparse.run.outcome import TRAINED
from qsparse.sweep.methods import Method
from qsparse.sweep.running import Run

#: What was measured, by name: numbers, texts, lists and dictionaries.
Measured = dict[str, Any]

_WAYS = ("up", "down")
#: A run whose accuracy ends below this part of the first method's has collapsed; it is not only slower.
FAR: Final = 0.6
_CURVE = ("step", "epoch", "test_accuracy", "test_loss", "train_loss", "paper_bits", "wire_bytes")
_COUNTED = ("paper_bits", "wire_bytes", "link_bytes")


def read(run: Run) -> Measured:
    """What a run that is done left behind: its summary, and its history without the times."""
    found = left_behind(run.folder)
    assert found is not None
    return {
        "method": run.method,
        "lr": run.lr,
        "seed": run.seed,
        "folder": str(run.folder),
        "command": run.command,
        "summary": found.summary,
        "curve": [
            {name: record[name] for name in _CURVE} | {"link_bytes": dict(link_bytes(record))}
            for record in found.history
        ],
    }


def common_target(runs: Sequence[Measured]) -> tuple[float, str]:
    """The highest accuracy that every run reaches at one of its evaluations, rounded down to 0.001.

    Returns:
        The accuracy, and the method of the run that reaches no higher one: a run that does not learn would
        set it for all, so leave such runs out.
    """

    def most(run: Measured) -> float:
        return max(float(point["test_accuracy"]) for point in run["curve"])

    least = min(runs, key=most)
    return math.floor(most(least) * 1000 + 1e-9) / 1000, least["method"]


def to_target(run: Measured, target: float) -> Measured | None:
    """The run's first evaluation with an accuracy of at least ``target``."""
    found: Measured | None = next((p for p in run["curve"] if p["test_accuracy"] >= target), None)
    return found


def best(runs: Sequence[Measured], target: float | None) -> list[Measured]:
    """Of one method, the runs with the best step size of its grid.

    That is where most seeds ended; of these, if there is a target and all seeds reach it, with the fewest
    paper bits up to it; else with the highest final accuracy.
    """
    by_lr: dict[str | None, list[Measured]] = {}
    for run in runs:
        by_lr.setdefault(run["lr"], []).append(run)

    def worth(same: list[Measured]) -> tuple[float, ...]:
        at = [] if target is None else [to_target(run, target) for run in same]
        bits = -_mean([p["paper_bits"]["up"] for p in at if p]) if at and all(at) else -math.inf
        return len(same), bits, _mean([run["summary"]["test_accuracy"] for run in same])

    return max(by_lr.values(), key=worth, default=[])


def measure(methods: Sequence[Method], runs: Sequence[Measured], target: float | None) -> Measured:
    """The rows of the table: each method with its best step size, held against the first method.

    Args:
        methods: in the order of the rows; one without runs has none.
        runs: of all methods, step sizes and seeds that ended well.
        target: an accuracy; the highest one that all chosen runs reach unless given.
    """
    chosen = {
        each.name: best([run for run in runs if run["method"] == each.name], target) for each in methods
    }
    every = [run for same in chosen.values() for run in same]
    first_ones = chosen[methods[0].name] or every
    least = FAR * _mean([run["summary"]["test_accuracy"] for run in first_ones])
    marks = {name: mark for name, same in chosen.items() if (mark := _mark(same, least)) is not None}
    told = "given"
    if target is None:
        target, by = common_target([run for run in every if run["method"] not in marks] or every)
        told = f"the highest that every run below reaches, rounded down to 0.001; {by} sets it"
        if marks:
            told = told.replace("every run below", "every run below without a mark")
    rows = [
        _row(each, chosen[each.name], target) | {"mark": marks.get(each.name)}
        for each in methods
        if chosen[each.name]
    ]
    dense = rows[0] if rows and rows[0]["method"] == methods[0].name else None
    first = dense["to_target"] if dense and dense["mark"] is None else None
    for row in rows:
        mine = row["to_target"]
        row["gain"] = None
        # What a run saves that has not learned is no gain.
        if first and mine and row["mark"] is None:
            row["gain"] = {name: gains(first[name], mine[name]) for name in _COUNTED}
    return {"target": target, "target_is": told, "gain_is_over": methods[0].name, "rows": rows}


def _mark(runs: Sequence[Measured], least: float) -> str | None:
    """Why the runs of a method are not held against the others'; None where they are.

    Args:
        runs: of one method and step size.
        least: an accuracy below which a run ends far below the first method's.
    """
    outcomes = {run["summary"].get("outcome", TRAINED) for run in runs} - {TRAINED}
    if outcomes:
        return " and ".join(sorted(outcomes))
    if runs and _mean([run["summary"]["test_accuracy"] for run in runs]) < least:
        return "far below"
    return None


def _row(method: Method, runs: Sequence[Measured], target: float) -> Measured:
    at = [to_target(run, target) for run in runs]
    reached = [point for point in at if point]
    accuracies = [run["summary"]["test_accuracy"] for run in runs]
    return {
        "method": method.name,
        "published": method.published,
        "lr": runs[0]["lr"],
        "seeds": [run["seed"] for run in runs],
        "folders": [run["folder"] for run in runs],
        "accuracy": _mean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "in_all": _means(
            [{**run["summary"], "link_bytes": link_bytes(run["summary"])} for run in runs], "steps"
        ),
        "machine_bytes": _mean([_within_machines(run["summary"]) for run in runs]),
        "reached": len(reached),
        # A mean over those seeds that happen to get there would flatter the method.
        "to_target": _means(reached, "step") if len(reached) == len(runs) else None,
    }


def _within_machines(summary: Measured) -> int:
    """The bytes that ranks of one machine have sent each other, reports and answers."""
    found = summary.get("machine_bytes", {})
    return sum(found.get(way, 0) for way in _WAYS)


def _means(points: Sequence[Measured], step: str) -> Measured:
    return {
        "steps": _mean([point[step] for point in points]),
        **{name: {way: _mean([point[name][way] for point in points]) for way in _WAYS} for name in _COUNTED},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(measured: Measured) -> str:
    """Two tables: what each run came to, and what it took to the target."""
    rows = measured["rows"]
    many = any(len(row["seeds"]) > 1 for row in rows)
    grid = any(row["lr"] is not None for row in rows)
    machines = any(row["machine_bytes"] for row in rows)
    sizes = ["link\nbytes", *(f"{what} {way}" for way in _WAYS for what in ("wire\nbytes", "paper\nbits"))]
    fewer = ["fewer\nlink bytes", *(f"fewer\nbytes {way}" for way in _WAYS), "fewer\nbits up", "published"]

    def named(row: Measured) -> list[str]:
        mark = f" ({row['mark']})" if row.get("mark") else ""
        return [row["method"] + mark, *([row["lr"] or ""] if grid else [])]

    def amounts(found: Measured) -> list[str]:
        apart = [found[name][way] for way in _WAYS for name in ("wire_bytes", "paper_bits")]
        return [f"{found['steps']:,.0f}", *map(_short, [sum(found["link_bytes"].values()), *apart])]

    def ended(row: Measured) -> list[str]:
        seeds = [str(len(row["seeds"]))] if many else []
        within = [_short(row["machine_bytes"])] if machines else []
        return [*named(row), _spread(row), *seeds, *amounts(row["in_all"]), *within]

    in_all = [ended(row) for row in rows]
    head = ["", *(["lr"] if grid else [])]
    counted = [*(["seeds"] if many else []), "steps", *sizes, *(["machine\nbytes"] if machines else [])]
    first = _tabulated(in_all, [*head, "accuracy", *counted])
    second = _tabulated(
        [[*named(row), *_towards(row, amounts)] for row in rows],
        [*head, "steps", *sizes, *fewer],
    )
    target = measured["target"]
    above = f"Up to the first evaluation with an accuracy of {target:.4g} ({measured['target_is']})"
    told = "At the end: test accuracy, what crossed the busiest link up and down, and what all sent each way"
    told += "; machine bytes: what ranks of one machine sent each other" if machines else ""
    parts = [told, first, above, second]
    if any(row.get("mark") for row in rows):
        parts.append(
            f"Marked runs diverged, starved, or ended below {FAR:.0%} of the first method's accuracy. "
            "They set no target, and what they did not send is no gain."
        )
    dense = measured["gain_is_over"]
    if not any(row["method"] == dense for row in rows):
        parts.append(f"How many times fewer is against {dense}, of which no run with these settings is done.")
    return "\n\n".join(parts)


def _towards(row: Measured, amounts: Callable[[Measured], list[str]]) -> list[str]:
    if row["to_target"] is None:
        return [f"reached by {row['reached']} of {len(row['seeds'])}", *["–"] * 9, row["published"]]
    gain = row["gain"]
    return [
        *amounts(row["to_target"]),
        *(_times(gain and gain[name][way]) for name, way in _GAINS),
        row["published"],
    ]


_GAINS = (("link_bytes", "all"), ("wire_bytes", "up"), ("wire_bytes", "down"), ("paper_bits", "up"))


def _tabulated(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(head) - 1))
    return str(tabulate(rows, head, tablefmt="simple", disable_numparse=True, colalign=align))


def _spread(row: Measured) -> str:
    deviation = "" if row["deviation"] is None else f" ± {row['deviation']:.4f}"
    return f"{row['accuracy']:.4f}{deviation}"


def _short(value: float) -> str:
    """Whole below a million, else four figures.

    >>> _short(123456), _short(19404000.0)
    ('123,456', '1.940e+07')
    """
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3e}"


def _times(ratio: float | None) -> str:
    """A ratio in three figures.

    >>> _times(2.828), _times(128.6), _times(1991.2), _times(None)
    ('2.83', '129', '1,991', '–')
    """
    if ratio is None:
        return "–"
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def check_target(target: float | None) -> None:
    """Refuse a target that no accuracy is."""
    if target is not None and not 0 < target <= 1:
        raise SettingError(f"--target must be an accuracy above 0 and at most 1, such as 0.9, not {target}")

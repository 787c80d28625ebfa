"""More and more workers of one coordinator: where the seconds go, with full precision and without."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from tabulate import tabulate

from qsparse.bench.ranks import Measured, Place
from qsparse.errors import SettingError
from qsparse.ledger import ACTIVITIES, Ledger
from qsparse.registry import build, parameters, preset_and_settings
from qsparse.run.config import RunConfig
from qsparse.train import train
from qsparse.wire.base import Ranks, Wire

#: The first is the one that the others are compared with.
ALGORITHMS: Final = ("asyfpg", "asylpg", "sparse-asylpg", "acc-asyfpg", "acc-asylpg")
#: With 52,650 parameters on MNIST.
MODEL: Final = "mlp(64, 32)"


def runs_of(
    algorithms: Sequence[str], workers: int, updates: int, **options: Any
) -> list[tuple[str, RunConfig]]:
    """The runs of so many workers, by what their algorithms are called: as many steps of all together.

    Algorithms of the AsyLPG family take one snapshot, before the first step.

    Args:
        algorithms: presets as text, whose workers do not wait.
        workers: how many, beside the coordinator.
        updates: the steps of all workers together.
        **options: of `RunConfig`.

    Raises:
        SettingError: an algorithm, or an option, is none.
    """
    if updates < 1:
        raise SettingError(f"--updates must be at least 1, not {updates}")
    found = []
    for text in algorithms:
        name, settings = preset_and_settings(text)
        steps = max(1, updates // workers)
        chosen = text
        if "inner" in parameters(name, "algorithm") and "inner" not in settings:
            inside = ", ".join([*(f"{key}={value}" for key, value in settings.items()), f"inner={steps}"])
            chosen, steps = f"{name}({inside})", steps + 1
        config = RunConfig(
            algorithm=chosen, ranks=workers + 1, steps=steps, exchange="server(works=false)", **options
        )
        found.append((text, config))
    return found


def measure(place: Place, runs: Sequence[tuple[str, dict[str, Any]]]) -> Measured:
    """Train with each configuration; collective.

    Args:
        place: of this rank.
        runs: what each is called, and its options.
    """
    rows = []
    for name, options in runs:
        place.barrier()
        row = _timed(place.wire, name, RunConfig(**options))
        place.say(f"{row['workers']} workers, {name}: {row['seconds']['total']:.2f} s" if row else "")
        rows.append(row)
    return {"runs": rows}


def simulate(runs: Sequence[tuple[str, RunConfig]], rate: str, latency: float) -> list[Measured]:
    """As `measure` in this process, over a simulated network, as if every rank had a core of its own.

    Args:
        runs: what each is called, and its configuration.
        rate, latency: of the links.
    """
    part: Ranks = build(f"simulated(rate='{rate}', latency={latency}, compute='measured')", "wire")
    rows = []
    for name, config in runs:
        body: Callable[[Wire], Measured] = functools.partial(_timed, name=name, config=config)
        rows.append(part.run(config.ranks or 1, body))
    return rows


def _timed(wire: Wire, name: str, config: RunConfig) -> Measured:
    """What a run came to and where its seconds went, on rank 0; nothing elsewhere."""
    wire.ledger = Ledger()
    summary = train(config, wire).summary
    if wire.rank != 0:
        return {}
    # The means of a summary are over all ranks, and this one is no worker.
    ranks, seconds, own = wire.size, summary["seconds"], wire.ledger.seconds
    return {
        "name": name,
        "workers": ranks - 1,
        "parameters": summary["parameters"],
        "train_loss": summary["train_loss"],
        "test_accuracy": summary["test_accuracy"],
        "link_bytes": summary["busiest_link_bytes"],
        "seconds": {
            "total": seconds["total"],
            "worker": {each: (seconds[each] * ranks - own[each]) / (ranks - 1) for each in ACTIVITIES},
            "coordinator": {each: own[each] for each in ("encode", "decode")},
        },
    }


def table(measured: Measured) -> str:
    """The table of what was measured, as text."""
    runs = measured["runs"]
    first = {run["workers"]: run["seconds"]["total"] for run in reversed(runs)}
    lines = []
    for run in runs:
        worker, coordinator = run["seconds"]["worker"], run["seconds"]["coordinator"]
        total = run["seconds"]["total"]
        lines.append(
            [
                *(str(run["workers"]), run["name"], f"{total:.2f}", f"{first[run['workers']] / total:.2f}"),
                *(f"{worker[each]:.2f}" for each in ACTIVITIES),
                *(f"{coordinator[each]:.2f}" for each in ("encode", "decode")),
                f"{run['link_bytes'] / 1e6:.2f}",
                f"{run['train_loss']:.3f}",
                f"{100 * run['test_accuracy']:.1f}",
            ]
        )
    head = (
        *("workers", "", "seconds", "speed-up", "computing", "encode", "exchange", "decode"),
        *("coord.\nencode", "coord.\ndecode", "MB, busiest\nlink", "training\nloss", "accuracy,\n%"),
    )
    align = ("right", "left", *["right"] * (len(head) - 2))
    network = "a simulated network, a core for each rank" if measured["simulated"] else "this machine"
    return "\n".join(
        [
            f"{measured['updates']:,} steps of all workers together; {runs[0]['parameters']:,} parameters, "
            f"links of {measured['rate']} on {network}, {os.cpu_count()} cores here",
            "",
            tabulate(lines, head, tablefmt="simple", disable_numparse=True, colalign=align),
            "",
            f"Speed-up: over {runs[0]['name']} with as many workers. Computing to decode: of a worker, the",
            "mean; exchange is transmission, and waiting for the coordinator and for a core. MB: both ways.",
        ]
    )


def crews(text: str) -> list[int]:
    """Numbers of workers, from text.

    >>> crews("4,8,12")
    [4, 8, 12]

    Raises:
        SettingError: it is not like that.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise SettingError(f"--workers must be numbers of at least 1 with commas between, not {text!r}")
    return [int(word) for word in words]

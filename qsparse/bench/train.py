"""Time to a test accuracy: local steps and compressed reports compared with torch's DDP and its hooks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tabulate import tabulate

from qsparse.bench.ranks import Measured, Place
from qsparse.errors import SettingError
from qsparse.seeds import Seed

#: The model, with 1,528,350 parameters on MNIST.
MODEL: Final = "mlp(1024, 700)"
#: Examples in one step of a rank.
BATCH: Final = 32
#: Steps from one evaluation to the next, or the number of local steps, if that is larger.
EVERY: Final = 16


class Method(NamedTuple):
    """A method: its name, its step size (the best of ``rates``), and its local steps, 1 for none."""

    name: str
    lr: float
    H: int = 1
    rates: tuple[float, ...] = (0.02, 0.05, 0.1)


METHODS: Final = (
    Method("qsparse-local-sgd", 0.05, 16),
    Method("DDP, dense", 0.05),
    Method("DDP fp16", 0.05),
    Method("DDP PowerSGD, rank 1", 0.02),
    Method("DDP PowerSGD, rank 4", 0.05),
    Method("DDP fp16∘PowerSGD, rank 4", 0.05),
    Method("DDP post-localSGD", 0.05, 32),
)
NAMES: Final = tuple(method.name for method in METHODS)


def measure(
    place: Place,
    methods: Sequence[Sequence[Any]],
    target: float,
    most: float,
    data_dir: str | None,
    seed: int,
) -> Measured:
    """Train with each method until the target is reached; collective.

    Args:
        place: the place of this rank.
        methods: name, step size and local steps of each run.
        target: the test accuracy to reach.
        most: seconds after which a method is given up.
        data_dir: the folder with MNIST.
        seed: the seed of the model, the shares and the batches.
    """
    from qsparse.data import load
    from qsparse.torch import ddp
    from qsparse.torch.loops import make_loop
    from qsparse.torch.problem import use_threads

    use_threads(1)
    wire = place.wire
    data = load("mnist", Path(data_dir) if data_dir else None)
    rows = []
    with ddp.gloo(place.folder, wire.rank, wire.size, place.interface):
        for name, lr, H in methods:
            # Kernels are loaded and connections made before the clock starts.
            warm = make_loop(name, lr, H, data, "mlp(20)", BATCH, wire, Seed(seed))
            for _ in range(H + 2):
                warm.step()
            warm.finish()
            loop = make_loop(name, lr, H, data, MODEL, BATCH, wire, Seed(seed))
            row = _race(place, loop, max(H, EVERY // H * H), len(data.test_y), target, most)
            loop.finish()
            rows.append({"name": name, "lr": lr, "H": H, **row})
            place.say(f"{name}, η = {lr:g}, H = {H}: {_told(row)}")
    return {"data": data.describe(), "model": MODEL, "batch": BATCH, "runs": rows}


def _race(place: Place, loop: Any, every: int, tests: int, target: float, most: float) -> Measured:
    """Train until the target; steps are timed and counted, evaluations are not."""
    seconds, sent, steps, accuracy = 0.0, 0, 0, 0.0
    course = []
    while accuracy < target and seconds < most:
        place.barrier()
        before, begin = place.sent(), time.perf_counter()
        for _ in range(every):
            loop.step()
        place.barrier()
        # All ranks must come to the same decision, so only rank 0's clock counts.
        spent = time.perf_counter() - begin if place.wire.rank == 0 else 0.0
        sent += place.sent() - before
        mine = np.array([spent, loop.right()], np.float64).astype(np.float32)
        together = np.empty_like(mine)
        place.wire.sum_dense(mine, together)
        steps += every
        seconds += float(together[0])
        accuracy = float(together[1]) / tests
        course.append((steps, seconds, accuracy))
    everybody = place.gather(sent)
    return {
        "reached": accuracy >= target,
        "seconds": seconds,
        "steps": steps,
        "accuracy": accuracy,
        "sent": sum(everybody) / max(len(everybody), 1),
        "course": course,
    }


def _told(row: Measured) -> str:
    verdict = "in" if row["reached"] else "NOT REACHED in"
    return f"{row['accuracy']:.2%} {verdict} {row['seconds']:,.1f} s, {row['steps']:,} steps"


def best(measured: Measured) -> list[tuple[str, float, int]]:
    """For each method, the run with the fewest steps, after `tuning`."""
    chosen = []
    for method in dict.fromkeys(run["name"] for run in measured["runs"]):
        mine = [run for run in measured["runs"] if run["name"] == method]
        run = min(mine, key=lambda run: (not run["reached"], run["steps"], -run["accuracy"]))
        chosen.append((method, run["lr"], run["H"]))
    return chosen


def table(measured: Measured) -> str:
    """The table of what was measured, as text."""
    settings = measured["settings"]
    ours = measured["runs"][0]
    head = ["", "seconds", "× first", "steps", "accuracy, %", "η", "H"] + ["MB, link"] * bool(
        settings["rate"]
    )
    lines = []
    for run in measured["runs"]:
        more = "" if run["reached"] else "> "
        line = [run["name"], f"{more}{run['seconds']:,.1f}", f"{more}{run['seconds'] / ours['seconds']:,.2f}"]
        line += [f"{run['steps']:,}", f"{100 * run['accuracy']:.2f}", f"{run['lr']:g}", str(run["H"])]
        if settings["rate"]:
            line.append(f"{run['sent'] / 1e6:,.1f}")
        lines.append(line)
    align = ("left", *["right"] * (len(head) - 1))
    body = tabulate(lines, head, tablefmt="simple", disable_numparse=True, colalign=align)
    link = f"links of {settings['rate']}" if settings["rate"] else "shared memory; gloo over the loopback"
    return "\n".join(
        [
            f"{settings['ranks']} ranks, {link}, {measured['versions']['cores']} cores: "
            f"{settings['target']:.1%} on MNIST, {measured['model']}, batches of {measured['batch']} a rank",
            "",
            body,
            "",
            "Seconds of training without evaluations. MB: sent by each rank. >: given up before the target.",
        ]
    )


def check(target: float, most: float) -> None:
    """Refuse settings with which a run would never end, or end at once."""
    if not 0 < target < 1:
        raise SettingError(f"--target must lie between 0 and 1, not {target}")
    if not most > 0:
        raise SettingError(f"--most must be a positive number of seconds, not {most}")

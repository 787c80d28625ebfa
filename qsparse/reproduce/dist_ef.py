"""dist-EF-SGD with blocks and momentum (Zheng et al., 2019): small nets on MNIST and CIFAR-10, 8 workers."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from qsparse.algorithm import Algorithm
from qsparse.compressors import QSGD, Blockwise, Sign
from qsparse.errors import NotFinite, SettingError
from qsparse.ledger import Ledger
from qsparse.payload import Payload
from qsparse.presets import (
    dist_ef_blocksgd,
    dist_ef_blocksgdm,
    dist_ef_sgd,
    dist_ef_sgdm,
    sgd,
    signum_majority,
)
from qsparse.report.base import Table, mean, number
from qsparse.reproduce.base import Bar, Experiment, Measured, Say, dataset
from qsparse.rounds.virtual import Virtual
from qsparse.schedules import Cosine
from qsparse.seeds import Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qsparse.data import Dataset

WORKERS: Final = 8
BATCH: Final = 16
#: Training losses are averaged over so many stretches of a run.
STRETCHES: Final = 20
#: How many training examples, the last ones, choose the step sizes.
HELD_OUT: Final = 10_000
#: Share of the steps in which step sizes rise.
WARMUP: Final = 0.1
#: What may be lost to full precision, in points of accuracy; what must be gained each way.
LOST, GAINED = 0.5, 31.0


class Net(NamedTuple):
    """What is trained on a data set, and for how long.

    All methods are compared after ``epochs``; with 0, only full precision and blocks with momentum are
    trained, for ``longer``. They are so too where ``epochs`` is too early to say what is lost in the end,
    with step size ``rate`` and weight decay ``decay``, outside the compressed path for blocks.
    """

    data: str
    model: str
    epochs: int
    longer: int | None = None
    rate: float = 0.0
    decay: float = 0.0


#: Weight decay is the best of 0, 1e-3, 3e-3 and 1e-2 for full precision with convolutions (published: 5e-4 in
#: 200 epochs), and the step size of the longer runs of mlp(128) the better one of 0.01 and 0.03 for it.
NETS: Final = (
    Net("mnist", "mlp(128)", 2),
    Net("cifar10", "mlp(128)", 2, longer=10, rate=0.01, decay=3e-3),
    Net("cifar10", "cnn(8, 16, 64)", 0, longer=16, rate=0.03, decay=3e-3),
)

_PLAIN: Final = (0.1, 0.3, 1.0, 3.0)
_HEAVY: Final = (0.01, 0.03, 0.1, 0.3)
#: Where the memory lags behind.
_LAGGING: Final = (0.003, 0.01, 0.03, 0.1)
_SIGNUM: Final = (3e-4, 1e-3, 3e-3, 1e-2)
#: 4 bits a value and a norm for 512 of them; a memory needs a contraction, and so the scaled one.
_QSGD: Final = Blockwise(QSGD(7), size=512)
_SCALED: Final = Blockwise(QSGD(7, scaled=True), size=512)
_FULL: Final = sgd().with_(momentum=0.9, nesterov=True)


class Row(NamedTuple):
    """A method.

    ``rates`` are the largest step sizes, one for each of `NETS` with epochs: the best of those that were
    tried, most of ``grid``, for one epoch with seed 0 and examples held out of the training set. ``--tune``
    tries them all.
    """

    name: str
    algorithm: Algorithm
    grid: tuple[float, ...]
    rates: tuple[float, float]


FULL: Final = "SGDM, full precision"
BLOCK, WHOLE = "dist-EF-BlockSGDM", "dist-EF-SGDM"
BLOCK_PLAIN, WHOLE_PLAIN = "dist-EF-BlockSGD", "dist-EF-SGD"
SIGNUM, QSGD_BOTH = "Signum, majority", "QSGD, both ways"
ROWS: Final = (
    Row(FULL, _FULL, _HEAVY, (0.1, 0.03)),
    Row(WHOLE_PLAIN, dist_ef_sgd(), _PLAIN, (1.0, 0.3)),
    Row(WHOLE, dist_ef_sgdm(), _HEAVY, (0.1, 0.01)),
    Row(BLOCK_PLAIN, dist_ef_blocksgd(), _PLAIN, (1.0, 0.3)),
    Row(BLOCK, dist_ef_blocksgdm(), _HEAVY, (0.1, 0.03)),
    Row(SIGNUM, signum_majority(), _SIGNUM, (1e-3, 1e-3)),
    # The step of the vote, ±η and 0 where it ties, as one bit a value: what is wrong is said later.
    Row("Signum, 1 bit down", signum_majority().with_(down=Sign()), _SIGNUM, (1e-3, 1e-3)),
    # QSGD without memory up; down it codes the model, which takes one.
    Row(QSGD_BOTH, _FULL.with_(compressor=_QSGD, down=_SCALED), _HEAVY, (0.03, 0.01)),
    Row("dist-EF-QSGD", dist_ef_sgdm(compressor=_SCALED), _LAGGING, (0.01, 0.01)),
)
#: (better, worse) by test accuracy, and what is published of it.
ORDER: Final = (
    (BLOCK_PLAIN, WHOLE_PLAIN, "0.3 on CIFAR-100"),
    (BLOCK, WHOLE, "better"),
    (WHOLE, SIGNUM, "better"),
    (WHOLE, QSGD_BOTH, "better"),
)
#: (with, without) momentum: published to be faster as long as step sizes are large.
MOMENTUM: Final = ((WHOLE, WHOLE_PLAIN), (BLOCK, BLOCK_PLAIN))


_NOTE: Final = """\
Mean ± standard deviation over the seeds; paper bits and bytes of frames, of one worker and step;
gain: over full precision; η: the largest step size.
Signum is published with 1 bit down. A vote of 8 may tie, and one bit has no 0: ours takes log2 3 bits, or
codes the step as sign | innovation, which says later what was wrong.
QSGD: 4 bits a value, blocks of 512, without memory up; down it codes the model, which takes a memory.
dist-EF-QSGD: the same, scaled, with memory both ways."""


class _Ledger(Ledger):
    """Counts the bytes of the frames too, which no wire does here: once for each worker and way."""

    def count_message(self, *parts: Payload) -> None:
        super().count_message(*parts)
        for part in parts:
            self.count_bytes(part)


class Job(NamedTuple):
    """One training: a method with a largest step size, on a net, with a seed."""

    net: Net
    row: Row
    lr: float
    seed: int
    steps: int | None = None  # all epochs unless given
    held_out: int = 0  # so many of the training examples are tested on instead
    decay: float = 0.0  # of the weights


def train(job: Job, data: Dataset) -> Measured:
    """Train; what it measured. A run that leaves the range of numbers has an accuracy of 0."""
    from qsparse.data import Batches, shard
    from qsparse.torch.problem import Network, use_threads

    use_threads(1)  # runs are side by side
    seed = Seed(job.seed)
    used = len(data.train_y) - job.held_out
    shares = shard(data.train_y[:used], WORKERS, "random", seed)
    batches = [Batches(s, BATCH, seed.at(rank=rank, use="batch")) for rank, s in enumerate(shares)]
    steps = job.steps or job.net.epochs * min(each.steps_per_epoch for each in batches)
    algorithm = job.row.algorithm.with_(lr=Cosine(job.lr, steps, warmup=int(WARMUP * steps)))
    if job.decay:
        algorithm = algorithm.with_(weight_decay=job.decay, decoupled=job.row.name == BLOCK)
    network = Network(data, job.net.model, seed)
    layout, start = network.layout, network.vector.copy()
    virtual = Virtual(algorithm, WORKERS, start, seed=seed, layout=layout, ledger=_Ledger())
    test = (data.train_x[used:], data.train_y[used:]) if job.held_out else (data.test_x, data.test_y)
    losses: list[float] = []
    accuracy = 0.0
    try:
        for t in range(steps):
            # They have met after every step, so all workers stand at one point.
            network.put(virtual.models[0])
            rows = zip(batches, virtual.gradients, strict=True)
            losses.append(mean([network.gradient(each.batch(t), row) for each, row in rows]))
            virtual.step()
        network.put(virtual.models[0])
        accuracy = network.accuracy(*test)
    except NotFinite:
        pass
    ledger = virtual.ledger
    return {
        "name": job.row.name,
        "seed": job.seed,
        "lr": job.lr,
        "algorithm": algorithm.spelling(),
        "parameters": start.size,
        "blocks": len(layout),
        "steps": steps,
        "accuracy": accuracy,
        "losses": _stretches(losses),
        "messages": ledger.messages,
        "paper_bits": ledger.paper_bits,
        "wire_bytes": {way: ledger.wire_bytes[way] for way in ("up", "down")},
    }


@dataclass(frozen=True)
class DistEF(Experiment):
    """All methods on both data sets.

    Args:
        seeds: how many seeds of starting points, shares, batches and compressors.
        tune: choose the step sizes anew, by the accuracy on held-out training examples.
    """

    name: ClassVar[str] = "dist-ef"
    source: ClassVar[str] = (
        "Zheng, Huang, Kwok: Communication-Efficient Distributed Blockwise Momentum SGD with "
        "Error-Feedback, NeurIPS 2019"
    )

    seeds: int = 3
    tune: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise SettingError(f"--seeds must be at least 1, not {self.seeds}")

    def measure(self, data_dir: Path | None, say: Say) -> Measured:
        """One data set after the other; as many runs side by side as there are cores."""
        nets = NETS[:1] if self.quick else NETS
        sets: list[Measured] = []
        for place, net in enumerate(nets):
            sets.append(self._set(place, net, dataset(net.data, data_dir), say))
        return {
            "workers": WORKERS,
            "batch": BATCH,
            "warmup": WARMUP,
            "grids": {row.name: row.grid for row in ROWS},
            "sets": sets,
        }

    def _set(self, place: int, net: Net, data: Dataset, say: Say) -> Measured:
        rows = ROWS if net.epochs else ()
        rates = {row.name: row.rates[place] for row in rows}
        tuned: list[Measured] = []
        if self.tune and rows:
            steps = 20 if self.quick else (len(data.train_y) - HELD_OUT) // (WORKERS * BATCH)
            trials = [Job(net, row, lr, 0, steps, HELD_OUT) for row in rows for lr in row.grid]
            tuned = _trained(trials, data, say)
            for row in rows:
                mine = [run for run in tuned if run["name"] == row.name]
                rates[row.name] = max(mine, key=lambda run: run["accuracy"])["lr"]
        seeds = range(1 if self.quick else self.seeds)
        short = 40 if self.quick else None
        jobs = [Job(net, row, rates[row.name], seed, short) for seed in seeds for row in rows]
        more: list[Job] = []
        if net.longer is not None and not self.quick:
            to_the_end = net._replace(epochs=net.longer)
            pair = [row for row in ROWS if row.name in (FULL, BLOCK)]
            more = [Job(to_the_end, row, net.rate, seed, decay=net.decay) for seed in seeds for row in pair]
        # The long ones first, so that no core is left alone with one of them.
        runs = _trained([*more, *jobs], data, say)
        return {
            **net._asdict(),
            "rates": rates,
            "tuned": tuned,
            "runs": runs[len(more) :],
            "to_the_end": runs[: len(more)],
        }

    def tables(self, measured: Measured) -> list[Table]:
        """For each data set the methods, then how they compare."""
        made = [
            (*((_methods(each), _order(each)) if each["runs"] else ()), *_ends(each))
            for each in measured["sets"]
        ]
        return [table for tables in made for table in tables]

    def bars(self, measured: Measured) -> list[Bar]:
        """Blocks with momentum lose next to nothing, and save what one bit a value can."""
        bars = []
        for each in _compared_sets(measured):
            lead = mean(_over({"runs": each["to_the_end"] or each["runs"]}, BLOCK, FULL))
            bars.append(Bar(f"{each['data']}: points of {BLOCK} over full precision", lead, -LOST))
            bars += [
                Bar(f"{each['data']}: times fewer bits {way} with {BLOCK}", _gain(each, BLOCK, way), GAINED)
                for way in ("up", "down")
            ]
        return bars

    def draw(self, measured: Measured, figure: Figure) -> None:
        """Training loss against bits, both ways."""
        sets = _compared_sets(measured)
        for axes, each in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
            for row in ROWS:
                run = _runs(each, row.name)[0]
                bits = sum(run["paper_bits"].values()) / len(run["losses"])
                points = [bits * (place + 0.5) for place in range(len(run["losses"]))]
                accuracy = 100 * mean([run["accuracy"] for run in _runs(each, row.name)])
                axes.plot(points, run["losses"], label=f"{row.name}: {accuracy:.1f} %")
            axes.set(
                title=each["data"],
                xlabel="paper bits of all workers, up and down",
                ylabel="training loss",
                xscale="log",
                yscale="log",
            )
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")


def _compared_sets(measured: Measured) -> list[Measured]:
    """Those with all methods."""
    return [each for each in measured["sets"] if each["runs"]]


def _trained(jobs: Sequence[Job], data: Dataset, say: Say) -> list[Measured]:
    """All of them, dealt to a process for each core: small nets leave little outside Python's lock."""
    from joblib import Parallel, delayed

    # A few short ones take less time than it takes to start processes.
    cores = 1 if all(job.steps is not None and job.steps < 100 for job in jobs) else os.cpu_count()
    deal = Parallel(cores, return_as="generator", mmap_mode="c")
    runs = []
    for run in deal(delayed(train)(job, data) for job in jobs):
        say(f"{data.name}, {run['name']}, η = {run['lr']:g}, seed {run['seed']}: {run['accuracy']:.2%}")
        runs.append(run)
    return runs


def _stretches(losses: Sequence[float]) -> list[float]:
    """Means over `STRETCHES` equal parts, the last steps in none where they do not fit."""
    size = len(losses) // STRETCHES
    return [mean(losses[i * size : (i + 1) * size]) for i in range(STRETCHES)] if size else []


def _runs(each: Measured, name: str) -> list[Measured]:
    return [run for run in each["runs"] if run["name"] == name]


def _over(each: Measured, a: str, b: str) -> list[float]:
    """Points of accuracy, seed by seed."""
    pairs = zip(_runs(each, a), _runs(each, b), strict=True)
    return [100 * (x["accuracy"] - y["accuracy"]) for x, y in pairs]


def _halfway(each: Measured, a: str, b: str) -> list[float]:
    """How much lower the loss of a is at half of the steps, seed by seed."""
    middle = STRETCHES // 2 - 1
    pairs = zip(_runs(each, a), _runs(each, b), strict=True)
    return [y["losses"][middle] - x["losses"][middle] for x, y in pairs]


def _said(each: Measured, name: str, what: str, way: str) -> float:
    """Of one worker and step."""
    run = _runs(each, name)[0]
    return float(run[what][way] / (WORKERS * run["steps"]))


def _gain(each: Measured, name: str, way: str) -> float:
    return _said(each, FULL, "paper_bits", way) / _said(each, name, "paper_bits", way)


def _methods(each: Measured) -> Table:
    first = each["runs"][0]
    d, blocks, steps = first["parameters"], first["blocks"], first["steps"]
    return Table(
        f"{each['data']}, {each['model']}: {number(d)} parameters in {blocks} blocks, {WORKERS} workers, "
        f"batches of {BATCH}, {number(steps)} steps",
        ("", "accuracy, %", "bits up", "gain", "bits down", "gain", "bytes up", "bytes down", "η"),
        [_line(each, row.name) for row in ROWS],
        f"Published gain of blocks, each way: 32d/(d + 32B) = {32 * d / (d + 32 * blocks):.2f}.\n{_NOTE}",
    )


def _order(each: Measured) -> Table:
    accuracies = [_compared(f"accuracy of {a} over {b}", _over(each, a, b), theirs) for a, b, theirs in ORDER]
    losses = [_compared(f"loss halfway of {b} over {a}", _halfway(each, a, b), "higher") for a, b in MOMENTUM]
    return Table(
        f"{each['data']}: the published order",
        ("", "difference", "published", "here"),
        accuracies + losses,
        "Points of accuracy, or nats; mean ± standard deviation of the differences seed by seed;\n"
        "unclear: within the standard error of the mean.",
    )


def _ends(each: Measured) -> list[Table]:
    """The pair that was trained for longer, beside the shorter runs where there were any."""
    if not each["to_the_end"]:
        return []
    columns = [{"runs": runs} for runs in (each["runs"], each["to_the_end"]) if runs]
    rows = [
        [name, *(_spelled([100 * run["accuracy"] for run in _runs(runs, name)]) for runs in columns)]
        for name in (FULL, BLOCK)
    ]
    rows.append(["difference", *(_spelled(_over(runs, BLOCK, FULL)) for runs in columns)])
    return [
        Table(
            f"{each['data']}, {each['model']}: accuracy, %, when trained for longer",
            ("", *(f"{number(runs['runs'][0]['steps'])} steps" for runs in columns)),
            rows,
            f"In the longer runs η = {each['rate']:g} and weight decay {each['decay']:g} for both.",
        )
    ]


def _line(each: Measured, name: str) -> list[str]:
    line = [name, _spelled([100 * run["accuracy"] for run in _runs(each, name)])]
    for way in ("up", "down"):
        line += [number(_said(each, name, "paper_bits", way)), f"{_gain(each, name, way):.2f}"]
    return [
        *line,
        *(number(_said(each, name, "wire_bytes", way)) for way in ("up", "down")),
        f"{each['rates'][name]:g}",
    ]


def _compared(claim: str, differences: Sequence[float], theirs: str) -> list[str]:
    found = mean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    verdict = "unclear" if abs(found) <= error else "yes" if found > 0 else "NO"
    return [claim, _spelled(differences), theirs, verdict]


def _spelled(values: Sequence[float]) -> str:
    """Mean ± standard deviation.

    >>> _spelled([98.0, 98.5]), _spelled([98.25])
    ('98.25 ± 0.35', '98.25')
    """
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{deviation}"

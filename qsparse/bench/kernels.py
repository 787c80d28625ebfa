"""Compressors on one rank: how long a message takes, compared with one addition over the same memory.

What is timed goes through the public parts: encoding is ``Sender.draft`` and ``Sender.commit`` of a link
(add the memory, compress to a frame, keep what was not sent), decoding is ``accumulate_into``. In the same
round, one ``numpy.add(m, v, out=t)`` over three vectors of the same size is timed, and for the top-k rows
two pipelines that choose the same entries and keep the same residual, but write no frame.
"""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from qsparse import _version
from qsparse.compressors import Composed, Compressor, accumulate_into
from qsparse.errors import SettingError
from qsparse.kernels import threads
from qsparse.link import Link, Sender
from qsparse.payload import Payload
from qsparse.registry import build
from qsparse.seeds import Seed
from qsparse.types import Vector

#: Parameters of ResNet-50.
RESNET50: Final = 25_557_032
_LAYERS: Final = 64
#: How vectors are drawn, for tables and files.
VECTORS: Final = (
    f"gaussian, {_LAYERS} equal stretches of standard deviations 10^u with u uniform from -3 to -1, float32; "
    "a new one every round, so memories evolve"
)


@dataclass(frozen=True)
class Settings:
    """The settings of a measurement.

    Args:
        n: how many values a vector has.
        shares: which shares of the values top-k keeps.
        rounds: how many rounds are timed, after one that is not.
        threads: the number of threads of a rank.
    """

    n: int = RESNET50
    shares: tuple[float, ...] = (0.001, 0.01, 0.1)
    rounds: int = 7
    threads: int = 1

    def __post_init__(self) -> None:
        if self.n < _LAYERS:
            raise SettingError(f"vectors of {self.n} values are too short to measure: at least {_LAYERS}")
        if self.rounds < 1:
            raise SettingError(f"at least one round must be timed, not {self.rounds}")
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise SettingError(f"kept shares lie in (0, 1], not {self.shares}")


@dataclass(frozen=True)
class Row:
    """One compressor on one vector length; times are medians over the rounds.

    Attributes:
        compressor, memory: their spellings.
        part: ``encode`` (draft and commit) or ``decode`` (decode and add).
        kept: k, the number of values that are sent.
        milliseconds: the time of one message.
        gigabytes_per_second: 4n bytes, the vector once, divided by that time.
        to_add: that time divided by the time of `numpy.add` in the same round; the median of these ratios.
        torch_topk, argpartition: the pipeline's time divided by that of qsparse in the same round; the
            median, None where there is no such pipeline.
        wire_bits: 8 × bytes of the frame, header included, divided by k.
        position_bits: the same without the bits of the values, where not all n values are sent.
        bound_bits: log2 C(n, k)/k; no code of k positions among n can need fewer bits for all sets.
        every_millisecond: the times of all rounds.
    """

    compressor: str
    memory: str
    part: str
    kept: int
    milliseconds: float
    gigabytes_per_second: float
    to_add: float
    torch_topk: float | None
    argpartition: float | None
    wire_bits: float
    position_bits: float | None
    bound_bits: float | None
    every_millisecond: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """A limit on one figure: (compressor, memory, part) and the name of the figure in `Row`."""

    compressor: str
    memory: str
    part: str
    figure: str
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a figure keeps within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


_ONE_PERCENT: Final = ("topk(ratio=0.01) >> sign", "errorfeedback")
#: The limits for one thread and vectors of ResNet-50's size.
BARS: Final = (
    Bar(*_ONE_PERCENT, "encode", "to_add", 1.7),
    Bar("topk(ratio=0.001) >> sign", "errorfeedback", "encode", "to_add", 1.4),
    Bar("blockwise(sign, size=4096)", "errorfeedback", "encode", "to_add", 1.5),
    Bar("uniform(bits=4)", "innovation", "encode", "to_add", 3.5),
    Bar("qsgd(levels=15)", "stateless", "encode", "to_add", 5.0),
    Bar("float32", "stateless", "encode", "to_add", 2.0),
    Bar(*_ONE_PERCENT, "decode", "to_add", 0.3),
    Bar(*_ONE_PERCENT, "encode", "torch_topk", 25.0, at_least=True),
    Bar(*_ONE_PERCENT, "encode", "argpartition", 6.0, at_least=True),
)


def cases(shares: Sequence[float]) -> list[tuple[str, str]]:
    """The pair (compressor, memory) of every row."""
    sparse = [f"topk(ratio={share:g}) >> {quantizer}" for quantizer in
              ("sign", "uniform(bits=2)", "qsgd(levels=15)") for share in shares]  # fmt: skip
    return [
        *((text, "errorfeedback") for text in sparse),
        ("blockwise(sign, size=4096)", "errorfeedback"),
        ("uniform(bits=4)", "innovation"),
        ("qsgd(levels=15)", "stateless"),
        ("float32", "stateless"),
    ]


def measure(settings: Settings, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure every row; the result is plain data, as written to the JSON file.

    Args:
        settings: what is measured.
        say: called with a line about each case before it begins.
    """
    torch = _torch_with(settings.threads)
    rows: list[Row] = []
    before = threads.count()
    threads.use(settings.threads)
    try:
        for compressor, memory in cases(settings.shares):
            say(f"{compressor} | {memory}")
            rows += _case(settings, compressor, memory, torch)
    finally:
        threads.use(before)
    return {
        "qsparse": _version.__version__,
        "numpy": np.__version__,
        "torch": None if torch is None else torch.version,
        "processor": _processor(),
        **asdict(settings),
        "vectors": VECTORS,
        "rows": [asdict(row) for row in rows],
        "bars": _judged(rows),
    }


class NumpyTopK:
    """Error feedback around `numpy.argpartition`; see `qsparse.torch.pipelines.TorchTopK`."""

    def __init__(self, n: int, k: int, said: Callable[[Any, Any], Any]) -> None:
        self.k, self._said = k, said
        self.residual, self._target, self._size = (np.zeros(n, np.float32) for _ in range(3))

    def step(self, v: Vector) -> np.ndarray:
        """Send v; returns the kept positions, in no particular order."""
        target = np.add(v, self.residual, out=self._target)
        size = np.abs(target, out=self._size)
        kept = np.argpartition(size, v.size - self.k)[v.size - self.k :]
        values = target[kept]
        target[kept] = values - self._said(np, values)
        self.residual, self._target = target, self.residual
        return kept


def said_by_sign(xp: Any, values: Any) -> Any:
    """The values as ±‖v‖₁/k, with numpy or torch."""
    scale = xp.abs(values).mean()
    return xp.where(values < 0, -scale, scale)


def said_by_uniform(xp: Any, values: Any) -> Any:
    """The values rounded to the nearest of four points from −‖v‖∞ to ‖v‖∞, with numpy or torch."""
    radius = xp.abs(values).max()
    step = 2 * radius / 3
    return step * xp.floor((values + radius) / step + 0.5) - radius


#: The values that pipelines send for the kept ones, by the quantizer's spelling.
SAID: Final = {"sign": said_by_sign, "uniform(bits=2)": said_by_uniform}


def vectors(n: int, seed: int = 0) -> Iterator[Vector]:
    """Vectors as `VECTORS` describes them; each overwrites the one before."""
    draw = np.random.default_rng(seed)
    scales = 10.0 ** draw.uniform(-3, -1, _LAYERS)
    v = np.empty(n, np.float32)
    while True:
        draw.standard_normal(out=v, dtype=np.float32)
        for part, scale in zip(np.array_split(v, _LAYERS), scales, strict=True):
            part *= np.float32(scale)
        yield v


@dataclass(frozen=True)
class _Torch:
    version: str
    pipeline: Callable[..., Any]


def _torch_with(count: int) -> _Torch | None:
    """torch, with so many threads; None where it is not installed. NumPy's additions use one thread."""
    try:
        import qsparse.torch.pipelines as found
        from qsparse.torch.problem import use_threads
    except ModuleNotFoundError:
        return None
    use_threads(count)
    return _Torch(found.VERSION, found.TorchTopK)


def _case(settings: Settings, text: str, memory: str, torch: _Torch | None) -> list[Row]:
    n = settings.n
    compressor = build(text, "compressor")
    sender = Sender(Link(compressor, build(memory, "memory")), np.zeros(n, np.float32))
    said = SAID.get(text.partition(" >> ")[2])
    rivals: dict[str, Any] = {}
    if said is not None:
        kept, _ = _kept(compressor, n)
        rivals["argpartition"] = NumpyTopK(n, kept, said)
        if torch is not None:
            rivals["torch_topk"] = torch.pipeline(n, kept, said)
    m, t, total = (np.ones(n, np.float32) for _ in range(3))
    seconds: dict[str, list[float]] = {name: [] for name in ("add", "encode", "decode", *rivals)}
    payload: Payload | None = None
    for number, v in zip(range(settings.rounds + 1), vectors(n), strict=False):
        with _timed(seconds["add"]):
            np.add(m, v, out=t)
        with _timed(seconds["encode"]):
            draft = sender.draft(v, Seed(0, step=number + 1, use="up"))
            sender.commit(draft)
        payload = draft.payload
        with _timed(seconds["decode"]):
            accumulate_into(payload, total)
        for name, rival in rivals.items():
            with _timed(seconds[name]):
                rival.step(v)
    assert payload is not None
    # The first round is left out: it compiles, and its memories are empty.
    return _rows(text, memory, compressor, payload, {name: all_[1:] for name, all_ in seconds.items()})


@contextlib.contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - begin)


def _rows(
    text: str, memory: str, compressor: Compressor, payload: Payload, seconds: dict[str, list[float]]
) -> list[Row]:
    n = payload.n
    kept, bits = _kept(compressor, n)
    wire = 8 * len(payload)
    positions = bound = None
    if kept < n:
        positions, bound = (wire - bits) / kept, log2_binomial(n, kept) / kept

    def ratio(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))

    def row(part: str) -> Row:
        middle = statistics.median(seconds[part])
        pipelines = {
            name: ratio(name, part) if part == "encode" and name in seconds else None
            for name in ("torch_topk", "argpartition")
        }
        return Row(
            compressor=text,
            memory=memory,
            part=part,
            kept=kept,
            milliseconds=1e3 * middle,
            gigabytes_per_second=4e-9 * n / middle,
            to_add=ratio(part, "add"),
            **pipelines,
            wire_bits=wire / kept,
            position_bits=positions,
            bound_bits=bound,
            every_millisecond=tuple(1e3 * each for each in seconds[part]),
        )

    return [row("encode"), row("decode")]


def _kept(compressor: Compressor, n: int) -> tuple[int, int]:
    """How many values of n are kept, and the bits of these where they have positions."""
    if not isinstance(compressor, Composed):
        return n, 0
    kept = compressor.selector.claims_for(n).kept or n
    return kept, compressor.quantizer.claims_for(kept).bits or 0


def log2_binomial(n: int, k: int) -> float:
    """The binary logarithm of C(n, k).

    >>> round(log2_binomial(10, 3), 6) == round(math.log2(120), 6)
    True
    """
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each bar whose row was measured, with the figure; figures that could not be measured are left out."""
    by_name = {(row.compressor, row.memory, row.part): row for row in rows}
    judged = []
    for bar in BARS:
        row = by_name.get((bar.compressor, bar.memory, bar.part))
        value = None if row is None else getattr(row, bar.figure)
        if value is not None:
            judged.append(asdict(bar) | {"measured": value, "met": bar.met(value)})
    return judged


def _processor() -> str:
    """The processor's name, as Linux gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

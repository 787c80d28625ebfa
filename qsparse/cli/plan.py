"""``qsparse plan``: what a run will cost, before anything runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from tabulate import tabulate

from qsparse.cli.options import PATH, check_json, check_length, run_option, write_json
from qsparse.errors import DataError, SettingError
from qsparse.modules import user_module
from qsparse.registry import build, spell
from qsparse.run.config import OPTIONS

if TYPE_CHECKING:
    from qsparse.algorithm import Algorithm
    from qsparse.planning import Links, Speeds
    from qsparse.planning.plan import Plan
    from qsparse.planning.speeds import Measured
    from qsparse.torch.models import Model
    from qsparse.types import Layout

_MEGA: Final = 1e6
_DENSE: Final = "dense Allreduce"
_ALGORITHM: Final = "qsparse-local-sgd"
_SECONDS: Final = click.FloatRange(min=0)


def _checked(ctx: click.Context, parameter: click.Parameter, n: int | None) -> int | None:
    return None if n is None else check_length(ctx, parameter, n)


@click.command("plan")
@click.option("--algorithm", default=_ALGORITHM, show_default=True, help="A preset, as of train.")
@click.option("--model", help="Its number of parameters is n, e.g. resnet50 or 'mlp(200, 100)'.")
@click.option("--shape", help="Of an example of the model, e.g. 3x224x224.  [default: as published]")
@click.option("--classes", type=click.IntRange(min=2), help="Of the model.  [default: as published]")
@click.option("--n", type=click.IntRange(min=1), callback=_checked, help="Parameters, in place of --model.")
@click.option("--ranks", default="8", show_default=True, help="How many; or several numbers: 2,4,...,4096.")
@run_option(OPTIONS["link_rate"])
@run_option(OPTIONS["link_latency"])
@click.option("--links", type=PATH, help="In place of both: what qsparse doctor --links --json has measured.")
@click.option(
    "--compute",
    type=click.FloatRange(min=0),
    help="Seconds of one local step: then steps per second are told.",
)
@click.option("--compressor", "compressors", multiple=True, help="Up; may be repeated.")
@click.option("--down", "downs", multiple=True, help="Down, or exact; may be repeated.")
@click.option("--exchange", "exchanges", multiple=True, help="Look at this one; may be repeated.")
@click.option(
    "--speeds", help="Nanoseconds an entry, e.g. encode=4,answer=4,decode=2.  [default: measured here]"
)
@click.option("--curve", type=PATH, help="Draw seconds against ranks into this file, FILE.svg.")
@click.option("--json", "file", type=PATH, help="Write everything here.")
@click.option("--import", "imports", multiple=True, metavar="MODULE", help="Import first; may be repeated.")
def plan_command(
    algorithm: str,
    model: str | None,
    shape: str | None,
    classes: int | None,
    n: int | None,
    ranks: str,
    link_rate: str | None,
    link_latency: str | None,
    links: str | None,
    compute: float | None,
    compressors: tuple[str, ...],
    downs: tuple[str, ...],
    exchanges: tuple[str, ...],
    speeds: str | None,
    curve: str | None,
    file: str | None,
    imports: tuple[str, ...],
) -> None:
    """Tell what a run will cost: bytes, seconds and memory of each exchange, beside a dense Allreduce.

    Nothing is sent. Lengths of messages are told from noise; encoding and decoding are timed on this machine
    for a moment, unless --speeds says what they take. The fastest line comes first.

    \b
    qsparse plan --model resnet50 --ranks 16 --link-rate 1gbit --compute 0.2
    qsparse plan --n 25557032 --ranks 2,4,...,4096 --curve curve.svg
    """
    from qsparse.kernels import jit
    from qsparse.planning.plan import choices, plan

    before = len(jit.compiled())
    for module in imports:
        user_module(module, f"import --import {module}")
    check_json(file)
    counts = counts_of(ranks)
    link = _links(link_rate, link_latency, links)
    row = build(algorithm, "algorithm").closed()
    chosen = choices(row, counts[-1], compressors, downs)
    looked_at = chosen if curve is None else chosen[:1]
    length, layout, meant = _vector(model, n, shape, classes, looked_at)
    timing = _Timing(None if speeds is None else speeds_of(speeds), length, counts[-1], layout)
    more: dict[str, Any] = {"compute": compute, "layout": layout, "exchanges": exchanges}
    made = [plan(looked_at, length, count, link, timing, **more) for count in counts]
    click.echo(f"{algorithm}: {meant}, {_said(link, links)}")
    compiled = len(jit.compiled()) - before
    click.echo(f"{timing.said()}{_waited(compiled)}\n")
    if curve is None:
        click.echo("\n\n".join(_shown(each, compute, chosen[0]) for each in made))
    else:
        click.echo(_curves(made, Path(curve), f"{algorithm}, n = {length:,}, {_said(link, links)}"))
    found = {
        "algorithm": algorithm,
        "model": model,
        "n": length,
        "links": dataclasses.asdict(link),
        "compute": compute,
        "measured_entries": timing.entries,
        "compiled": compiled,
        "plans": [_entry(each) for each in made],
    }
    write_json(file, found)


def counts_of(text: str) -> list[int]:
    """The numbers of ranks of a text such as ``8``, ``4,16`` or ``2,4,...,4096``, which goes on as it began.

    Raises:
        SettingError: it is no such text.

    >>> counts_of("2,4,...,32"), counts_of("10,15,...,25")
    ([2, 4, 8, 16, 32], [10, 15, 20, 25])
    """
    words = [word.strip() for word in text.split(",")]
    found: list[int] = []
    for place, word in enumerate(words):
        if word in ("...", "…") and len(found) >= 2 and place == len(words) - 2 and words[-1].isdecimal():
            found += _between(found[-2], found[-1], int(words[-1]))
        elif word.isdecimal() and int(word) > (found[-1] if found else 0):
            found.append(int(word))
        else:
            raise SettingError(
                f"--ranks {text}: write whole numbers that rise, such as 8, or 4,16, or 2,4,...,4096"
            )
    return found


def _between(before: int, last: int, end: int) -> list[int]:
    """What comes between two numbers of a row and its end: multiples, or numbers with equal gaps."""
    times = last // before if last % before == 0 else 1
    found = []
    number = last
    while (number := number * times if times > 1 else number + last - before) < end:
        found.append(number)
    return found


def speeds_of(text: str) -> Speeds:
    """Speeds as text: nanoseconds for each entry, by the names of `Speeds`.

    Raises:
        SettingError: it is no such text.

    >>> speeds_of("encode=1.5, decode=2").encode
    1.5e-09
    """
    from qsparse.planning import Speeds

    names = [field.name for field in dataclasses.fields(Speeds)]
    values: dict[str, float] = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        if name not in names or name in values or not re.fullmatch(r"\d+(\.\d+)?", number):
            raise SettingError(
                f"--speeds {text}: write nanoseconds an entry, as in encode=4,answer=4,decode=2; there are "
                f"{', '.join(names)}"
            )
        values[name] = float(number) / 1e9
    return Speeds(**values)


class _Timing:
    """Tells the speeds of algorithms, measured once each unless they are given."""

    def __init__(self, given: Speeds | None, n: int, ranks: int, layout: Layout) -> None:
        self._given, self._n, self._ranks, self._layout = given, n, ranks, layout
        self._found: dict[str, Measured] = {}

    def __call__(self, algorithm: Algorithm) -> Speeds:
        if self._given is not None:
            return self._given
        from qsparse.planning.speeds import measured

        name = algorithm.spelling()
        if name not in self._found:
            self._found[name] = measured(algorithm, self._n, self._ranks, self._layout)
        return self._found[name].speeds

    @property
    def entries(self) -> int | None:
        """The length of the vectors; None where nothing was measured."""
        return next((each.entries for each in self._found.values()), None)

    def said(self) -> str:
        """Where the speeds are from."""
        if self._given is not None:
            return "encoding and decoding: as --speeds says"
        return f"encoding and decoding: measured here with {self.entries:,} entries"


def _waited(compiled: int) -> str:
    """Why this plan took longer than the next one will, after a semicolon; empty where it did not."""
    if not compiled:
        return ""
    return f"; kernels had to be compiled first ({compiled}), which the next plan need not do"


def _examples(model: str, shape: str | None, classes: int | None) -> tuple[Model, tuple[int, ...], int]:
    """The model, and what it is made for."""
    part: Model = build(model, "model")
    sizes, count = part.usual
    if shape is not None and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise SettingError(f"--shape {shape}: write the sizes of an example, such as 3x224x224")
    if shape is not None:
        sizes = tuple(int(size) for size in shape.split("x"))
    return part, sizes, count if classes is None else classes


def _vector(
    model: str | None, n: int | None, shape: str | None, classes: int | None, chosen: Sequence[Algorithm]
) -> tuple[int, Layout, str]:
    """n, the layers where somebody goes by them, and how both are said."""
    from qsparse.planning.costs import goes_by_layers

    if (model is None) == (n is None):
        raise SettingError("give one of --model and --n: what is the length of the vector?")
    layered = any(goes_by_layers(link.compressor) for each in chosen for link in (each.up, each.answer))
    if model is None:
        assert n is not None
        if shape is not None or classes is not None:
            raise SettingError("--shape and --classes go with --model")
        doubt = ", taken as one layer, because only --model knows the layers" if layered else ""
        return n, (), f"n = {n:,}{doubt}"
    part, sizes, count = _examples(model, shape, classes)
    found = part.parameters(sizes, count)
    layout = part.layout(sizes, count) if layered else ()
    return found, layout, f"{model} for {'x'.join(map(str, sizes))} and {count:,} classes, n = {found:,}"


def _links(rate: str | None, latency: str | None, file: str | None) -> Links:
    from qsparse.planning.links import links_for, links_from

    if file is None:
        return links_for(rate, latency)
    if rate is not None or latency is not None:
        raise SettingError("--links says what --link-rate and --link-latency say: give one or the other")
    return links_from(file)


def _said(links: Links, file: str | None) -> str:
    source = "" if file is None else f", the slowest of {file}"
    return f"{8 * links.rate / 1e9:,.4g} Gbit/s and {1e6 * links.latency:,.4g} µs{source}"


def _shown(made: Plan, compute: float | None, first: Algorithm) -> str:
    """The table of one number of ranks; ``first`` is the first choice of compressors."""
    head = ["exchange", "up", "down", "MB sent", "MB received", "ms", "moving", "coding"]
    head += ["worker end", "coordinator end", "× dense"]
    if compute is not None:
        head.append("steps/s")
    rows = []
    for line in made.lines:
        told = line.estimate
        share = f"/{made.ranks}" if told.exchange.claims.divides else ""
        row = [line.exchange, line.compressor, line.down]
        row += [f"{told.cost.sent / _MEGA:,.3f}", f"{told.cost.received / _MEGA:,.3f}"]
        row += [f"{1e3 * seconds:,.1f}" for seconds in (told.seconds, told.moving, told.computing)]
        row += [f"{line.held.worker:g}n = {line.worker / _MEGA:,.0f} MB"]
        row += [f"{line.held.coordinator:g}n{share} = {line.coordinator / _MEGA:,.0f} MB", f"{line.gain:.2f}"]
        if compute is not None:
            row.append("" if line.rate is None else f"{line.rate:,.2f}")
        rows.append(row)
    dense = [
        _DENSE,
        "",
        "",
        *[""] * 2,
        f"{1e3 * made.dense:,.1f}",
        f"{1e3 * made.dense:,.1f}",
        "0.0",
        "",
        "",
        "1.00",
    ]
    if compute is not None:
        dense.append("" if made.dense_rate is None else f"{made.dense_rate:,.2f}")
    align = ["left"] * 3 + ["right"] * (len(head) - 3)
    table = tabulate([*rows, dense], headers=head, tablefmt="simple", colalign=align, disable_numparse=True)
    return (
        f"{made.ranks:,} ranks, a synchronization every {made.gap:,.4g} steps\n\n{table}\n\n{_advice(made)}\n"
        f"{_auto(made, first)}"
    )


def _advice(made: Plan) -> str:
    """What the table comes to, as a sentence."""
    if not made.compress:
        return (
            "Do not compress here: a dense Allreduce of MPI is predicted to be fastest, "
            f"{1e3 * made.dense:,.3g} ms for each synchronization."
        )
    best = made.lines[0]
    return (
        f"Fastest: --exchange {best.exchange}, {best.compressor} up and {best.down} down, {best.gain:,.3g} "
        "times as fast as a dense Allreduce for each synchronization. What a compressor costs in accuracy is "
        "another question."
    )


def _auto(made: Plan, first: Algorithm) -> str:
    """The exchange of a run that is not told one, as a sentence."""
    link = first.answer
    down = "exact" if link.exact else spell(link.compressor)
    return f"--exchange auto takes {made.auto} for {spell(first.up.compressor)} up and {down} down."


def _curves(made: Sequence[Plan], file: Path, title: str) -> str:
    """Draw seconds against ranks, and return them as a table."""
    from qsparse.planning.curve import svg

    names = [line.exchange for line in sorted(made[0].lines, key=lambda line: line.exchange)]
    curves = {
        name: [next(line.estimate.seconds for line in each.lines if line.exchange == name) for each in made]
        for name in names
    }
    counts = [each.ranks for each in made]
    if len(counts) < 2 or counts[0] < 2:
        raise SettingError("--curve needs several numbers of ranks, from 2 on: --ranks 2,4,...,4096")
    curves[_DENSE] = [each.dense for each in made]
    try:
        file.write_text(svg(f"Seconds of a synchronization: {title}", counts, curves), "utf-8")
    except OSError as error:
        raise DataError(f"cannot write to --curve {file}: {error.strerror}") from None
    rows = [
        [f"{count:,}", *(f"{curve[place]:,.4f}" for curve in curves.values())]
        for place, count in enumerate(counts)
    ]
    head = ["ranks", *curves]
    table = tabulate(
        rows, headers=head, tablefmt="simple", colalign=["right"] * len(head), disable_numparse=True
    )
    line = made[0].lines[0]
    return f"{line.compressor} up and {line.down} down, seconds of a synchronization\n\n{table}"


def _entry(made: Plan) -> dict[str, Any]:
    """A plan as JSON has it."""
    lines = [
        {
            "exchange": line.exchange,
            "compressor": line.compressor,
            "down": line.down,
            "sent_bytes": line.estimate.cost.sent,
            "received_bytes": line.estimate.cost.received,
            "seconds": line.estimate.seconds,
            "moving_seconds": line.estimate.moving,
            "coding_seconds": line.estimate.computing,
            "speeds": dataclasses.asdict(line.speeds),
            "worker_vectors": line.held.worker,
            "coordinator_vectors": line.held.coordinator,
            "worker_bytes": line.worker,
            "coordinator_bytes": line.coordinator,
            "times_dense": line.gain,
            "steps_per_second": line.rate,
        }
        for line in made.lines
    ]
    return {
        "ranks": made.ranks,
        "gap": made.gap,
        "dense_seconds": made.dense,
        "dense_steps_per_second": made.dense_rate,
        "compress": made.compress,
        "auto": made.auto,
        "lines": lines,
    }

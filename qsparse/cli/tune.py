"""``qsparse tune``: the compressor that keeps enough and sends the fewest bits or bytes."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Final, NamedTuple

import click
import numpy as np
from tabulate import tabulate

from qsparse.algorithm import Algorithm
from qsparse.cli.options import PATH
from qsparse.compressors import Compressor
from qsparse.errors import DataError, SettingError
from qsparse.payload import HEADER_BYTES
from qsparse.planning import Whole, whole
from qsparse.planning.gaps import Loss, largest_h
from qsparse.planning.plan import EXACT
from qsparse.registry import build, spell
from qsparse.tuning import Tuned, orders_of_h, tune
from qsparse.types import Vector


@click.command("tune")
@click.option("--gamma", type=float, required=True, help="The contraction γ to reach, in (0, 1].")
@click.option("--sync-every", "every", type=int, default=1, show_default=True, help="H, steps a message.")
@click.option("--n", type=int, help="Length of the vector; the probe's if there is one.")
@click.option("--probe", type=PATH, help="A vector, FILE.npy, on which γ is measured.")
@click.option("--steps", type=int, help="T; with --workers and --batch: how large the theory lets H be.")
@click.option("--workers", type=int, help="R; then answers are counted, too.")
@click.option("--batch", type=int, help="b, of each worker.")
@click.option(
    "--loss",
    help="gap=f(x0)-f*,smoothness=L,noise=σ,gradient=G; with --steps: the largest H, and its learning rate.",
)
@click.option("--down", default=EXACT, show_default=True, help="Compressor of models, or exact.")
@click.option(
    "--by",
    type=click.Choice(("bits", "bytes")),
    default="bits",
    show_default=True,
    help="What is to be least: paper bits of a message up, or bytes both ways on the busiest link.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def tune_command(
    gamma: float,
    every: int,
    n: int | None,
    probe: str | None,
    steps: int | None,
    workers: int | None,
    batch: int | None,
    loss: str | None,
    down: str,
    by: str,
    as_json: bool,
) -> None:
    """Find, in each family of compressors, the setting that reaches γ with the fewest paper bits or bytes.

    Without a probe γ is the bound that holds for all vectors; with one it is measured. With --workers the
    answers are counted as well: up and down apart, and all that crosses the coordinator's link.
    """
    if every < 1:
        raise SettingError(f"--sync-every must be at least 1, not {every}")
    orders = _orders(gamma, steps, workers, batch)
    largest = None
    if loss is not None:
        if steps is None or workers is None or batch is None:
            raise SettingError("--loss goes with --steps, --workers and --batch: give all three")
        largest = largest_h(gamma, steps, workers, batch, _loss(loss))
    x = None if probe is None else _load(probe)
    network = _network(workers, down, by, n, x)
    rows = tune(gamma, n, x, network.link if network is not None and by == "bytes" else None)
    n = n if x is None else x.size
    assert n is not None
    reached = [row for row in rows if not row.reason]
    missed = [row for row in rows if row.reason]
    view = _View(n, every, x is not None, network, by)
    if as_json:
        answer = {
            "gamma": gamma,
            "sync_every": every,
            "n": n,
            "probe": probe,
            "by": by,
            "reached": [view.entry(row) for row in reached],
            "missed": [{"family": row.family, "reason": row.reason} for row in missed],
            "order_of_h": None if orders is None else dict(zip(_MEETINGS, orders, strict=True)),
            "largest_h": None if largest is None else {"h": largest[0], "lr": largest[1]},
        }
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    how = "by bounds for all vectors" if x is None else f"measured on {probe}"
    click.echo(f"γ ≥ {gamma:g} for {n:,} coordinates, {how}; a message every {every:,} steps")
    click.echo("" if network is None else f"{network.said()}\n")
    click.echo(view.table(reached))
    if missed:
        click.echo(f"\nγ ≥ {gamma:g} is not reached by")
        click.echo(tabulate([(row.family, row.reason) for row in missed], tablefmt="plain"))
    if orders is not None:
        click.echo(
            f"\nH, by theory and up to unknown constants: synchronous O({orders[0]:.3g}), "
            f"asynchronous O({orders[1]:.3g})"
        )
    if largest is not None:
        h, lr = largest
        most = f"{int(h):,}" if h >= 1 else f"{h:.3g}, so not even 1"
        click.echo(f"H, by the bound for this loss: at most {most}, with a learning rate of {lr:.3g}")


_MEETINGS = ("synchronous", "asynchronous")


def _orders(
    gamma: float, steps: int | None, workers: int | None, batch: int | None
) -> tuple[float, float] | None:
    if steps is None and batch is None:
        return None
    if steps is None or workers is None or batch is None:
        raise SettingError("--steps and --batch belong together, and with --workers: give all three, or none")
    return orders_of_h(gamma, steps, workers, batch)


def _loss(text: str) -> Loss:
    """The figures of a loss as text."""
    values: dict[str, float] = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            values.clear()
            break
    if values.keys() != {field.name for field in fields(Loss)}:
        raise SettingError(f"--loss {text}: write your figures as gap=2,smoothness=1,noise=4,gradient=4")
    return Loss(**values)


class _Network:
    """Tells what a round carries, with reports of a compressor: of `qsparse-local-sgd` over a server."""

    def __init__(self, workers: int, down: str, n: int, probe: Vector | None) -> None:
        self._workers, self._down, self._n = workers, down, n
        self._probe = None if probe is None else probe.astype(np.float32)
        row: Algorithm = build("qsparse-local-sgd", "algorithm")
        self._row = row if down == EXACT else row.with_(down=build(down, "compressor"))

    def round(self, compressor: Compressor) -> Whole:
        """The messages of a round."""
        row = replace(self._row, up=replace(self._row.up, compressor=compressor))
        return whole(row, self._n, self._workers, self._probe)

    def link(self, compressor: Compressor) -> float:
        """The bytes of a round on the busiest link."""
        return self.round(compressor).link

    @property
    def dense(self) -> float:
        """Those of dense float32 both ways."""
        return 2 * (self._workers - 1) * (4 * self._n + HEADER_BYTES)

    def said(self) -> str:
        """The network and the answers in words."""
        models = "told exactly" if self._down == EXACT else f"told by {self._down}"
        return f"{self._workers:,} workers, one of which coordinates; models are {models}"


def _network(workers: int | None, down: str, by: str, n: int | None, probe: Vector | None) -> _Network | None:
    if workers is None or workers == 1:
        if by == "bytes" or down != EXACT:
            raise SettingError("bytes both ways are those of several workers: give --workers of at least 2")
        return None
    if workers < 1:
        raise SettingError(f"--workers must be at least 1, not {workers}")
    length = n if probe is None else probe.size
    if length is None or length < 1:
        return None  # which `tune` refuses
    return _Network(workers, down, length, probe)


def _load(path: str) -> Vector:
    """The array of a file; what it holds is checked by `tune`."""
    if Path(path).is_dir():
        raise DataError(f"--probe {path} is a folder: give a file that numpy.save wrote")
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot read --probe {path}: {error.strerror or error}") from None
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray):
        raise DataError(f"--probe {path} holds no array: write it by numpy.save(path, vector)")
    # A file may have the other byte order.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class _View(NamedTuple):
    """Shows rows, for vectors of n and a message every so many steps."""

    n: int
    every: int
    probed: bool
    network: _Network | None
    by: str

    def gain(self, row: Tuned) -> float:
        """Bits of dense float32 at every step over those of this row."""
        assert row.bits is not None
        return 32 * self.n * self.every / row.bits

    def link_gain(self, carried: Whole) -> float:
        """The same of bytes on the busiest link, where dense float32 goes both ways at every step."""
        assert self.network is not None
        return self.network.dense * self.every / carried.link

    def entry(self, row: Tuned) -> dict[str, object]:
        """A row for programs."""
        assert row.bits is not None
        assert row.compressor is not None
        entry: dict[str, object] = {
            "family": row.family,
            "compressor": spell(row.compressor),
            "s": row.s,
            "k": row.k,
            "gamma": row.gamma,
            "bits": row.bits,
            "bits_per_step": row.bits / self.every,
            "gain": self.gain(row),
            "wire_bytes": row.wire_bytes,
            "draws": row.draws,
        }
        if self.network is None:
            return entry
        carried = self.network.round(row.compressor)
        return entry | {
            "bits_down": carried.bits_down,
            "bits_both": carried.bits,
            "bytes_up": carried.up,
            "bytes_down": carried.down,
            "link_bytes": carried.link,
            "link_gain": self.link_gain(carried),
        }

    def table(self, rows: list[Tuned]) -> str:
        """The rows for people: of bits, or of bytes."""
        headers = ["family", "--compressor", "s", "k", "γ"]
        headers += _HEADERS[self.by, self.network is not None]
        if self.probed:
            headers += ["wire bytes", "draws"]
        lines = []
        for row in rows:
            assert row.compressor is not None
            line = [
                row.family,
                f'"{spell(row.compressor)}"',
                "" if row.s is None else f"{row.s:,}",
                "" if row.k is None else f"{row.k:,}",
                f"{row.gamma:.4g}",
                *self._figures(row, row.compressor),
            ]
            if self.probed:
                line += [f"{row.wire_bytes:,.0f}", f"{row.draws}"]
            lines.append(line)
        align = ["left", "left"] + ["right"] * (len(headers) - 2)
        return str(tabulate(lines, headers=headers, tablefmt="simple", colalign=align, disable_numparse=True))

    def _figures(self, row: Tuned, compressor: Compressor) -> list[str]:
        carried = None if self.network is None else self.network.round(compressor)
        if carried is not None and self.by == "bytes":
            numbers = (carried.up, carried.down, carried.link, carried.link / self.every)
            return [f"{number:,.0f}" for number in numbers] + [f"{self.link_gain(carried):,.1f}"]
        assert row.bits is not None
        down = [] if carried is None else [_number(carried.bits_down), _number(carried.bits)]
        return [f"{row.bits:,}", *down, f"{row.bits / self.every:,.0f}", f"{self.gain(row):,.1f}"]


#: The columns of what is to be least, without and with answers.
_HEADERS: Final = {
    ("bits", False): ["bits", "bits/step", "gain"],
    ("bits", True): ["bits up", "down", "both", "up/step", "gain up"],
    ("bytes", True): ["bytes up", "down", "link", "link/step", "gain"],
}


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"

"""``qsparse tune``: the compressor that keeps enough and sends the fewest bits."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from tabulate import tabulate

from qsparse.cli.options import PATH
from qsparse.errors import DataError, SettingError
from qsparse.registry import spell
from qsparse.tuning import Tuned, orders_of_h, tune
from qsparse.types import Vector


@click.command("tune")
@click.option("--gamma", type=float, required=True, help="The contraction γ to reach, in (0, 1].")
@click.option("--sync-every", "every", type=int, default=1, show_default=True, help="H, steps a message.")
@click.option("--n", type=int, help="Length of the vector; the probe's if there is one.")
@click.option("--probe", type=PATH, help="A vector, FILE.npy, on which γ is measured.")
@click.option("--steps", type=int, help="T; with --workers and --batch: how large the theory lets H be.")
@click.option("--workers", type=int, help="R.")
@click.option("--batch", type=int, help="b, of each worker.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def tune_command(
    gamma: float,
    every: int,
    n: int | None,
    probe: str | None,
    steps: int | None,
    workers: int | None,
    batch: int | None,
    as_json: bool,
) -> None:
    """Find, in each family of compressors, the setting that reaches γ with the fewest paper bits.

    Without a probe γ is the bound that holds for all vectors; with one it is measured.
    """
    if every < 1:
        raise SettingError(f"--sync-every must be at least 1, not {every}")
    orders = _orders(gamma, steps, workers, batch)
    x = None if probe is None else _load(probe)
    rows = tune(gamma, n, x)
    n = n if x is None else x.size
    assert n is not None
    reached = [row for row in rows if not row.reason]
    missed = [row for row in rows if row.reason]
    if as_json:
        answer = {
            "gamma": gamma,
            "sync_every": every,
            "n": n,
            "probe": probe,
            "reached": [_entry(row, n, every) for row in reached],
            "missed": [{"family": row.family, "reason": row.reason} for row in missed],
            "order_of_h": None if orders is None else dict(zip(_MEETINGS, orders, strict=True)),
        }
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    how = "by bounds for all vectors" if x is None else f"measured on {probe}"
    click.echo(f"γ ≥ {gamma:g} for {n:,} coordinates, {how}; a message every {every:,} steps\n")
    click.echo(_table(reached, n, every, x is not None))
    if missed:
        click.echo(f"\nγ ≥ {gamma:g} is not reached by")
        click.echo(tabulate([(row.family, row.reason) for row in missed], tablefmt="plain"))
    if orders is not None:
        click.echo(
            f"\nH, by theory and up to unknown constants: synchronous O({orders[0]:.3g}), "
            f"asynchronous O({orders[1]:.3g})"
        )


_MEETINGS = ("synchronous", "asynchronous")


def _orders(
    gamma: float, steps: int | None, workers: int | None, batch: int | None
) -> tuple[float, float] | None:
    if steps is None and workers is None and batch is None:
        return None
    if steps is None or workers is None or batch is None:
        raise SettingError("--steps, --workers and --batch belong together: give all three, or none")
    return orders_of_h(gamma, steps, workers, batch)


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


def _gain(row: Tuned, n: int, every: int) -> float:
    """Bits of dense float32 at every step over those of this row."""
    assert row.bits is not None
    return 32 * n * every / row.bits


def _entry(row: Tuned, n: int, every: int) -> dict[str, object]:
    assert row.bits is not None
    return {
        "family": row.family,
        "compressor": spell(row.compressor),
        "s": row.s,
        "k": row.k,
        "gamma": row.gamma,
        "bits": row.bits,
        "bits_per_step": row.bits / every,
        "gain": _gain(row, n, every),
        "wire_bytes": row.wire_bytes,
        "draws": row.draws,
    }


def _table(rows: list[Tuned], n: int, every: int, probed: bool) -> str:
    headers = ["family", "--compressor", "s", "k", "γ", "bits", "bits/step", "gain"]
    if probed:
        headers += ["wire bytes", "draws"]
    lines = []
    for row in rows:
        assert row.bits is not None
        line = [
            row.family,
            f'"{spell(row.compressor)}"',
            "" if row.s is None else f"{row.s:,}",
            "" if row.k is None else f"{row.k:,}",
            f"{row.gamma:.4g}",
            f"{row.bits:,}",
            f"{row.bits / every:,.0f}",
            f"{_gain(row, n, every):,.1f}",
        ]
        if probed:
            line += [f"{row.wire_bytes:,.0f}", f"{row.draws}"]
        lines.append(line)
    align = ["left", "left"] + ["right"] * (len(headers) - 2)
    return str(tabulate(lines, headers=headers, tablefmt="simple", colalign=align, disable_numparse=True))

"""``qsparse bench kernels``: compressors on one rank."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import click
from tabulate import tabulate

from qsparse.bench.kernels import RESNET50, Settings, measure
from qsparse.cli.options import LENGTH, PATH, check_json, write_json


@click.command("kernels")
@click.option("--n", type=LENGTH, default=RESNET50, show_default=True, help="Values of a vector.")
@click.option(
    "--ratio", "ratios", type=float, multiple=True, default=(0.001, 0.01, 0.1), show_default=True,
    help="Share that top-k keeps; several times for several.",
)  # fmt: skip
@click.option("--rounds", type=int, default=7, show_default=True, help="Timed rounds, after one untimed.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of the rank.")
@click.option("--json", "file", type=PATH, help="Also write all figures to this file.")
@click.option("--quiet", is_flag=True, help="No lines of progress.")
def kernels(
    n: int, ratios: tuple[float, ...], rounds: int, threads: int, file: str | None, quiet: bool
) -> None:
    """Time each compressor with its memory, and decoding, beside numpy.add, torch.topk and argpartition.

    One rank. See docs/benchmarks.md for what is compared with what.
    """
    settings = Settings(n=n, shares=ratios, rounds=rounds, threads=threads)
    say = (lambda line: None) if quiet else functools.partial(click.echo, err=True)
    # Before minutes are spent on figures that have no place to go.
    check_json(file)
    found = measure(settings, say)
    click.echo(_table(found))
    write_json(file, found)


def _table(found: Mapping[str, Any]) -> str:
    headers = (
        "compressor | memory", "part", "ms", "GB/s", "/ add", "torch.topk /", "argpartition /",
        "bits/entry", "positions", "bound",
    )  # fmt: skip
    rows = [
        (
            f"{row['compressor']} | {row['memory']}", row["part"], f"{row['milliseconds']:.1f}",
            f"{row['gigabytes_per_second']:.2f}", f"{row['to_add']:.2f}", _figure(row["torch_topk"], 1),
            _figure(row["argpartition"], 1), f"{row['wire_bits']:.2f}", _figure(row["position_bits"], 2),
            _figure(row["bound_bits"], 2),
        )
        for row in found["rows"]
    ]  # fmt: skip
    lines = [
        f"n = {found['n']:,}, {found['threads']} thread(s), median of {found['rounds']} rounds, "
        f"{found['processor']}",
        f"vectors: {found['vectors']}",
        "",
        str(tabulate(rows, headers=headers, disable_numparse=True)),
        "",
        *(_judgement(bar) for bar in found["bars"]),
    ]
    return "\n".join(lines)


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _judgement(bar: Mapping[str, Any]) -> str:
    figure = {
        "to_add": "times numpy.add",
        "torch_topk": "times faster than torch.topk",
        "argpartition": "times faster than argpartition",
    }[bar["figure"]]
    wanted = f"{'at least' if bar['at_least'] else 'at most'} {bar['limit']:g}"
    verdict = "met" if bar["met"] else "NOT MET"
    what = f"{bar['compressor']} | {bar['memory']}, {bar['part']}"
    return f"{verdict:8}{what}: {bar['measured']:.2f} {figure}, bar {wanted}"

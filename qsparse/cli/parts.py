"""``qsparse list``, ``qsparse bits`` and ``qsparse laws``: the parts, by themselves."""

from __future__ import annotations

import importlib

import click
import numpy as np
from tabulate import tabulate

from qsparse.cli.options import SEED, check_length
from qsparse.payload import HEADER_BYTES
from qsparse.registry import build, find, kinds, names, spell
from qsparse.seeds import Seed


@click.command("list")
@click.argument("kind", required=False)
@click.option("--capabilities", is_flag=True, help="Print, as Markdown, what the parts of all kinds claim.")
def list_parts(kind: str | None, capabilities: bool) -> None:
    """List the parts of a KIND (compressors, memories, …, algorithms), or of all kinds."""
    if capabilities:
        if kind is not None:
            raise click.UsageError("--capabilities is about all kinds: leave KIND out")
        click.echo(importlib.import_module("qsparse.cli.capabilities").capabilities())
        return
    wanted = kinds() if kind is None else (_kind(kind),)
    for each in wanted:
        rows = [(name, _summary(name, each)) for name in names(each)]
        if kind is None:
            click.echo(f"\n{each}")
        click.echo(tabulate(rows, tablefmt="plain", maxcolwidths=[None, 80]))


def _kind(word: str) -> str:
    singular = {"memories": "memory"}.get(word, word)
    return singular if singular in kinds() else singular.removesuffix("s")


def _summary(name: str, kind: str) -> str:
    lines = (find(name, kind).__doc__ or "").strip().splitlines()
    paragraph = []
    for line in lines:
        if not line.strip():
            break
        paragraph.append(line.strip())
    return " ".join(paragraph)


@click.command("bits")
@click.argument("spec")
@click.option(
    "--n", type=click.IntRange(min=1), callback=check_length, required=True, help="Length of the vector."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the measured vector.")
def bits(spec: str, n: int, seed: int) -> None:
    """What a compressor SPEC sends for a vector of N values: paper bits and wire bytes.

    Paper bits are the formula's; wire bytes are measured on a vector of independent gaussians.
    """
    compressor = build(spec, "compressor")
    compressor.check(n)
    claims = compressor.claims
    x = np.random.default_rng(seed).standard_normal(n, dtype=np.float32)
    payload = compressor.compress(x, Seed(seed))
    claimed, gamma = claims.bits(n), claims.gamma(n)
    dense = 32 * n
    rows = [
        ("compressor", spell(compressor)),
        ("paper bits, by formula", "depends on the vector" if claimed is None else f"{claimed:,}"),
        ("paper bits, this vector", f"{payload.nbits:,}"),
        ("wire bytes, this vector", f"{len(payload):,} ({HEADER_BYTES} of them header)"),
        ("dense float32 / paper bits", f"{dense / payload.nbits:,.1f}"),
        ("dense float32 / wire", f"{dense / (8 * len(payload)):,.1f}"),
        ("contraction γ at least", "none for all vectors" if gamma is None else f"{gamma:.3g}"),
        ("unbiased", "yes" if claims.unbiased else "no"),
    ]
    click.echo(tabulate(rows, tablefmt="plain"))


@click.command("laws")
@click.argument("part", required=False)
def laws(part: str | None) -> None:
    """Hold every registered part, or one of any kind given as MODULE:PART, to the laws of its kind."""
    module = importlib.import_module("qsparse.testing.laws")
    parts = None if part is None else module.load(part)
    report = module.run(parts)
    rows = [(kind, law, count or "not applicable") for (kind, law), count in report.per_law.items()]
    click.echo(tabulate(rows, headers=("kind", "law", "checks"), tablefmt="simple"))
    for failure in report.failures:
        click.echo(f"FAILED {failure}", err=True)
    outcome = "all passed" if not report.failures else f"{len(report.failures)} failed"
    click.echo(
        f"\n{report.checks} checks of (part, law, vector) on {report.parts} parts and "
        f"{report.vectors} vectors: {outcome}"
    )
    if report.failures:
        raise SystemExit(1)

"""``qsparse bench allreduce``."""

from __future__ import annotations

import click

from qsparse.bench.allreduce import COMPRESSORS, check, table
from qsparse.cli.bench_ranks import bench_options, measured_on_ranks
from qsparse.cli.options import LENGTH, SEED
from qsparse.registry import build


@click.command("allreduce")
@bench_options(ranks=2)
@click.option(
    "--n", type=LENGTH, default=25_600_000, show_default=True, help="Coordinates of a rank's vector."
)
@click.option("--rounds", type=int, default=7, show_default=True, help="Timed calls of each method.")
@click.option(
    "--compressor", "compressors", multiple=True, default=COMPRESSORS, show_default=True,
    help="Of ours; may be repeated.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the vectors.")
def allreduce(
    ranks: int,
    rate: str | None,
    file: str | None,
    n: int,
    rounds: int,
    compressors: tuple[str, ...],
    seed: int,
) -> None:
    """Time the mean of one vector over the ranks: ours, MPI's dense one, and torch's hooks.

    Prints for each method the time, for ours that of encoding, of the wire and of decoding, the error
    that is left after 20 calls, and the bytes a rank sends, by our ledger and by the link's counter.
    """
    check(n, rounds)
    for compressor in compressors:
        build(compressor, "compressor").check(n)
    settings = {"n": n, "rounds": rounds, "compressors": list(compressors), "seed": seed}
    measured_on_ranks("qsparse.bench.allreduce:measure", settings, ranks, rate, file, table)

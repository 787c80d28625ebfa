"""``qsparse check``: which rules of composition an algorithm keeps, and which it breaks."""

from __future__ import annotations

import click
from tabulate import tabulate

from qsparse.algorithm import Algorithm
from qsparse.modules import user_module
from qsparse.registry import build, spell
from qsparse.rules import judged, natural_exchange


@click.command("check")
@click.argument("algorithm")
@click.option(
    "--exchange", help="Of the ranks.  [default: server, where needed with a rank that only serves]"
)
@click.option("--ranks", type=click.IntRange(min=1), default=4, show_default=True, help="How many there are.")
@click.option("--import", "imports", multiple=True, metavar="MODULE", help="Import first; may be repeated.")
def check_command(algorithm: str, exchange: str | None, ranks: int, imports: tuple[str, ...]) -> None:
    """Tell which rules of composition hold of an ALGORITHM, and which it breaks.

    The exit status is 0 where all hold, and 1 where one is broken.
    """
    for module in imports:
        user_module(module, f"import --import {module}")
    row: Algorithm = build(algorithm, "algorithm")
    pattern = natural_exchange(row) if exchange is None else build(exchange, "exchange")
    found = list(judged(row, pattern, ranks))
    rows = [
        (rule.name, "holds" if reason is None else "breaks", rule.sentence if reason is None else reason)
        for rule, reason in found
    ]
    broken = sum(reason is not None for _, reason in found)
    click.echo(
        tabulate(rows, headers=("rule", "", "sentence"), tablefmt="simple", maxcolwidths=[None, None, 80])
    )
    outcome = "all hold" if not broken else f"{broken} of them broken"
    click.echo(f"\n{len(found)} rules of {algorithm}, over {spell(pattern)} with {ranks} ranks: {outcome}")
    if broken:
        raise SystemExit(1)

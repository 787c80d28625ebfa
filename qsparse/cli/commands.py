"""The commands, and how they end."""

from __future__ import annotations

from typing import Any

import click

import qsparse as package
from qsparse.cli.bench import bench
from qsparse.cli.check import check_command
from qsparse.cli.doctor import doctor
from qsparse.cli.parts import bits, laws, list_parts
from qsparse.cli.plan import plan_command
from qsparse.cli.plot import plot
from qsparse.cli.ranks import message
from qsparse.cli.reproduce import reproduce
from qsparse.cli.sweep import sweep
from qsparse.cli.train import train
from qsparse.cli.tune import tune_command
from qsparse.cli.warm import warm
from qsparse.errors import QsparseError


class _Group(click.Group):
    """Ends with a sentence instead of a traceback where the error was foreseen."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (QsparseError, MemoryError) as error:
            click.echo(message(error), nl=False, err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package.__version__, prog_name="qsparse")
def qsparse() -> None:
    """Distributed training that sends little."""


_COMMANDS = (
    train,
    sweep,
    plot,
    list_parts,
    bits,
    tune_command,
    plan_command,
    check_command,
    laws,
    doctor,
    warm,
    bench,
    reproduce,
)
for command in _COMMANDS:
    qsparse.add_command(command)

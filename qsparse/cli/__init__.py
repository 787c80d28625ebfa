"""The command ``qsparse``."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line; the entry point of ``qsparse`` and ``python -m qsparse``."""
    from qsparse.cli.streams import complained_of, prepare_streams

    prepare_streams()
    from qsparse.cli.launch import thread_settings
    from qsparse.errors import SettingError
    from qsparse.process.launchers import launched, threads_of_a_rank
    from qsparse.process.supervisor import split

    try:
        threads_of_a_rank(os.environ)  # numba would answer with a traceback
    except SettingError as error:
        raise SystemExit(f"error: SettingError: {error}") from None
    # Before NumPy and torch are loaded, which would start a thread for every core in every rank.
    os.environ.update(thread_settings(os.environ))
    if launched(os.environ):
        split()  # now, while this process is small
    from qsparse.cli.commands import qsparse

    try:
        qsparse(prog_name="qsparse")
    except OSError as error:
        if not complained_of(error):
            raise
        raise SystemExit(1) from None

"""The command ``qsparse``."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line; the entry point of ``qsparse`` and ``python -m qsparse``."""
    # Before NumPy and torch are loaded: each rank has its share of the cores, one unless told.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from qsparse.cli.commands import qsparse

    qsparse(prog_name="qsparse")

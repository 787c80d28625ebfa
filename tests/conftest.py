"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A folder with the real data sets; tests that need it are skipped, with this reason, without it."""
    candidates = [os.environ.get("QSPARSE_DATA"), ROOT.parent / "shared" / "data"]
    for candidate in filter(None, candidates):
        if Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real data: set QSPARSE_DATA to a folder with mnist, cifar-10 and libsvm")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT

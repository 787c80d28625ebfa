"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from marks import (  # noqa: F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_call,
    pytest_runtest_setup,
)

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Processes that tests start load modules that are compiled, though the shell may not want them kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests that a shell runs in the background ignore interrupts, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Ranks are threads in many tests: torch makes no threads of its own in each."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

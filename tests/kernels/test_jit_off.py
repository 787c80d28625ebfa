"""Without the JIT the kernels are plain Python, and give the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jit_bytes

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"


def without_jit(*command):
    paths = [str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_part_gives_the_same_bytes_and_values():
    plain = without_jit(str(SUPPORT / "jit_bytes.py"))
    assert plain.returncode == 0, plain.stderr
    got, wanted = json.loads(plain.stdout), jit_bytes.spelled()
    assert len(wanted) > 1000
    assert got.keys() == wanted.keys()
    different = [key for key in wanted if got[key] != wanted[key]]
    assert not different


def test_the_kernels_agree_with_their_twins():
    names = ("kernels/test_kernels.py", "kernels/test_ans.py", "frames/test_within.py")
    tests = (str(ROOT / "tests" / name) for name in names)
    plain = without_jit("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests)
    assert plain.returncode == 0, plain.stdout + plain.stderr

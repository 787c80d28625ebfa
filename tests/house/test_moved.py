"""Import paths of earlier releases keep working."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qsparse._moved import MOVED


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=120)


def test_an_old_path_gives_the_module_of_today() -> None:
    lines = [
        "import importlib",
        *(
            f"old = importlib.import_module('qsparse.{old}')\n"
            f"new = importlib.import_module('qsparse.{new}')\n"
            f"assert old is new and new.__spec__.name == new.__name__ == 'qsparse.{new}', '{old}'"
            for old, new in MOVED.items()
        ),
        "from qsparse.torch.data import load",
        "from qsparse.warming import warm_algorithm",
        "from qsparse.triggers.joined import Both",
        "from qsparse.errors import PeerGone, Stranded; assert Stranded is PeerGone",
        "from qsparse.presets import qsparse_local_sgd as row",
        "assert row(lr=0.1, H=4) == row(H=4).with_(lr=0.1)",
        "assert row(0.1) == row().with_(lr=0.1)",
        "from qsparse.compressors.composed import copy_of, stored; assert stored is copy_of",
        "print('all there')",
    ]
    done = run("-c", "\n".join(lines))
    assert (done.returncode, done.stdout) == (0, "all there\n"), done.stderr


def test_a_command_of_before_runs() -> None:
    done = run("-m", "qsparse.supervisor", sys.executable, "-c", "print('as before')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "as before\n", "")


@pytest.mark.parametrize("name", ["qsparse.nowhere", "qsparse.torch.data.nowhere"])
def test_other_names_are_not_found(name: str) -> None:
    done = run("-c", f"import {name}")
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named" in done.stderr

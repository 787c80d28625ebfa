"""What is built from a clone: the source distribution has all of it, and a wheel knows what it lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

#: What building adds.
ADDED = {"PKG-INFO", "setup.cfg"}


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """A copy of the files of this checkout that git has, which building may write into."""
    if not (root / ".git").exists():
        pytest.skip("no git checkout, so nobody says which files belong to it")
    copy = tmp_path / "clone"
    for name in filter(None, run("git", "ls-files", "-z", cwd=root).split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, copy / name)
    return copy


def build(clone: Path, what: str, out: Path) -> Path:
    """Build as pip does, without an environment of its own, which would need a network."""
    program = f"import setuptools.build_meta as b; print(b.build_{what}({str(out)!r}))"
    return out / run(sys.executable, "-c", program, cwd=clone).split()[-1]


def test_the_source_distribution_has_what_the_clone_has(clone: Path, tmp_path: Path) -> None:
    files = {path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file()}
    assert {
        "constraints.txt",
        "CHANGELOG.md",
        "tests/conftest.py",
        "tests/frames/golden/frames.json",
    } <= files
    with tarfile.open(build(clone, "sdist", tmp_path)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    packed = {name for name in packed if not name.startswith("qsparse.egg-info/")}
    assert packed - ADDED == files


def test_a_wheel_names_packages_and_no_clone(clone: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(clone, "wheel", tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    program = (
        "import qsparse; from qsparse.errors import installing\n"
        "print(qsparse.__file__, installing('train'), installing('mpich'), installing('nothing'), sep='\\n')"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where, train, mpich, nothing = run(sys.executable, "-c", program, cwd=tmp_path, env=env).splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert train.startswith('pip install "torch>=2.2" "scikit-learn>=1.3" ')
    assert "pytest" not in train
    assert "extra" not in train
    assert mpich == 'pip install "mpich>=4.1"'
    assert nothing == "install the extra [nothing] of qsparse from where this qsparse came from"

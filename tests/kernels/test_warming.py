"""Kernels are compiled once on a machine, before the first step; real processes with folders of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from mpirun import ROOT, clean_environment, finish, mpi_run, start

from qsparse.kernels import vector

#: Each rank prints the kernels that it has compiled and those that it has loaded.
ALLREDUCE = """
import json, resource, sys
import numpy as np
from mpi4py import MPI
from qsparse.allreduce import CompressedAllreduce
from qsparse.kernels import jit
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
allreduce = CompressedAllreduce(MPI.COMM_WORLD, "float32")  # has the fewest kernels
for _ in range(3):
    mean = allreduce(np.linspace(-1, 1, 500, dtype=np.float32))
assert np.isfinite(mean).all()
allreduce.close()
print(json.dumps([jit.compiled(), jit.loaded()]) + "\\n", end="", flush=True)
"""

TRAIN = """
import json, sys
from qsparse.cli.commands import qsparse
from qsparse.kernels import jit
qsparse(["train", "--quiet", "--steps", "3", "--batch", "4", "--model", "softmax", *sys.argv[1:]],
        standalone_mode=False)
print(json.dumps([jit.compiled(), jit.loaded()]) + "\\n", end="", flush=True)
"""


def ranks(program, *args, size=2, **env):
    """What each rank has compiled and loaded, and what all of them said on standard error."""
    done = mpi_run(size, program, *args, env={name: str(value) for name, value in env.items()}, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == size
    return [line[0] for line in lines], [line[1] for line in lines], done.stderr


def files(folder):
    return [path for path in folder.rglob("*.nbc") if ".tmp." not in path.name]


def test_a_cold_start_compiles_every_kernel_on_one_rank(tmp_path):
    args = ("--algorithm", "qsparse-local-sgd(H=2)", "--out", tmp_path / "run")
    # Of two ranks, as each loads torch; that all others wait for one, the three of a torn cache show.
    compiled, loaded, _ = ranks(TRAIN, *args, NUMBA_CACHE_DIR=tmp_path / "cache")
    (most,) = [names for names in compiled if names]
    assert len(most) == len(set(most)) >= 5
    assert any(loaded)
    assert len(files(tmp_path / "cache")) == len(most)

    compiled, loaded, _ = ranks(TRAIN, *args, size=1, NUMBA_CACHE_DIR=tmp_path / "cache")
    assert not any(compiled)
    assert all(loaded)


LEFT = """
import os, sys
import numpy as np
from qsparse.allreduce import CompressedAllreduce
from qsparse.compressors import LowPrecision
from qsparse.compressors.reports import merged, vote
from qsparse.link import Link, Receiver
from qsparse.memory import ErrorFeedback
from qsparse.rounds import warming
from qsparse.rules import natural_exchange
from qsparse.kernels import jit
from qsparse.registry import build
from qsparse.rounds.phases import Walk
from qsparse.seeds import Seed
from qsparse.testing.base import layout
from qsparse.testing.parts import EXAMPLES
from qsparse.wire.threads import run_threads

def known():
    return {*jit.compiled(), *jit.loaded()}

def train(algorithm, kind, n=400):
    def body(wire):
        draw = np.random.default_rng(wire.rank)
        def oracle(x, batch, out):
            out[...] = x + draw.standard_normal(n)
            return 0.0
        walk = Walk(algorithm, natural_exchange(algorithm), wire, start.copy(), Seed(0), layout(n))
        for _ in walk.steps(6, oracle, lambda t: None):
            pass
    start = np.linspace(-1, 1, n, dtype=kind)
    warming.rehearse_algorithm(algorithm, start, layout(n))
    before = known()
    run_threads(3, body)
    return known() - before

def reduce(up, memory, down, exchange, kind, n=400):
    def body(wire):
        settings = {"down": None if down is None else down.compressor, "exchange": exchange}
        allreduce = CompressedAllreduce(wire, link.compressor, link.memory, **settings)
        for step in range(3):
            allreduce(np.random.default_rng((wire.rank, step)).standard_normal(n).astype(kind))
    link, start = Link(build(up, "compressor"), build(memory, "memory")), np.zeros(n, kind)
    down = None if down is None else Link(build(down, "compressor"), ErrorFeedback())
    warming.rehearse_link(link, start)
    warming.rehearse_answers(link, down, start, build(exchange, "exchange").stretches(n, 3))
    before = known()
    run_threads(3, body)
    return known() - before

def late(text, act, n=400):
    # What comes up only after some steps: ties of a vote, models that are told finely.
    start = np.linspace(-1, 1, n, dtype=np.float32)
    algorithm = row(text)
    warming.rehearse_algorithm(algorithm, start, layout(n))
    before = known()
    act(algorithm, np.random.default_rng(1).standard_normal(n).astype(np.float32))
    return known() - before

def tied(algorithm, u):
    u[7] = 0
    merged(vote(u, Seed(1)), np.empty_like(u))

def fine(algorithm, x):
    for bits in (3, 8, 9, 12, 16):
        Receiver(algorithm.answer, x).merge([LowPrecision(bits).compress(x, Seed(1))])

# A child for each, so that none finds what another one has loaded; numba itself they may share.
jit.get_ready()
assert not known()
presets = {text.partition("(")[0]: text for text in EXAMPLES["algorithm"]}
kinds = [(np.float32, np.float64)[number % 2] for number in range(len(presets))]
row = lambda text: build(text, "algorithm").over(6)
tries = [(text, lambda t=text, k=kind: train(row(t), k)) for text, kind in zip(presets.values(), kinds)]
for each in (
    ("topk(ratio=0.05) >> sign", "errorfeedback", None, "server", np.float32),
    ("topk(ratio=0.05) >> sign", "errorfeedback", None, "sharded", np.float64),
    ("topk(ratio=0.05)", "innovation", None, "sharded", np.float32),
    ("qsgd(levels=3, scaled=true)", "errorfeedback", "topk(ratio=0.1) >> sign", "sharded", np.float32),
    ("blockwise(sign, size=50)", "errorfeedback", "sign", "tree", np.float64),
    ("float32", "stateless", None, "sharded", np.float32),
):
    tries.append((f"reduce {each[:4]}", lambda each=each: reduce(*each)))
tries.append(("a vote that ties", lambda: late("signum-majority", tied)))
tries.append(("fine models", lambda: late("asylpg", fine)))
for text, work in tries:
    if (child := os.fork()) == 0:
        status = 1
        try:
            print(f"{text}: {work() or 'nothing'}", flush=True)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, text
"""


COMMANDS = """
import json, sys
sys.path.insert(0, sys.argv.pop())
import jit_bytes
from qsparse.cli.commands import qsparse
from qsparse.kernels import jit
jit_bytes.spelled()
qsparse(["doctor"], standalone_mode=False)
qsparse(["bits", "topk(ratio=0.01) >> sign", "--n", "100000"], standalone_mode=False)
print(json.dumps([jit.compiled(), jit.loaded()]))
"""

#: Begins with the kernels of another folder, but for a few that are compiled soon.
WARM = """
import json, shutil, sys
from pathlib import Path
from qsparse.cli.commands import qsparse
from qsparse.kernels import jit
own = Path(jit.folder())
own.mkdir(exist_ok=True)
for path in Path(sys.argv[1]).glob("*.nbc"):
    if ".tmp." not in path.name and not path.name.startswith("accumulate.gather-"):
        shutil.copy(path, own)
before = len(list(own.iterdir()))
qsparse(["warm"], standalone_mode=False)
print(json.dumps([before, jit.compiled(), jit.loaded()]))
"""


@dataclass(frozen=True)
class Warm:
    """A folder of kernels after ``qsparse warm``: the environment that names it, and what was made ready."""

    env: dict[str, str]
    ready: set[str]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A machine on which ``qsparse warm`` was called.

    Compiling all kernels takes long. So it begins with those that this machine has, less a few: what the
    command makes ready is what it has compiled or loaded, whoever has compiled it.
    """
    folder = tmp_path_factory.mktemp("kernels")
    env = {"NUMBA_CACHE_DIR": str(folder)}
    known = vector.max_abs.stats.cache_path
    warmed = finish(start([sys.executable, "-W", "error", "-c", WARM, known], env=env), 240)
    assert warmed.returncode == 0, warmed
    before, compiled, loaded = json.loads(warmed.stdout.splitlines()[-1])
    assert int(warmed.stdout.split()[1]) == len(compiled) == len(files(folder)) - before > 0
    assert len({*compiled, *loaded}) == len(compiled) + len(loaded) > 40
    assert str(folder) in warmed.stdout
    return Warm(env, {*compiled, *loaded})


def test_a_rehearsal_leaves_nothing_to_compile(warm):
    done = finish(start([sys.executable, "-c", LEFT], env=warm.env), 240)
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    assert [line for line in lines if not line.endswith(": nothing")] == []


def test_warm_leaves_nothing_to_compile_for_other_commands(warm):
    done = finish(start([sys.executable, "-c", COMMANDS, str(ROOT / "tests" / "support")], env=warm.env), 120)
    assert done.returncode == 0, done
    compiled, loaded = json.loads(done.stdout.splitlines()[-1])
    assert compiled == []
    assert loaded
    assert set(loaded) <= warm.ready


def copied(tmp_path):
    """The package at another place, without what was compiled."""
    ignore = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(ROOT / "qsparse", tmp_path / "copy" / "qsparse", ignore=ignore)


def test_kernels_of_an_older_release_are_not_used(tmp_path):
    # Kernels are compiled into each other: a file that is as it was may hold what another one said.
    package, random = copied(tmp_path), "kernels/random.py"
    program = f"""
import sys
sys.path.insert(0, {str(package.parent)!r})
import numpy as np
from qsparse.kernels import jit
from qsparse.registry import build
from qsparse.seeds import Seed
body = build("ternary", "compressor").compress(np.linspace(-1, 1, 50, dtype=np.float32), Seed(0)).body
print(len(jit.compiled()), bytes(body).hex())
"""

    def body():
        env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = finish(start([sys.executable, "-c", program], env=env), 60)
        assert done.returncode == 0, done
        compiled, hexed = done.stdout.split()
        return int(compiled), hexed

    first = body()
    assert first[0] > 3
    assert body() == (0, first[1])
    text = (package / random).read_text()
    (package / random).write_text(text.replace("range(10)", "range(9)"))
    assert (package / random).read_text() != text
    fewer = body()
    assert fewer[0] > 3
    assert fewer[1] != first[1]


def blocked(tmp_path):
    """Three places for kernels where nobody can write, not even root: a file stands in the way."""
    package = copied(tmp_path)
    (package / "kernels" / "__pycache__").write_text("in the way")
    (tmp_path / "file").write_text("in the way")
    return {
        "PYTHONPATH": str(tmp_path / "copy"),
        "XDG_CACHE_HOME": str(tmp_path / "file" / "cache"),
        "NUMBA_CACHE_DIR": str(tmp_path / "file" / "kernels"),
    }


def test_without_a_folder_every_rank_compiles_and_one_says_so(tmp_path):
    env = blocked(tmp_path)
    # The clone comes first on the path of jobs of tests.
    program = f"import sys; sys.path.insert(0, {env['PYTHONPATH']!r})\n" + ALLREDUCE
    compiled, loaded, said = ranks(program, **env)
    assert all(compiled)
    assert not any(loaded)
    assert said.count("no folder for compiled kernels can be written to") == 1
    assert said.count("set NUMBA_CACHE_DIR to a folder of this machine that can be written to") == 1


def test_a_folder_that_was_asked_for_in_vain_is_named_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    asked = tmp_path / "file" / "kernels"
    *_, said = ranks(ALLREDUCE, NUMBA_CACHE_DIR=asked)
    assert said.count(f"NUMBA_CACHE_DIR={asked} cannot be written to") == 1


def test_a_disk_that_is_full_ends_no_run(warm, tmp_path):
    # A few kernels are still to be compiled.
    cache = shutil.copytree(warm.env["NUMBA_CACHE_DIR"], tmp_path / "cache")
    for path in files(cache):
        if path.name.startswith("pack."):
            path.unlink()
    # A limit on the size of files, which no machine code keeps.
    compiled, _, said = ranks(ALLREDUCE, 4000, NUMBA_CACHE_DIR=cache)
    assert any(compiled)
    assert said.count("no compiled kernel can be written") == 1
    assert "File too large" in said


def test_a_torn_cache_is_compiled_anew_and_healed(warm, tmp_path):
    cache = shutil.copytree(warm.env["NUMBA_CACHE_DIR"], tmp_path / "cache")
    torn = files(cache)
    assert len(torn) > 5
    for path in torn:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    compiled, loaded, said = ranks(ALLREDUCE, size=3, NUMBA_CACHE_DIR=cache)
    (most,) = [names for names in compiled if names]
    assert len(most) > 5
    assert all(set(most) & set(names) for names, own in zip(loaded, compiled, strict=True) if not own)
    assert said.count("cannot be read") == 1
    compiled, _, said = ranks(ALLREDUCE, NUMBA_CACHE_DIR=cache)
    assert not any(compiled)
    assert "cannot be" not in said


#: Enters, says so, waits for a line, and leaves; `what` is the same for all.
TURN = """
import sys
from qsparse.rounds import warming
def act():
    print("in", flush=True)
    sys.stdin.readline()
print("asks", flush=True)
print("acted" if warming._once(act, "what") else "found it done", flush=True)
"""


def turn(tmp_path):
    env = clean_environment({"TMPDIR": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")})
    process = subprocess.Popen(
        [sys.executable, "-c", TURN], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "asks\n"
    return process


def seconds_of_cpu(process):
    with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def two(tmp_path):
    first = turn(tmp_path)
    assert first.stdout.readline() == "in\n"
    second = turn(tmp_path)
    yield first, second
    for process in (first, second):
        process.kill()
        process.communicate()


def test_who_waits_sleeps_and_finds_it_done(two):
    first, second = two
    before = seconds_of_cpu(second)
    time.sleep(1.5)
    assert seconds_of_cpu(second) - before < 0.5
    first.stdin.write("\n")
    first.stdin.flush()
    assert first.stdout.readline() == "acted\n"
    assert second.stdout.readline() == "found it done\n"


def test_who_waits_for_a_rank_that_is_killed_goes_on_by_itself(two):
    first, second = two
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert second.stdout.readline() == "in\n"


def test_what_was_done_before_is_done_again(two, tmp_path):
    # The folder of kernels may have been emptied since.
    for process in two:
        process.communicate("\n")  # the second one has perhaps ended by itself
    third = turn(tmp_path)
    assert third.stdout.readline() == "in\n"
    third.communicate("\n")


THREADS = """
import sys
import numpy as np
from qsparse.link import Link
from qsparse.registry import build
from qsparse.rounds.warming import warm_link
from qsparse.wire.threads import run_threads
link = Link(build("topk(k=3) >> sign", "compressor"), build("errorfeedback", "memory"))
sys.setswitchinterval(1e-5)
run_threads(8, lambda wire: warm_link(link, np.zeros(20, np.float32), wire.rank))
"""


def test_ranks_that_are_threads_do_not_start_numba_twice(warm):
    done = finish(start([sys.executable, "-W", "error", "-c", THREADS], env=warm.env), 60)
    assert done.returncode == 0, done

"""The commands beside ``train``: what they print, and what they refuse."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from mpirun import finish, mpi_run, start

import qsparse as package
from qsparse.cli.commands import qsparse
from qsparse.cli.train import config_of, train
from qsparse.errors import SettingError
from qsparse.payload import HEADER_BYTES
from qsparse.registry import build, kinds, names
from qsparse.run.making import make_settings
from qsparse.seeds import Seed


def invoke(*args: object) -> Result:
    return CliRunner().invoke(qsparse, [str(arg) for arg in args])


def refused(result: Result, *texts: str) -> None:
    """One sentence, status 1, nothing printed as a result."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for text in texts:
        assert text in result.stderr


# --- list ---------------------------------------------------------------------------------------


def test_list_shows_every_part_of_every_kind() -> None:
    result = invoke("list")
    assert result.exit_code == 0
    blocks = dict(re.findall(r"^\n(\w+)\n(.*?)\n(?=\n|\Z)", result.stdout, re.DOTALL | re.MULTILINE))
    assert tuple(blocks) == kinds()
    for kind, block in blocks.items():
        assert re.findall(r"^(\S+)  ", block, re.MULTILINE) == names(kind)


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("algorithms", "algorithm"),
        ("memories", "memory"),
        ("memory", "memory"),
        ("compressors", "compressor"),
        ("exchanges", "exchange"),
        ("local", "local"),
    ],
)
def test_list_of_one_kind(word: str, kind: str) -> None:
    result = invoke("list", word)
    assert result.exit_code == 0
    assert re.findall(r"^(\S+)  +\S", result.stdout, re.MULTILINE) == names(kind)


def test_list_of_no_kind() -> None:
    refused(invoke("list", "nonsense"), "no kind of part is named 'nonsense'", f"known: {', '.join(kinds())}")


# --- bits ---------------------------------------------------------------------------------------


def table(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return dict(re.split("  +", line) for line in result.stdout.splitlines())


@pytest.mark.parametrize("n", [1, 100, 70_001])
@pytest.mark.parametrize(
    "spec",
    ["topk(ratio=0.01) >> sign", "float32", "qsgd(levels=7)", "blockwise(sign, size=64)", "randsparse"],
)
def test_bits_are_those_of_a_frame(spec: str, n: int) -> None:
    rows = table(invoke("bits", spec, "--n", n, "--seed", 3))
    x = np.random.default_rng(3).standard_normal(n, dtype=np.float32)
    compressor = build(spec, "compressor")
    payload = compressor.compress(x, Seed(3))
    claimed = compressor.claims.bits(n)
    if claimed is not None:
        assert payload.nbits == claimed
    assert rows["paper bits, by formula"] == ("depends on the vector" if claimed is None else f"{claimed:,}")
    assert rows["paper bits, this vector"] == f"{payload.nbits:,}"
    assert rows["wire bytes, this vector"] == f"{len(payload.frame):,} ({HEADER_BYTES} of them header)"
    assert rows["dense float32 / paper bits"] == f"{32 * n / payload.nbits:,.1f}"
    assert rows["dense float32 / wire"] == f"{4 * n / len(payload.frame):,.1f}"
    assert rows["unbiased"] == ("yes" if compressor.claims.unbiased else "no")


def test_bits_of_top_k_signs_are_those_of_the_paper() -> None:
    """A scale, and for each of 10 values a sign and an index below 1000."""
    rows = table(invoke("bits", "topk(k=10)>>sign", "--n", 1000))
    assert rows["compressor"] == "topk(k=10) >> sign"
    assert rows["paper bits, this vector"] == str(32 + 10 * (1 + 10))
    assert rows["contraction γ at least"] == "0.001"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nope", "UnknownPart: no compressor is named 'nope': known: bfloat16, blockwise"),
        ("tokp(k=3)", "UnknownPart: no compressor is named 'tokp': did you mean 'topk'?"),
        ("topk(ratoi=0.1)", "SettingError: compressor topk has no setting 'ratoi': did you mean 'ratio'?"),
        ("topk(k=10)", "SettingError: topk(k=10): cannot keep 10 of 9 coordinates; use ratio"),
        ("topk(k=0)", "SettingError: topk(k=0): k must be a whole number of at least 1"),
        ("topk", "SettingError: topk: give either k or ratio"),
        ("topk(", "SettingError: cannot read 'topk(' as a compressor: '(' was never closed; write name("),
        ("topk(1, 2, 3)", "SettingError: compressor topk cannot be made of "),
        ("topk(ratio=sign)", "SettingError: compressor topk cannot be made of "),
        ("sign >> topk(k=3)", "CompositionError: sign and topk(k=3) cannot be joined that way"),
        ("topk(k=3) + sign", "SettingError: cannot read 'topk(k=3) + sign': parts are joined by >>, & or |"),
        ("sign(norm=7)", "SettingError: sign(norm=7): norm must be 1, 2 or none"),
        ("5", "SettingError: cannot read '5' as a compressor: write name(setting=value, …)"),
        ("__import__('os')", "UnknownPart: no compressor is named '__import__'"),
        ("*: nope", "UnknownPart: no compressor is named 'nope'"),
        ("", "SettingError: cannot read '' as a compressor"),
    ],
)
def test_bits_of_what_is_no_compressor(spec: str, text: str) -> None:
    refused(invoke("bits", spec, "--n", 9), text)


def test_bits_needs_a_vector() -> None:
    result = invoke("bits", "sign", "--n", 0)
    assert result.exit_code == 2
    assert "0 is not in the range x>=1" in result.stderr
    assert "Missing option '--n'" in invoke("bits", "sign").stderr


# --- laws ---------------------------------------------------------------------------------------

PLUG_IN = """
from dataclasses import dataclass
from typing import ClassVar

from qsparse.compressors import Compressor, Float32, Sign
from qsparse.registry import register


@register("half")
@dataclass(frozen=True)
class Half(Compressor):
    codec: ClassVar[int] = Float32.codec

    @property
    def claims(self):
        return Float32().claims  # which is a lie

    def write(self, x, seed, out):
        return Float32().write(x / 2, seed, out)


good = [Sign(), Sign(norm=2)]
number = 3
"""


def test_laws_of_a_plug_in(tmp_path: Path) -> None:
    """Parts of strangers, in the folder where the command is called."""
    (tmp_path / "strangers.py").write_text(PLUG_IN)
    program = f"""
        import os, sys
        from qsparse.cli.commands import qsparse
        os.chdir({str(tmp_path)!r})
        for part in ("good", "Half", "number", "nothing"):
            print("##", part, flush=True)
            try:
                qsparse.main(["laws", f"strangers:{{part}}"])
            except SystemExit as end:
                print("status", end.code)
                print("status", end.code, file=sys.stderr)
    """
    finished = mpi_run(1, program, timeout=60)
    good, half, number, nothing = finished.stdout.split("## ")[1:]
    assert re.search(
        r"checks of \(part, law, vector\) on 2 parts and \d+ vectors: all passed\nstatus 0\n", good
    )
    assert re.search(r"on 1 parts and \d+ vectors: \d+ failed\nstatus 1\n", half)
    assert (number, nothing) == ("number\nstatus 1\n", "nothing\nstatus 1\n")
    errors = finished.stderr.split("status ")
    assert errors[0] == ""
    assert "FAILED Check(part='half', law=" in errors[1]
    assert "error: SettingError: 'strangers:number' holds 3, which is no compressor" in errors[2]
    assert "error: SettingError: cannot load 'strangers:nothing': " in errors[3]


def test_laws_that_cannot_be_tried() -> None:
    refused(invoke("laws", "sign"), "SettingError: cannot read 'sign': write MODULE:NAME")
    refused(invoke("laws", "no_such_module:Part"), "cannot load 'no_such_module:Part': No module named")


# --- doctor, help and version -------------------------------------------------------------------


def test_doctor_alone() -> None:
    result = invoke("doctor")
    rows = table(result)
    assert rows["qsparse"].startswith(package.__version__)
    assert re.match(r"(MPICH|Open MPI|Intel MPI) \d+\.\d+", rows["MPI"])
    assert rows["ranks"].startswith("1, ")
    assert "first call of the default compressor" in result.stdout
    assert rows["link"] == "one rank; see mpirun -n 2 qsparse doctor"
    assert "ping" not in rows


def test_doctor_between_two_ranks() -> None:
    vendor = finish(start([sys.executable, "-m", "mpi4py", "--mpi-lib-version"]), 20).stdout
    for finished in (
        mpi_run(2, ["-m", "qsparse", "doctor"], timeout=60),
        finish(start([sys.executable, "-m", "qsparse", "doctor", "--ranks", "2"]), 60),
    ):
        assert finished.returncode == 0, finished
        name, version = re.search(r"^MPI +(MPICH|Open MPI|Intel MPI) (\S+)$", finished.stdout, re.M).groups()
        assert name.lower() in vendor.lower()
        assert version in vendor
        assert re.search(r"^ranks +2, over MPI$", finished.stdout, re.M), finished
        assert re.search(r"^ping +[\d,]+ µs between ranks 0 and 1", finished.stdout, re.M), finished
        assert re.search(r"^bandwidth +[1-9][\d,]* MB/s", finished.stdout, re.M), finished
        # Rank 0 speaks for all.
        assert finished.stdout.count("bandwidth") == 1, finished


def test_helps() -> None:
    helps = {name: invoke(name, "--help") for name in qsparse.commands}
    wanted = [
        "train",
        "sweep",
        "plot",
        "list",
        "bits",
        "tune",
        "plan",
        "check",
        "laws",
        "doctor",
        "warm",
        "bench",
        "reproduce",
    ]
    assert list(helps) == wanted
    top = invoke("-h")
    assert top.exit_code == 0
    for name, result in helps.items():
        assert result.exit_code == 0
        assert f"Usage: qsparse {name}" in result.stdout
        assert re.search(rf"^  {name} +\S", top.stdout, re.MULTILINE), "no summary in the list of commands"
        for option in qsparse.commands[name].params:
            assert option.opts[0] in result.stdout or option.param_type_name == "argument"
            assert getattr(option, "help", None) or option.param_type_name == "argument", option.name
    result = invoke("nonsense")
    assert result.exit_code == 2
    assert "No such command 'nonsense'" in result.stderr


def test_version() -> None:
    finished = finish(start([sys.executable, "-m", "qsparse", "--version"]), 30)
    assert (finished.returncode, finished.stdout) == (0, f"qsparse, version {package.__version__}\n"), (
        finished
    )


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "sklearn", "tqdm", "tomli_w", "platformdirs"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
from qsparse.cli.commands import qsparse

for line in ("--help", "train --help", "list", "bits sign --n 100", "laws qsparse.compressors:Sign", "doctor",
             "train --wire threads --steps 1"):
    try:
        qsparse.main(line.split())
    except SystemExit as end:
        print("status", end.code, "of", line)
"""


def test_only_train_needs_torch() -> None:
    finished = finish(start([sys.executable, "-c", WITHOUT_TORCH]), 60)
    status = dict(re.findall(r"^status (\d+) of (.*)$", finished.stdout, re.M))
    found = [(line, code) for code, line in re.findall(r"^status (\d+) of (.*)$", finished.stdout, re.M)]
    assert len(status) == 2, finished
    assert [code for _, code in found] == ["0"] * 6 + ["1"], finished
    assert "Traceback" not in finished.stderr, finished
    assert "error: SettingError: train needs more than is installed (No module named " in finished.stderr
    assert 'pip install -c constraints.txt ".[train]" in a clone' in finished.stderr


# --- options of train that have no effect -------------------------------------------------------


def algorithm(line: str) -> dict[str, str]:
    """The axes of the algorithm that a line of options makes."""
    context = train.make_context("train", shlex.split(line))
    return make_settings(config_of(context.params)).algorithm.axes()


@pytest.mark.parametrize(
    ("line", "option", "by"),
    [
        ("--sync-every 8 --trigger 'every(2)'", "--sync-every", "--trigger"),  # 8 is the preset's default
        ("--sync-every 4 --trigger 'every(4)'", "--sync-every", "--trigger"),
        ("--lr 0.5 --local 'sgd(lr=0.1)'", "--lr", "--local"),
        ("--lr 'cosine(0.1)' --local 'sgd(lr=0.1)'", "--lr", "--local"),
        ("--momentum 0.9 --local 'adamw(lr=0.01)'", "--momentum", "--local"),
        ("--weight-decay 0 --local 'adamw(lr=0.01)'", "--weight-decay", "--local"),
        ("--no-nesterov --local 'adamw(lr=0.01)'", "--no-nesterov", "--local"),
        ("--algorithm dist-ef-sgdm --no-nesterov --local 'sgd(0.1)'", "--no-nesterov", "--local"),
        ("--algorithm signum-majority --lr 0.01 --server 'majority(lr=0.5)'", "--lr", "--server"),
        ("--algorithm laq --lr 0.1 --server 'descend(lr=0.1)' --down sign", "--lr", "--server"),
        ("--algorithm lasg-wk2 --lr 0.1 --server 'descend(lr=0.1)'", "--lr", "--server"),
        ("--algorithm 'local-sgd(lr=0.2)' --sync-every 2 --trigger 'randomgap(H=4)'", "--sync-every",
         "--trigger"),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(line: str, option: str, by: str) -> None:
    with pytest.raises(SettingError) as caught:
        algorithm(line)
    assert str(caught.value).startswith(f"{option} has no effect: {by} replaces the part that it is a ")


@pytest.mark.parametrize(
    ("line", "axis", "text"),
    [
        ("--sync-every 8", "trigger", "every(H=8)"),
        ("--sync-every 8 --local 'sgd(lr=0.5)'", "trigger", "every(H=8)"),
        ("--lr 0.1 --trigger 'every(2)' --server descend --meeting synchronous", "local", "sgd(lr=0.1)"),
        ("--lr 0.1 --down 'blockwise(sign, size=64)' --down-memory stateless", "local", "sgd(lr=0.1)"),
        ("--no-nesterov --trigger 'every(2)'", "local", "sgd(lr=0.1)"),
        ("--algorithm signum-majority --momentum 0.5 --server 'majority(lr=0.5)'", "local",
         "gradient(momentum=0.5)"),
        ("--algorithm gd --lr 0.5 --local 'gradient(momentum=0.9)'", "server", "descend(lr=0.5)"),
        ("--algorithm 'qsparse-local-sgd(compressor=sign)' --compressor 'topk(k=3)'", "compressor",
         "topk(k=3)"),
    ],
)  # fmt: skip
def test_options_with_effect_are_taken(line: str, axis: str, text: str) -> None:
    assert algorithm(line)[axis] == text

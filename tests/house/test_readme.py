"""What the README and the examples show is run, or compared with what is run."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from mpirun import mpi_run
from tiny_files import cifar_files

from qsparse.cli.commands import qsparse
from qsparse.registry import build

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The shell commands of the README, continued lines joined."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


def test_first_command_names_what_exists(root: Path) -> None:
    """The extras and the file that it names exist."""
    first = commands()[0]
    assert first.startswith('pip install -c constraints.txt ".[train,mpich]" && mpirun -n 4 qsparse train')
    assert (root / "constraints.txt").is_file()
    setup = (root / "setup.py").read_text()
    assert '"train"' in setup
    assert '"mpich"' in setup


def test_ci_runs_the_second_command(root: Path) -> None:
    """CI looks the command up in the README; it must find exactly the second."""
    found = subprocess.run(
        ["grep", "-m1", "-E", "^pip install .*&& pytest", "README.md"],
        cwd=root, capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    assert found.stdout.strip() == commands()[1]
    assert "'^pip install .*&& pytest' README.md" in (root / ".ci/run").read_text()


@pytest.mark.parametrize(
    "command", [c for c in commands() if re.search("qsparse train(?! --import)", c) and "pip" not in c]
)
def test_options_of_the_training_commands_exist(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training command runs, shortened to a few steps of the embedded data, on one rank if it can."""
    words = shlex.split(command)
    if "-async" in command:  # needs a coordinator beside its workers
        words += ["--wire", "threads", "--ranks", words[words.index("-n") + 1]]
    words = words[words.index("qsparse") :]
    changes = {"--data": "digits", "--out": str(tmp_path), "--epochs": "0.1"}
    for option, value in changes.items():
        if option in words:
            words[words.index(option) + 1] = value
    for option in ("--out", "--epochs"):
        if option not in words:
            words += [option, changes[option]]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(qsparse, words[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "summary.json").is_file()


CIFAR_EXAMPLE = "examples/cifar10_resnet.py"
#: Options of it with a value that is refused, and the least that is not.
LENGTHS = (("epochs", 0, 1), ("steps", 0, 1), ("warmup", -1, 0))


def mpi4py_block() -> str:
    """The few lines of mpi4py."""
    (program,) = [block for block in blocks("python") if "CompressedAllreduce" in block]
    return program


def rings() -> str:
    """The model and the data set of one's own."""
    (program,) = [block for block in blocks("python") if "(Source)" in block]
    return program


def rings_command() -> list[str]:
    """The words with which they are trained."""
    (command,) = [line for line in commands() if "--import mine" in line]
    words = shlex.split(command)
    assert words[:5] == ["mpirun", "-n", "2", "qsparse", "train"]
    return words


#: Calls programs one after another in one job, because most of a short one is loading torch. What a rank says
#: is printed in one write; an error that none of them catches ends the job, as it does where one is alone.
CALLS = """
    import contextlib, io, json, runpy, sys

    for name, program, *words in json.loads(sys.argv[1]):
        sys.argv = [program, *words]
        said, status = io.StringIO(), 0
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                runpy.run_path(program, run_name="__main__")
            except SystemExit as end:
                status = end.code or 0
        print(json.dumps([name, status, said.getvalue()]) + "\\n", end="")
"""


#: The command in a rank that has others to call after it.
COMMAND = """
import sys
from qsparse.cli.commands import qsparse
qsparse.main(sys.argv[1:], standalone_mode=False)
"""


class Job:
    """What the block and the examples have come to on three real ranks.

    Attributes:
        finished: the job, which the last of them ends.
        folder: where they have left their files.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        cifar_files(folder)
        (folder / "block.py").write_text(mpi4py_block())
        (folder / "mine.py").write_text(rings())
        (folder / "command.py").write_text(COMMAND)
        resnet, files = str(root / CIFAR_EXAMPLE), ["--data-dir", str(folder)]
        small, out = [resnet, *files, "--model", "mlp(8)"], ["--out", str(folder / "out")]
        calls = [
            ["block", str(folder / "block.py")],
            ["allreduce", str(root / "examples/allreduce_in_your_code.py")],
            ["loop", str(root / "examples/training_loop.py")],
            ["own", str(root / "examples/own_steps.py")],
            ["resnet", resnet, *files, "--steps", "40", "--batch", "3"],
            ["shares", *small, "--epochs", "2", "--batch", "17"],
            *([option, *small, "--batch", "5", f"--{option}", str(value)] for option, value, _ in LENGTHS),
            ["none", *small, "--batch", "5", "--warmup", "0", "--steps", "3"],
            ["train", str(folder / "command.py"), *rings_command()[4:], *out, "--quiet"],
            ["fails", *small, "--batch", "34"],
        ]
        self.folder = folder
        paths = os.pathsep.join(map(str, (root, folder)))
        env = {"QSPARSE_CACHE": str(folder / "cache"), "PYTHONPATH": paths}
        self.finished = mpi_run(3, CALLS, json.dumps(calls), timeout=180, env=env, check=False)
        self._lines = [json.loads(line) for line in self.finished.stdout.splitlines() if line[:2] == '["']

    def status(self, name: str) -> set[int]:
        """The exit statuses of a call, which all ranks came through."""
        found = [status for one, status, _ in self._lines if one == name]
        assert len(found) == 3, self.finished
        return set(found)

    def said(self, name: str) -> str:
        """What all ranks have printed in a call that has gone well, or was refused."""
        refused = name in [option for option, _, _ in LENGTHS]
        assert self.status(name) == {2 if refused else 0}, self.finished
        return "".join(said for one, _, said in self._lines if one == name)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(Path(__file__).resolve().parents[2], tmp_path_factory.mktemp("job"))


@pytest.mark.parametrize("block", blocks("console"))
def test_console_output_is_real(block: str, tmp_path: Path) -> None:
    """A command shown with its output prints this output."""
    prompt, _, expected = block.partition("\n")
    words = shlex.split(prompt.removeprefix("$ "))
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected.splitlines()


def test_mpi4py_block_runs_on_three_ranks(job: Job) -> None:
    """The few lines of mpi4py print what they promise."""
    program = mpi4py_block()
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    lines = job.said("block").splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 0", "step 1", "step 2"]
    assert all("800,000 a dense array" in line for line in lines)


def test_own_part_keeps_the_laws_and_trains(tmp_path: Path) -> None:
    """The README's quantizer, saved as it says, passes the laws and trains."""
    (program,) = [block for block in blocks("python") if "(Quantizer)" in block]
    (tmp_path / "mine.py").write_text(program)
    laws = subprocess.run(
        [sys.executable, "-m", "qsparse", "laws", "mine:Int8"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert laws.returncode == 0, laws.stdout + laws.stderr
    assert "all passed" in laws.stdout
    train = subprocess.run(
        [
            sys.executable, "-m", "qsparse", "train", "--import", "mine", "--steps", "20", "--out", "out",
            "--compressor", "topk(ratio=0.01) >> int8",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert train.returncode == 0, train.stderr


def test_own_model_and_data_set_keep_the_laws_and_train(job: Job, tmp_path: Path) -> None:
    """The README's model and data set, saved as it says, keep the laws, and its command trains them."""
    (tmp_path / "mine.py").write_text(rings())
    laws = subprocess.run(
        [
            sys.executable, "-c",
            "from qsparse.testing import laws; import mine; report = laws.run([mine.Rings(), mine.Tanh(8)]);"
            "print(report.failures, sorted({kind for kind, _ in report.per_law}));"
            "print(min(report.per_law.values()))",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert laws.stdout == "[] ['data', 'model']\n1\n", laws.stdout + laws.stderr
    assert job.said("train") == ""
    summary = json.loads((job.folder / "out" / "summary.json").read_text())
    assert summary["ranks"] == 3
    assert summary["test_accuracy"] > 0.98, summary


def test_diff_is_the_example(root: Path) -> None:
    """The diff's lines stand in the example in this order, and the marked ones are the only change."""
    example = (root / "examples/training_loop.py").read_text()
    (diff,) = blocks("diff")
    lines = [line[1:].rstrip() for line in diff.splitlines()]
    position = 0
    for line in filter(None, lines):
        position = example.index(line + "\n", position)
    added = [line[1:] for line in diff.splitlines() if line.startswith("+")]
    assert len(added) == 3
    assert all(line in example for line in added)


@pytest.mark.parametrize("name", ["training_loop", "cifar10_resnet"])
def test_all_lines_that_speak_of_qsparse_are_marked(root: Path, name: str) -> None:
    """Attaching and ending: what else the loops take from here are data, models and counts."""
    text = (root / f"examples/{name}.py").read_text()
    assert "three marked lines" in text.split("\n", 1)[0]
    calls = [line for line in text.splitlines() if re.search(r"import attach|attach\(|link\.finish", line)]
    assert [re.search(r"  # (\d)", line)[1] for line in calls] == ["1", "2", "3"]  # type: ignore[index]


def test_training_loop_runs(job: Job) -> None:
    """The example trains on several ranks; its accuracy is far from chance."""
    said = job.said("loop")
    match = re.search(r"accuracy (\d\.\d+)", said)
    assert match, said
    assert float(match[1]) > 0.8


def test_the_block_with_own_steps_is_the_example(root: Path) -> None:
    """It stands in the example as it is."""
    (program,) = [block for block in blocks("python") if "gradient=gradient" in block]
    assert program in (root / "examples/own_steps.py").read_text()


def test_the_example_with_own_steps_runs(job: Job) -> None:
    """Workers that do not wait and a rank that serves end with a model whose accuracy is far from chance."""
    said = job.said("own")
    match = re.search(r"accuracy (\d\.\d+), this rank's bytes \{'up': 0, 'down': [1-9]", said)
    assert match, said
    assert float(match[1]) > 0.7


def test_allreduce_example_converges(job: Job) -> None:
    """The error of the average falls below a tenth, and messages are small."""
    rows = re.findall(r"round +(\d+): relative error ([\d.]+), ([\d,]+) bytes", job.said("allreduce"))
    errors = [float(error) for _, error, _ in rows]
    assert len(errors) == 8
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1
    assert all(int(sent.replace(",", "")) < 400_000 / 80 for _, _, sent in rows)


def test_allreduce_example_alone(root: Path) -> None:
    """One rank has nobody to send to."""
    done = mpi_run(1, [str(root / "examples/allreduce_in_your_code.py")])
    assert done.stdout.count(", 0 bytes a message") == 8


def test_table_names_every_part() -> None:
    """The tables of the design space name every registered part and preset."""
    from qsparse.registry import kinds, names

    missing = [
        f"{kind} {name}"
        for kind in kinds()
        if kind != "schedule"
        for name in names(kind)
        if f"`{name}" not in README and f" {name}" not in README and not _plural(name)
    ]
    assert not missing


def _plural(name: str) -> bool:
    return name == "policy" and "a policy per layer" in README


def test_the_resnet_example(job: Job) -> None:
    """On a few random pictures in the published layout: every rank trains and tests, and bits are counted."""
    said = job.said("resnet")
    assert re.findall(r"^epoch (\d): accuracy 0\.\d{4}, \d+ s$", said, re.M) == ["1", "2", "3"], said
    assert re.search(r"^accuracy 0\.\d{4} after 40 steps", said, re.M), said
    last = re.search(r"^up: ([\d,]+) paper bits \(([\d,]+) times fewer\), ([\d,]+) wire", said, re.M)
    assert last, said
    bits, gain, size = (int(number.replace(",", "")) for number in last.groups())
    n, layers, aside = 269_722, 59, 1376
    # Four meetings of three ranks: a sign each, and a scale for each layer; at the end batch statistics.
    assert bits == 3 * (4 * (n + 32 * layers) + 32 * aside)
    assert gain == round(32 * n * 3 * 40 / bits) >= 300
    # The models would be larger than the reports, so each rank sends its own to both others, and no model.
    assert 2 * bits / 8 <= size <= 2 * bits / 8 * 1.02


def test_the_resnet_example_with_shares_that_differ(job: Job) -> None:
    """Of 100 pictures one rank has 34, which are two batches of 17, and two have 33, which are one."""
    said = job.said("shares")
    assert re.findall(r"^epoch (\d): accuracy", said, re.M) == ["1", "2"], said
    assert re.search(r"^accuracy 0\.\d{4} after 2 steps", said, re.M), said


def test_the_resnet_example_ends_where_one_rank_fails(job: Job) -> None:
    """Of 100 pictures one rank has 34, which is the batch, and two have 33: it does not wait for them."""
    done = job.finished
    assert done.returncode != 0
    assert "a batch of 34 examples is larger than the rank's shard of 33" in done.stderr, done


def test_the_resnet_example_refuses_lengths_that_are_none(job: Job) -> None:
    """No epochs and no steps are refused as options are; no warm-up is one."""
    for option, value, least in LENGTHS:
        assert job.status(option) == {2}
        assert f"error: --{option} must be at least {least}, not {value}" in job.said(option)
    assert "after 3 steps" in job.said("none")


@pytest.mark.parametrize(("warmup", "steps"), [(100, 400), (0, 50), (3, 4), (5, 5), (7, 2)])
def test_the_resnet_example_has_the_learning_rates_of_its_command(
    root: Path, warmup: int, steps: int
) -> None:
    text = (root / CIFAR_EXAMPLE).read_text()
    (rate,) = (
        node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "rate"
    )
    program: dict[str, Any] = {"math": math, "steps": steps, "args": SimpleNamespace(warmup=warmup)}
    exec(compile(ast.Module([rate], []), CIFAR_EXAMPLE, "exec"), program)
    (spelled,) = re.findall(r'--lr "(.*?)"', text)
    twin = build(spelled, "schedule")
    assert f'"--warmup", type=int, default={twin.warmup},' in text
    schedule = replace(twin, warmup=warmup).over(steps)
    peak = re.search(r'"--lr", type=float, default=([\d.]+)', text)
    assert peak
    rates = [float(peak[1]) * program["rate"](t) for t in range(steps)]
    assert rates == pytest.approx([schedule.at(t) for t in range(1, steps + 1)], rel=1e-12)
    program["rate"](steps)  # torch's scheduler asks for the step after the last


def test_the_resnet_examples_command(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that stands in it runs, on a few pictures, with its loop's own settings."""
    text = (root / CIFAR_EXAMPLE).read_text()
    cifar_files(tmp_path)
    line = re.search(r"mpirun -n 2 qsparse (train .*?)\n\"\"\"", text, re.S)
    assert line
    words = shlex.split(line[1].replace("\\\\\n", " ").replace("\\\n", " "))
    words[words.index("DIR")] = str(tmp_path)
    assert f'default="{words[words.index("--algorithm") + 1]}"' in text
    for option, setting in (("--batch", "batch"), ("--epochs", "epochs"), ("--momentum", "momentum")):
        assert re.search(rf'"--{setting}", type=\w+, default={words[words.index(option) + 1]}\b', text), (
            option
        )
    shorter = ["--epochs", "0.3", "--batch", "4", "--wire", "threads", "--ranks", "2", "--quiet"]
    monkeypatch.chdir(root)
    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(qsparse, [*words, *shorter, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "summary.json").is_file()

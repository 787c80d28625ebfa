"""The table of claims: commands exist, figures are where the page says, verdicts are one of four.

Commands that take a moment are run here, and their figures looked up in what they print. Of the others
only the options are read, because a test that is named here runs a short form of them.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import pytest
from click.testing import CliRunner

from qsparse.cli.commands import qsparse
from qsparse.testing import laws

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
VERDICTS: Final = ("holds", "holds partly", "does not hold", "not tried here")
#: Where the figures of long runs are kept.
KEPT: Final = {
    "qsparse reproduce": ("reproduction.md",),
    "qsparse bench": ("benchmarks.md",),
    "qsparse sweep": ("results/README.md", "sweeps.md", "reproduction.md"),
    "qsparse plan": ("planning.md",),
    "qsparse laws": (),
    "pytest": ("bits.md", "compositions.md"),
}
#: Which test runs a short form of a command that is only read here.
SHORT: Final = {
    "qsparse reproduce laq": "tests/commands/test_reproduce.py::test_quick_laq",
    "qsparse reproduce laq --alpha": (
        "tests/commands/test_reproduce.py::test_every_combination_on_data_of_ones_own"
    ),
    "qsparse reproduce laq --lyapunov": "tests/commands/test_reproduce_lyapunov.py::test_the_command",
    "qsparse reproduce qsparse": "tests/commands/test_reproduce.py::test_quick_qsparse",
    "qsparse reproduce dist-ef": "tests/commands/test_reproduce_dist_ef.py::test_quick_dist_ef",
    "qsparse reproduce asylpg": "tests/commands/test_reproduce_asylpg.py::test_quick_asylpg",
    "qsparse bench workers": (
        "tests/commands/test_bench_workers.py::test_over_a_simulated_network_fewer_bytes_are_less_time"
    ),
    "qsparse bench scale": "tests/commands/test_bench_scale.py::test_two_ranks_through_shared_memory",
    "qsparse sweep figure-1": "tests/commands/test_sweep.py::test_methods_of_named_sweeps_train",
    "qsparse sweep examples/collectives": "tests/commands/test_sweep.py::test_the_example_about_collectives",
    "qsparse laws": "tests/laws/test_laws.py::test_the_example_keeps_every_law",
}
#: Training in a few steps of the embedded data, over the wire of the command.
FEW: Final = {"--data": "digits", "--steps": "3"}
#: A network that takes too long for that; its presets and options are the same with a small one.
SMALL: Final = {"resnet10": "mlp(8)", "resnet18": "mlp(8)", "logistic": "softmax"}


class Row(NamedTuple):
    """One claim."""

    claim: str
    source: str
    command: str
    ours: str
    verdict: str

    @property
    def commands(self) -> list[str]:
        """The commands of its cell, which are set as code with commas between them."""
        return re.findall(r"`(.+?)`(?:, |$)", self.command)


def cells() -> list[list[str]]:
    """The cells of the table's lines, without its head."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert lines[0] == "| claim | source | command | ours | verdict |"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


ROWS: Final = [Row(*each) for each in cells() if len(each) == 5]
COMMANDS: Final = sorted({command for row in ROWS for command in row.commands})
#: What is known after a moment, and run here.
INSTANT: Final = ("qsparse bits", "qsparse list", "qsparse plan", "qsparse tune", "python -c")


def test_every_claim_has_five_cells_and_stands_once() -> None:
    assert len(cells()) == len(ROWS) >= 60
    for row in ROWS:
        assert all(row), row
        assert row.command == ", ".join(f"`{command}`" for command in row.commands), row
    counts = Counter(re.sub(r"\W+", " ", row.claim).lower().strip() for row in ROWS)
    assert [claim for claim, count in counts.items() if count > 1] == []
    assert {row.source.split(",")[0].split(";")[0] for row in ROWS} == {
        "Qsparse", "LAQ", "LAG", "LASG", "dist-EF", "double quantization",
    }  # fmt: skip


def test_verdicts_are_one_of_four_with_a_reason_and_counted() -> None:
    counts: Counter[str] = Counter()
    for row in ROWS:
        verdict, _, reason = row.verdict.partition(": ")
        counts[verdict] += 1
        assert verdict == "holds" or reason, f"why not? {row}"
    assert set(counts) == set(VERDICTS)
    held, partly, refuted, untried = (counts[verdict] for verdict in VERDICTS)
    said = f"{held} hold, {partly} hold partly, {refuted} do not hold, and {untried} were not tried here."
    assert f"Of {len(ROWS)} claims {said}" in PAGE


def node(name: str) -> str:
    """The text of the file of a test that exists."""
    path, _, function = name.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert function in [part.name for part in ast.parse(text).body if isinstance(part, ast.FunctionDef)], name
    return text


def parsed(words: list[str]) -> click.Context:
    """The command and its options, which are read and not run."""
    command: Any = qsparse
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        command = command.get_command(context, name)
        assert command is not None, name
        if not isinstance(command, click.Group):
            return command.make_context(name, words, parent=context)  # type: ignore[no-any-return]
    raise AssertionError("a group is no command")


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith((*INSTANT, "qsparse train"))])
def test_a_long_command_is_read_and_has_a_test_of_its_short_form(command: str) -> None:
    if command.startswith("pytest "):
        node(command.removeprefix("pytest "))
        return
    assert command.startswith("qsparse ")
    words = shlex.split(command)[1:]
    parsed(words)
    if words[0] == "laws":
        assert laws.load(words[1])
    shortened = [name for name in SHORT if command.startswith(name)]
    assert shortened, "a test of a short form"
    node(SHORT[max(shortened, key=len)])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("qsparse train")])
def test_a_training_command_trains(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)[2:]
    for at in reversed([i for i, word in enumerate(words) if word in ("--epochs", "--until", *FEW)]):
        del words[at : at + 2]
    words = [SMALL.get(word, word) for word in words]
    if "crop-flip" in words:
        del words[words.index("--augment") : words.index("--augment") + 2]
    if "--ranks" not in words:
        words += ["--wire", "threads", "--ranks", "3"]
    words += [word for option in FEW.items() for word in option]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(qsparse, ["train", *words, "--quiet", "--out", "out"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "summary.json").is_file()


@cache
def printed(command: str) -> str:
    """What a command prints that takes a moment."""
    if command.startswith("python -c "):
        found = io.StringIO()
        with contextlib.redirect_stdout(found):
            exec(shlex.split(command)[2], {})
        return found.getvalue()
    done = CliRunner().invoke(qsparse, shlex.split(command)[1:])
    assert done.exit_code == 0, (command, done.output)
    return done.output


def numbers(text: str) -> set[float]:
    """The numbers of a text; digits may be set apart by commas, or by underscores as in Python."""
    plain = re.sub(r"(?<=\d)[,_](?=\d)", "", text.replace("−", "-"))
    return {float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])", plain)}


def below() -> str:
    """What stands below the table: what training has come to."""
    return PAGE.rpartition("\n| ")[2].partition("\n\n")[2]


def known(row: Row) -> str:
    """All that figures of a row may come from."""
    texts = [row.command]
    for command in row.commands:
        kind = " ".join(command.split()[:2])
        if command.startswith(INSTANT):
            texts.append(printed(command))
        if command.startswith("pytest "):
            kind = "pytest"
            texts.append(node(command.removeprefix("pytest ")))
        if command.startswith("qsparse train"):
            texts.append(below())
        texts += [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in KEPT.get(kind, ())]
    return "\n".join(texts)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.claim[:40])
def test_figures_are_those_of_the_command(row: Row) -> None:
    """Numbers set as code are settings, and so is what is glued to letters; all others must be found."""
    wanted = numbers(re.sub(r"`[^`]*`", " ", row.ours))
    assert sorted(wanted - numbers(known(row))) == [], row

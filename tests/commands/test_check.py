"""``qsparse check`` and ``qsparse list --capabilities``: rules and claims, as tables."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qsparse import registry
from qsparse.algorithm import Algorithm
from qsparse.cli import capabilities
from qsparse.cli.commands import qsparse
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import ParameterServer
from qsparse.local import SGD, Gradient
from qsparse.registry import build, find, kinds, names
from qsparse.rules import RULES, check, judged, natural_exchange
from qsparse.testing import laws
from qsparse.triggers import Every

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "capabilities.md").read_text(encoding="utf-8")


def call(*words: str) -> Result:
    return CliRunner().invoke(qsparse, words)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(
        registry, "_parts", {kind: {name: find(name, kind) for name in names(kind)} for kind in kinds()}
    )


def test_rules_have_names_of_their_own_and_sentences() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.sentence.endswith(".") and rule.sentence[0].isupper() for rule in RULES)


@pytest.mark.parametrize("name", names("algorithm"))
def test_every_preset_keeps_every_rule(name: str) -> None:
    row = build(name, "algorithm")
    check(row, natural_exchange(row), 4)
    assert {reason for _, reason in judged(row, natural_exchange(row), 4)} == {None}


def test_what_holds_is_a_table_and_status_0() -> None:
    done = call("check", "dist-ef-sgdm")
    assert done.exit_code == 0, done.output
    assert all(re.search(rf"^{rule.name} +holds ", done.output, re.MULTILINE) for rule in RULES)
    assert f"{len(RULES)} rules of dist-ef-sgdm, over server with 4 ranks: all hold" in done.output


def test_what_breaks_is_named_with_the_sentence_that_is_raised() -> None:
    for words, rule, reason in (
        (("asylpg", "--exchange", "tree"), "coordinator", "a coordinator that only serves, not tree"),
        (("sgd", "--exchange", "server(root=7)"), "ranks", "there is no rank 7 among 4 ranks"),
        (("sgd", "--exchange", "server(works=false)", "--ranks", "1"), "ranks", "start more ranks"),
    ):
        done = call("check", *words)
        assert done.exit_code == 1, done.output
        (line,) = re.findall(rf"^{rule} +breaks +.*(?:\n +.*)*", done.output, re.MULTILINE)
        assert reason in " ".join(line.split())
        assert "1 of them broken" in done.output


def test_several_rules_may_break_and_check_raises_the_first() -> None:
    row = Algorithm(Gradient(), Every(2), server=build("hold", "server"))
    broken = [(rule.name, reason) for rule, reason in judged(row, ParameterServer(root=3), 2) if reason]
    assert [name for name, _ in broken] == ["ranks", "moves", "every gradient"]
    with pytest.raises(SettingError, match="there is no rank 3"):
        check(row, ParameterServer(root=3), 2)
    with pytest.raises(CompositionError) as caught:
        check(row, ParameterServer(), 2)
    assert str(caught.value) == dict(broken)["moves"]
    check(Algorithm(SGD(0.1)), ParameterServer(), 2)


@pytest.mark.usefixtures("own_registry")
def test_the_command_imports_parts_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "preset_of_mine.py").write_text(
        "from qsparse import register\n"
        "from qsparse.algorithm import Algorithm\n"
        "from qsparse.local import Gradient\n"
        "from qsparse.triggers import Every\n\n\n"
        "@register('rarely', 'algorithm')\n"
        "def rarely():\n"
        "    return Algorithm(Gradient(), Every(2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = call("check", "rarely", "--import", "preset_of_mine")
    assert done.exit_code == 1
    assert re.search(r"^every gradient +breaks +local step gradient reports one gradient", done.output, re.M)


# --- the page ------------------------------------------------------------------------------------


def test_the_page_has_the_tables_of_the_command() -> None:
    done = call("list", "--capabilities")
    assert done.exit_code == 0, done.output
    where = "write what `qsparse list --capabilities` prints to the end of docs/capabilities.md"
    assert PAGE.endswith(done.output), where


@pytest.mark.parametrize(
    "kind", ["compressor", "memory", "local", "trigger", "server", "exchange", "meeting"]
)
def test_every_part_and_every_claim_is_on_the_page(kind: str) -> None:
    section = capabilities._section(kind, "Title")
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) == len(names(kind))
    claims = type(laws.examples(kind)[0].claims)
    assert re.findall(r"^- `(\w+)`", section, re.MULTILINE) == [field.name for field in fields(claims)]


def test_one_kind_has_no_capabilities_of_its_own() -> None:
    assert call("list", "memories", "--capabilities").exit_code == 2


@pytest.mark.usefixtures("own_registry")
def test_the_part_on_the_page_keeps_the_laws() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    space: dict[str, object] = {"__name__": "mine"}
    exec(block, space)
    found = laws.check(space["Mine"]())  # type: ignore[operator]
    assert {"accounts", "repetition"} <= {each.law for each in found}
    assert not [each for each in found if each.reason is not None]


def test_the_command_on_the_page_prints_what_it_shows() -> None:
    (words, shown) = re.findall(r"^\$ qsparse (check .*?) \| grep breaks\n(.*?)^```", PAGE, re.DOTALL | re.M)[
        0
    ]
    lines = [line for line in call(*words.split()).output.splitlines() if "breaks" in line]
    assert lines == shown.splitlines()

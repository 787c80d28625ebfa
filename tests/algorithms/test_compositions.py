"""The compositions of docs/compositions.md: its commands are run, and what it says of them is held."""

from __future__ import annotations

import functools
import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from qsparse.cli.commands import qsparse
from qsparse.run.outcome import STARVED, STATUS

PAGE = (Path(__file__).resolve().parents[2] / "docs/compositions.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+?)\n\n```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
WHOLE = '--model softmax --steps 200 --local "gradient(whole=true)" '


@functools.cache
def trained(command: str, status: int = 0) -> dict[str, Any]:
    """The summary of ``qsparse train …``, on threads, which ends with this status."""
    with tempfile.TemporaryDirectory() as out:
        words = [*shlex.split(command), "--quiet", "--wire", "threads", "--out", out]
        result = CliRunner().invoke(qsparse, words)
        assert result.exit_code == status, result.output
        found: dict[str, Any] = json.loads((Path(out) / "summary.json").read_text())
    return found


def section(title: str) -> dict[str, Any]:
    return trained(SECTIONS[title].replace("\\\n", " ").removeprefix("qsparse "))


def up(run: dict[str, Any]) -> int:
    bits: int = run["paper_bits"]["up"]
    return bits


def speaks_and_skips(run: dict[str, Any], meetings: int, most: float) -> None:
    """Each of the meetings is a message or a skip, and of messages there are some, at most this share."""
    spoken = run["messages"]["up"]
    assert spoken + run["skips"] == meetings
    assert run["workers"] < spoken <= most * meetings


def as_good(run: dict[str, Any], plain: dict[str, Any], loss: float, accuracy: float) -> None:
    """Within these margins of the other run, which has learned something."""
    assert plain["test_accuracy"] > 0.95
    assert run["train_loss"] < plain["train_loss"] + loss
    assert run["test_accuracy"] > plain["test_accuracy"] - accuracy


def test_every_section_is_held() -> None:
    """Each has a test below, which asks for it by its title."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(SECTIONS) == PAGE.count("```sh") == 7
    assert all(f'section("{title}")' in source for title in SECTIONS)


def test_laq_with_a_sparsifier() -> None:
    run = section("LAQ with a sparsifier")
    speaks_and_skips(run, 600, 0.25)
    as_good(run, trained(f'train --ranks 3 {WHOLE} --algorithm "gd(lr=0.5)"'), 0.02, 0.03)
    sparse = '--compressor "topk(ratio=0.1) >> uniform(bits=4)"'
    lazy_one = trained(f'train --ranks 3 {WHOLE} --algorithm "laq(lr=0.5)"')
    sparse_one = trained(f'train --ranks 3 {WHOLE} --algorithm "qgd(lr=0.5)" {sparse}')
    assert up(run) < 0.3 * up(lazy_one) < 0.3 * up(sparse_one)
    silent = trained(f'train --ranks 3 {WHOLE} --algorithm "laq(lr=0.5, published=true)" {sparse}', STATUS)
    assert silent["messages"]["up"] <= 6, "with the errors in the rule hardly anything is said"
    assert silent["outcome"] == STARVED


def test_laq_with_error_feedback() -> None:
    run = section("LAQ with error feedback")
    speaks_and_skips(run, 600, 0.6)
    plain = '--ranks 3 --model softmax --steps 200 --batch 400 --algorithm "sgd(lr=0.5)"'
    as_good(run, trained(f"train {plain}"), 0.005, 0.01)
    feedback = trained(f'train {plain} --compressor "uniform(bits=4)" --memory errorfeedback')
    lazy_one = trained(f'train {plain} --trigger "lazy(errors=0, xi=0.4)"')
    assert up(run) < 0.6 * up(feedback)
    assert up(run) < 0.3 * up(lazy_one)


def test_lazy_and_far_every_fourth_step() -> None:
    run = section("Lazy and far, every fourth step")
    speaks_and_skips(run, 150, 0.7)
    plain = 'train --ranks 3 --steps 200 --algorithm "local-sgd(lr=0.1)"'
    as_good(run, trained(plain), 0.02, 0.02)
    for one in ("lazy(xi=0.2)", "drift(delta=0.05)"):
        alone = trained(f'{plain} --trigger "every(H=4) & {one}"')
        speaks_and_skips(alone, 150, 0.9)
        assert up(run) < up(alone)


def test_asynchronous_laq() -> None:
    """Who comes first is chance, so the margins are wide."""
    run = section("Asynchronous LAQ")
    plain = trained(f'train --ranks 4 {WHOLE} --algorithm "gd(lr=0.5)" --meeting "asynchronous(ahead=2)"')
    # Each worker may come once more than its share.
    assert 600 <= run["messages"]["up"] + run["skips"] <= 603
    assert run["skips"] > 200
    assert up(run) < 0.1 * up(plain)
    as_good(run, plain, 0.04, 0.04)
    # A single arrival counts as the third part of a round, so all is as in rounds.
    as_good(run, trained(f'train --ranks 3 {WHOLE} --algorithm "laq(lr=0.5)"'), 0.04, 0.04)


def test_dist_ef_with_qsgd_both_ways() -> None:
    run = section("dist-EF with QSGD both ways")
    assert run["paper_bits"]["up"] == run["paper_bits"]["down"] < run["dense_bits"]["up"] / 7
    as_good(run, trained('train --ranks 3 --steps 200 --algorithm "sgd(lr=0.1)"'), 0.01, 0.02)
    one_way = trained('train --ranks 3 --steps 200 --algorithm "qsgd(lr=0.1)"')
    assert sum(run["paper_bits"].values()) < 0.3 * sum(one_way["paper_bits"].values())


def test_server_compression_in_a_tree() -> None:
    run = section("Server compression in a tree")
    star = trained('train --ranks 3 --steps 200 --algorithm "dist-ef-blocksgdm(lr=0.05)"')
    for what in ("model_sha256", "paper_bits", "messages"):
        assert run[what] == star[what]
    assert run["exchange"] != star["exchange"]
    assert run["paper_bits"]["down"] < run["dense_bits"]["down"] / 30
    as_good(run, trained('train --ranks 3 --steps 200 --algorithm "sgd(lr=0.1)"'), 0.0, 0.02)


def test_one_voice_for_each_machine() -> None:
    """A fifth of the bytes: one other voice in place of five."""
    run = section("One voice for each machine")
    plain = trained('train --ranks 6 --steps 200 --algorithm "dist-ef-sgd(lr=0.1)" --exchange server')
    as_good(run, plain, 0.05, 0.02)
    assert up(plain) == 3 * up(run)
    for way in ("up", "down"):
        assert 5 * run["link_bytes"][way] == plain["link_bytes"][way] > 0
    assert run["model_sha256"] != plain["model_sha256"]

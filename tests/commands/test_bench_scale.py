"""``qsparse bench scale``: real runs of few coordinates. Nothing on speed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from links import limited
from mpirun import finish, start

from qsparse.bench import scale
from qsparse.bench.scale import DENSE, DOWN, EXCHANGES, UP, Method, difference, methods, sentence
from qsparse.cli.commands import qsparse
from qsparse.exchange import AllGather, Sharded
from qsparse.ledger import ACTIVITIES
from qsparse.planning import Links, links_for

N = 20_000
#: What is said down, as the table names it.
ANSWERS = ("float32", "changes", "blockwise(inner=sign, size=512)", UP[0])
NAMES = [
    DENSE,
    *(f"{exchange}, up {UP[0]}, down {down}" for exchange in ("server", "tree") for down in ANSWERS),
    f"allgather, up {UP[0]}",
    *(f"sharded, up {UP[0]}, down {down}" for down in ANSWERS),
    "sharded, up float32, down float32",
]


def bench(tmp_path: Path, *args: object) -> tuple[list[dict[str, Any]], str]:
    """The jobs in the JSON file, and what was printed."""
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "qsparse", "bench", "scale", "--json", str(file), *map(str, args)]
    finished = finish(start(command), 120)
    assert finished.returncode == 0, finished
    jobs: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["jobs"]
    return jobs, finished.stdout


def held(job: dict[str, Any], text: str, ranks: int, rounds: int) -> dict[str, dict[str, Any]]:
    """What is true of every job; the rows by name."""
    rows = {row["name"]: row for row in job["methods"]}
    assert f"{ranks} ranks, {N:,} float32, " in text
    for row in rows.values():
        assert len(row["all_seconds"]) == rounds
        assert row["seconds"] > 0
        assert 0 < row["cpu"] <= row["cpu_most"]
        assert set(row["parts"]) == set(row["parts_most"]) == set(ACTIVITIES[1:])
        assert 0 <= sum(row["parts"].values()) < 1.05 * row["seconds"] + 1e-3
        line = rf"{row['exchange']}{' *' * row['picked']}  "
        assert any(f" {1e3 * row['seconds']:,.1f} " in each for each in text.splitlines() if line in each)
    assert [name for name, row in rows.items() if row["picked"]] == [f"server, up {UP[0]}, down changes"]
    dense = rows.pop(DENSE)
    assert dense["ledger_sent"] == 0 == sum(dense["parts"].values())
    assert dense["model"] is None
    for row in rows.values():
        assert min(row["parts"].values()) > 0
    exact = {
        row["model"] for row in rows.values() if row["up"] == UP[0] and row["down"] in ("", *ANSWERS[:2])
    }
    inexact = {row["model"] for row in rows.values() if row["up"] == UP[0] and row["down"] in ANSWERS[2:]}
    assert len(exact) == 1, "exact answers make one model"
    assert not exact & inexact
    return rows


def test_two_ranks_through_shared_memory(tmp_path: Path) -> None:
    jobs, text = bench(tmp_path, "--ranks", 2, "--n", N, "--rounds", 2, "--seed", 5)
    (job,) = jobs
    assert job["settings"] == {
        "ranks": 2, "rate": None, "n": N, "rounds": 2, "exchanges": list(EXCHANGES), "ups": list(UP),
        "downs": list(DOWN), "seed": 5,
    }  # fmt: skip
    assert [row["name"] for row in job["methods"]] == NAMES
    rows = held(job, text, 2, 2)
    assert "shared memory" in text
    assert all(row["sent"] is row["received"] is None for row in rows.values())
    sent = {name: row["ledger_sent"] for name, row in rows.items()}
    # A dense model, or what every rank says of half of it, beside headers and the reports.
    assert 4 * N < sent[f"server, up {UP[0]}, down float32"] < 4.1 * N
    assert 2 * N < sent[f"sharded, up {UP[0]}, down float32"] < 2.1 * N
    assert 4 * N < sent["sharded, up float32, down float32"] < 4.1 * N
    assert N / 8 < sent[f"server, up {UP[0]}, down {ANSWERS[2]}"] < N / 6
    assert sent[f"server, up {UP[0]}, down changes"] < N / 15
    # Among two ranks one sends what the other receives.
    row = rows[f"server, up {UP[0]}, down float32"]
    assert row["ledger_received"] == row["ledger_sent"]
    assert text.rstrip().endswith(sentence(jobs))
    assert "train does it (*) takes " in sentence(jobs)


@limited
def test_ledger_and_link_agree_at_every_number_of_ranks(tmp_path: Path) -> None:
    chosen = ("--exchange", "server", "--exchange", "allgather", "--down", "bfloat16")
    jobs, text = bench(tmp_path, "--ranks", "2,3", "--n", N, "--rounds", 2, "--rate", "1gbit", *chosen)
    assert [job["settings"]["ranks"] for job in jobs] == [2, 3]
    assert text.count("links of 1gbit") == 2
    for job, ranks in zip(jobs, (2, 3), strict=True):
        names = [DENSE] + [f"server, up {UP[0]}, down {down}" for down in ("float32", "changes", "bfloat16")]
        assert [row["name"] for row in job["methods"]] == [*names, f"allgather, up {UP[0]}"]
        dense = job["methods"][0]
        assert min(dense["sent"], dense["received"]) > 4 * N
        for row, words in zip(job["methods"][1:4:2], (4, 2), strict=True):
            # The root sends the model to all others. The rest is headers and acknowledgements.
            assert (ranks - 1) * words * N < row["ledger_sent"] < row["sent"] < 1.05 * row["ledger_sent"]
            assert row["ledger_received"] < row["received"] < 1.05 * row["ledger_received"] + 3000


def test_models_that_differ_are_refused() -> None:
    chosen = methods(EXCHANGES, UP, DOWN)
    assert [method.name for method in chosen] == NAMES[1:]
    same = ["exact" if method.exact else method.down for method in chosen]
    same[-1] = "dense"
    assert difference(chosen, [same, same]) is None
    one = [*same[:3], "other", *same[4:]]
    assert difference(chosen, [same, one]) == f"ranks 0 and 1 end with different models under {NAMES[4]}"
    for i in (1, 5, 8, 10):
        other = [*same[:i], "other", *same[i + 1 :]]
        reason = difference(chosen, [other, other])
        assert reason == f"answers are exact and models differ: those of {NAMES[1 + i]} and of {NAMES[1]}"


def test_nothing_is_measured_twice() -> None:
    chosen = methods(["sharded"], ["float32", "sign"], [])
    # What signs move cannot be told by what has changed, so the default is the whole model.
    wanted = ["sharded, up float32, down float32", "sharded, up sign, down float32"]
    assert [method.name for method in chosen] == wanted
    both = [(method.down, method.exact) for method in methods(["tree"], ["sign"], ["float32"])]
    assert both == [("float32", True), ("float32 | innovation", False)]


def test_the_mark_goes_by_what_train_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = methods(EXCHANGES, UP, DOWN)

    def marked(ranks: int, n: int = N, links: Links = Links()) -> list[str]:
        return [method.name for method in chosen if method.picked(n, ranks, links)]

    assert marked(2) == [f"server, up {UP[0]}, down changes"], "a vector is too short for anything else"
    # And by the links: on slow ones a coordinator that says it all takes longer than all who say their own.
    slow = links_for("100mbit")
    assert (marked(4, 400_000), marked(4, 400_000, slow)) == (marked(2), [f"allgather, up {UP[0]}"])
    choice = {2: AllGather(), 8: Sharded()}
    monkeypatch.setattr(scale, "exchange_for", lambda algorithm, n, ranks, links: choice[ranks])
    assert marked(2) == [f"allgather, up {UP[0]}"]
    assert marked(8) == [f"sharded, up {UP[0]}, down changes"]
    method = chosen[1]
    other = Method(method.exchange, replace(method.algorithm, down=chosen[0].algorithm.answer))
    assert not other.picked(N, 8, Links())


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--n", 0], "--n must be at least 1, not 0"),
        (["--rounds", 0], "--rounds must be at least 1, not 0"),
        (["--ranks", "2,1"], "--ranks must be at least 2, not 1"),
        (["--rate", "slow"], "--rate is 'slow': write e.g. 1gbit"),
        (["--up", "topk(k=9)", "--n", 8], "cannot keep 9 of 8"),
        (["--down", "topk(k=9)", "--n", 8, "--exchange", "server"], "cannot keep 9 of 8"),
        (["--down", "topk(k=9)"], "the answers of 2 ranks under sharded would be 2 times as long as one"),
        (["--json", "/nowhere/found.json"], "cannot write to --json /nowhere/found.json"),
    ],
)
def test_what_cannot_be_measured_is_refused(args: list[object], text: str) -> None:
    result = CliRunner().invoke(qsparse, ["bench", "scale", *map(str, args)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_is_no_list_of_numbers_is_refused() -> None:
    result = CliRunner().invoke(qsparse, ["bench", "scale", "--ranks", "2;4"])
    assert result.exit_code == 2
    assert "'2;4' is not a list of whole numbers such as 2,4,8." in result.stderr

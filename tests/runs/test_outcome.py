"""Defaults that work, and runs that did not: said at the start, on the way, in the summary, by the status."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from mpirun import mpi_run

from qsparse import CompressedAllreduce
from qsparse.cli.commands import qsparse
from qsparse.compressors import Float32
from qsparse.exchange import AllGather, ParameterServer, TreeBroadcast
from qsparse.memory import ErrorFeedback, Innovation
from qsparse.promises import doubt
from qsparse.registry import build, spell
from qsparse.report.page import _gains
from qsparse.report.runs import Method as Shown
from qsparse.report.runs import Run
from qsparse.run.outcome import DIVERGED, STARVED, STATUS, TRAINED, Starving, judged
from qsparse.seeds import Seed
from qsparse.sweep.measured import common_target, measure, table
from qsparse.sweep.methods import Method
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads


def train(out: Path, *args: object, ranks: int = 2) -> tuple[Result, dict[str, Any]]:
    """``qsparse train`` on threads: how it ended, and its summary."""
    words = ["train", "--wire", "threads", "--ranks", ranks, "--out", out, *args]
    result = CliRunner().invoke(qsparse, list(map(str, words)))
    path = out / "summary.json"
    return result, json.loads(path.read_text()) if path.exists() else {}


def settings(*args: str) -> Result:
    """What ``qsparse train`` says of options that it refuses."""
    return CliRunner().invoke(qsparse, ["train", "--wire", "threads", "--ranks", "2", "--steps", "2", *args])


# --- LAQ and its kin ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "args", "ranks"),
    [
        ("laq", [], 2),
        ("laq(bits=2)", [], 2),
        ("laq(bits=8)", [], 2),
        ("laq(bits=2)", ["--model", "softmax"], 2),
        ("laq", ["--meeting", "asynchronous"], 3),
        ("slaq", [], 2),
        ("qgd", [], 2),
    ],
    ids=str,
)
def test_laq_works_as_one_first_runs_it(tmp_path: Path, algorithm: str, args: list[str], ranks: int) -> None:
    result, one = train(tmp_path, "--algorithm", algorithm, "--steps", 150, *args, ranks=ranks)
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    assert one["test_accuracy"] > 0.9
    assert (one["outcome"], one["starved"], one["warnings"]) == (TRAINED, 0, [])
    if algorithm.startswith("laq"):
        assert one["skips"] > one["messages"]["up"] / 10
    # Workers that do not wait have each a share of the steps.
    assert ("steps of workers" in result.stdout) == (ranks == 3) == ("worker_steps" in one)
    if ranks == 3:
        assert list(one["worker_steps"]) == ["1", "2"]
        assert 300 <= sum(one["worker_steps"].values()) <= 301
        assert f"rank 2: {one['worker_steps']['2'] / sum(one['worker_steps'].values()):.1%}" in result.stdout


@pytest.mark.parametrize(("slow", "seed"), [(1, 0), (3, 1)])
def test_laq_learns_where_one_of_many_is_slow_and_nobody_waits(tmp_path: Path, slow: int, seed: int) -> None:
    """In virtual seconds, so that reports come in the same order in every run."""
    args = ["--meeting", "asynchronous", "--wire", "simulated(compute=0.02)", "--straggler", f"{slow}:20"]
    result, one = train(tmp_path, "--algorithm", "laq(lr=0.3)", "--steps", 60, "--seed", seed, *args, ranks=4)
    assert result.exit_code == 0, result.output
    assert (one["outcome"], one["starved"]) == (TRAINED, 0)
    assert one["test_accuracy"] > 0.9
    assert one["skips"] > one["messages"]["up"] / 10


def test_the_published_rule_starves_on_a_network(tmp_path: Path) -> None:
    """One radius for the whole vector: nobody speaks, which is named, counted, and no gain."""
    result, one = train(tmp_path, "--algorithm", "laq(published=true)", "--steps", 60)
    assert result.exit_code == STATUS, result.output
    (word,) = one["warnings"]
    assert word.startswith("starved: the quantization error alone forbids speaking.")
    assert f"warning: {word}\n" in result.stderr
    # It was said while the run went on: 20 reports of each worker are enough.
    assert "40 reports" in word
    assert one["outcome"] == STARVED
    assert "starved: the quantization error alone forbade most reports" in result.stderr
    assert "times fewer than" not in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[-1]["starved"] == one["starved"] > 0.8 * (one["skips"] + one["messages"]["up"])


def test_whole_shares_are_the_default_and_an_epoch_is_a_step(tmp_path: Path) -> None:
    """With as many workers: α = lr/M; a batch has its effect or is refused."""
    small = ("--model", "softmax", "--quiet")
    _, one = train(tmp_path / "one", "--algorithm", "lag-wk(lr=0.25)", "--epochs", 12, *small)
    _, same = train(
        tmp_path / "same", "--algorithm", "lag-wk(alpha=0.125)", "--steps", 12, "--local",
        "gradient(whole=true)", *small,
    )  # fmt: skip
    assert one["model_sha256"] == same["model_sha256"]
    assert (one["steps"], one["epochs"]) == (same["steps"], same["epochs"]) == (12, 12)
    assert one["algorithm"]["server"] == same["algorithm"]["server"] == "descend(lr=0.25)"
    assert "batch" not in (tmp_path / "one" / "config.toml").read_text()
    result, _ = train(
        tmp_path / "batch", "--algorithm", "gd(whole=false)", "--batch", 32, "--steps", 2, *small
    )
    assert result.exit_code == 0, result.output
    assert "batch = 32\n" in (tmp_path / "batch" / "config.toml").read_text()
    again = CliRunner().invoke(
        qsparse, ["train", "--wire", "threads", "--config", str(tmp_path / "one" / "config.toml"),
                  "--out", str(tmp_path / "again")],
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert (
        json.loads((tmp_path / "again" / "summary.json").read_text())["model_sha256"] == one["model_sha256"]
    )


REFUSED = [
    (("--algorithm", "laq", "--batch", "32"), "--batch has no effect: gradient(whole=true)"),
    (("--algorithm", "gd", "--batch", "16"), "give --algorithm 'gd(whole=false)', or leave it out"),
    (("--algorithm", "laq(alpha=0.02)", "--lr", "0.1"), "give one of them, not lr=0.1 and alpha=0.02"),
    (("--algorithm", "laq(alpha=-1)",), "rate must be a positive number or a schedule"),
    (("--algorithm", "laq(lr=0.3)", "--server", "descend(lr=0.1)"),
     "lr=0.3 of --algorithm has no effect: --server replaces"),
    (("--algorithm", "laq(bits=2)", "--compressor", "topk(k=9)"),
     "bits=2 of --algorithm has no effect: --compressor replaces"),
    (("--algorithm", "laq(D=3)", "--trigger", "every"), "D=3 of --algorithm has no effect: --trigger"),
    (("--algorithm", "sgd(momentum=0.5)", "--local", "sgd(lr=0.1)"),
     "momentum=0.5 of --algorithm has no effect: --local replaces"),
    (("--algorithm", "topk-sgd(k=5)", "--compressor", "sign"),
     "k=5 of --algorithm has no effect: --compressor replaces"),
    (("--algorithm", "qsparse-local-sgd-async(ahead=3)", "--meeting", "synchronous"),
     "ahead=3 of --algorithm has no effect: --meeting"),
    (("--algorithm", "asylpg(mu=0.1)", "--down-memory", "stateless"),
     "mu=0.1 of --algorithm has no effect: --down-memory"),
    # The rule that a preset has for its down link stays.
    (("--algorithm", "asylpg", "--down", "sign"),
     "memory snapshot asks for a precision, and sign has but one"),
    (("--algorithm", "acc-asylpg(mu=0.25)", "--down", "topk(k=9)"),
     "memory snapshot(mu=0.25, accelerated=true) asks for a precision"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "text"), REFUSED, ids=[" ".join(args) for args, _ in REFUSED])
def test_nothing_that_a_preset_promises_is_dropped_silently(args: tuple[str, ...], text: str) -> None:
    result = settings(*args)
    assert result.exit_code == 1, result.output
    assert text in result.stderr


def test_the_rule_of_a_down_link_stays(tmp_path: Path) -> None:
    """AsyLPG with another grid keeps μ; what has no rule gets the memory that a coded model needs."""
    small = ("--model", "softmax", "--quiet", "--steps", 3)
    _, one = train(
        tmp_path / "one", "--algorithm", "asylpg(mu=0.25, inner=1)", "--down", "lowprecision(bits=4)", *small
    )
    assert (one["algorithm"]["down"], one["algorithm"]["down_memory"]) == (
        "lowprecision(bits=4)", "snapshot(mu=0.25)",
    )  # fmt: skip
    _, two = train(tmp_path / "two", "--algorithm", "sgd", "--down", "sign", *small)
    assert two["algorithm"]["down_memory"] == "innovation"
    # A setting that one part of two has lost still has its effect.
    result, _ = train(
        tmp_path / "three",
        "--algorithm",
        "dist-ef-sgd(compressor=sign(norm=2))",
        "--compressor",
        "topk(k=9)",
        *small,
    )
    assert result.exit_code == 0, result.output


# --- errors that grow, and runs that did not train ----------------------------------------------------


def test_who_promises_no_contraction_is_doubted() -> None:
    """Behind a memory that keeps errors, for vectors so long that γ is lost; near-exact formats are not."""
    for text, n in (
        ("qsgd(levels=1)", 2), ("qsgd", 10_000), ("qsgd(levels=90)", 10_000), ("ternary", 100),
        ("sign(norm=none)", 9),
        ("uniform(bits=1)", 5), ("lowprecision(bits=2)", 100), ("topk(k=50) >> qsgd(levels=1)", 1000),
        ("blockwise(qsgd(levels=2), size=64)", 1000),
    ):  # fmt: skip
        for memory in (ErrorFeedback(), Innovation()):
            said = doubt(build(text, "compressor"), memory, n)
            assert said is not None, text
            assert spell(build(text, "compressor")) in said
            assert f"promises no contraction (γ > 0) for {n:,} values" in said
        assert doubt(build(text, "compressor"), build("stateless", "memory"), n) is None
    for text in (
        "sign", "topk(ratio=0.01) >> sign", "qsgd(levels=1, scaled=true)", "topk(k=50) >> qsgd", "uniform",
        "uniform(bits=2)", "blockwise(uniform(bits=4), size=512)", "lowprecision(bits=4)", "minmax(levels=7)",
        "bfloat16", "float32", "qsgd(levels=200)",
    ):  # fmt: skip
        assert doubt(build(text, "compressor"), ErrorFeedback(), 10_000) is None, text


def test_errors_that_grow_are_foretold(tmp_path: Path) -> None:
    """Before the first step; and where they end the run, by the error."""
    result, one = train(
        tmp_path / "end", "--algorithm", "dist-ef-sgd(compressor=qsgd(levels=1))", "--steps", 200, "--quiet"
    )
    assert (result.exit_code, one) == (1, {})
    first, second, last = result.stderr.splitlines()
    assert first.startswith(
        "warning: on the up link, memory errorfeedback says later what qsgd(levels=1) leaves"
    )
    assert second.startswith("warning: on the down link, memory innovation")
    assert "NotFinite: at " in last
    assert "promises no contraction" in last
    result, one = train(
        tmp_path / "go",
        "--compressor",
        "topk(ratio=0.1) >> qsgd(levels=1)",
        "--steps",
        48,
        "--model",
        "softmax",
    )
    assert result.exit_code == STATUS, result.output
    (word,) = one["warnings"]
    assert word in result.stderr
    assert one["outcome"] == DIVERGED
    assert "times fewer than" not in result.stdout


def test_an_allreduce_is_doubted_once(caplog: pytest.LogCaptureFixture) -> None:
    def body(wire: Wire) -> None:
        allreduce = CompressedAllreduce(wire, "qsgd(levels=1)", "errorfeedback")
        for _ in range(2):
            allreduce(np.ones(50, np.float32))

    with caplog.at_level(logging.WARNING, "qsparse"):
        run_threads(2, body)
    (record,) = caplog.records
    assert "promises no contraction (γ > 0) for 50 values" in record.getMessage()


def test_what_counts_as_trained() -> None:
    """The losses of the same batches before and after; over less than an epoch chance has a margin."""
    counted = {"messages": {"up": 10}, "skips": 90, "starved": 0}
    for first, again, epochs, outcome in (
        ([2.0, 2.2], [1.0, 2.0], 1.0, TRAINED),
        ([2.0, 2.2], [2.2, 2.2], 1.0, DIVERGED),
        ([2.0, 2.2], [2.2, 2.2], 0.5, TRAINED),
        ([2.0], [3.1], 0.5, DIVERGED),
        ([2.0], [float("nan")], 0.5, DIVERGED),
        ([], [], 3.0, TRAINED),
    ):
        assert judged(first, again, counted, epochs)["outcome"] == outcome
    assert judged([2.0], [1.0], {**counted, "starved": 50}, 1.0)["outcome"] == STARVED
    assert judged([2.0], [9.0], {**counted, "starved": 50}, 1.0)["outcome"] == STARVED
    looks = Starving(2)
    said = [looks.look({"messages": {"up": up}, "skips": 9 * up, "starved": each}) for up, each in (
        (3, 30), (4, 19), (8, 38), (12, 78), (16, 118),
    )]  # fmt: skip
    assert [word is not None for word in said] == [False, False, False, True, False]


def test_the_status_of_a_run_that_diverged_reaches_the_launcher(tmp_path: Path) -> None:
    """By mpirun; the summary is there, and the model is judged without a trace on it."""
    pytest.importorskip("mpi4py")
    line = ["-m", "qsparse", "train", "--model", "softmax", "--steps", "60", "--quiet", "--out"]
    finished = mpi_run(2, [*line, str(tmp_path), "--lr", "60"], timeout=90, check=False)
    assert finished.returncode == STATUS, finished
    assert finished.stderr.count("diverged: on its first batches the loss was") == 1
    one = json.loads((tmp_path / "summary.json").read_text())
    assert one["outcome"] == DIVERGED


# --- counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exchange", [ParameterServer(), ParameterServer(works=False), TreeBroadcast(), AllGather()]
)
def test_dense_is_dense(tmp_path: Path, exchange: Any) -> None:
    """Bits and bytes of sgd are those of dense; an allgather of R ranks sends R/2 times as much in both.

    A tree of four ranks hands one report on, which counts where it crosses another link.
    """
    _, one = train(
        tmp_path, "--algorithm", "sgd", "--steps", 3, "--model", "softmax", "--quiet", "--exchange",
        spell(exchange), ranks=4,
    )  # fmt: skip
    bits = sum(one["paper_bits"].values()) / sum(one["dense_bits"].values())
    taken = sum(one["wire_bytes"].values()) / sum(one["dense_link_bytes"].values())
    assert bits == (2 if exchange == AllGather() else 1)
    assert taken == (7 / 6 if exchange == TreeBroadcast() else bits)
    frame = len(Float32().compress(np.zeros(650, np.float32), Seed(0)))
    assert one["dense_link_bytes"] == {"up": 3 * 3 * frame, "down": 3 * 3 * frame}


# --- sweeps and reports -------------------------------------------------------------------------------


def test_a_run_that_collapsed_sets_no_target_and_gains_nothing() -> None:
    def run(method: str, bits: int, *curve: float, **more: Any) -> dict[str, Any]:
        ways = {"up": bits, "down": bits}
        sent = {"paper_bits": ways, "wire_bytes": ways, "link_bytes": ways}
        points = [{"step": t, "test_accuracy": each, **sent} for t, each in enumerate(curve, 1)]
        summary = {"test_accuracy": curve[-1], "steps": 2, **sent, **more}
        return {"method": method, "lr": None, "seed": 0, "folder": "", "curve": points, "summary": summary}

    runs = [
        run("dense", 1000, 0.5, 0.9),
        run("good", 10, 0.4, 0.8),
        run("flat", 1, 0.158, 0.1),
        run("wild", 1, 0.85, 0.7, outcome=DIVERGED),
        run("mute", 1, 0.85, 0.9, outcome=STARVED),
    ]
    methods = [Method(each["method"], {}) for each in runs]
    found = measure(methods, runs, None)
    assert found["target"] == 0.8 == common_target(runs[:2])[0]
    assert [row["mark"] for row in found["rows"]] == [None, None, "far below", "diverged", "starved"]
    assert [row["gain"] is not None for row in found["rows"]] == [True, True, False, False, False]
    assert found["rows"][1]["gain"]["paper_bits"]["up"] == 100
    text = table(found)
    assert "flat (far below)" in text
    assert "They set no target" in text
    # What stays within machines has a column where there is any.
    assert "machine" not in text
    within = run("two machines", 10, 0.4, 0.8, machine_bytes={"up": 30_000, "down": 12_000, "control": 5})
    told = measure([*methods, Method("two", {})], [*runs, {**within, "method": "two"}], None)
    assert [row["machine_bytes"] for row in told["rows"]] == [0] * 5 + [42_000]
    assert re.search(r"^two  .* 42,000$", table(told), re.MULTILINE)
    # Nor against a baseline that has not learned.
    assert all(row["gain"] is None for row in measure(methods, [{**runs[0], "summary": runs[0]["summary"] | {
        "outcome": DIVERGED}}, *runs[1:]], None)["rows"])  # fmt: skip
    ways = {"up": 5, "down": 5}
    one = {"wire_bytes": ways, "link_bytes": ways, "dense_link_bytes": {"up": 50, "down": 50}}
    for outcome, gained in ((TRAINED, [10.0]), (STARVED, []), (DIVERGED, [])):
        shown = Shown("x", (Run(Path("x"), {}, [], {**one, "outcome": outcome}),))
        assert _gains(shown, "all") == _gains(shown, "up") == gained


def test_a_loss_that_nobody_measured_is_no_number(tmp_path: Path) -> None:
    """Workers that are never asked take no steps: no loss is known since the last evaluation."""
    result, summary = train(
        tmp_path, "--algorithm", "lag-ps(smoothness=1e-9, patience=100)", "--model", "softmax", "--steps", 20,
        "--evaluations", 1, ranks=3,
    )  # fmt: skip
    assert summary["steps"] == 20
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[0]["train_loss"] > 0
    assert lines[-1]["train_loss"] is None
    assert summary["train_loss"] is None
    assert "train loss       not measured: no step since the last evaluation" in result.output

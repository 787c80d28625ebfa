"""``qsparse train``: the same model over threads and processes, and what a run leaves behind."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from mpirun import finish, mpi_train, start
from terminal import on_terminal

from qsparse.cli.commands import qsparse
from qsparse.compressors import Blockwise, Float32, Sign
from qsparse.payload import HEADER_BYTES
from qsparse.registry import build, names
from qsparse.rules import natural_exchange
from qsparse.seeds import Seed

SMALL = ("--quiet", "--model", "mlp(16)", "--steps", "20", "--sync-every", "4")
PARAMETERS = 64 * 16 + 16 + 16 * 10 + 10

#: What a summary has for sure.
FLAT = ("ranks", "steps", "epochs", "test_accuracy", "train_loss", "skips", "model_sha256")
WAYS = ("paper_bits", "wire_bytes", "dense_bits", "messages")
SECONDS = {"total", "compute", "encode", "exchange", "decode"}


def invoke(*args: object) -> Result:
    return CliRunner().invoke(qsparse, ["train", *map(str, args)])


def threads(ranks: int, *args: object, out: Path) -> dict[str, Any]:
    """Train on ranks that are threads of this process."""
    result = invoke(*SMALL, "--wire", "threads", "--ranks", ranks, "--out", out, *args)
    assert result.exit_code == 0, result.output
    return summary(out)


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


#: The folder of a run with the configuration of another one.
AGAIN = "again"


def processes(ranks: int, runs: dict[Path, Sequence[object]]) -> dict[Path, dict[str, Any]]:
    """Train on real ranks, once for each folder."""
    lines: list[list[object]] = [[*SMALL, "--out", out, *args] for out, args in runs.items()]
    # This one goes by what the first has left.
    first, again = next(iter(runs)), next(iter(runs)).parent / AGAIN
    lines.append(["--quiet", "--config", first / "config.toml", "--out", again])
    lines += without_waiting(first.parent)
    mpi_train(ranks, lines, timeout=240)
    return {out: summary(out) for out in (*runs, again)}


# Workers that do not wait for each other, in the job of the others.
JOB = ("--trigger", "randomgap(H=4)", "--meeting", "asynchronous(ahead=8)", "--epochs", "8")
SLOWED = ("--trigger", "randomgap(H=2)", "--meeting", "asynchronous", "--model", "resnet20", "--steps", "6")


def without_waiting(folder: Path) -> list[list[object]]:
    """Runs of three ranks: ``once``, ``slowed``, and ``repeated`` as the first one went."""
    return [
        ["--quiet", *JOB, "--out", folder / "once"],
        ["--quiet", *SLOWED, "--straggler", "1:9", "--out", folder / "slowed"],
        ["--quiet", *JOB, *repeating(folder / "once"), "--out", folder / "repeated"],
    ]


def repeating(folder: Path) -> tuple[str, ...]:
    """Options that repeat the run in a folder, while another rank is slow."""
    return "--repeat", str(folder / "arrivals.jsonl"), "--straggler", "1:3"


# --- the same model everywhere ------------------------------------------------------------------

#: Arguments of a run, and the fewest ranks that it needs.
RUNS = {
    "server": ([], 1),
    "root": (["--exchange", "server(root=2)"], 3),
    "apart": (["--exchange", "server(works=false)"], 2),
    "tree": (["--exchange", "tree"], 1),
    "tree root": (["--exchange", "tree(root=1)"], 2),
    "allgather": (["--exchange", "allgather"], 1),
    "seed": (["--seed", "1"], 1),
    "down": (["--down", "blockwise(sign, size=4096)"], 2),
    "random": (["--compressor", "randk(ratio=0.1) >> qsgd(levels=7, scaled=true)"], 2),
    "resnet": (["--model", "resnet20", "--steps", "3", "--sync-every", "2", "--batch", "4"], 2),
    "recipe": (
        [
            "--model",
            "resnet20",
            "--steps",
            "3",
            "--sync-every",
            "2",
            "--batch",
            "4",
            "--augment",
            "crop-flip",
            "--label-smoothing",
            "0.1",
            "--clip",
            "1",
            "--precision",
            "bf16",
            "--weight-decay",
            "0.01",
            "--weight-decay-on",
            "weights",
        ],
        2,
    ),
}
#: Ranks that are processes; jobs of two and four are below, and of one in the tests of exchanges.
PROCESSES = (3,)
#: Too long to be trained where nothing is compared with processes.
LONG = ("resnet", "recipe")
ALIKE = ("server", "root", "tree", "tree root", "allgather")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what the job of processes has left, when there was one."""
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, job: Path
) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Summaries by wire, ranks and name of the run."""
    found = {}
    for ranks in (1, 2, 3, 4):
        folder = job if ranks in PROCESSES else tmp_path_factory.mktemp(f"ranks{ranks}")
        runs = {
            name: args
            for name, (args, least) in RUNS.items()
            if ranks >= least and (ranks in PROCESSES or name not in LONG)
        }
        if ranks in PROCESSES:
            for out, one in processes(ranks, {folder / name: args for name, args in runs.items()}).items():
                found["mpi", ranks, out.name] = one
        for name, args in runs.items():
            found["threads", ranks, name] = threads(ranks, *args, out=folder / f"{name} in threads")
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_one_model_over_threads_processes_and_exchanges(results: Any, ranks: int) -> None:
    found = {key[::2]: one for key, one in results.items() if key[1] == ranks}
    wires = ("threads", "mpi") if ranks in PROCESSES else ("threads",)
    assert {wire for wire, _ in found} == set(wires)
    ran = [name for wire, name in found if wire == "threads"]
    for wire in wires:
        sha = {name: found[wire, name]["model_sha256"] for name in ran}
        for name in ran:
            for figure in ("model_sha256", "test_accuracy", "test_loss"):
                assert found[wire, name][figure] == found["threads", name][figure], name
        assert len({sha[name] for name in ALIKE if name in sha}) == 1
        others = {sha[name] for name in ran if name not in ALIKE}
        assert len(others | {sha["server"]}) == 1 + len(others)
        assert sha["seed"] != sha["server"]


@pytest.mark.parametrize("model", ["mlp(16)", "resnet20"])
def test_a_coordinator_apart_changes_nothing(results: Any, tmp_path: Path, model: str) -> None:
    """Three ranks of which two work make the model of two ranks, batch statistics included."""
    if model == "mlp(16)":
        assert results["mpi", 3, "apart"]["model_sha256"] == results["threads", 2, "server"]["model_sha256"]
        return
    args = RUNS["resnet"][0]
    apart = threads(3, *args, "--exchange", "server(works=false)", out=tmp_path / "apart")
    beside = threads(2, *args, out=tmp_path / "beside")
    assert apart["model_sha256"] == beside["model_sha256"]
    assert apart["test_accuracy"] == beside["test_accuracy"]


@pytest.mark.parametrize("wire", ["mpi", "threads"])
def test_the_summary_has_what_is_promised(results: Any, wire: str) -> None:
    for (found_wire, ranks, name), one in results.items():
        if found_wire != wire or name in ("resnet", "recipe", "random"):
            continue
        workers = ranks - (name == "apart")
        meetings = 5
        assert set(FLAT) | set(WAYS) | {"algorithm", "seconds"} <= set(one)
        assert (one["ranks"], one["steps"], one["skips"]) == (ranks, 20, 0)
        assert one["epochs"] == pytest.approx(20 / (1437 // workers // 16))
        assert 0 < one["test_accuracy"] <= 1
        assert 0 < one["train_loss"] < 10
        assert set(one["seconds"]) == SECONDS
        assert all(seconds >= 0 for seconds in one["seconds"].values())
        for field in WAYS:
            assert set(one[field]) == {"up", "down"}
        up = build("topk(ratio=0.01) >> sign", "compressor").claims.bits(PARAMETERS)
        assert up == 32 + 12 * (1 + math.ceil(math.log2(PARAMETERS)))
        assert one["messages"]["up"] == workers * meetings
        assert one["paper_bits"]["up"] == one["messages"]["up"] * up
        dense = 32 * PARAMETERS * workers * one["steps"]
        assert one["dense_bits"] == {"up": dense, "down": dense}
        frame = len(Float32().compress(np.zeros(PARAMETERS, np.float32), Seed(0)))
        travelling = frame * (workers - (name != "apart")) * one["steps"]
        assert one["dense_link_bytes"] == {"up": travelling, "down": travelling}
        ring = 2 * (workers - 1) / workers * 4 * PARAMETERS * one["steps"]
        assert one["ring_link_bytes"] == {"up": round(ring), "down": round(ring)}
        assert one["busiest_link_bytes"] == sum(one["link_bytes"].values())
        assert one["outcome"] == "trained"
        assert one["warnings"] == []
        # What the coordinator says to itself is no traffic; in an allgather each message travels
        # to all others.
        if name == "allgather":
            sent = ranks * (ranks - 1) * meetings
            # There is no answer: what each worker reads of the others is its way down, in the same frames.
            assert one["messages"]["down"] == sent
            assert one["paper_bits"]["down"] == sent * up
            assert one["wire_bytes"]["down"] == 0
        else:
            sent = (workers - (name != "apart")) * meetings
            if "tree" in name:  # a report is handed on at every rank between its own and the root
                sent = sum(position.bit_count() for position in range(ranks)) * meetings
            assert one["messages"]["down"] == workers * meetings
        if name not in ("allgather", "down"):
            # Signs are told on as they were reported, in one frame.
            assert one["paper_bits"]["down"] == workers * up * workers * meetings
            down = one["wire_bytes"]["down"]
            answers = (ranks - 1) * meetings
            assert answers * HEADER_BYTES <= down <= answers * (HEADER_BYTES + workers * (3 + 1.1 * up / 8))
        wire_up = one["wire_bytes"]["up"]
        assert sent * HEADER_BYTES <= wire_up <= sent * (HEADER_BYTES + 1.1 * up / 8)
        assert (wire_up > 0) == (sent > 0)


def test_the_down_link_can_be_compressed(results: Any) -> None:
    """Signs of blocks of 4096 are a bit each, and 32 bits for the scale of the only block."""
    coded = results["threads", 4, "down"]
    assert build(coded["algorithm"]["down"], "compressor") == Blockwise(Sign(), size=4096)
    assert coded["algorithm"]["down_memory"] == "innovation"
    assert coded["paper_bits"]["down"] == coded["messages"]["down"] * (PARAMETERS + 32)
    whole = coded["messages"]["down"] * PARAMETERS
    assert 32 * whole > 30 * coded["paper_bits"]["down"]
    # Rank 0 sends itself nothing.
    assert 3 / 4 * 4 * whole > 20 * coded["wire_bytes"]["down"]


# --- workers that do not wait for each other ----------------------------------------------------


@pytest.mark.usefixtures("results")
def test_workers_that_do_not_wait(job: Path, tmp_path: Path) -> None:
    """Real processes train digits, and all that was promised is written."""
    once = job / "once"
    end = summary(once)
    assert end["exchange"] == "server(works=false)"
    assert end["test_accuracy"] > 0.9, end
    assert end["workers"] == 2
    assert end["messages"]["up"] == end["messages"]["down"] > 0
    assert end["staleness"]["max"] >= end["staleness"]["mean"] >= 0
    assert sum(end["staleness"]["counts"].values()) == end["messages"]["up"]
    lines = [json.loads(line) for line in (once / "history.jsonl").read_text().splitlines()]
    assert lines[-1]["paper_bits"] == end["paper_bits"]
    assert lines[-1]["messages"] == end["messages"]
    # The coordinator counts what it hears and says as it goes; every step is evaluated once.
    assert len(lines) > 5
    for name in ("paper_bits", "wire_bytes", "messages"):
        ups = [line[name]["up"] for line in lines]
        assert ups == sorted(set(ups)), name
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert set(lines[0]) <= set(lines[-1])
    # Processes and threads repeat the run from its arrivals, bit for bit; without them they do not.
    arrivals = once / "arrivals.jsonl"
    staleness = [json.loads(line)["staleness"] for line in arrivals.read_text().splitlines()]
    assert np.mean(staleness) == pytest.approx(end["staleness"]["mean"])
    result = invoke(*JOB, *repeating(once), "--wire", "threads", "--ranks", 3, "--quiet", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for out in (job / "repeated", tmp_path):
        assert summary(out)["model_sha256"] == end["model_sha256"]
        assert (out / "arrivals.jsonl").read_text() == arrivals.read_text()


@pytest.mark.usefixtures("results")
def test_batch_statistics_without_waiting(job: Path) -> None:
    """A straggler delays nobody: it takes fewer steps; and a model with batch statistics trains."""
    lines = (job / "slowed" / "arrivals.jsonl").read_text().splitlines()
    taken = [json.loads(line) for line in lines]
    assert {line["about"] for line in taken} == {"model", "statistics"}
    steps = {rank: max(line["step"] for line in taken if line["rank"] == rank) for rank in (1, 2)}
    assert steps[1] < steps[2]
    assert steps[1] + steps[2] >= 12


# --- what a run leaves behind, and how it is repeated --------------------------------------------


def test_the_history_grows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(
        *SMALL[:3], "--wire", "threads", "--ranks", 2, "--epochs", 3, "--evaluations", 2, "--out", out
    )
    assert result.exit_code == 0, result.output
    end = summary(out)
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    # 44 steps an epoch, meetings at every eighth: due are 22, 44, 66, 88, 110 and 132.
    assert [line["step"] for line in lines] == [24, 48, 72, 88, 112, 132]
    for before, after in itertools.pairwise(lines):
        for field in ("paper_bits", "wire_bytes", "messages"):
            assert before[field]["up"] < after[field]["up"]
            assert before[field]["down"] < after[field]["down"]
        assert before["epoch"] < after["epoch"]
        assert before["seconds"]["total"] < after["seconds"]["total"]
    last = lines[-1]
    for field in ("test_accuracy", "test_loss", "train_loss", "paper_bits", "messages", "seconds"):
        assert last[field] == end[field]
    assert end["epochs"] == last["epoch"] == 3
    assert sorted(path.name for path in out.iterdir()) == ["config.toml", "history.jsonl", "summary.json"]


def test_the_configuration_repeats_the_run(tmp_path: Path) -> None:
    first = threads(
        3, "--seed", 5, "--lr", "cosine(0.2)", "--nesterov", "--momentum", 0.5, out=tmp_path / "1"
    )
    config = tmp_path / "1" / "config.toml"
    outcomes = {}
    for number, more in enumerate([[], ["--seed", 6], ["--epochs", 0.5]], 2):
        out = tmp_path / str(number)
        result = invoke("--config", config, "--quiet", "--out", out, *more)
        assert result.exit_code == 0, result.output
        outcomes[number] = summary(out)
    assert outcomes[2]["model_sha256"] == first["model_sha256"]
    assert outcomes[2]["algorithm"] == first["algorithm"]
    assert tomllib.loads((tmp_path / "2" / "config.toml").read_text()) == tomllib.loads(config.read_text())
    assert outcomes[3]["seed"] == 6
    assert outcomes[3]["model_sha256"] != first["model_sha256"]
    # A length on the command line wins over the other kind of length in the file.
    assert outcomes[4]["steps"] == round(0.5 * (1437 // 3 // 16))


@pytest.mark.parametrize("imports", ["import = 'mine'", "import = ['mine']", "imports = 'mine'"])
def test_keys_of_a_file_are_those_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imports: str
) -> None:
    (tmp_path / "mine.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "own.toml"
    config.write_text(
        f"{imports}\nsync-every = 5\nweight_decay = 0.1\nmodel = 'mlp(16)'\nsteps = 10\nwire = 'threads'"
    )
    result = invoke("--config", config, "--quiet", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    one = summary(tmp_path / "out")
    assert one["algorithm"]["trigger"] == "every(H=5)"
    assert one["algorithm"]["local"] == "sgd(lr=0.1, weight_decay=0.1)"
    kept = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert (kept["imports"], kept["sync_every"]) == (["mine"], 5)


@pytest.mark.parametrize(
    ("environ", "args", "used"),
    [
        ({}, [], 1),
        ({"OMP_NUM_THREADS": "2"}, [], 2),
        ({"OMP_NUM_THREADS": "2"}, ["--threads", 3], 3),
    ],
    ids=["nothing", "OMP_NUM_THREADS", "threads"],
)
def test_threads_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], args: list[object], used: int
) -> None:
    """As the command says, else as the environment says; those of ranks are below."""
    had, real = [], torch.set_num_threads

    def spy(count: int) -> None:
        real(count)
        had.append(torch.get_num_threads())

    monkeypatch.setattr(torch, "set_num_threads", spy)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, environ.get(name, ""))
    result = invoke(*SMALL[:3], "--wire", "threads", "--steps", 2, "--out", tmp_path, *args)
    real(1)
    assert result.exit_code == 0, result.output
    assert tomllib.loads((tmp_path / "config.toml").read_text())["threads"] == used
    assert set(had) == {used}


def test_a_number_of_threads_that_is_none(tmp_path: Path) -> None:
    finished = finish(start(command("--out", tmp_path / "out"), env={"OMP_NUM_THREADS": "many"}), 30)
    assert finished.returncode == 1, finished
    assert finished.stderr.startswith("error: SettingError: OMP_NUM_THREADS is 'many', which is no number")
    assert finished.stderr.count("\n") == 1, finished


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sync-every = 4\nsync_every = 4", "has 'sync_every' in two spellings: keep one"),
        ("stepz = 4", "has 'stepz', which is no option of train: ['algorithm', 'augment', 'batch',"),
        ("steps = ", "is not valid TOML: "),
        ("config = 'other.toml'", "has 'config', which is no option of train"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    config = tmp_path / "wrong.toml"
    config.write_text(text)
    result = invoke("--config", config, "--wire", "threads", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"error: SettingError: --config {config} {reason}" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_old_summary_does_not_outlive_a_failed_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    threads(2, out=out)
    result = invoke(*SMALL, "--wire", "threads", "--ranks", 2, "--lr", "1e30", "--out", out)
    assert result.exit_code == 1
    assert "NotFinite: at rank 0, step " in result.stderr
    assert not (out / "summary.json").exists()


# --- starting ranks -----------------------------------------------------------------------------


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "qsparse", "train", *map(str, args)]


def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    """Nothing but defaults, and ``--ranks`` starts mpirun by itself."""
    finished = finish(start(command("--ranks", 4, "--out", tmp_path / "out")), 90)
    assert finished.returncode == 0, finished
    one = summary(tmp_path / "out")
    assert (one["ranks"], one["workers"], one["epochs"]) == (4, 4, 60)
    assert one["test_accuracy"] >= 0.97
    assert one["dense_bits"]["up"] / one["paper_bits"]["up"] >= 500
    assert f"test accuracy    {one['test_accuracy']:.4f}\n" in finished.stdout
    told = finished.stdout
    assert re.search(
        r"^busiest link     566,\d{3} bytes up and down, 48\d times fewer than a dense Allreduce$", told, re.M
    )
    assert f"paper bits up    {one['paper_bits']['up']:,}, 1,584 times fewer than dense\n" in told
    assert f"written to       {tmp_path / 'out'}\n" in finished.stdout
    # No bar where there is no terminal.
    assert finished.stderr == "", finished


def test_ranks_are_those_of_mpirun(results: Any, tmp_path: Path) -> None:
    """``--ranks 2`` alone trains what two ranks do, quietly, and each has the threads of OpenMP.

    The configuration of ``mpirun -n 3`` repeats the run under ``mpirun -n 3``.
    """
    (tmp_path / "spy.py").write_text(SPY)
    # Two threads that spin while they wait would cost more than the run.
    env = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "", "OMP_WAIT_POLICY": "passive"}
    env["PYTHONPATH"] = str(tmp_path)
    out = tmp_path / "out"
    line = command(*SMALL, "--import", "spy", "--ranks", 2, "--out", out)
    finished = finish(start(line, env=env), 60)
    assert (finished.returncode, finished.stderr) == (0, ""), finished
    # The spies' lines, and no other.
    assert finished.stdout.split("\n") == ["torch has 2"] * 2 + [""], finished
    assert tomllib.loads((out / "config.toml").read_text())["threads"] == 2
    assert summary(out)["ranks"] == 2
    same = threads(2, "--threads", 2, out=tmp_path / "same")
    assert summary(out)["model_sha256"] == same["model_sha256"]
    again, first = results["mpi", 3, AGAIN], results["mpi", 3, "server"]
    assert again["model_sha256"] == first["model_sha256"]
    assert again["paper_bits"] == first["paper_bits"]


#: A module for ``--import`` that tells how many threads torch was given.
SPY = """
import torch

real = torch.set_num_threads

def spy(count):
    real(count)
    print(f"torch has {torch.get_num_threads()}\\n", end="", flush=True)

torch.set_num_threads = spy
"""


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """Two runs of one process: the first shows a bar, the second is told to be quiet."""
    program = """if True:
        import sys
        from qsparse.cli.commands import qsparse

        for quiet in ([], ["--quiet"]):
            qsparse.main([*sys.argv[1:], *quiet], standalone_mode=False)
            for stream in (sys.stdout, sys.stderr):
                print("=" * 20, file=stream, flush=True)
    """
    line = ["--wire", "threads", "--ranks", "2", "--steps", "50", "--out", str(tmp_path)]
    told = on_terminal([sys.executable, "-c", program, "train", *line], 100)
    (printed, mute, rest), (shown, dark, after) = (text.split("=" * 20) for text in told)
    assert (mute.strip(), dark.strip(), rest.strip(), after.strip()) == ("", "", "", "")
    assert "\r" in shown
    assert "50/50" in shown
    assert "loss " in shown
    assert "accuracy 0." in shown
    assert "step " not in printed
    assert "test accuracy" in printed


# --- algorithms and data ------------------------------------------------------------------------


@pytest.mark.parametrize("preset", names("algorithm"))
def test_every_preset_trains(tmp_path: Path, preset: str) -> None:
    serves = not natural_exchange(build(preset, "algorithm")).workers(1)
    result = invoke(
        "--quiet", "--wire", "threads", "--ranks", 3 if serves else 2, "--steps", 44, "--model", "mlp(16)",
        "--algorithm", preset, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    one = summary(tmp_path / "out")
    assert one["steps"] == 44
    # Below ln 10 is better than guessing.
    assert 0 < one["test_loss"] < math.log(10)
    assert one["test_accuracy"] > 0.2
    # Who does not wait may say one report more than its share.
    assert one["paper_bits"]["up"] <= one["dense_bits"]["up"] * (1 + serves / one["steps"])


def test_libsvm_files(tmp_path: Path) -> None:
    rows = []
    for i in range(400):
        label = 1 if (7 * i) % 10 < 5 else -1
        rows.append(f"{label:+d} 1:{label * (1 + i % 3)} 2:{(i % 5) - 2} {3 + i % 4}:1")
    data = tmp_path / "rows.txt"
    data.write_text("\n".join(rows) + "\n")
    result = invoke(
        "--quiet", "--wire", "threads", "--ranks", 2, "--epochs", 5, "--model", "softmax",
        "--data", f"libsvm:{data}", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    one = summary(tmp_path / "out")
    assert one["parameters"] == 6 * 2 + 2
    assert one["test_accuracy"] > 0.9


def test_mnist(data_dir: Path, tmp_path: Path) -> None:
    result = invoke(
        "--quiet", "--wire", "threads", "--ranks", 2, "--data", "mnist", "--data-dir", data_dir,
        "--steps", 400, "--batch", 32, "--lr", 0.1, "--momentum", 0.9, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    one = summary(tmp_path / "out")
    assert one["test_accuracy"] > 0.9
    assert one["dense_bits"]["up"] > 500 * one["paper_bits"]["up"]

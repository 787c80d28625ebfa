"""``qsparse sweep``: real short runs, what is run again and what is not, and the table of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qsparse.cli.commands import qsparse
from qsparse.errors import SettingError
from qsparse.sweep import methods
from qsparse.sweep.measured import best, common_target, measure, to_target
from qsparse.sweep.methods import NAMES, Method

FILE = """
model = "mlp(16)"
wire = "threads"
ranks = 2
epochs = 2

[methods.dense]
algorithm = "sgd"

[methods.rare]
algorithm = "qsparse-local-sgd"
sync-every = 4
published = "> 100"
"""
PARAMETERS = 64 * 16 + 16 + 16 * 10 + 10
#: Steps of two workers with 1437 examples, in batches of 16.
EPOCH = 1437 // 2 // 16


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    return path


def invoke(*args: object, drawn: bool = False) -> Result:
    """What a sweep says; its pictures take longer than a run, and are drawn where they are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr("qsparse.report.draw", lambda shown, folder, **_: folder / "index.html")
        return CliRunner().invoke(qsparse, ["sweep", *map(str, args)])


def swept(*args: object, drawn: bool = False) -> Result:
    result = invoke(*args, drawn=drawn)
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, *texts: str) -> None:
    """One sentence, status 1, and nothing was run."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "begins" not in result.stderr
    for text in ("error: ", *texts):
        assert text in result.stderr


def begun(result: Result) -> list[str]:
    """The runs that were started."""
    return re.findall(r"^(.+): begins$", result.stderr, re.MULTILINE)


def commands(result: Result) -> list[str]:
    """What a dry run shows."""
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "sweep.json").read_text())
    return found


# --- the runs and their table --------------------------------------------------------------------

TWICE = ("--evaluations", 2)


class Stages:
    """A sweep, first of one method, then of another: copies of it go on in several ways.

    Attributes:
        file: of the sweep, with a method more.
        out: its folder.
        rare, dense: what was said when each was run.
        first: the record of the first.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.out = folder / "three.toml", folder / "out"
        self.file.write_text(FILE + "[methods.whole]\nalgorithm = 'gd'\n")
        self.rare = swept(self.file, *TWICE, "--out", self.out, "--method", "rare")
        self.first = record(self.out)
        self.dense = swept(self.file, *TWICE, "--out", self.out, "--method", "dense")

    def copied(self, folder: Path) -> tuple[object, ...]:
        """The words of a sweep of two methods that goes on with a copy."""
        (folder / "two.toml").write_text(FILE)
        shutil.copytree(self.out, folder / "out")
        return folder / "two.toml", *TWICE, "--out", folder / "out"


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def done(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """A sweep of two methods and two seeds, of which one was there: its file, its folder, what it said."""
    folder = tmp_path_factory.mktemp("done")
    quick = stages.copied(folder)
    return folder / "two.toml", folder / "out", swept(*quick, "--seeds", 2)


def test_each_run_is_a_run_of_train(done: tuple[Path, Path, Result]) -> None:
    _, out, _ = done
    for name, algorithm in (("dense", "sgd"), ("rare", "qsparse-local-sgd")):
        for seed in (0, 1):
            config = tomllib.loads((out / name / f"seed-{seed}" / "config.toml").read_text())
            assert (config["algorithm"], config["seed"], config["evaluations"]) == (algorithm, seed, 2)
            assert (config["model"], config["epochs"], config["ranks"]) == ("mlp(16)", 2, 2)
            assert ("sync_every" in config) == (name == "rare")
    runs = record(out)["runs"]
    assert [(run["method"], run["seed"]) for run in runs] == [
        ("dense", 0), ("dense", 1), ("rare", 0), ("rare", 1),
    ]  # fmt: skip
    for run in runs:
        folder = Path(run["folder"])
        assert run["summary"] == json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert [point["test_accuracy"] for point in run["curve"]] == [line["test_accuracy"] for line in lines]
        assert len(lines) == 4
    # What is shown as a run's command makes the same model.
    words = shlex.split(runs[3]["command"])
    assert words[:2] == ["qsparse", "train"]
    again = CliRunner().invoke(qsparse, [*words[1:], "--quiet", "--out", str(out.parent / "again")])
    assert again.exit_code == 0, again.output
    repeated = json.loads((out.parent / "again" / "summary.json").read_text())
    assert repeated["model_sha256"] == runs[3]["summary"]["model_sha256"]


def test_the_table_is_of_what_the_runs_left(done: tuple[Path, Path, Result]) -> None:
    _, out, result = done
    found = record(out)
    dense, rare = found["rows"]
    runs = {name: [run for run in found["runs"] if run["method"] == name] for name in ("dense", "rare")}
    for row in (dense, rare):
        accuracies = [run["summary"]["test_accuracy"] for run in runs[row["method"]]]
        assert accuracies[0] != accuracies[1]
        assert row["accuracy"] == pytest.approx(statistics.mean(accuracies))
        assert row["deviation"] == pytest.approx(statistics.stdev(accuracies))
        assert f"{row['accuracy']:.4f} ± {row['deviation']:.4f}" in result.stdout
        assert row["seeds"] == [0, 1]
        assert row["reached"] == 2
        points = [to_target(run, found["target"]) for run in runs[row["method"]]]
        for name in ("paper_bits", "wire_bytes", "link_bytes"):
            for way in ("up", "down"):
                wanted = statistics.mean(point[name][way] for point in points if point)
                assert row["to_target"][name][way] == wanted
                ratio = dense["to_target"][name][way] / row["to_target"][name][way]
                assert row["gain"][name][way] == pytest.approx(ratio)
    assert dense["in_all"]["paper_bits"]["up"] == 2 * 2 * EPOCH * 32 * PARAMETERS
    assert dense["gain"]["paper_bits"] == dense["gain"]["link_bytes"] == {"all": 1, "up": 1, "down": 1}
    link = [sum(row["to_target"]["link_bytes"].values()) for row in (dense, rare)]
    assert rare["gain"]["link_bytes"]["all"] == pytest.approx(link[0] / link[1])
    assert rare["gain"]["paper_bits"]["up"] > 100
    assert rare["published"] == "> 100"
    worst = min(max(point["test_accuracy"] for point in run["curve"]) for run in found["runs"])
    assert worst - 0.001 < found["target"] <= worst
    (by,) = (run["method"] for run in found["runs"] if worst in [p["test_accuracy"] for p in run["curve"]])
    told = f"the highest that every run below reaches, rounded down to 0.001; {by} sets it"
    assert found["target_is"] == told
    assert f"({told})" in result.stdout
    shown = re.search(r"^rare .*\s([\d,.]+) +> 100$", result.stdout, re.MULTILINE)
    assert shown, result.stdout
    assert float(shown[1].replace(",", "")) == pytest.approx(rare["gain"]["paper_bits"]["up"], rel=0.01)


def test_a_target_that_not_all_reach(done: tuple[Path, Path, Result]) -> None:
    file, out, _ = done
    target = max(run["summary"]["test_accuracy"] for run in record(out)["runs"])
    result = swept(file, "--seeds", 2, "--evaluations", 2, "--out", out, "--target", target)
    assert begun(result) == []
    assert f"an accuracy of {target:.4g} (given)" in result.stdout
    assert "reached by 1 of 2" in result.stdout
    assert "reached by 0 of 2" in result.stdout
    assert all(row["to_target"] is None and row["gain"] is None for row in record(out)["rows"])


def test_best_of_a_grid_and_targets() -> None:
    def run(lr: str, seed: int, *curve: float) -> dict[str, Any]:
        def at(step: int) -> dict[str, Any]:
            ways = {"up": 100 * step, "down": 7 * step}
            return {"paper_bits": ways, "wire_bytes": ways, "link_bytes": ways}

        points = [{"step": t, "test_accuracy": share, **at(t)} for t, share in enumerate(curve, 1)]
        summary = {"test_accuracy": curve[-1], "steps": len(curve), **at(len(curve))}
        return {"method": "m", "lr": lr, "seed": seed, "folder": "", "curve": points, "summary": summary}

    fast = [run("fast", 0, 0.5, 0.7, 0.7), run("fast", 1, 0.3, 0.6, 0.7)]
    good = [run("good", 0, 0.2, 0.3, 0.9), run("good", 1, 0.1, 0.7, 0.8)]
    lost = [run("lost", 0, 0.9, 0.9, 0.9)]
    runs = [*lost, *fast, *good]
    assert best(runs, None) == good
    assert best(runs, 0.6) == fast
    assert best(runs, 0.75) == good
    assert best(runs, 0.99) == good
    assert best(lost, 0.6) == lost
    assert common_target(fast + good) == (0.7, "m")
    assert common_target([run("", 0, 0.4, 0.64999)]) == (0.649, "m")
    slow = {**run("", 0, 0.4, 0.5), "method": "slow"}
    assert common_target([*fast, slow, *good]) == (0.5, "slow")
    rows = measure([Method("m", {})], runs, 0.6)["rows"]
    assert rows[0]["to_target"]["paper_bits"] == {"up": 200, "down": 14}
    assert rows[0]["in_all"]["paper_bits"] == {"up": 300, "down": 21}
    # Without a target, it is what the chosen runs reach, not the others.
    assert measure([Method("m", {})], runs, None)["target"] == 0.8


def test_a_grid_of_learning_rates_of_which_one_fails(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of those that end is shown; what failed is said, and is tried again."""
    out = tmp_path / "out"
    grid = "0.001, 1e38, steps(0.1, after=[20, 30])"
    tried = (file, "--method", "dense", "--epochs", 1, "--lrs", grid, "--jobs", 2, "--out", out)
    rates = ["0.001", "1e38", "steps(0.1, after=[20, 30])"]
    result = invoke(*tried)
    assert result.exit_code == 1
    assert begun(result) == [f"dense, lr {rate}, seed 0" for rate in rates]
    found = record(out)
    assert [run["lr"] for run in found["runs"]] == [rates[0], rates[2]]
    assert rates[2].replace("start=", "") in found["runs"][1]["command"]
    small, large = (run["summary"]["test_accuracy"] for run in found["runs"])
    assert small < large
    (row,) = found["rows"]
    assert (row["lr"], row["accuracy"], row["seeds"]) == (rates[2], large, [0])
    (failed,) = found["failed"]
    assert failed["run"] == "dense, lr 1e38, seed 0"
    assert "which cannot be sent; lower the learning rate" in failed["error"]
    assert f"FAILED: {failed['run']}: {failed['error']}" in result.stdout
    assert failed["error"] in (out / "dense" / "lr-1e38" / "seed-0" / "log.txt").read_text()
    # It is tried again, and only it; what failed is said also where nothing can be drawn.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    again = invoke(*tried, drawn=True)
    assert begun(again) == [failed["run"]]
    assert again.exit_code == 1
    assert f"FAILED: {failed['run']}: " in again.stdout
    assert "lacks a library" in again.stderr


# --- what is run again ---------------------------------------------------------------------------


def test_only_what_is_missing_is_run(done: tuple[Path, Path, Result], stages: Stages, tmp_path: Path) -> None:
    """Of two methods and two seeds the first of each was there."""
    file, out, second = done
    quick = (file, *TWICE, "--out", out)
    assert begun(stages.rare) == ["rare, seed 0"]
    assert begun(stages.dense) == ["dense, seed 0"]
    assert begun(second) == ["dense, seed 1", "rare, seed 1"]
    assert "2 of 4 runs are done" in second.stderr
    assert [row["method"] for row in record(out)["rows"]] == ["dense", "rare"]
    kept, copied = (each / "rare" / "seed-0" / "summary.json" for each in (stages.out, out))
    assert copied.stat().st_mtime_ns == kept.stat().st_mtime_ns
    third = swept(*quick, "--seeds", 2)
    assert begun(third) == []
    assert third.stdout == second.stdout
    # More seeds are more runs.
    assert len(commands(invoke(*quick, "--seeds", 3, "--dry-run"))) == 2
    # A run without a summary was not finished.
    quick = stages.copied(tmp_path)
    assert commands(invoke(*quick, "--dry-run")) == [""]
    (tmp_path / "out" / "dense" / "seed-0" / "summary.json").unlink()
    (missing,) = commands(invoke(*quick, "--dry-run"))
    assert "--name=dense" in missing


def test_methods_that_are_not_run_now_stay_in_the_table(stages: Stages) -> None:
    out, rare, both = stages.out, stages.rare, stages.dense
    quick = (stages.file, *TWICE, "--out", out)
    (row,) = stages.first["rows"]
    assert row["gain"] is None
    assert "How many times fewer is against dense, of which no run with these settings is done" in rare.stdout
    assert "against dense" not in both.stdout
    again = swept(*quick, "--method", "rare")
    assert begun(again) == []
    assert again.stdout == both.stdout
    found = record(out)
    assert [row["method"] for row in found["rows"]] == ["dense", "rare"]
    assert [run["method"] for run in found["runs"]] == ["dense", "rare"]
    assert found["rows"][1]["gain"]["paper_bits"]["up"] > 100
    assert list(found["methods"]) == ["dense", "rare", "whole"]


def test_a_run_of_other_settings_is_refused(stages: Stages, tmp_path: Path) -> None:
    quick = (stages.file, *stages.copied(tmp_path)[1:])
    out = tmp_path / "out"
    other = (*quick, "--method", "rare", "--steps", 10, "--evaluations", 1, "--momentum", 0.5)
    folder = out / "rare" / "seed-0"
    before = (folder / "summary.json").read_text()
    refused(
        invoke(*other),
        f"{folder} has a run of other settings",
        "epochs was 2.0 and is not set, evaluations was 2 and is 1, momentum was not set and is 0.5, "
        "steps was not set and is 10",
        "--fresh",
    )
    assert (folder / "summary.json").read_text() == before
    (folder / "checkpoints").mkdir()
    # A folder from an attempt at the third: who does not take an option is not shown, and no error.
    (out / "whole").mkdir()
    again = swept(*other, "--fresh")
    assert not (folder / "checkpoints").exists()
    assert begun(again) == ["rare, seed 0"]
    assert json.loads((folder / "summary.json").read_text())["steps"] == 10
    # Who was run with other settings is not shown, either.
    assert [row["method"] for row in record(out)["rows"]] == ["rare"]
    # What fits is kept, also then.
    assert begun(swept(*other, "--fresh")) == []
    refused(invoke(*quick, "--method", "whole", "--sync-every", 4), "method whole: --sync-every does not go")


def test_a_run_of_an_older_version_had_the_defaults(stages: Stages, tmp_path: Path) -> None:
    quick = (*stages.copied(tmp_path), "--method", "dense")
    config = tmp_path / "out" / "dense" / "seed-0" / "config.toml"
    text = config.read_text()
    config.write_text(text.replace('precision = "float32"\n', "").replace("label_smoothing = 0.0\n", ""))
    assert len(config.read_text().splitlines()) == len(text.splitlines()) - 2
    assert begun(swept(*quick)) == []
    other = ("--precision", "bf16")
    refused(invoke(*quick, *other), "of other settings: precision was float32 and is bf16;")
    config.write_text(text + "later = 3\n")
    refused(invoke(*quick), "of other settings: later was 3 and is not set;")


def test_the_configuration_of_a_run_is_one_for_a_sweep(stages: Stages, file: Path, tmp_path: Path) -> None:
    """All but its name, which is that of its method."""
    config = tmp_path / "config.toml"
    text = (stages.out / "dense" / "seed-0" / "config.toml").read_text()
    config.write_text(text.replace("batch = 16\n", "batch = 8\n"))
    assert tomllib.loads(config.read_text())["name"] == "dense"
    lines = commands(invoke("figure-1", "--config", config, "--out", tmp_path / "second", "--dry-run"))
    assert ["--name=SGD" in shlex.split(line) for line in lines] == [True] + 9 * [False]
    assert all("--batch=8" in line and "--name=dense" not in line for line in lines)
    config.write_text("nam = 'dense'\n")
    refused(invoke(file, "--config", config), "has 'nam', which is no option of train")


def test_an_interrupt_leaves_what_is_done(file: Path, tmp_path: Path) -> None:
    """Over processes: the interrupt is for the sweep alone, which must end the ranks of its run."""
    out = tmp_path / "out"
    quick = 'algorithm = "sgd"\nwire = "threads"\nsteps = 3'
    file.write_text(FILE.replace('algorithm = "sgd"', quick) + 'wire = "mpi"\nsteps = 1000000\n')
    options = [str(file), "--out", str(out)]
    words = [sys.executable, "-m", "qsparse", "sweep", *options]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        history = out / "rare" / "seed-0" / "history.jsonl"
        end = time.monotonic() + 120
        while not (history.exists() and history.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted with 1 of 2 runs done: the same command goes on with the others" in said
    assert "Traceback" not in said
    assert not _alive(f"--out={out / 'rare' / 'seed-0'}")
    assert (out / "dense" / "seed-0" / "summary.json").exists()
    assert not (out / "rare" / "seed-0" / "summary.json").exists()
    missing = commands(invoke(*options, "--dry-run"))
    assert len(missing) == 1
    assert "rare" in missing[0]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux ends a killed process's children"
)
def test_a_killed_sweep_leaves_no_run(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [str(file), "--steps", "1000000", "--evaluations", "1", "--out", str(out)]
    with subprocess.Popen([sys.executable, "-m", "qsparse", "sweep", "--quiet", *options]) as process:
        end = time.monotonic() + 120
        while not (out / "dense" / "seed-0" / "config.toml").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        process.kill()
    while _alive(f"--out={out / 'dense' / 'seed-0'}"):
        assert time.monotonic() < end
        time.sleep(0.05)


def _alive(word: str) -> bool:
    """Is there a process, beside zombies, with this word on its command line?"""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


def test_a_run_that_never_learned_ends_no_sweep(stages: Stages, tmp_path: Path) -> None:
    """Nobody learns in a single step that is very short: here one was never right."""
    out, quick = tmp_path / "out", stages.copied(tmp_path)
    lines = out / "rare" / "seed-0" / "history.jsonl"
    lines.write_text(re.sub(r'"test_accuracy": [\d.]+', '"test_accuracy": 0.0004', lines.read_text()))
    result = swept(*quick, drawn=True)
    assert record(out)["target"] == 0
    assert (
        "an accuracy of 0 (the highest that every run below reaches, rounded down to 0.001; rare sets it)"
        in (result.stdout)
    )
    assert "written to " in result.stdout
    assert (out / "plot" / "index.html").read_text().count("<li>") == 2
    # Nor does one whose history is gone: it is made again.
    lines.write_text("")
    assert begun(swept(*quick)) == ["rare, seed 0"]
    assert lines.read_text()


def test_when_all_fail_there_is_no_table(file: Path, tmp_path: Path) -> None:
    result = invoke(file, "--method", "dense", "--batch", 5000, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout.count("FAILED: ") == 1
    assert "accuracy" not in result.stdout
    assert record(tmp_path / "out")["runs"] == []


# --- what is refused before the first run ---------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (["figure1"], ["did you mean 'figure-1'?", "known: figure-1, laq, dist-ef or a FILE.toml"]),
        (["missing.toml"], ["cannot read missing.toml: No such file"]),
        (["figure-1", "--method", "SignTopk"], ["did you mean 'SignTopK'?"]),
        (["figure-1", "--topk", "k=0.5"], ["method TopK: "]),
        (["laq", "--topk", "k=5"], ["--topk is for figure-1"]),
        (["figure-1", "--lr", "cosin(0.1)"], ["method SGD: ", "did you mean 'cosine'?"]),
        (["figure-1", "--lrs", "0.1,,0.2"], ["--lrs must be learning rates with commas"]),
        (["figure-1", "--lrs", "0.1", "--lr", "0.2"], ["--lr has no effect: --lrs says"]),
        (["figure-1", "--algorithm", "sgd"], ["--algorithm says what a method is"]),
        (["figure-1", "--compressor", "sign"], ["--compressor says what a method is", "write a FILE.toml"]),
        (["figure-1", "--method", "TopK", "--compressor", "sign"], ["--compressor says what a method is"]),
        (["figure-1", "--trigger", "every(2)"], ["--trigger says what a method is"]),
        (["laq", "--memory", "stateless"], ["--memory says what a method is", "sweep laq is of published"]),
        (["dist-ef", "--server", "majority"], ["--server says what a method is"]),
        (["figure-1", "--meeting", "asynchronous"], ["--meeting says what a method is"]),
        (["figure-1", "--target", "80"], ["--target must be an accuracy"]),
        (["figure-1", "--sync-every", "4"], ["--sync-every says what a method is"]),
        (["figure-1", "--exchange", "server(root=3)", "--ranks", "2"], ["method SGD: "]),
        (["figure-1", "--steps", "3", "--epochs", "2"], ["give either --epochs or --steps"]),
        (["figure-1", "--model", "mpl"], ["did you mean 'mlp'?"]),
        (["figure-1", "--data", "digit"], ["did you mean 'digits'?"]),
        (["figure-1", "--data", "mnist", "--model", "mlp", "--data-dir", "nowhere"], ["nowhere"]),
    ],
)
def test_nothing_runs_where_something_is_wrong(
    args: list[str], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(invoke(*args), *texts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("model = 3 4", ["is not valid TOML"]),
        ("model = 'mlp'", ["has no methods: write a table [methods.NAME]"]),
        ("methods = 3", ["has no methods"]),
        ("[methods]\na = 3", ["has no methods"]),
        ("[methods.a]\nalgoritm = 'sgd'", ["method a has 'algoritm', which is no option of train"]),
        ("[methods.a]\nout = 'x'", ["method a has 'out', which a sweep chooses by itself"]),
        ("[methods.a]\nseed = 3", ["method a has a seed: give --seed and --seeds"]),
        ("[methods.a]\nmomentum = 'x'", ["method a: ", "'x' is not a valid float"]),
        ("[methods.a]\nnesterov = 'no'", ["method a: --nesterov is true or false, not 'no'"]),
        ("[methods.a]\nmodel = ['mlp']", ["method a: --model must be a number or a text"]),
        ("[methods.'a/b']\nmodel = 'mlp'", ["'a/b' cannot name a method"]),
        ("jobs = 2\n[methods.a]\nmodel = 'mlp'", ["sweep own has 'jobs', which is no option of train"]),
    ],
)
def test_bad_files(text: str, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    refused(invoke(tmp_path / "own.toml", "--out", tmp_path / "out"), *texts)


def test_what_a_published_method_is_does_not_come_from_a_run(file: Path, tmp_path: Path) -> None:
    """A run's config.toml always has an algorithm, which all methods set; a compressor would change some."""
    config = tmp_path / "config.toml"
    config.write_text("algorithm = 'local-sgd'\nbatch = 8\ndown = 'sign'\n")
    lines = commands(invoke("figure-1", "--config", config, "--lr", "0.2", "--dry-run"))
    assert len(lines) == 10
    assert all("--batch=8" in line for line in lines)
    # Two say themselves how they compress down.
    assert ["--down=sign" in line for line in lines] == 8 * [True] + 2 * [False]
    config.write_text("algorithm = 'local-sgd'\nsync_every = 8\n")
    refused(
        invoke("figure-1", "--config", config), f"'sync_every' of --config {config} says what a method is"
    )
    # Whose methods they are may say so.
    file.write_text(FILE.replace("rare]\n", "rare]\nmemory = 'stateless'\n"))
    assert "--compressor=sign" in commands(invoke(file, "--compressor", "sign", "--dry-run"))[0]
    refused(
        invoke(file, "--algorithm", "sgd"), "--algorithm has no effect: every method of this sweep sets it"
    )


def test_not_under_a_launcher(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "1")
    refused(invoke(file), "start it without a launcher")


# --- the sweeps that come with qsparse ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_methods_of_named_sweeps_train(name: str, tmp_path: Path) -> None:
    small = ("--model", "softmax", "--wire", "threads", "--ranks", 2, "--steps", 16, "--out", tmp_path)
    lines = commands(invoke(name, *small, "--dry-run"))
    assert len(lines) == len(methods.find(name).methods)
    shas = set()
    for line in lines:
        result = CliRunner().invoke(qsparse, [*shlex.split(line)[1:], "--quiet"])
        assert result.exit_code == 0, result.output
        words = shlex.split(line)
        assert {"--out", "--name", "--resume"} <= {word.partition("=")[0] for word in words}
        (out,) = (Path(word.removeprefix("--out=")) for word in words if word.startswith("--out="))
        summary = json.loads((out / "summary.json").read_text())
        assert summary["steps"] == 16
        assert summary["test_accuracy"] > 0.15  # 0.1 is chance
        shas.add(summary["model_sha256"])
    assert len(shas) == len(lines)
    # All are there now, so nothing is run, and the table has what was published.
    result = swept(name, *small)
    assert begun(result) == []
    found = record(tmp_path)
    assert [row["published"] for row in found["rows"]] == [m.published for m in methods.find(name).methods]
    assert found["source"] in result.stdout


def test_the_methods_of_figure_1() -> None:
    """Bits of a message are those of the formulas: everything, every fourth step, signs, and top-k."""
    lines = commands(invoke("figure-1", "--ranks", 8, "--topk", "k=40", "--dry-run", "--out", "x"))
    assert len(lines) == 10
    for line, (H, compressor) in zip(
        lines[:8],
        [
            (1, ""), (4, ""), (1, ""), (1, "topk(k=40)"), (1, "topk(k=40) >> sign"),
            (4, "topk(k=40) >> sign"), (8, "topk(k=40) >> sign"), (16, "topk(k=40) >> sign"),
        ],
        strict=True,
    ):  # fmt: skip
        if compressor:
            assert f"'--compressor=blockwise({compressor}, layers=true)'" in line
            assert f"qsparse-local-sgd(H={H})" in line
        else:
            assert "--compressor" not in line
            assert (f"H={H}" in line) == (H == 4)
        for word in ("--ranks=8", "--momentum=0.9", "--nesterov", "--weight-decay=0.0001", "--seed=0"):
            assert word in line
    for line, H in zip(lines[8:], (8, 16), strict=True):
        assert f"qsparse-local-sgd-2way(H={H})" in line
        for way in ("compressor", "down"):
            assert f"'--{way}=blockwise(topk(k=40) >> sign, layers=true)'" in line
    (line,) = commands(invoke("figure-1", "--method", "TopK", "--no-nesterov", "--momentum", 0, "--dry-run"))
    assert "--no-nesterov" in line
    assert "--momentum=0.0" in line
    assert "topk(ratio=0.01)" in line


def test_rates_that_differ_in_spaces_are_one_run(file: Path, tmp_path: Path) -> None:
    grid = ("--lrs", "cosine(0.1), cosine( 0.1),cosine(0.1 ,warmup=3)", "--out", tmp_path, "--dry-run")
    lines = commands(invoke(file, "--method", "dense", *grid))
    assert ["'--lr=cosine(0.1)'" in line for line in lines] == [True, False]
    assert f"{tmp_path}/dense/lr-cosine(0.1,warmup=3)/seed-0" in lines[1]


def test_the_file_in_the_docs(root: Path, tmp_path: Path) -> None:
    (text,) = re.findall(
        r"^```toml\n(.*?)^```", (root / "docs/sweeps.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "docs.toml").write_text(text)
    lines = commands(invoke(tmp_path / "docs.toml", "--data", "digits", "--model", "softmax", "--dry-run"))
    assert ["topk" in line for line in lines] == [False, True]


def test_the_example_about_collectives(root: Path) -> None:
    """Dense SGD, and each of three algorithms over each of five exchanges with the same learning rate."""
    lines = commands(invoke(root / "examples/collectives.toml", "--data", "digits", "--dry-run"))
    told = [
        dict(re.findall(r"--(algorithm|lr|exchange)=(\S+)", " ".join(shlex.split(line)))) for line in lines
    ]
    assert len(lines) == 16
    ways = {"server", "tree", "sharded", "nodes(outer=server,"}
    for algorithm in {each["algorithm"] for each in told} - {"sgd"}:
        same = [each for each in told if each["algorithm"] == algorithm]
        assert len(same) == 5
        assert {each["exchange"] for each in same} == ways
        assert len({each["lr"] for each in same}) == 1
    assert sum("recompress=true" in line for line in lines) == 3


def test_what_wins(tmp_path: Path) -> None:
    """A method's own options, then the command line, then --config, then what a file has for all."""
    own = tmp_path / "own.toml"
    own.write_text(
        "epochs = 3\nbatch = 4\nlr = 0.5\nmomentum = 0.5\n"
        "[methods.a]\n[methods.b]\nlr = 0.25\nsteps = 7\nimport = 'json'\n"
    )
    config = tmp_path / "config.toml"
    config.write_text("batch = 8\nmomentum = 0.6\nalgorithm = 'sgd'\n")
    a, b = commands(invoke(own, "--config", config, "--momentum", 0.7, "--seed", 5, "--dry-run"))
    for line in (a, b):
        for word in ("--batch=8", "--momentum=0.7", "--algorithm=sgd", "--seed=5"):
            assert word in line
    assert "--lr=0.5" in a
    assert "--epochs=3" in a
    assert "--lr=0.25" in b
    assert "--steps=7" in b
    assert "--epochs" not in b
    assert "--import=json" in b
    # A grid is for those that have no step size of their own.
    assert len(commands(invoke(own, "--lrs", "0.1,0.2,0.1", "--dry-run"))) == 3
    with pytest.raises(SettingError, match="--topk is for figure-1"):
        methods.find(str(own), "k=3")

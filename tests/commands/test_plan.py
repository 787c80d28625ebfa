"""``qsparse plan`` and ``qsparse doctor --links``: figures before a run, and links that are measured."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from mpirun import mpi_run

from qsparse.bench.links import measure_links, pairs_of
from qsparse.cli.commands import qsparse
from qsparse.cli.plan import counts_of, speeds_of
from qsparse.errors import CompositionError, DataError, SettingError
from qsparse.exchange import AllGather, Nodes, ParameterServer, Sharded
from qsparse.ledger import Ledger
from qsparse.planning import Links, Speeds, dense_seconds
from qsparse.planning.links import Pair, links_file, links_from, slow
from qsparse.planning.memory import held
from qsparse.planning.plan import choices, gap, plan
from qsparse.planning.speeds import measured
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.seeds import Seed
from qsparse.wire.base import Wire
from qsparse.wire.simulated import Simulated, run_simulated

#: Nothing is measured, so what is printed is the same everywhere.
STILL = ("--speeds", "encode=1,answer=1,decode=1,absorb=1,hear=1")
ZERO = ("--speeds", "encode=0,answer=0,decode=0")


def invoke(*words: str) -> Result:
    return CliRunner().invoke(qsparse, ["plan", *words])


def told(tmp_path: Path, *words: str) -> dict[str, Any]:
    """What a plan writes."""
    file = tmp_path / "plan.json"
    result = invoke(*words, "--json", str(file))
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def preset(text: str) -> Any:
    return build(text, "algorithm").closed()


# --- the table -----------------------------------------------------------------------------------


def test_lines_are_those_of_the_formulas_the_fastest_first(tmp_path: Path) -> None:
    words = ("--n", "1000000", "--ranks", "5", "--link-rate", "100mbit", "--link-latency", "1ms", *ZERO)
    found = told(tmp_path, *words, "--algorithm", "local-sgd(H=4)", "--compute", "0.1")
    (made,) = found["plans"]
    # Dense messages, up and down, over links of 12.5 MB/s.
    by = {line["exchange"]: line for line in made["lines"] if line["compressor"] == "float32"}
    assert by["server"]["seconds"] == pytest.approx(4 * 8e6 / 12.5e6 + 0.002, rel=1e-3)
    assert by["allgather"]["seconds"] == pytest.approx(4 * 4e6 / 12.5e6 + 0.001, rel=1e-3)
    assert by["sharded"]["seconds"] == pytest.approx(0.8 * 8e6 / 12.5e6 + 0.002, rel=1e-3)
    assert by["server"]["sent_bytes"] == pytest.approx(16e6, rel=1e-3)
    assert made["dense_seconds"] == pytest.approx(1.6 * 4e6 / 12.5e6 + 8 * 0.001)
    assert made["gap"] == 4
    for line in made["lines"]:
        assert line["times_dense"] == pytest.approx(made["dense_seconds"] / line["seconds"])
        assert line["steps_per_second"] == pytest.approx(4 / (0.4 + line["seconds"]))
    assert made["dense_steps_per_second"] == pytest.approx(1 / (0.1 + made["dense_seconds"]))
    seconds = [line["seconds"] for line in made["lines"]]
    assert seconds == sorted(seconds)
    assert made["compress"]
    assert len({(line["compressor"], line["down"]) for line in made["lines"]}) == 3


def test_local_steps_that_go_on_meanwhile_cost_nothing() -> None:
    """An answer that is adopted some steps later is waited for only as long as these steps do not last."""
    links = Links(12.5e6, 0, 0)
    for late, hidden in ((0, 0.0), (1, 0.1), (3, 0.3)):
        row = preset("local-sgd(H=4)").with_(meeting=build(f"synchronous(delay={late})", "meeting"))
        (line,) = plan(
            [row], 1_000_000, 5, links, lambda _: Speeds(0, 0, 0), compute=0.1, exchanges=["sharded"]
        ).lines
        assert line.estimate.seconds == pytest.approx(0.512, rel=0.01)
        assert line.rate == pytest.approx(4 / (0.4 + line.estimate.seconds - hidden))


def test_no_answer_is_made_where_the_model_itself_will_do() -> None:
    """Over allgather an exact answer is neither made nor taken in; one that is rounded is both."""
    seconds = {}
    for down in ("exact", "sign"):
        chosen = choices(preset("local-sgd"), 4, downs=[down])
        (line,) = plan(
            chosen, 1000, 4, Links(1e9, 0, 0), lambda _: Speeds(0, 1, 0, 0, 2), exchanges=["allgather"]
        ).lines
        seconds[down] = line.estimate.computing
    assert seconds == {"exact": 0, "sign": 3000}


def test_the_table_is_printed() -> None:
    result = invoke("--model", "resnet50", "--ranks", "4,8", "--compute", "0.2", *STILL)
    assert result.exit_code == 0, result.output
    assert "n = 25,557,032" in result.stdout
    head, *_ = re.findall(r"^exchange .*", result.stdout, re.M)
    assert head.split()[-1] == "steps/s"
    assert result.stdout.count("dense Allreduce   ") == 2
    assert "4 ranks, a synchronization every 8 steps" in result.stdout
    assert "8 ranks, a synchronization every 8 steps" in result.stdout
    first = result.stdout.split("-\n")[1].splitlines()[0].split()
    assert f"Fastest: --exchange {first[0]}, " in result.stdout
    assert "Do not compress here" not in result.stdout
    assert "5n/8 = " in result.stdout


def test_fast_links_need_no_compression() -> None:
    result = invoke("--model", "mlp", "--ranks", "4", "--link-rate", "100gbit", *STILL)
    assert result.exit_code == 0, result.output
    assert "Do not compress here: a dense Allreduce of MPI is predicted to be fastest" in result.stdout
    assert "Fastest" not in result.stdout


def test_compressors_that_are_asked_for(tmp_path: Path) -> None:
    words = ("--n", "70000", "--ranks", "3", *ZERO, "--exchange", "server", "--exchange", "tree")
    found = told(tmp_path, *words, "--compressor", "sign", "--compressor", "topk(k=70)", "--down", "exact",
                 "--down", "sign")  # fmt: skip
    lines = {(line["exchange"], line["compressor"], line["down"]) for line in found["plans"][0]["lines"]}
    assert lines == {
        (exchange, up, down)
        for exchange in ("server", "tree")
        for up in ("sign", "topk(k=70)")
        for down in ("exact", "sign")
    }


def test_the_length_is_that_of_the_model(tmp_path: Path) -> None:
    assert told(tmp_path, "--model", "mlp(20)", "--shape", "64", *ZERO)["n"] == 1510
    assert told(tmp_path, "--model", "resnet20", *ZERO)["n"] == 269_722


def test_compressors_that_go_by_layers_are_told_the_layers(tmp_path: Path) -> None:
    """At the size of a model that is told from a shorter vector, within a hundredth of a real message."""
    text = "*.weight: topk(ratio=0.02) >> sign; *: float32"
    words = ("--ranks", "3", *ZERO, "--compressor", text, "--down", "exact", "--exchange", "allgather")
    (made,) = told(tmp_path, "--model", "mlp(400, 300)", *words)["plans"]
    layout = build("mlp(400, 300)", "model").layout((1, 28, 28), 10)
    noise = np.random.default_rng(5).standard_normal(layout[-1].stop).astype(np.float32)
    payload = build(text, "compressor").bind(layout).compress(noise, Seed(0))
    assert made["lines"][0]["sent_bytes"] == pytest.approx(2 * len(payload), rel=0.01)
    blind = invoke("--n", "1000", *words)
    assert "taken as one layer, because only --model knows the layers" in blind.stdout


def test_choices_that_do_not_go_are_left_out_unless_asked_for() -> None:
    row = preset("lag-wk")
    assert row in choices(row, 4)
    with pytest.raises(CompositionError):
        choices(preset("asylpg"), 4, downs=["topk(k=9)"])
    (made,) = choices(preset("sgd"), 4, downs=["exact"])
    assert made.down is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one of --model and --n"),
        (("--n", "10", "--model", "mlp"), "give one of --model and --n"),
        (("--n", "10", "--classes", "3"), "--shape and --classes go with --model"),
        (("--model", "mlp", "--shape", "3x"), "--shape 3x: write the sizes of an example"),
        (("--n", "10", "--link-rate", "fast"), "link rate fast: write a number with its unit"),
        (("--n", "10", "--link-latency", "far"), "link latency far: write a time with its unit"),
        (("--n", "10", "--links", "l.json", "--link-rate", "1gbit"), "say: give one or the other"),
        (("--n", "10", "--ranks", "4,2"), "--ranks 4,2: write whole numbers that rise"),
        (("--n", "10", "--speeds", "encode"), "--speeds encode: write nanoseconds an entry"),
        (("--n", "10", "--speeds", "encode=1,encode=2"), "write nanoseconds an entry"),
        (("--n", "10", "--links", "no-such-file"), "cannot read --links no-such-file"),
        (("--n", "100", "--curve", "c.svg", *ZERO), "--curve needs several numbers of ranks"),
        (("--n", "100", "--exchange", "sharded", "--algorithm", "lag-ps", *ZERO), "CompositionError"),
    ],
)
def test_what_cannot_be_planned_is_refused(words: tuple[str, ...], message: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_numbers_of_ranks() -> None:
    assert counts_of("8") == [8]
    assert counts_of("4, 16") == [4, 16]
    assert counts_of("2,4,...,4096") == [2**power for power in range(1, 13)]
    assert counts_of("10,15,...,30") == [10, 15, 20, 25, 30]
    for text in ("", "0", "...", "2,...,8", "2,4,...", "2,4,...,3", "2,4,...,x", "4,4"):
        with pytest.raises(SettingError):
            counts_of(text)
    assert speeds_of("encode=2,decode=0.5") == Speeds(encode=2e-9, decode=5e-10)


@pytest.mark.parametrize(
    ("links", "exchange"),
    [
        ("", "server"),
        ("--link-rate 10mbit", "sharded"),
        ("--link-rate 10mbit --link-latency 50ms", "allgather"),
    ],
)
def test_a_run_takes_the_exchange_that_a_plan_names(tmp_path: Path, links: str, exchange: str) -> None:
    """For the same model, algorithm, ranks and links, spelled alike."""
    words = ("--algorithm", "sgd", "--model", "softmax", "--ranks", "3", *links.split())
    plan_words = (*words, "--shape", "1x8x8", "--classes", "10", *STILL)
    (made,) = told(tmp_path, *plan_words)["plans"]
    run_words = (
        "train",
        "--quiet",
        "--wire",
        "threads",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "run"),
        *words,
    )
    done = CliRunner().invoke(qsparse, run_words)
    assert done.exit_code == 0, done.output
    taken = json.loads((tmp_path / "run" / "summary.json").read_text())["exchange"]
    assert taken == made["auto"] == exchange
    said = invoke(*plan_words).stdout
    assert f"\n--exchange auto takes {made['auto']} for float32 up and exact down." in said


# --- what a plan is made of ----------------------------------------------------------------------


def test_memory_is_that_of_a_node() -> None:
    """What a rank's ends hold at ten times the length is ten times as much, and the parts are counted."""
    sgd, ours = preset("sgd"), preset("qsparse-local-sgd")
    plain, kept = held(sgd, ParameterServer(), 4), held(ours, ParameterServer(), 4)
    # The error, and the model that the coordinator answers about, are remembered beside.
    assert kept.worker == plain.worker + 2
    assert kept.coordinator > plain.coordinator
    # And where a rank reports on its machine by a sender of its own, its error and where that is formed.
    twice = held(ours, Nodes(ParameterServer(), 2, recompress=True), 4)
    assert twice == kept._replace(worker=kept.worker + 2)
    for row in (sgd, ours):
        for exchange in (ParameterServer(), AllGather(), Sharded()):
            for size in (1, 4):
                assert abs(_grown(row, exchange, size) - held(row, exchange, size).worker) <= 0.05


def _grown(row: Any, exchange: Any, size: int) -> float:
    """Vectors that a real node of the last rank has made for its worker's end, by tracing memory."""
    import tracemalloc

    from qsparse.rounds.worker import WorkerEnd

    n = 200_000
    start = np.zeros(n, np.float32)
    stretches = exchange.stretches(n, size)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    x, gradient, report = start.copy(), start.copy(), start.copy()
    end = WorkerEnd(row, start, Seed(0), (), Ledger(), True, stretches)
    end.begin(x, gradient, report)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / (4 * n)


def test_a_coordinator_that_serves_alone_remembers_every_worker() -> None:
    row = preset("qsparse-local-sgd-async")
    few, many = (held(row, ParameterServer(works=False), size).coordinator for size in (3, 6))
    assert many > few


def test_gaps_are_counted() -> None:
    assert gap(preset("sgd"), 4) == 1
    assert gap(preset("qsparse-local-sgd(H=16)"), 4) == pytest.approx(16, rel=0.02)
    assert gap(preset("qsparse-local-sgd(H=15, random_gaps=true)"), 4) == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize("name", ["qsparse-local-sgd", "sgd", "dist-ef-sgd", "lag-wk", "asylpg", "lag-ps"])
def test_speeds_are_measured(name: str) -> None:
    found = measured(preset(name), 20_000, 3)
    assert found.entries == 20_000
    for field in ("encode", "answer", "hear"):
        assert 0 < getattr(found.speeds, field) < 1e-3
    assert found.speeds.decode >= 0
    assert found.speeds.absorb >= 0


def test_a_plan_is_confirmed_by_a_simulated_round() -> None:
    """The seconds of each line are those of real messages over a simulated network, within a tenth."""
    n, size = 20_000, 6
    links = Links(rate=1e6, latency=1e-3, message=0)
    chosen = choices(preset("qsparse-local-sgd"), size)
    still = plan(chosen, n, size, links, lambda algorithm: Speeds(0, 0, 0))
    for line in still.lines:
        (row,) = (
            choices(preset("qsparse-local-sgd"), size, [line.compressor], [line.down])
            if (line.compressor != "float32")
            else (preset("local-sgd"),)
        )

        def body(wire: Wire, row: Any = row, exchange: Any = line.estimate.exchange) -> float:
            node = Node(row, exchange, wire, np.zeros(n, np.float32), Seed(1), (), Ledger())
            node.meet(np.random.default_rng(wire.rank).standard_normal(n).astype(np.float32), 1)
            return wire.now()

        found = max(run_simulated(size, body, Simulated(1e6, 1e-3), timeout=60))
        assert line.estimate.seconds == pytest.approx(found, rel=0.1), line
    assert len(still.lines) == 12
    assert still.dense == dense_seconds(n, size, links)


def test_planning_loads_no_torch() -> None:
    script = (
        "import sys\nfrom qsparse.cli.commands import qsparse\n"
        "qsparse(['plan', '--model', 'resnet50', '--speeds', 'encode=1'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'mpi4py', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_kernels_that_had_to_be_compiled_are_told(tmp_path: Path) -> None:
    """The first plan of a machine takes longer, and says why; the second does not."""
    words = ["plan", "--n", "1000", "--ranks", "2", "--compressor", "sign", "--exchange", "server"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "qsparse", *words]
    said = [
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240).stdout
        for _ in range(2)
    ]
    assert re.search(r"measured here with 1,000 entries; kernels had to be compiled first \(\d+\)", said[0])
    assert "measured here with 1,000 entries\n" in said[1]


# --- the curve -----------------------------------------------------------------------------------


def test_a_curve_is_drawn_and_told(tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    words = ("--n", "25557032", "--ranks", "2,4,...,4096", "--algorithm", "sgd", *ZERO)
    found = told(tmp_path, *words, "--curve", str(picture))
    result = invoke(*words, "--curve", str(picture))
    rows = [line.split() for line in result.stdout.splitlines() if re.match(r" +[\d,]+ +\d", line)]
    assert [row[0] for row in rows] == [f"{2**power:,}" for power in range(1, 13)]
    by_ranks = {made["ranks"]: made for made in found["plans"]}
    seconds = {
        size: next(line["seconds"] for line in made["lines"] if line["exchange"] == "sharded")
        for size, made in by_ranks.items()
    }
    assert float(rows[-1][3]) == pytest.approx(seconds[4096], abs=1e-4)
    assert max(seconds[size] for size in seconds if size >= 8) <= 1.3 * seconds[8]
    curves = ET.fromstring(picture.read_text()).findall("{http://www.w3.org/2000/svg}polyline")
    assert len(curves) == 4
    for curve in curves:
        assert len(curve.attrib["points"].split()) == 12


def test_the_page_shows_what_the_command_prints(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of docs/planning.md, its output, and its picture."""
    page = (root / "docs/planning.md").read_text("utf-8")
    shown = re.findall(r"^```console\n\$ qsparse plan (.*?)\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 5
    (tmp_path / "docs/results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for words, output in shown:
        assert invoke(*shlex.split(words)).stdout.rstrip() == output.rstrip()
    pictures = list(tmp_path.glob("docs/results/*.svg"))
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.read_text("utf-8") == (root / "docs/results" / picture.name).read_text("utf-8")
        assert f"(results/{picture.name})" in page


# --- links ---------------------------------------------------------------------------------------


def test_links_are_those_of_the_network(tmp_path: Path) -> None:
    """Of a simulated network with a slow rank, and a distant one: rates, latencies, and who is named."""
    file = tmp_path / "links.toml"
    file.write_text('[3]\nrate = "310mbit"\n[4]\nlatency = 0.01\n')
    wire = Simulated("1gbit", 1e-3, links=str(file))
    pairs, *others = run_simulated(5, measure_links, wire, timeout=60)
    assert others == [[]] * 4
    assert [(pair.one, pair.other) for pair in pairs] == pairs_of(5)
    assert len(pairs) == 10
    for pair in pairs:
        ranks = (pair.one, pair.other)
        assert pair.rate == pytest.approx(38.75e6 if 3 in ranks else 125e6, rel=1e-6)
        assert pair.latency == pytest.approx(5.5e-3 if 4 in ranks else 1e-3, rel=1e-6)
    named = slow(pairs)
    assert "rank 3 <-> rank 0: 0.31 of the median rate" in named
    assert "rank 4 <-> rank 1: 5.5 times the median latency" in named
    assert len(named) == 8
    path = tmp_path / "links.json"
    path.write_text(json.dumps(links_file(pairs, 5)))
    read = links_from(str(path))
    assert read.rate == pytest.approx(38.75e6)
    assert read.latency == pytest.approx(5.5e-3)


def test_more_ranks_are_measured_round_the_ring() -> None:
    assert pairs_of(1) == []
    assert pairs_of(2) == [(0, 1)]
    assert sorted(pairs_of(3)) == [(0, 1), (0, 2), (1, 2)]
    assert len(pairs_of(16)) == 120
    assert pairs_of(18) == [*((rank, rank + 1) for rank in range(17)), (0, 17)]
    assert slow([Pair(0, 1, 1e-4, 1e8, 1e-5)] * 3) == []


def test_a_file_that_holds_no_links_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    for text in ("", "[]", '{"pairs": []}', '{"pairs": [{"one": 0}]}', '{"pairs": 3}',
                 '{"pairs": [{"one": 0, "other": 1, "latency": 1, "rate": -1, "message": 0}]}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match="is no table of links"):
            links_from(str(path))


def test_doctor_measures_links_between_processes(tmp_path: Path) -> None:
    file = tmp_path / "links.json"
    done = mpi_run(3, ["-m", "qsparse", "doctor", "--links", "--json", str(file)], timeout=120)
    assert done.returncode == 0, done
    assert re.search(r"^1 <-> 2 +[\d.,]+ +[\d.,]+ +\d\.\d\d +[\d.,]+$", done.stdout, re.M), done
    assert len(json.loads(file.read_text())["pairs"]) == 3
    result = invoke("--n", "100000", "--ranks", "3", "--links", str(file), *STILL)
    assert result.exit_code == 0, result.output
    assert f"the slowest of {file}" in result.stdout
    (options,) = re.findall(r"^options of train and plan for the slowest: (.+)$", done.stdout, re.M)
    pasted, read = (
        told(tmp_path, "--n", "100000", "--ranks", "3", *STILL, *words)["links"]
        for words in (options.split(), ("--links", str(file)))
    )
    for name in ("rate", "latency"):
        assert pasted[name] == pytest.approx(read[name], rel=1e-3)


def test_links_need_ranks() -> None:
    alone = CliRunner().invoke(qsparse, ["doctor", "--links"])
    assert alone.exit_code == 1
    assert "--links measures between ranks" in alone.output
    nowhere = CliRunner().invoke(qsparse, ["doctor", "--json", "x.json"])
    assert "--json goes with --links" in nowhere.output

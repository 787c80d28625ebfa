"""``qsparse bench kernels``: all figures are there, and the pipelines do the same work. Nothing on speed."""

from __future__ import annotations

import itertools
import json
import math
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from mpirun import finish, start

from qsparse.bench import kernels
from qsparse.bench.kernels import BARS, SAID, NumpyTopK, Settings, cases, log2_binomial, measure, vectors
from qsparse.cli.commands import qsparse
from qsparse.compressors import unpack
from qsparse.errors import SettingError
from qsparse.link import Link, Sender
from qsparse.registry import build, spell
from qsparse.seeds import Seed
from qsparse.torch.pipelines import TorchTopK

N = 5000


@pytest.fixture(scope="module")
def found():
    return measure(Settings(n=N, rounds=2))


def test_every_figure_is_there_and_finite(found):
    assert len(found["rows"]) == 2 * len(cases((0.001, 0.01, 0.1))) == 26
    for row in found["rows"]:
        encodes, sparse = row["part"] == "encode", row["compressor"].startswith("topk")
        given = {name for name, value in row.items() if value is not None}
        missing = set(row) - given
        pipelines = {"torch_topk", "argpartition"}
        wanted = set() if encodes and row["compressor"].partition(" >> ")[2] in SAID else pipelines
        assert missing == wanted | (set() if sparse else {"position_bits", "bound_bits"})
        figures = [value for value in row.values() if isinstance(value, float)]
        assert all(math.isfinite(value) and value > 0 for value in figures)
        assert len(row["every_millisecond"]) == 2
        if row["bound_bits"] is not None:
            assert row["position_bits"] > row["bound_bits"] > 0


def test_bits_are_those_of_the_frame(found):
    (dense,) = {row["wire_bits"] for row in found["rows"] if row["compressor"] == "float32"}
    payload = build("float32", "compressor").compress(np.ones(N, np.float32), Seed(0))
    assert dense == 8 * len(payload) / N
    (sign,) = {row["wire_bits"] for row in found["rows"] if row["compressor"].startswith("blockwise")}
    assert 1 < sign < 1.2
    row = next(row for row in found["rows"] if row["compressor"] == "topk(ratio=0.1) >> sign")
    assert row["kept"] == 500
    assert row["wire_bits"] - row["position_bits"] == pytest.approx(1 + 32 / 500)


@pytest.mark.parametrize(("n", "k"), [(10, 3), (64, 32), (1000, 10)])
def test_the_bound_is_that_of_whole_numbers(n, k):
    assert log2_binomial(n, k) == pytest.approx(math.log2(math.comb(n, k)))


@pytest.mark.parametrize("quantizer", SAID)
@pytest.mark.parametrize("share", [0.001, 0.1])
def test_pipelines_keep_what_we_keep(quantizer, share):
    compressor = build(f"topk(ratio={share}) >> {quantizer}", "compressor")
    k = round(share * N)
    sender = Sender(Link(compressor, build("errorfeedback", "memory")), np.zeros(N, np.float32))
    rivals = [kind(N, k, SAID[quantizer]) for kind in (NumpyTopK, TorchTopK)]
    for step, v in enumerate(itertools.islice(vectors(N), 6)):
        draft = sender.draft(v, Seed(0, step=step, use="up"))
        magnitudes = np.sort(np.abs(draft.target))
        assert magnitudes[N - k] > magnitudes[N - k - 1]  # no tie at the edge
        sender.commit(draft)
        (piece,) = unpack(draft.payload)
        for rival in rivals:
            assert np.array_equal(np.sort(rival.step(v)), piece.indices)
            np.testing.assert_allclose(rival.residual, sender.state["residual"], rtol=1e-5, atol=2e-7)


def test_vectors_are_new_each_round_and_have_scales_by_stretch():
    one, other = (v.copy() for v in itertools.islice(vectors(64_000), 2))
    assert not np.array_equal(one, other)
    deviations = [part.std() for part in np.split(one, 64)]
    assert min(deviations) < 0.003 < 0.03 < max(deviations)
    np.testing.assert_allclose(deviations, [part.std() for part in np.split(other, 64)], rtol=0.2)


def test_bars_belong_to_rows_that_are_measured(found):
    rows = {(row["compressor"], row["memory"], row["part"]): row for row in found["rows"]}
    assert len(found["bars"]) == len(BARS)
    for bar, judged in zip(BARS, found["bars"], strict=True):
        value = rows[bar.compressor, bar.memory, bar.part][bar.figure]
        assert judged["measured"] == value
        assert judged["met"] == (value >= bar.limit if bar.at_least else value <= bar.limit)
    assert [bar.met(2.0) for bar in (BARS[0], BARS[-1])] == [False, False]
    assert [bar.met(bar.limit) for bar in BARS] == [True] * len(BARS)


def test_without_torch_its_column_is_empty(monkeypatch):
    monkeypatch.setattr(kernels, "_torch_with", lambda threads: None)
    found = measure(Settings(n=N, shares=(0.01,), rounds=1))
    assert found["torch"] is None
    assert {row["torch_topk"] for row in found["rows"]} == {None}
    assert [bar["figure"] for bar in found["bars"]].count("torch_topk") == 0
    assert any(row["argpartition"] for row in found["rows"])


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path):
    file = tmp_path / "kernels.json"
    command = ["bench", "kernels", "--n", "2000", "--ratio", "0.05", "--rounds", "1", "--json", str(file)]
    done = finish(start([sys.executable, "-W", "error", "-m", "qsparse", *command]), 120)
    assert done.returncode == 0, done
    read = json.loads(file.read_text())
    assert {"qsparse", "numpy", "torch", "processor", "n", "shares", "rounds", "threads", "vectors"} <= set(
        read
    )
    assert (read["n"], read["shares"], read["rounds"]) == (2000, [0.05], 1)
    texts = {row["compressor"] for row in read["rows"]}
    assert all(text in done.stdout for text in texts)
    assert {"topk(ratio=0.05) >> sign", "blockwise(sign, size=4096)", "float32"} <= texts
    assert all(spell(build(text, "compressor")) for text in texts)
    assert "bar at most 1.5" in done.stdout
    assert "topk(ratio=0.05) >> sign | errorfeedback" in done.stderr


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"n": 10}, "too short"),
        ({"rounds": 0}, "at least one round"),
        ({"shares": (0.0,)}, r"lie in \(0, 1\]"),
        ({"shares": ()}, r"lie in \(0, 1\]"),
    ],
)
def test_settings_that_measure_nothing_are_refused(given, sentence):
    with pytest.raises(SettingError, match=sentence):
        Settings(**given)


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    command = ["bench", "kernels", "--n", "64", "--ratio", "0.5", "--rounds", "1", "--json", str(tmp_path)]
    done = CliRunner().invoke(qsparse, command)
    assert done.exit_code == 1
    assert "cannot write to --json" in done.stderr


def test_ratios_are_medians_of_rounds_and_the_right_way_up():
    compressor = build("topk(ratio=0.1) >> sign", "compressor")
    payload = compressor.compress(next(vectors(N)), Seed(0))
    seconds = {
        "add": [1.0, 2.0, 4.0],
        "encode": [3.0, 2.0, 2.0],
        "decode": [1.0, 8.0, 2.0],
        "torch_topk": [30.0, 60.0, 80.0],
        "argpartition": [6.0, 5.0, 1.0],
    }
    encode, decode = kernels._rows("text", "memory", compressor, payload, seconds)
    assert (encode.milliseconds, encode.to_add, encode.torch_topk, encode.argpartition) == (2000, 1, 30, 2)
    assert (decode.milliseconds, decode.to_add, decode.torch_topk, decode.argpartition) == (
        2000,
        1,
        None,
        None,
    )
    assert encode.gigabytes_per_second == pytest.approx(4 * N / 2 / 1e9)

"""``qsparse plot``: what is read of runs, what methods are called, and what is drawn."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qsparse.cli.commands import qsparse
from qsparse.errors import DataError, QsparseError, SettingError
from qsparse.registry import names as registered
from qsparse.report import draw
from qsparse.report.base import look, mean
from qsparse.report.names import method, same_method, told_apart
from qsparse.report.plots import PICTURES
from qsparse.report.runs import Method, Run, at, methods, read
from qsparse.run.target import Target

METHODS = {
    "sgd": ["--algorithm", "sgd"],
    "signtopk8": ["--algorithm", "qsparse-local-sgd(H=8)"],
    "blocks": ["--algorithm", "dist-ef-blocksgdm"],
}


def train(out: Path, *args: object) -> None:
    line = ["train", "--quiet", "--wire", "threads", "--ranks", 2, "--model", "mlp(16)", "--epochs", 4,
            "--evaluations", 2, "--out", out, *args]  # fmt: skip
    done = CliRunner().invoke(qsparse, [*map(str, line)])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """METHOD/seed-N for three methods and two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for name, args in METHODS.items():
        for seed in (0, 1):
            train(folder / name / f"seed-{seed}", *args, "--seed", seed)
    return folder


def plot(*args: object) -> Result:
    return CliRunner().invoke(qsparse, ["plot", *map(str, args)])


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have tables only: of what nobody looks at, 14 pictures take seconds."""
    monkeypatch.setattr("qsparse.report.page.PICTURES", {})


#: One picture of each kind: those of curves differ in what they read and in their axes alone.
KINDS = ("accuracy-link-bytes", "loss-steps", "pareto", "layer-bytes")


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have one picture of each kind; that all are drawn is seen once."""
    monkeypatch.setattr("qsparse.report.page.PICTURES", {name: PICTURES[name] for name in KINDS})


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


class Page(HTMLParser):
    """The cells, the images and everything else that a page would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += " "
        elif tag == "img":
            head, _, data = (found["src"] or "").partition(",")
            assert head == "data:image/png;base64"
            self.images[found["alt"] or ""] = base64.b64decode(data)
        self.fetched += [found[key] or "" for key in ("href", "srcset", "action") if key in found]

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "called"),
    [
        ({"algorithm": "sgd"}, "SGD"),
        ({"algorithm": "local-sgd(H=4)"}, "SGD_4L"),
        ({"algorithm": "local-sgd", "sync_every": 2}, "SGD_2L"),
        ({"algorithm": "ef-signsgd"}, "EF-signSGD"),
        ({"algorithm": "topk-sgd(ratio=0.1)", "lr": "cosine(0.1)"}, "TopK"),
        ({"algorithm": "signtopk-sgd"}, "SignTopK"),
        ({"algorithm": "qsparse-local-sgd"}, "SignTopK_8L"),
        ({"algorithm": "qsparse-local-sgd", "sync_every": 1, "compressor": "topk(k=5)"}, "TopK"),
        ({"algorithm": "qsparse-local-sgd-async"}, "SignTopK_8L async"),
        ({"algorithm": "sgd", "compressor": "blockwise(sign, size=64)"}, "signSGD"),
        ({"algorithm": "sgd", "compressor": "sign", "memory": "errorfeedback"}, "EF-signSGD"),
        ({"algorithm": "sgd", "compressor": "topk(k=5) >> qsgd(levels=7)", "trigger": "every(H=3)"},
         "QTopK, no memory_3L"),
        ({"algorithm": "qsparse-local-sgd(H=1)", "compressor": "randk(k=5) >> sign"}, "SignRandK"),
        ({"algorithm": "qsgd"}, "QSGD"),
        ({"algorithm": "terngrad"}, "TernGrad"),
        ({"algorithm": "qsparse-local-sgd(H=2)", "compressor": "float16"}, "float16_2L"),
        ({"algorithm": "laq"}, "LAQ"),
        ({"algorithm": "dist-ef-blocksgdm(size=4096)"}, "dist-EF-BlockSGDM"),
        ({"algorithm": "dist-ef-sgd", "compressor": "topk(k=5)"}, "dist-EF-SGD with topk(k=5)"),
        ({"algorithm": "sgd", "local": "adamw(lr=0.001)"}, "SGD with adamw(lr=0.001)"),
        ({"algorithm": "sgd", "local": "sgd(lr=0.1, momentum=0.9)"}, "SGD"),
        ({"algorithm": "sgd", "server": "majority(lr=0.1)"}, "SGD with majority(lr=0.1)"),
        ({"algorithm": "sgd", "down": "blockwise(sign, size=1024)"},
         "SGD with blockwise(sign, size=1024) down"),
        ({"algorithm": "dist-ef-sgd", "down": "sign", "down_memory": "stateless"},
         "dist-EF-SGD with sign down and stateless down"),
        ({"algorithm": "local-sgd", "trigger": "every(4) & drift(0.01)"}, "SGD with every(4) & drift(0.01)"),
        ({"algorithm": "local-sgd", "trigger": "every(2)"}, "SGD_2L"),
        ({"algorithm": "sgd", "trigger": "randomgap(H=4)", "meeting": "asynchronous"},
         "SGD async with randomgap(H=4)"),
        ({"algorithm": "qsparse-local-sgd-async", "trigger": "randomgap(H=4)"}, "SignTopK_4L async"),
        ({"algorithm": "laq", "trigger": "every"}, "LAQ with every"),
        ({"algorithm": "laq", "local": "gradient(whole=true)"}, "LAQ"),
        ({"algorithm": "laq", "memory": "stateless", "meeting": "asynchronous(ahead=2)"},
         "LAQ with stateless and asynchronous(ahead=2)"),
        ({"algorithm": "topk-sgd", "memory": "innovation"}, "TopK with innovation"),
        ({"algorithm": "topk-sgd", "memory": "stateless"}, "TopK, no memory"),
        ({"algorithm": "qsparse-local-sgd(memory=innovation, H=1)", "compressor": "sign"},
         "signSGD with innovation"),
        ({"algorithm": "sgd", "memory": "innovation"}, "SGD with innovation"),
        ({"algorithm": "sgd", "compressor": "float16", "memory": "errorfeedback"},
         "float16 with errorfeedback"),
        ({"algorithm": "laq", "local": "mine", "server": "majority"}, "LAQ with mine and majority"),
        ({"algorithm": "mine(a=3)"}, "mine(a=3)"),
        ({"algorithm": "sgd", "compressor": "mine"}, "sgd with mine"),
        ({"algorithm": "laq", "name": "What I call it"}, "What I call it"),
        ({"algorithm": "sgd", "compressor": "*.bias: float32; *: sign"}, "*.bias: float32; *: sign"),
    ],
)  # fmt: skip
def test_methods_are_named_as_in_the_papers(options: dict[str, Any], called: str) -> None:
    assert method(options) == called


def test_every_preset_has_a_name_of_its_own() -> None:
    found = [method({"algorithm": preset}) for preset in registered("algorithm")]
    assert len(set(found)) == len(found)
    assert not set(found) & set(registered("algorithm"))


def test_methods_of_one_name_are_told_apart_by_what_differs() -> None:
    options = [
        {"algorithm": "sgd", "lr": "0.1", "batch": 16, "seed": 1},
        {"algorithm": "sgd", "lr": "0.2", "batch": 16, "seed": 2},
        {"algorithm": "sgd", "lr": "0.1", "batch": 16, "momentum": 0.9},
        {"algorithm": "laq", "lr": "0.1"},
    ]
    found = told_apart([same_method(each) for each in options])
    assert found == ["SGD, lr=0.1", "SGD, lr=0.2", "SGD, lr=0.1, momentum=0.9", "LAQ"]
    assert same_method({**options[0], "seed": 5, "threads": 3, "wire": "mpi"}) == same_method(options[0])


def test_looks_differ() -> None:
    looks = [look(place) for place in range(64)]
    assert len({json.dumps(each) for each in looks}) == 64
    for key in looks[0]:
        assert len({json.dumps(each[key]) for each in looks[:8]}) == 8, key
    for one, same_colour in zip(looks, looks[8:], strict=False):
        assert one["color"] == same_colour["color"]
        assert one["linestyle"] != same_colour["linestyle"]


# --- what is read --------------------------------------------------------------------------------


def test_seeds_are_one_method_with_mean_and_range(runs: Path) -> None:
    found = {each.label: each for each in methods([runs])}
    assert list(found) == ["SGD", "dist-EF-BlockSGDM", "SignTopK_8L"], "who says most comes first"
    names = {"SGD": "sgd", "dist-EF-BlockSGDM": "blocks", "SignTopK_8L": "signtopk8"}
    for label, name in names.items():
        lines = [history(runs / name / f"seed-{seed}") for seed in (0, 1)]
        curve = found[label].curve(at("wire_bytes", "down"), at("test_accuracy"))
        assert len(curve) == len(lines[0]) == 8
        for point, *both in zip(curve, *lines, strict=True):
            accuracies = [line["test_accuracy"] for line in both]
            totals = [line["wire_bytes"]["down"] for line in both]
            assert point == (sum(totals) / 2, sum(accuracies) / 2, min(accuracies), max(accuracies))


def test_seeds_are_paired_by_the_evaluation_that_was_due() -> None:
    """With random gaps one seed may come too late for an evaluation that the other has."""

    def run(*epochs: float) -> Run:
        lines = [{"step": 100 * epoch, "epoch": epoch, "test_accuracy": epoch / 9} for epoch in epochs]
        return Run(Path(), {"evaluations": 2}, lines, None)

    steady = run(0.5, 1.04, 1.5, 2.0, 2.5, 2.5)
    late = run(0.54, 1.56, 2 - 1e-9, 2.53, 2.6)
    curve = Method("", [steady, late]).curve(at("step"), at("test_accuracy"))
    pairs = [(0.5, 0.54), (1.5, 1.56), (2.0, 2 - 1e-9), (2.5, 2.53), (2.5, 2.6)]
    assert curve == [
        pytest.approx((50 * (one + two), (one + two) / 18, one / 9, two / 9)) for one, two in pairs
    ]


def test_runs_of_which_nothing_is_known_are_methods_of_their_own(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        folder = shutil.copytree(runs / "sgd" / "seed-0", tmp_path / name / "seed-0")
        (folder / "config.toml").unlink()
    labels = [f"seed-0, folder={tmp_path / name / 'seed-0'}" for name in ("one", "other")]
    assert sorted(each.label for each in methods([tmp_path])) == labels


def test_a_target_is_reached_at_the_first_evaluation_beyond_it(runs: Path) -> None:
    (sgd,) = methods([runs / "sgd"])
    accuracies = [[line["test_accuracy"] for line in run.history] for run in sgd.runs]
    target = min(max(each) for each in accuracies)
    wanted = []
    for run, each in zip(sgd.runs, accuracies, strict=True):
        first = next(i for i, accuracy in enumerate(each) if accuracy >= target)
        wanted.append(run.history[first]["paper_bits"]["up"])
    assert sgd.until(Target("test_accuracy", target), at("paper_bits", "up")) == wanted
    assert sgd.until(Target("test_loss", 1e-9), at("paper_bits", "up")) == []
    # Losses are to fall to it.
    losses = [[line["train_loss"] for line in run.history] for run in sgd.runs]
    target = max(min(each) for each in losses)
    first = [next(i for i, loss in enumerate(each) if loss <= target) for each in losses]
    wanted = [run.history[place]["step"] for run, place in zip(sgd.runs, first, strict=True)]
    assert sgd.until(Target("train_loss", target), at("step")) == wanted


@pytest.fixture
def run_folder(runs: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be damaged."""
    return Path(shutil.copytree(runs / "sgd" / "seed-0", tmp_path / "run"))


def test_half_a_last_line_is_left_out(run_folder: Path) -> None:
    file = run_folder / "history.jsonl"
    text = file.read_text()
    file.write_text(text[:-30])
    run = read(run_folder)
    assert run is not None
    assert run.history == [json.loads(line) for line in text.splitlines()[:-1]]


@pytest.mark.parametrize("line", ["{half", '{"step": 3}', "[]", "3", '{"step": NaN, "epoch": }'])
def test_other_lines_that_cannot_be_read_are_named(run_folder: Path, line: str) -> None:
    file = run_folder / "history.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=re.escape(f"{file}, line 3, is no evaluation of qsparse train")):
        read(run_folder)


def test_a_last_line_that_is_whole_and_wrong_is_not_half_a_line(run_folder: Path) -> None:
    file = run_folder / "history.jsonl"
    file.write_text(file.read_text() + "{half\n")
    with pytest.raises(DataError, match="line 9, is no evaluation"):
        read(run_folder)


@pytest.mark.usefixtures("few_pictures")
def test_a_run_that_is_still_going_is_drawn_as_far_as_it_is(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "summary.json").unlink()
    file = run_folder / "history.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]) + '{"step": 4')
    page = Page(draw([run_folder], tmp_path / "plots"))
    (row,) = page.rows[1:]
    assert row[0] == "SGD (going)"
    assert row[2] == f"{history_until_broken(file)[-1]['test_accuracy']:.4g}"
    assert row[5] == row[7] == row[9] == "–"  # gains are known at the end
    assert "going: at step" in page.text


def history_until_broken(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()[:-1]]


@pytest.mark.usefixtures("few_pictures")
def test_what_is_no_run_is_refused_in_a_sentence(run_folder: Path, tmp_path: Path) -> None:
    def refusal(*folders: Path, **settings: Any) -> str:
        with pytest.raises(QsparseError) as caught:
            draw(folders, tmp_path / "plots", **settings)
        return f"{type(caught.value).__name__}: {caught.value}"

    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(tmp_path / "none").startswith(
        f"SettingError: {tmp_path / 'none'} is no folder: name folders"
    )
    assert refusal(run_folder, empty).startswith(
        f"SettingError: {empty} has no history.jsonl, nor has a folder"
    )
    (empty / "history.jsonl").write_text("")
    assert refusal(empty).startswith("SettingError: none of the 1 runs has come to an evaluation: wait")
    assert refusal(run_folder, target=90.0).startswith(
        "SettingError: --until 90.0: test_accuracy can aim at a number above 0 and at most 1, not at 90"
    )
    (run_folder / "config.toml").write_text("a = ")
    assert refusal(run_folder).startswith(f"DataError: {run_folder / 'config.toml'} is not valid TOML")
    (run_folder / "config.toml").write_bytes(b"\xff")
    assert refusal(run_folder).startswith(
        f"DataError: {run_folder / 'config.toml'} is not text in UTF-8: byte 0xff in line 1, column 1, "
    )
    (run_folder / "config.toml").unlink()
    (run_folder / "summary.json").write_text("{")
    assert refusal(run_folder).startswith(
        f"DataError: {run_folder / 'summary.json'} is no summary of qsparse train (Expecting"
    )
    (run_folder / "summary.json").unlink()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SettingError, match=r"cannot write to --out .*file: "):
        draw([run_folder], blocked)
    # What began just now is no reason not to draw the others; without a configuration, folders give names.
    page = Page(draw([run_folder, empty], tmp_path / "plots"))
    assert [row[0] for row in page.rows[1:]] == ["run (going)"]


def test_a_run_is_drawn_once_however_often_it_is_named(runs: Path, tmp_path: Path) -> None:
    (one,) = methods([runs / "sgd", runs / "sgd" / "seed-0", runs / "sgd" / ".." / "sgd"])
    assert [run.folder.name for run in one.runs] == ["seed-0", "seed-1"]


# --- what is drawn -------------------------------------------------------------------------------


def test_the_page_holds_everything(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "plots"
    path = draw([runs], out, target=0.6, title="Digits <&> more")
    assert path == out / "index.html"
    page = Page(path)
    assert set(page.images) == set(PICTURES)
    for name, image in page.images.items():
        assert (out / f"{name}.png").read_bytes() == image
        width, height = struct.unpack(">II", image[16:24])
        assert image.startswith(b"\x89PNG")
        assert width > 900
        assert height > 250
    assert len({hashlib.sha256(image).digest() for image in page.images.values()}) == len(PICTURES)
    # Nothing is fetched from elsewhere.
    assert page.fetched == []
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in page.text
    assert "<h1>Digits &lt;&amp;&gt; more</h1>" in page.text
    assert "data digits, model mlp(16), ranks 2, epochs 4.0, batch 16, sharding random" in page.text
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["index.html", *(f"{p}.png" for p in PICTURES)]
    )


@pytest.mark.usefixtures("no_pictures")
def test_the_table_has_the_numbers_of_the_runs(runs: Path, tmp_path: Path) -> None:
    page = Page(draw([runs / "signtopk8"], tmp_path, target=0.3))
    head, row = page.rows
    found = dict(zip(head, row, strict=True))
    summaries = [
        json.loads((runs / "signtopk8" / f"seed-{seed}" / "summary.json").read_text()) for seed in (0, 1)
    ]
    bits = {one["paper_bits"]["up"] for one in summaries}
    assert len(bits) == 1, "as many messages of as many bits"
    assert found["method"] == "SignTopK_8L"
    assert found["runs"] == "2"
    assert found["paper bits up"] == f"{bits.pop():,}"
    # The whole is named first.
    assert head[4:6] == ["link bytes up + down", "gain in all"]
    for name, over, key, ways in (
        ("in all", "ring_link_bytes", "link_bytes", ("up", "down")),
        ("up", "dense_link_bytes", "wire_bytes", ("up",)),
    ):
        dense, sent = (sum(summaries[0][table][way] for way in ways) for table in (over, key))
        # Seeds differ by a few bytes: the mean stands first.
        assert float(found[f"gain {name}"].replace(",", "").split()[0]) == pytest.approx(
            dense / sent, rel=1e-2
        )
    link = mean([sum(summary["link_bytes"].values()) for summary in summaries])
    assert float(found["link bytes up + down"].replace(",", "").split()[0]) == pytest.approx(link, abs=1)
    # What goes down names places, which cost a byte more or less.
    low, high = sorted(one["wire_bytes"]["down"] for one in summaries)
    several = f"{(low + high) / 2:,.0f} {low:,} … {high:,}"
    assert found["wire bytes down"] == (several if low < high else f"{low:,}")
    low, high = sorted(one["test_accuracy"] for one in summaries)
    assert found["final accuracy"] == f"{(low + high) / 2:.4g} {low:.4g} … {high:.4g}"
    reached = [
        next(line for line in run.history if line["test_accuracy"] >= 0.3)
        for run in methods([runs / "signtopk8"])[0].runs
    ]
    first = [line["paper_bits"]["up"] for line in reached]
    assert found["paper bits up to 0.3"].startswith(f"{sum(first) / 2:,.0f}")
    for way in ("up", "down"):
        size = sum(line["wire_bytes"][way] for line in reached) / 2
        assert found[f"wire bytes {way} to 0.3"].startswith(f"{size:,.0f}")
    assert "not reached" in Page(draw([runs / "signtopk8"], tmp_path, target=1.0)).rows[1]


@pytest.mark.usefixtures("no_pictures")
def test_only_what_all_seeds_reach_is_marked(runs: Path, tmp_path: Path) -> None:
    (sgd,) = methods([runs / "sgd"])
    best = sorted(max(line["test_accuracy"] for line in run.history) for run in sgd.runs)
    assert best[0] < best[1]
    for target, told, marked in ((best[0], "", 1), (best[1], " (1 of 2 runs)", 0), (1.0, "", 0)):
        aim = Target("test_accuracy", target)
        figure = PICTURES["accuracy-steps"]([sgd], aim)
        assert figure is not None
        (axes,) = figure.axes
        assert sum(len(line.get_xdata()) == 1 for line in axes.lines) == marked
        reached = sgd.until(aim, at("step"))
        number = f"{mean(reached):g}" if reached else "not reached"
        assert f"SGD: {number}{told}" in [text.get_text() for text in figure.legends[0].get_texts()]
        cells = Page(draw([runs / "sgd"], tmp_path, target=target)).rows[1]
        assert told in cells[-4]
        assert ("not reached" in cells[-4]) == (not reached)


@pytest.mark.parametrize("name", ["accuracy-steps", "loss-steps", "contraction", "error-memory"])
def test_what_is_no_price_is_drawn_over_steps(runs: Path, name: str) -> None:
    found = methods([runs])
    figure = PICTURES[name](found, None)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlabel() == "steps of each worker"
    lines = {line.get_label(): line for line in axes.lines}
    for each in found if name.endswith("steps") else found[1:]:
        assert list(lines[each.label].get_xdata()) == [line["step"] for line in each.runs[0].history]


def test_the_front_has_the_whole_first_and_each_way_after_it(runs: Path) -> None:
    """A panel each, which share the accuracies and one legend."""
    found = methods([runs])
    figure = PICTURES["pareto"](found, Target("test_accuracy", 0.5))
    assert figure is not None
    whole, up, down = figure.axes
    assert up.get_shared_y_axes().joined(up, down)
    for axes, label, key, ways in (
        (whole, "bytes on the busiest link, up and down", "link_bytes", ("up", "down")),
        (up, "wire bytes of the whole run, up", "wire_bytes", ("up",)),
        (down, "wire bytes of the whole run, down", "wire_bytes", ("down",)),
    ):
        assert axes.get_xlabel() == label
        for bar, each in zip(axes.containers, found, strict=True):
            x, y = bar[0].get_data()
            assert x == mean([sum(run.last[key][way] for way in ways) for run in each.runs])
            assert y == mean([run.last["test_accuracy"] for run in each.runs])
        (front,) = (line for line in axes.lines if line.get_label() == "front")
        assert max(front.get_xdata()) == max(bar[0].get_xdata()[0] for bar in axes.containers)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == len(set(texts)) == 2 + len(found)


def test_a_way_that_nobody_went_has_no_panel() -> None:
    """Over allgather nothing goes down; a rank alone sends nothing at all."""

    def panels(up: int, down: int) -> int:
        line = {"test_accuracy": 0.5, "wire_bytes": {"up": up, "down": down}}
        figure = PICTURES["pareto"](
            [Method("m", [Run(Path(), {}, [line], None)])], Target("test_accuracy", 0.5)
        )
        return 0 if figure is None else len(figure.axes)

    assert [panels(*sent) for sent in ((5, 5), (5, 0), (0, 5), (0, 0))] == [3, 2, 2, 0]


def test_pictures_that_need_more_than_an_old_run_has_are_left_out(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for name in PICTURES:
        (tmp_path / "plots" / f"{name}.png").write_bytes(b"of an earlier call")
    lines = history(run_folder)
    for line in lines:
        for field in ("contraction", "error_memory", "layer_bytes", "seconds", "top5"):
            del line[field]
    (run_folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(draw([run_folder], tmp_path / "plots"))
    missing = {"contraction", "error-memory", "layer-bytes", "accuracy-time", "loss-time"}
    missing |= {"top5-link-bytes", "top5-paper-bits"}
    missing.add("model-error")  # its answers are exact
    assert set(page.images) == set(PICTURES) - missing
    # Those of an earlier call are gone as well.
    left = {path.stem: path.read_bytes() for path in (tmp_path / "plots").glob("*.png")}
    assert left == page.images


@pytest.mark.usefixtures("few_pictures")
def test_a_run_that_went_astray_is_drawn(run_folder: Path, tmp_path: Path) -> None:
    """Its loss is said; lines have what is finite of it."""
    losses, folders = ("inf", "nan"), [run_folder, tmp_path / "other"]
    shutil.copytree(run_folder, folders[1])
    for loss, folder in zip(losses, folders, strict=True):
        lines = history(folder)
        for line in lines[-2:]:
            line["train_loss"] = float(loss)
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = folder / "config.toml"
        config.write_text(config.read_text() + f"name = '{loss}'\n")
    page = Page(draw(folders, tmp_path / "plots"))
    assert [row[3] for row in page.rows[1:]] == list(losses)
    assert set(page.images) == set(KINDS)
    figure = PICTURES["loss-steps"](methods(folders), None)
    assert figure is not None
    for drawn in figure.axes[0].lines[:2]:
        assert len(drawn.get_xdata()) == len(lines) - 2


@pytest.mark.usefixtures("few_pictures")
def test_names_are_shown_as_they_stand(run_folder: Path, tmp_path: Path) -> None:
    names = ["$", "US$ and $", r"$\bad$", r"\$", "_mine", "_$_"]
    folders = [Path(shutil.copytree(run_folder, tmp_path / "named" / str(i))) for i in range(len(names))]
    for name, folder in zip(names, folders, strict=True):
        config = folder / "config.toml"
        config.write_text(config.read_text() + f"name = '{name}'\n")
    draw(folders, tmp_path / "plots", target=0.5)
    figure = PICTURES["loss-steps"](methods(folders), None)
    assert figure is not None
    shown = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert sorted(shown) == sorted(name.replace("$", r"\$") for name in names)


def test_runs_of_every_kind_are_drawn(tmp_path: Path) -> None:
    train(tmp_path / "runs" / "async", "--ranks", 3, "--algorithm", "qsparse-local-sgd-async")
    train(tmp_path / "runs" / "one", "--ranks", 1, "--name", "Alone", "--down", "blockwise(sign, size=64)")
    train(tmp_path / "runs" / "deep", "--model", "resnet20", "--batch", 2, "--epochs", 0.01)
    page = Page(draw([tmp_path / "runs"], tmp_path / "plots", target=0.5))
    assert [row[0] for row in page.rows[1:]] == ["SignTopK_8L", "SignTopK_8L async", "Alone"]
    assert set(page.images) == set(PICTURES)


@pytest.mark.usefixtures("few_pictures")
def test_the_command(runs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    done = plot(runs / "sgd", runs / "blocks", "--out", tmp_path, "--target", 0.5)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "Results"
    assert [line.split()[0] for line in lines if line.strip().startswith(("SGD", "dist"))] == [
        "SGD",
        "dist-EF-BlockSGDM",
    ]
    assert "…" not in done.output
    assert lines[-1] == f"written to {tmp_path / 'index.html'}"
    request.getfixturevalue("no_pictures")
    assert plot(runs, "--out", tmp_path, "--quiet").output == ""
    wrong = plot(tmp_path / "none")
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("error: SettingError: ")
    assert wrong.stderr.count("\n") == 1


def test_without_a_display_and_without_torch(runs: Path, tmp_path: Path) -> None:
    """Drawing loads neither pyplot nor torch."""
    script = (
        "import sys; from pathlib import Path; from qsparse.report import draw, page\n"
        f"page.PICTURES = {{name: page.PICTURES[name] for name in {KINDS}}}\n"
        f"draw([Path({str(runs)!r})], Path({str(tmp_path)!r}))\n"
        "print(*[name for name in ('torch', 'matplotlib.pyplot', 'tkinter') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_no_matplotlib_is_said_in_a_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = plot(runs, "--out", tmp_path / "plots")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: SettingError: plot draws and lacks a library")
    assert not (tmp_path / "plots").exists()

"""What a watched run measures of its messages, and that watching changes nothing."""

from __future__ import annotations

import functools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from terminal import on_terminal

from qsparse.algorithm import Algorithm
from qsparse.cli.commands import qsparse
from qsparse.compressors import accumulate_into
from qsparse.data import load
from qsparse.exchange import ParameterServer
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.local import SGD
from qsparse.memory import Changes, Draft, ErrorFeedback, Innovation
from qsparse.payload import HEADER_BYTES
from qsparse.registry import build
from qsparse.rounds.node import Node
from qsparse.run import Settings, run, watching
from qsparse.run.records import Progress, Several
from qsparse.seeds import Seed
from qsparse.torch.problem import Classification
from qsparse.types import Layer, Layout, Vector
from qsparse.wire.base import Wire
from qsparse.wire.threads import run_threads

SIZES = {"first": 50, "nothing": 0, "second": 7, "third": 200}
N = sum(SIZES.values())


def layout() -> Layout:
    """Layers of different sizes, one of them empty."""
    edges = np.cumsum([0, *SIZES.values()]).tolist()
    return tuple(Layer(name, *pair) for name, *pair in zip(SIZES, edges[:-1], edges[1:], strict=True))


def vector(number: int = 0, n: int = N) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(n, dtype=np.float32)


# --- bytes by layer -------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["sign", "topk(k=3) >> qsgd(levels=7)", "float32", "randk(k=2)"])
def test_layers_with_bodies_of_their_own_have_the_bytes_of_these(inner: str) -> None:
    compressor = build(f"blockwise({inner}, layers=true)", "compressor").bind(layout())
    x = vector()
    payload = compressor.compress(x, Seed(0, use="up"))
    layers, others = watching.layer_bytes(payload, layout())
    for layer, found in zip(layout(), layers, strict=True):
        own = build(inner, "compressor").compress(x[layer.start : layer.stop], Seed(0))
        # Seeds of stretches differ, the lengths of these bodies do not.
        assert found == len(own) - HEADER_BYTES
    # Three runs of a stretch: their number, and for each its size (two bytes from 128 on), 1, the codec.
    assert others == HEADER_BYTES + 1 + 3 + 3 + 4
    assert sum(layers) + others == len(payload)


def test_a_policy_is_told_apart() -> None:
    rules = "sec*: float32; *: topk(k=10) >> sign"
    payload = build(rules, "compressor").bind(layout()).compress(vector(), Seed(0, use="up"))
    first, nothing, second, third = watching.layer_bytes(payload, layout())[0]
    # A byte says that all speak, one which quantizer.
    assert (nothing, second) == (0, 2 + 4 * 7)
    own = [len(build("topk(k=10) >> sign", "compressor").compress(x, Seed(0))) - HEADER_BYTES
           for x in (vector()[:50], vector()[57:])]  # fmt: skip
    assert [first, third] == own


def test_layers_that_share_a_body_share_it_by_entries_that_speak() -> None:
    x = np.zeros(N, np.float32)
    x[[3, 49, 50, 60, 61, 62, 63, 256]] = 1 + np.arange(8)
    said = np.zeros_like(x)
    payload = build("topk(k=8)", "compressor").compress(x, Seed(0, use="up"))
    layers, others = watching.layer_bytes(payload, layout(), said)
    body = len(payload) - HEADER_BYTES
    assert layers == pytest.approx([body * 2 / 8, 0, body * 1 / 8, body * 5 / 8])
    assert others == pytest.approx(HEADER_BYTES)
    assert np.array_equal(said, x)


def test_equal_blocks_that_cut_through_layers() -> None:
    """Of 20 entries a block, five bytes each: one byte for all speak, one for the code, no more than bits."""
    payload = build("blockwise(sign, size=20)", "compressor").compress(vector(), Seed(0, use="up"))
    layers, others = watching.layer_bytes(payload, layout())
    block = 2 + 4 + 3
    last = 2 + 4 + 3  # 17 entries
    assert others == HEADER_BYTES + 1 + 3 + 3
    assert layers == pytest.approx([block * 50 / 20, 0, block * 7 / 20, block * 183 / 20 + last])


def test_nested_stretches_and_long_vectors() -> None:
    n = 1_200_000
    layers = (Layer("a", 0, 700_000), Layer("b", 700_000, n))
    text = "blockwise(blockwise(qsgd(levels=7), size=1000), layers=true)"
    x, said = vector(1, n), np.zeros(n, np.float32)
    payload = build(text, "compressor").bind(layers).compress(x, Seed(0, use="up"))
    (a, b), others = watching.layer_bytes(payload, layers, said)
    assert a * 5 == pytest.approx(b * 7)
    # Two tables of one run, and the table of the two.
    assert others == pytest.approx(HEADER_BYTES + 1 + 2 * 5 + 2 * (1 + 4), abs=2)
    assert np.array_equal(said, accumulate_into(payload, np.zeros_like(x)))
    dense = build("float32", "compressor").compress(x, Seed(0, use="up"))
    assert watching.layer_bytes(dense, layers)[0] == pytest.approx([4 * 700_000, 4 * 500_000], abs=2)


@pytest.mark.parametrize("text", ["randsparse(budget=3)", "blockwise(randsparse(budget=3), layers=true)"])
def test_stretches_in_which_nobody_speaks(text: str) -> None:
    compressor = build(text, "compressor").bind(layout())
    payload = compressor.compress(np.zeros(N, np.float32), Seed(0, use="up"))
    layers, others = watching.layer_bytes(payload, layout())
    assert sum(layers) + others == pytest.approx(len(payload))
    assert layers[1] == 0
    assert all(layer > 0 for layer in (layers[0], *layers[2:]))


# --- what is left unsaid -------------------------------------------------------------------------


def meet_twice(algorithm: Algorithm, closely: bool = True) -> tuple[dict[str, Any], Node]:
    """What one rank sees of the second of two meetings, and its node."""

    def body(wire: Wire) -> tuple[dict[str, Any], Node]:
        start = np.zeros(N, np.float32)
        node = Node(algorithm, ParameterServer(), wire, start, Seed(7), layout(), wire.ledger)
        watch = watching.Probe(wire.ledger, layout(), closely)
        node.meet(vector(1), 1)
        watch.look(node)
        node.meet(vector(2), 2)
        assert node.worker.sender is not None
        assert node.worker.sender.watch is None, "it looks once"
        return watch.report(), node

    seen: tuple[dict[str, Any], Node] = run_threads(1, body)[0]
    return seen


def gammas(u: np.ndarray, said: np.ndarray) -> dict[str, float | None]:
    """As the definition has it, in float64."""
    u, wrong = u.astype(np.float64), u.astype(np.float64) - said
    return {
        layer.name: 1 - sum(wrong[layer.start : layer.stop] ** 2) / sum(u[layer.start : layer.stop] ** 2)
        if layer.size
        else None
        for layer in layout()
    }


@pytest.mark.parametrize("compressor", ["topk(k=20)", "topk(k=20) >> sign", "blockwise(sign, layers=true)"])
@pytest.mark.parametrize("memory", ["errorfeedback", "errorfeedback(decay=0.5)", "innovation", "stateless"])
def test_contraction_and_error_memory(compressor: str, memory: str) -> None:
    link = Link(build(compressor, "compressor"), build(memory, "memory"))
    seen, node = meet_twice(Algorithm(local=SGD(0.1), up=link))
    # By hand: two messages, the memory between them.
    bound = link.compressor.bind(layout())
    seed = Seed(7, rank=0, use="up")

    def said(u: np.ndarray, step: int) -> np.ndarray:
        return accumulate_into(bound.compress(u, seed.at(step=step)), np.zeros_like(u))

    first = said(vector(1), 1)
    known = {"innovation": first, "stateless": 0}.get(memory, first - vector(1))
    decay = 0.5 if "decay" in memory else 1
    u = vector(2) - np.float32(decay) * known
    second = said(u, 2)
    wanted = gammas(u, second)
    found = seen["contraction"]["layers"]
    assert list(found) == list(SIZES)
    assert found["nothing"] is None
    for name in ("first", "second", "third"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-5)
    whole = np.sum((u - second).astype(np.float64) ** 2)
    assert seen["contraction"]["all"] == pytest.approx(
        1 - whole / np.sum(u.astype(np.float64) ** 2), abs=1e-5
    )
    unsaid = 0 if memory == "stateless" else math.sqrt(whole)
    assert seen["unsaid"]["up"] == pytest.approx(unsaid, rel=1e-5)
    assert node.worker.sender is not None
    if isinstance(link.memory, ErrorFeedback):
        residual = node.worker.sender.state["residual"]
        assert seen["unsaid"]["up"] == pytest.approx(np.linalg.norm(residual), rel=1e-5)
    # Who does not look closely sees the same error, and no layers.
    brief = meet_twice(Algorithm(local=SGD(0.1), up=link), closely=False)[0]
    assert brief["unsaid"] == pytest.approx(seen["unsaid"], rel=1e-5)
    assert set(brief) == {"unsaid"}


@dataclass(frozen=True)
class Fading(ErrorFeedback):
    """Keeps half of what is left unsaid, in the vector that it was left in."""

    def commit(self, state: dict[str, Any], draft: Draft) -> Vector | None:
        free = super().commit(state, draft)
        state["residual"] *= np.float32(0.5)
        return free


def test_a_draft_is_seen_before_the_memory_moves() -> None:
    link = Link(build("topk(k=20)", "compressor"), Fading())
    seen, node = meet_twice(Algorithm(local=SGD(0.1), up=link))
    assert node.worker.sender is not None
    kept = np.linalg.norm(node.worker.sender.state["residual"])
    assert seen["unsaid"]["up"] == pytest.approx(2 * kept, rel=1e-5)


def test_the_error_memory_of_the_down_link_is_how_far_the_ranks_are_from_the_model() -> None:
    down = Link(build("blockwise(sign, size=100)", "compressor"), Innovation())
    seen, node = meet_twice(Algorithm(local=SGD(0.1), down=down))
    assert node.coordinator is not None
    known = node.worker.receiver.state["known"]
    assert seen["unsaid"]["down"] == pytest.approx(np.linalg.norm(node.coordinator.model - known), rel=1e-5)
    assert seen["unsaid"]["down"] > 1
    assert seen["unsaid"]["up"] == 0
    assert seen["model_error"] == {"norm": seen["unsaid"]["down"], "allowed": None}


def test_the_error_of_a_model_is_measured_beside_what_it_may_be() -> None:
    """Where each answer stands for itself, too; and not where answers are exact."""
    plain = Link(build("uniform(bits=3)", "compressor"))
    seen, node = meet_twice(Algorithm(local=SGD(0.1), down=plain))
    assert node.coordinator is not None
    told = node.worker.receiver.like
    assert seen["model_error"]["norm"] == pytest.approx(
        np.linalg.norm(node.coordinator.model - told), rel=1e-5
    )
    assert seen["model_error"]["norm"] > 0.1
    for exact in (None, Link(), Link(memory=Changes())):
        assert "model_error" not in meet_twice(Algorithm(local=SGD(0.1), down=exact))[0]
    snapshot = Link(build("lowprecision(bits=2)", "compressor"), build("snapshot(mu=0.25)", "memory"))
    seen, node = meet_twice(Algorithm(local=SGD(0.1), down=snapshot))
    assert node.coordinator is not None
    way = np.linalg.norm(node.coordinator.model - node.coordinator.sender.state["snapshot"])
    assert seen["model_error"]["allowed"] == pytest.approx(0.5 * way, rel=1e-5)
    # The square keeps to it in expectation; of so many coordinates it lies close to that.
    assert 0 < seen["model_error"]["norm"] < 1.3 * seen["model_error"]["allowed"]


def test_what_ranks_saw_is_brought_together() -> None:
    mine = {"unsaid": {"down": 5.0}}
    first = {"unsaid": {"up": 1.0}, "contraction": {"all": 0.5, "layers": {}}}
    second = {"unsaid": {"up": 2.0}}
    assert watching.combine([mine, first, second]) == {
        "error_memory": {"up": 1.5, "down": 5.0},
        "contraction": {"all": 0.5, "layers": {}},
    }
    assert watching.combine([{"unsaid": {}}]) == {}
    parts = [{"unsaid": {}, "model_error": {"norm": size, "allowed": None}} for size in (3.0, 4.0)]
    assert watching.combine(parts)["model_error"]["norm"] == 3.0
    assert watching.combine(parts, divided=True)["model_error"]["norm"] == 5.0


def test_looking_is_nobodys_time() -> None:
    ledger = Ledger()
    with ledger.timed("encode"):
        begin = ledger._blocks.within
        with ledger.apart():
            sum(range(100_000))
        apart = ledger._blocks.within - begin
    assert apart > 0
    assert sum(ledger.seconds.values()) == ledger.seconds["encode"]
    assert ledger._blocks.within > ledger.seconds["encode"]


# --- runs ----------------------------------------------------------------------------------------

RUNS = {
    "topk": [],
    "blocks down": ["--algorithm", "dist-ef-blocksgdm"],
    "lazy": ["--algorithm", "laq(whole=false)"],
    "tree": ["--exchange", "tree"],
    "allgather": ["--exchange", "allgather"],
    "apart": ["--exchange", "server(works=false)"],
    "elsewhere": ["--exchange", "server(root=1, works=false)"],
    "randk": ["--compressor", "randk(ratio=0.1) >> qsgd(levels=7, scaled=true)"],
    "statistics": ["--model", "resnet20", "--batch", 2, "--steps", 3, "--sync-every", 2],
    "asynchronous": ["--algorithm", "qsparse-local-sgd-async"],
    "prelude": ["--algorithm", "asylpg(inner=10)"],
}


def train(out: Path, *args: object) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The history and the summary of a small run on digits."""
    line = ["train", "--quiet", "--wire", "threads", "--model", "mlp(16)", "--batch", 8, "--out", out, *args]
    done = CliRunner().invoke(qsparse, [*map(str, line)])
    assert done.exit_code == 0, done.output
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return history, json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_is_watched(tmp_path: Path, name: str) -> None:
    history, summary = train(tmp_path / "out", "--ranks", 3, "--steps", 100, *RUNS[name])
    last = history[-1]
    watched = [line for line in history if "contraction" in line]
    assert last in watched
    # On the way nobody but the coordinator reports, where workers do not wait.
    if name != "lazy":  # the first worker may have had no news
        assert watched == ([last] if name in ("asynchronous", "prelude") else history)
    for line in watched:
        names = list(line["contraction"]["layers"])
        assert names == list(line["layer_bytes"]["layers"])
        # A worker whose last report is its first after a prelude stands at the snapshot, and has nothing to
        # say.
        assert (line["contraction"]["all"] or 0.0) <= 1
        assert line["contraction"]["all"] is not None or name == "prelude"
        assert line["layer_bytes"]["messages"] >= 1
        assert line["error_memory"]["up"] >= 0
    for field in ("contraction", "layer_bytes", "error_memory"):
        assert summary[field] == last[field]
    messages = [line["layer_bytes"]["messages"] for line in watched]
    assert messages == sorted(messages)
    one = last["layer_bytes"]
    size = one["frame"] + sum(one["layers"].values())
    if name not in ("prelude", "lazy", "statistics"):
        speaking = summary["messages"]["up"]
        # Frames differ by a few bytes; what a coordinator says to itself is no traffic, but a message.
        workers = 2 if name in ("apart", "elsewhere", "asynchronous") else 3
        at_home = name not in ("apart", "asynchronous", "allgather", "elsewhere")
        sent = speaking * (workers - at_home) / workers * (2 if name == "allgather" else 1)
        assert size == pytest.approx(summary["wire_bytes"]["up"] / sent, rel=0.25)
    if name == "blocks down":
        assert last["error_memory"]["down"] > 0
    assert ("model_error" in last) == (name in ("blocks down", "prelude"))
    if name == "randk":
        assert 0 < last["contraction"]["all"] < 0.5


def test_a_run_is_the_same_whether_it_is_watched_or_not(tmp_path: Path) -> None:
    algorithm = build("qsparse-local-sgd(H=3, momentum=0.9)", "algorithm")
    digits = load("digits")

    def body(out: Path | None, wire: Wire) -> dict[str, Any]:
        settings = Settings(algorithm=algorithm, steps=40, seed=3, evaluations=20)

        def problem(settings: Settings) -> Classification:
            return Classification(digits, "mlp(16)", 16, wire.rank, wire.size, "random", Seed(3))

        return run(lambda: settings, problem, wire, out=out)

    watched, alone = (run_threads(2, functools.partial(body, out))[0] for out in (tmp_path / "out", None))
    assert watched["model_sha256"] == alone["model_sha256"]
    assert "contraction" in watched
    assert not {"contraction", "error_memory", "layer_bytes"} & set(alone)
    for field in ("paper_bits", "messages", "train_loss", "test_accuracy"):
        assert watched[field] == alone[field]
    assert watched["wire_bytes"] == alone["wire_bytes"]


# --- TensorBoard and the bar ---------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a folder as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_the_numbers_of_the_history(tmp_path: Path) -> None:
    for steps in (200, 100):  # the events of the first run do not mix with those of the second
        history, _ = train(tmp_path, "--ranks", 2, "--steps", steps, "--evaluations", 3, "--tensorboard")
    found = scalars(tmp_path / "tb")
    paths: dict[str, tuple[str, ...]] = {
        "loss/train": ("train_loss",),
        "loss/test": ("test_loss",),
        "accuracy/test": ("test_accuracy",),
        "accuracy/top5": ("top5",),
        "skips": ("skips",),
        "contraction/all layers": ("contraction", "all"),
        "contraction/1.weight": ("contraction", "layers", "1.weight"),
        "layer bytes/3.weight": ("layer_bytes", "layers", "3.weight"),
    }
    for field, title in (
        ("link_bytes", "busiest link"),
        ("paper_bits", "paper bits"),
        ("wire_bytes", "wire bytes"),
        ("error_memory", "error memory"),
    ):
        for way in ("up", "down"):
            paths[f"{title}/{way}"] = (field, way)
    assert len(history) == 4
    for name, path in paths.items():
        wanted = [(line["step"], functools.reduce(lambda at, key: at[key], path, line)) for line in history]
        assert found[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted], name
    names = ("1.weight", "1.bias", "3.weight", "3.bias")
    layers = {f"{what}/{name}" for what in ("contraction", "layer bytes") for name in names}
    assert set(found) == set(paths) | layers
    # Where it was watched is no part of what the run was.
    assert "tensorboard" not in (tmp_path / "config.toml").read_text()


@pytest.fixture(scope="module")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Runs of one process on a terminal: a folder, and what each of them shows.

    The first two are a run and how it goes on; in the third workers do not wait for each other.
    """
    folder = tmp_path_factory.mktemp("terminals")
    once = ["--wire", "threads", "--ranks", "2", "--out", str(folder / "once"), "--evaluations", "3"]
    once += ["--checkpoint-every", "40", "--resume", "auto", "--tensorboard"]
    lines = [
        [*once, "--steps", "40"],
        [*once, "--steps", "70"],
        ["--wire", "threads", "--ranks", "3", "--steps", "150", *RUNS["asynchronous"],
         "--out", str(folder / "asynchronous")],
    ]  # fmt: skip
    program = """if True:
        import json, sys
        from qsparse.cli.commands import qsparse

        for words in json.loads(sys.argv[1]):
            qsparse.main(["train", *words], standalone_mode=False)
            print("=" * 200, file=sys.stderr, flush=True)
    """
    _, seen = on_terminal([sys.executable, "-c", program, json.dumps(lines)], 133)
    *shown, rest = seen.split("=" * 200)
    assert not rest.strip()
    return folder, shown


def test_a_run_that_goes_on_has_one_bar_and_all_scalars(terminals: tuple[Path, list[str]]) -> None:
    out, seen = terminals[0] / "once", terminals[1][1]
    shown = [part for part in seen.replace("\n", "\r").split("\r") if "step/s" in part]
    assert "40/70" in shown[0]
    assert "70/70" in shown[-1]
    assert any("40/70" in part and "accuracy 0." in part for part in shown)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in history]
    assert min(steps) < 40 < max(steps)
    assert [step for step, _ in scalars(out / "tb")["accuracy/test"]] == steps


def test_whoever_watches_together_is_told_everything() -> None:
    told = [name for name in vars(Progress) if not name.startswith("_")]
    assert set(told) <= set(vars(Several))
    assert len(told) > 3


def test_tensorboard_has_the_staleness_of_workers_that_do_not_wait(tmp_path: Path) -> None:
    history, _ = train(tmp_path, "--ranks", 3, "--steps", 200, *RUNS["asynchronous"], "--tensorboard")
    found = scalars(tmp_path / "tb")
    wanted = [(line["step"], line["staleness"]) for line in history]
    assert found["staleness/max"] == [(step, each["max"]) for step, each in wanted]
    assert found["staleness/mean"] == [(step, pytest.approx(each["mean"])) for step, each in wanted]
    assert len(wanted) > 1
    # Nobody knows the loss on the way.
    assert [step for step, _ in found["loss/train"]] == [200]


def test_tensorboard_is_missed_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = ["train", "--wire", "threads", "--ranks", "2", "--tensorboard", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(qsparse, line)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: SettingError: --tensorboard needs a library that is missing")
    assert 'pip install -c constraints.txt ".[train]" in a clone' in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ranks_that_we_start_show_one_bar_on_our_terminal(tmp_path: Path) -> None:
    """Ranks write into the launcher's pipes, so they are told of the terminal behind it."""
    line = [sys.executable, "-m", "qsparse", "train", "--ranks", "2", "--steps", "50", "--out", str(tmp_path)]
    _, seen = on_terminal(line, 133)
    shown = [part for part in seen.replace("\n", "\r").split("\r") if part.strip()]
    assert all(part.count("step/s") == 1 for part in shown), shown
    last = [part for part in shown if "50/50" in part]
    assert "accuracy 0." in last[-1]
    link = json.loads((tmp_path / "summary.json").read_text())["link_bytes"]
    told = f"link bytes {sum(link.values()):.3g}: {link['up']:.3g} up {link['down']:.3g} down"
    assert told in last[-1]
    assert len(last[-1]) == 133


def test_a_bar_says_no_loss_that_nobody_knows(terminals: tuple[Path, list[str]]) -> None:
    seen = terminals[1][2]
    assert "accuracy 0." in seen
    assert "0.000" not in seen

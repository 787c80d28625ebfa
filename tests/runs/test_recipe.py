"""What is done to examples, loss and gradient: augmentation, smoothed labels, clipping, bfloat16."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from qsparse.cli.commands import qsparse
from qsparse.data import Dataset, Pictures, load
from qsparse.data.augment import PAD, crop_flip
from qsparse.errors import DisagreementError, SettingError
from qsparse.exchange import ParameterServer
from qsparse.exchange.base import Exchange
from qsparse.registry import build
from qsparse.run import Score, Settings, run
from qsparse.seeds import Seed
from qsparse.torch.problem import Classification, evaluate
from qsparse.torch.recipe import Recipe
from qsparse.wire.threads import run_threads

RNG = np.random.default_rng(5)


# --- augmentation --------------------------------------------------------------------------------


def outcomes(picture: np.ndarray) -> dict[bytes, tuple[int, int, bool]]:
    """All 162 that may come of a picture, (channels, height, width)."""
    _, height, width = picture.shape
    found = {}
    for down in range(-PAD, PAD + 1):
        for right in range(-PAD, PAD + 1):
            moved = np.zeros_like(picture)
            for i in range(height):
                for j in range(width):
                    if 0 <= i + down < height and 0 <= j + right < width:
                        moved[:, i, j] = picture[:, i + down, j + right]
            for mirrored in (False, True):
                out = moved[:, :, ::-1] if mirrored else moved
                found[np.ascontiguousarray(out).tobytes()] = (down, right, mirrored)
    return found


def test_pictures_are_moved_and_mirrored() -> None:
    """Each of the outcomes, and nothing else, about equally often; a picture at a time."""
    picture = RNG.normal(size=(2, 7, 6)).astype(np.float32)
    possible = outcomes(picture)
    assert len(possible) == 162
    n = 16200
    x = np.tile(picture, (n, 1, 1, 1))
    crop_flip(x, Seed(3, use="augment"))
    moves = [possible[each.tobytes()] for each in x]
    counts = np.unique(moves, axis=0, return_counts=True)[1]
    assert len(counts) == 162
    # 100 each, deviation 10.
    assert 50 < counts.min() <= counts.max() < 150
    for axis, kinds in enumerate((9, 9, 2)):
        sums = np.bincount(np.array(moves)[:, axis] + (PAD if kinds == 9 else 0))
        assert len(sums) == kinds
        assert np.abs(sums - n / kinds).max() < 5 * np.sqrt(n / kinds)


def test_the_seed_alone_decides() -> None:
    start = RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)

    def changed(seed: Seed, n: int = 32) -> np.ndarray:
        x = start[:n].copy()
        crop_flip(x, seed)
        return x

    seed = Seed(3, rank=1, step=7, use="augment")
    first = changed(seed)
    assert np.array_equal(changed(seed), first)
    assert np.array_equal(changed(seed, 5), first[:5]), "a picture's place in the batch decides"
    for other in (seed.at(rank=0), seed.at(step=8), Seed(4, 1, 7, "augment")):
        assert not np.array_equal(changed(other), first)


def pictures(n: int = 60, tests: int = 25) -> Dataset:
    table = RNG.normal(size=(3, 256)).astype(np.float32)
    x = [Pictures(RNG.integers(0, 256, (size, 3, 8, 8), dtype=np.uint8), table) for size in (n, tests)]
    y = [RNG.integers(0, 10, size) for size in (n, tests)]
    return Dataset("some", x[0], y[0], x[1], y[1], 10, (3, 8, 8))


def problem(
    data: Dataset, recipe: Recipe = Recipe(), model: str = "softmax", share: int = 0, run: int = 0
) -> Classification:
    return Classification(data, model, 8, share, 2, "random", Seed(run), recipe)


@pytest.mark.parametrize("whole", [False, True])
def test_batches_are_functions_of_the_step(whole: bool) -> None:
    data = pictures()
    if whole:
        data = Dataset("some", data.train_x[:], data.train_y, data.test_x[:], data.test_y, 10, (3, 8, 8))
    plain, changed = problem(data), problem(data, Recipe("crop-flip"))
    batches = {t: changed.batch(t)[0].numpy() for t in (1, 2, 9)}
    for t in (9, 2, 1, 2):
        examples, labels = problem(data, Recipe("crop-flip")).batch(t)
        assert np.array_equal(examples.numpy(), batches[t])
        before, same = plain.batch(t)
        assert labels.tolist() == same.tolist()
        assert not np.array_equal(before.numpy(), batches[t])
        crop_flip(before.numpy(), Seed(0, 0, t, "augment"))
        assert np.array_equal(before.numpy(), batches[t])
    indices = plain._batches.batch(4)
    assert plain.batch(5)[0].numpy().tobytes() == data.train_x[indices].tobytes()
    other = problem(data, Recipe("crop-flip"), share=1)
    unchanged = problem(data, share=1).batch(1)[0].numpy()
    crop_flip(unchanged, Seed(0, 1, 1, "augment"))
    assert np.array_equal(other.batch(1)[0].numpy(), unchanged)
    # The data set itself is as it was.
    assert problem(data).batch(1)[0].numpy().tobytes() == plain.batch(1)[0].numpy().tobytes()


# --- loss and gradient ---------------------------------------------------------------------------


def gradient_of(one: Classification, batch: Any = 1) -> tuple[float, np.ndarray]:
    given = one.batch(batch) if batch is not None else None
    loss = one.gradient(one.vector, given, one.gradient_vector)
    return loss, one.gradient_vector.astype(np.float64)


def smoothed(one: Classification, batch: tuple[Any, Any], epsilon: float) -> tuple[float, np.ndarray]:
    """Loss and gradient of softmax regression, written out."""
    x = batch[0].numpy().reshape(len(batch[1]), -1).astype(np.float64)
    target = np.full((len(x), 10), epsilon / 10)
    target[np.arange(len(x)), batch[1].numpy()] += 1 - epsilon
    size = 10 * x.shape[1]
    weight, bias = one.vector[:size].reshape(10, -1).astype(np.float64), one.vector[size:]
    scores = x @ weight.T + bias
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    loss = float(-(target * np.log(shares)).sum(1).mean())
    off = (shares - target) / len(x)
    return loss, np.concatenate([(off.T @ x).ravel(), off.sum(0)])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_labels_are_smoothed(epsilon: float) -> None:
    one = problem(pictures(), Recipe(label_smoothing=epsilon))
    for batch in (1, None):
        loss, gradient = gradient_of(one, batch)
        share = one._share
        examples = one.batch(1) if batch else (one.data.train_x[share], one.data.train_y[share])
        if batch is None:
            examples = tuple(map(torch.from_numpy, examples))
        wanted_loss, wanted = smoothed(one, examples, epsilon)
        assert loss == pytest.approx(wanted_loss, rel=1e-5)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batch", [1, None])
def test_long_gradients_are_shortened(batch: int | None) -> None:
    data = pictures()
    _, whole = gradient_of(problem(data), batch)
    norm = np.linalg.norm(whole)
    for clip in (norm / 7, norm * 0.999, norm * 1.001):
        _, clipped = gradient_of(problem(data, Recipe(clip=float(clip))), batch)
        np.testing.assert_allclose(clipped, whole * min(1.0, clip / norm), rtol=1e-5)
        if clip > norm:
            assert np.array_equal(clipped, whole)


def test_a_gradient_that_is_not_finite_stays_so() -> None:
    one = problem(pictures(), Recipe(clip=1.0))
    one.vector[3] = np.nan
    assert not np.isfinite(gradient_of(one)[1]).all()


@pytest.mark.parametrize("model", ["mlp(32)", "resnet20"])
def test_bfloat16_is_nearly_float32(model: str) -> None:
    data = pictures()
    exact, narrow = problem(data, model=model), problem(data, Recipe(precision="bf16"), model)
    (loss, g), (narrow_loss, narrow_g) = gradient_of(exact), gradient_of(narrow)
    assert narrow.gradient_vector.dtype == narrow.vector.dtype == np.float32
    assert not np.array_equal(g, narrow_g)
    assert narrow_loss == pytest.approx(loss, rel=0.02)
    assert g @ narrow_g > 0.95 * np.linalg.norm(g) * np.linalg.norm(narrow_g)
    assert gradient_of(problem(data, Recipe(precision="bf16"), model))[1].tolist() == narrow_g.tolist()
    # Fresh ones: batch statistics have moved.
    scores = [problem(data, Recipe(precision=name), model).evaluate() for name in ("float32", "bf16")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"augment": "crop"}, "augment is 'crop': use none or crop-flip"),
        ({"precision": "fp16"}, "precision is 'fp16': use float32 or bf16"),
        ({"label_smoothing": 1.0}, r"must lie in \[0, 1\), not 1.0"),
        ({"label_smoothing": float("nan")}, "must lie in"),
        ({"clip": 0.0}, "to a positive, finite norm, not to 0.0"),
        ({"clip": float("inf")}, "not to inf"),
        ({"clip": float("nan")}, "not to nan"),
    ],
)
def test_recipes_that_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        Recipe(**settings)


def test_only_pictures_are_moved() -> None:
    x, y = np.zeros((40, 5), np.float32), np.arange(40) % 2
    with pytest.raises(SettingError, match=r"crop-flip needs pictures .* of flat have shape \(5,\)"):
        problem(Dataset("flat", x, y, x, y, 2, (5,)), Recipe("crop-flip"))


# --- all ranks together --------------------------------------------------------------------------


class Watched(Classification):
    """Notes what is evaluated."""

    seen: list[tuple[int, int, str, Score]]

    def evaluate(self, rank: int = 0, ranks: int = 1) -> Score:
        score = super().evaluate(rank, ranks)
        model = hashlib.sha256(self.vector.tobytes() + self.buffers.tobytes()).hexdigest()
        self.__dict__.setdefault("seen", []).append((rank, ranks, model, score))
        return score


def trained(
    ranks: int, algorithm: str, data: Dataset, *, exchange: Exchange | None = None, model: str = "mlp(8)",
    recipes: tuple[Recipe, ...] = (Recipe(),), evaluations: int = 1, out: Path | None = None, **axes: str,
) -> tuple[list[Watched], dict[str, Any]]:  # fmt: skip
    """The problems of all ranks after a run over threads, and its summary."""
    from dataclasses import replace

    parts = {axis: build(text, axis) for axis, text in axes.items()}
    row = replace(build(algorithm, "algorithm"), **parts)
    pattern = exchange or ParameterServer()
    made: dict[int, Watched] = {}

    def body(wire: Any) -> dict[str, Any]:
        def make(settings: Settings) -> Watched:
            workers = pattern.workers(wire.size)
            share = workers.index(wire.rank) if wire.rank in workers else None
            recipe = recipes[wire.rank % len(recipes)]
            made[wire.rank] = Watched(data, model, 4, share, len(workers), "random", Seed(1), recipe)
            return made[wire.rank]

        settings = Settings(row, pattern, epochs=3.0, seed=1, evaluations=evaluations)
        return run(lambda: settings, make, wire, out=out)

    summaries = run_threads(ranks, body, timeout=120)
    return [made[rank] for rank in range(ranks)], summaries[0]


SHARED = {
    "plain": (3, "sgd(lr=0.1)", {}),
    "local steps": (3, "qsparse-local-sgd(H=3)", {"evaluations": 2}),
    "a rank that only serves": (3, "qsparse-local-sgd(H=3)", {"exchange": ParameterServer(works=False)}),
    "another root": (3, "dist-ef-sgd", {"exchange": ParameterServer(root=2, works=False)}),
    "skips": (3, "qsparse-local-sgd(H=3)", {"trigger": "drift(delta=0.3)", "evaluations": 3}),
    "lazy": (2, "laq", {}),
    "batch statistics": (2, "qsparse-local-sgd(H=2)", {"model": "resnet20"}),
    "more ranks than examples": (4, "sgd(lr=0.1)", {"tests": 2}),
}


@pytest.mark.parametrize("case", SHARED)
def test_all_ranks_evaluate_one_model(case: str) -> None:
    ranks, algorithm, settings = SHARED[case]
    tests = settings.get("tests", 25)
    data = pictures(tests=tests)
    problems, summary = trained(
        ranks, algorithm, data, **{name: value for name, value in settings.items() if name != "tests"}
    )
    counts = {len(each.seen) for each in problems}
    assert counts == {max(counts)}
    assert max(counts) >= 3
    for heard in zip(*(each.seen for each in problems), strict=True):
        assert [rank for rank, _, _, _ in heard] == list(range(ranks))
        assert {size for _, size, _, _ in heard} == {ranks}
        assert len({model for _, _, model, _ in heard}) == 1, "they stand at different models"
        assert sum(score.tested for _, _, _, score in heard) == tests
    # The models of different times are different, or the test would see nothing.
    assert len({model for _, _, model, _ in problems[0].seen}) > 1
    last = [each.seen[-1][3] for each in problems]
    alone = problems[0].evaluate()
    assert summary["test_accuracy"] == sum(score.right for score in last) / tests == alone.accuracy
    loss = 0.0
    for score in last:
        loss += score.loss
    assert summary["test_loss"] == loss / tests
    assert summary["test_loss"] == pytest.approx(alone.figures()["test_loss"], rel=1e-6)
    if case == "more ranks than examples":
        assert [score.tested for score in last] == [0, 1, 0, 1]


def test_who_is_not_told_every_model_does_not_evaluate() -> None:
    problems, summary = trained(3, "lag-ps", pictures(), exchange=ParameterServer(works=False))
    assert [len(getattr(each, "seen", [])) > 0 for each in problems] == [True, False, False]
    assert {(rank, ranks) for rank, ranks, _, _ in problems[0].seen} == {(0, 1)}
    assert summary["test_accuracy"] == problems[0].seen[-1][3].accuracy


def test_a_coordinator_of_workers_that_do_not_wait_evaluates_alone() -> None:
    serving = ParameterServer(works=False)
    problems, _ = trained(3, "qsparse-local-sgd-async(H=2)", pictures(), exchange=serving)
    assert [len(getattr(each, "seen", [])) > 0 for each in problems] == [True, False, False]
    assert {(rank, ranks) for rank, ranks, _, _ in problems[0].seen} == {(0, 1)}


def test_ranks_with_different_recipes_do_not_start() -> None:
    for recipe in (
        Recipe("crop-flip"),
        Recipe(label_smoothing=0.1),
        Recipe(clip=2.0),
        Recipe(precision="bf16"),
    ):
        with pytest.raises(DisagreementError, match=r"data"):
            trained(2, "sgd(lr=0.1)", pictures(), recipes=(Recipe(), recipe))


# --- the command line ----------------------------------------------------------------------------


def invoke(*args: object) -> Any:
    line = ["train", "--quiet", "--wire", "threads", "--ranks", 2, "--steps", 4, "--batch", 4, *args]
    return CliRunner().invoke(qsparse, list(map(str, line)))


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--augment", "crop"], "augment is 'crop'"),
        (["--augment", "crop-flip", "--algorithm", "qsvrg"], "--augment does not go with svrg"),
        (["--clip", "1", "--algorithm", "asylpg"], "--clip does not go with svrg"),
        (
            ["--augment", "crop-flip", "--algorithm", "gd", "--local", "gradient(whole=true)"],
            "--augment has no effect: gradient(whole=true) takes",
        ),
        (["--label-smoothing", 2], "label smoothing must lie"),
        (["--clip", -1], "not to -1.0"),
        (["--precision", "fp8"], "precision is 'fp8'"),
        (["--weight-decay-on", "weights"], "weights has no effect: sgd(lr=0.1) has no weight decay; give"),
        (["--weight-decay-on", "weights", "--algorithm", "gd"], "weights has no effect: gradient"),
    ],
)  # fmt: skip
def test_options_that_are_refused(tmp_path: Path, args: list[object], reason: str) -> None:
    result = invoke("--out", tmp_path / "out", *args)
    assert result.exit_code == 1
    assert reason in result.stderr
    assert "error: SettingError" in result.stderr


def test_cifar_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the published layout, the whole recipe, and the same once more from the configuration."""
    import json

    from tiny_files import cifar_files

    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    cifar_files(tmp_path / "data" / "cifar-10-batches-bin")
    recipe = [
        "--data", "cifar10", "--data-dir", tmp_path / "data", "--model", "resnet20", "--sync-every", 2,
        "--augment", "crop-flip", "--label-smoothing", 0.1, "--clip", 2.0, "--precision", "bf16",
        "--momentum", 0.9, "--weight-decay", 0.01, "--weight-decay-on", "weights",
        "--lr", "steps(start=0.1, after=[3], warmup=2)",
    ]  # fmt: skip
    found = []
    for name, args in (
        ("1", recipe),
        ("2", ["--config", tmp_path / "1" / "config.toml"]),
        ("3", [*recipe, "--augment", "none"]),
        ("4", [*recipe, "--weight-decay-on", "all"]),
    ):
        result = invoke("--out", tmp_path / name, *args)
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / name / "summary.json").read_text()))
    first, again, plain, decayed = (one["model_sha256"] for one in found)
    assert first == again
    assert len({first, plain, decayed}) == 3
    assert "decay_on='weights'" in found[0]["algorithm"]["local"]
    assert found[0]["parameters"] == 269_722


def test_digits_are_evaluated_alike_by_any_number_of_ranks() -> None:
    """Sums of stretches, empty ones too, are those of the whole."""
    one = problem(load("digits"), model="mlp(16)")
    whole = one.evaluate()
    assert whole.tested == 360
    for ranks in (1, 2, 3, 7, 400):
        scores = [one.evaluate(rank, ranks) for rank in range(ranks)]
        assert sum(score.tested for score in scores) == 360
        assert sum(score.right for score in scores) == whole.right
        assert sum(score.loss for score in scores) == pytest.approx(whole.loss, rel=1e-6)
        assert max(score.tested for score in scores) - min(score.tested for score in scores) <= 1


def test_an_evaluation_takes_few_examples_at_a_time() -> None:
    """Its memory is bounded by them, whatever the size of the test set; nobody is left out."""
    sizes = []

    class Counts(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return torch.eye(10)[x[:, 0].long()]

    y = np.arange(1500) % 10
    score = evaluate(Counts(), y[:, None].astype(np.float32), y, 100)
    assert (score.right, score.tested, sum(sizes)) == (1400, 1400, 1400)
    assert max(sizes) <= 256
    loss = float(torch.nn.functional.cross_entropy(torch.eye(10), torch.arange(10)))
    assert score.loss == pytest.approx(1400 * loss, rel=1e-6)

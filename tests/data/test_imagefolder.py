"""Pictures in folders, one for each class: found, decoded when they are taken, cut and mirrored."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import qsparse
from qsparse.cli.commands import qsparse as command
from qsparse.data import Dataset, PictureFiles, load
from qsparse.data.images import standardised
from qsparse.errors import DataError, SettingError
from qsparse.seeds import Seed
from qsparse.torch.problem import Classification
from qsparse.torch.recipe import Recipe

#: The identity, so that floats are bytes.
BYTES = np.tile(np.arange(256, dtype=np.float32), (3, 1))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder, and a cache beside it."""
    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QSPARSE_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def picture(path: Path, colour: tuple[int, int, int], width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def folder(top: Path, tests: str = "val", count: int = 4) -> Path:
    """Red cats and blue dogs, of several sizes and formats."""
    for part in ("train", tests):
        for i in range(count):
            picture(top / part / "dogs" / f"{i}.png", (0, 0, 200 + i), 40 + i, 30)
            picture(top / part / "cats" / f"{i}.JPEG", (250, 0, 0), 20, 33 + i)
    (top / "train" / "cats" / ".hidden").write_text("not a picture")
    (top / "train" / "notes.txt").write_text("beside the classes")
    return top


@pytest.mark.parametrize("tests", ["val", "test"])
def test_a_folder_is_a_data_set(tmp_path: Path, tests: str, monkeypatch: pytest.MonkeyPatch) -> None:
    top = folder(tmp_path / "data" / "pets", tests)
    pets = load(f"imagefolder:{top}")
    assert pets.describe().startswith("imagefolder:pets: 8 + 8 examples of (3, 224, 224), 2 classes")
    # Cats come before dogs.
    assert pets.train_y.tolist() == pets.test_y.tolist() == [0] * 4 + [1] * 4
    small = load(f"imagefolder({str(top)!r}, size=16)")
    assert small.shape == (3, 16, 16)
    dog = small.test_x[[6]]
    wanted = (np.array([0, 0, 202]) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(dog[0], np.tile(wanted[:, None, None], (1, 16, 16)), rtol=1e-6)
    assert np.array_equal(np.asarray(small.test_x)[6], dog[0])
    assert small.test_x[2:4].shape == (2, 3, 16, 16)
    assert load("imagefolder:pets", tmp_path / "data").describe() == pets.describe()
    monkeypatch.setenv("QSPARSE_DATA", str(tmp_path / "data"))
    assert load("imagefolder:pets").describe() == pets.describe()


def test_pictures_below_folders_of_a_class_are_its_own(tmp_path: Path) -> None:
    top = folder(tmp_path / "pets")
    (top / "train" / "cats" / "more").mkdir()
    os.rename(top / "train" / "cats" / "1.JPEG", top / "train" / "cats" / "more" / "1.JPEG")
    pets = load(f"imagefolder:{top}")
    assert pets.train_y.tolist() == [0] * 4 + [1] * 4
    assert pets.train_x.names[3] == os.path.join("cats", "more", "1.JPEG")
    assert pets.train_x[[3]].shape == (1, 3, 224, 224)


def test_checksums_see_names_and_contents(tmp_path: Path) -> None:
    top = folder(tmp_path / "pets")
    texts = {load(f"imagefolder:{top}").describe()}
    os.rename(top / "train" / "cats" / "1.JPEG", top / "train" / "cats" / "9.JPEG")
    texts.add(load(f"imagefolder:{top}").describe())
    picture(top / "val" / "cats" / "1.JPEG", (1, 2, 3))
    texts.add(load(f"imagefolder:{top}").describe())
    assert len(texts) == 3


# --- what is cut out -----------------------------------------------------------------------------


def gradient(tmp_path: Path, width: int, height: int) -> PictureFiles:
    """Red tells the column of a pixel, green its row, blue nothing."""
    raw = np.zeros((height, width, 3), np.uint8)
    raw[:, :, 0], raw[:, :, 1] = np.arange(width), np.arange(height)[:, None]
    Image.fromarray(raw).save(tmp_path / "gradient.png")
    return PictureFiles(tmp_path, ["gradient.png"], BYTES, 56)


@pytest.mark.parametrize(("width", "height"), [(128, 64), (64, 128), (64, 64)])
def test_evaluation_takes_the_middle(tmp_path: Path, width: int, height: int) -> None:
    """7/8 of the shorter side of 64 are the 56 pixels, which are not scaled."""
    (taken,) = gradient(tmp_path, width, height)[[0]]
    left, upper = (width - 56) // 2, (height - 56) // 2
    assert np.array_equal(taken[0], np.tile(np.arange(left, left + 56), (56, 1)))
    assert np.array_equal(taken[1], np.tile(np.arange(upper, upper + 56), (56, 1)).T)
    assert not taken[2].any()


def test_training_takes_parts_of_all_sizes_and_mirrors_half(tmp_path: Path) -> None:
    x = gradient(tmp_path, 125, 100)
    n = 300
    out = x.take(np.zeros(n, np.intp), np.empty((n, 3, 56, 56), np.float32), Seed(3))
    columns, rows = out[:, 0], out[:, 1]
    assert np.array_equal(columns, np.tile(columns[:, :1], (1, 56, 1)))  # red depends on the column only
    mirrored = columns[:, 0, 0] > columns[:, 0, -1]
    assert 0.4 < mirrored.mean() < 0.6
    widths = np.abs(columns[:, 0, -1] - columns[:, 0, 0]) * 56 / 55
    heights = (rows[:, -1, 0] - rows[:, 0, 0]) * 56 / 55
    area, aspect = widths * heights / (125 * 100), widths / heights
    assert 0.07 < area.min() < 0.15
    assert 0.8 < area.max() < 1.05
    assert 0.7 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.4
    # A function of the seed, of as many pictures as there are.
    again = x.take(np.zeros(n, np.intp), np.empty_like(out), Seed(3))
    assert again.tobytes() == out.tobytes()
    assert x.take(np.zeros(n, np.intp), np.empty_like(out), Seed(4)).tobytes() != out.tobytes()


def test_a_strip_has_no_such_part_and_gives_its_middle(tmp_path: Path) -> None:
    x = gradient(tmp_path, 250, 4)
    out = x.take(np.zeros(6, np.intp), np.empty((6, 3, 56, 56), np.float32), Seed(0))
    assert out[:, 0].min() > 115
    assert out[:, 0].max() < 135


def test_batches_are_functions_of_the_step(tmp_path: Path) -> None:
    gradient(tmp_path, 250, 200)
    x = PictureFiles(
        tmp_path, ["gradient.png"] * 8, standardised(255, 0.5, 0.2).reshape(1, -1).repeat(3, 0), 8
    )
    y = np.arange(8) % 2
    data = Dataset("some", x, y, x, y, 2, (3, 8, 8))
    one, plain = (
        Classification(data, "softmax", 4, 0, 2, "random", Seed(1), Recipe(augment=augment))
        for augment in ("resized-crop-flip", "none")
    )
    first, second = (one.batch(t)[0].numpy() for t in (1, 2))
    assert one.batch(1)[0].numpy().tobytes() == first.tobytes() != second.tobytes()
    assert plain.batch(1)[0].numpy().tobytes() == x[np.zeros(4, np.intp)].tobytes()
    loaded = Dataset("some", x[:], y, x[:], y, 2, (3, 8, 8))
    with pytest.raises(SettingError, match="resized-crop-flip takes parts of pictures in files"):
        Classification(loaded, "softmax", 4, 0, 2, "random", Seed(1), Recipe(augment="resized-crop-flip"))


def test_resnet50_takes_a_step_and_is_evaluated_on_a_folder(tmp_path: Path) -> None:
    data = load(f"imagefolder({str(folder(tmp_path / 'pets', count=1))!r}, size=64)")
    one = Classification(data, "resnet50", 2, 0, 1, "random", Seed(1), Recipe(augment="resized-crop-flip"))
    loss = one.gradient(one.vector, one.batch(1), one.gradient_vector)
    assert 0.3 < loss < 3
    assert np.isfinite(one.gradient_vector).all()
    assert one.gradient_vector.any()
    assert one.evaluate().tested == 2


def test_a_run_is_repeated_by_its_configuration(tmp_path: Path) -> None:
    given = f"imagefolder({str(folder(tmp_path / 'pets'))!r}, size=8)"
    result = CliRunner().invoke(
        command,
        ["train", "--quiet", "--data", given, "--model", "softmax", "--augment", "resized-crop-flip",
         "--batch", "2", "--steps", "16", "--algorithm", "sgd", "--wire", "threads", "--ranks", "2",
         "--out", str(tmp_path / "out")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["test_accuracy"] == 1
    again = qsparse.run(qsparse.RunConfig.read(tmp_path / "out" / "config.toml")).summary
    assert again["model_sha256"] == summary["model_sha256"]


# --- what is wrong -------------------------------------------------------------------------------


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    top = folder(tmp_path / "pets")
    damaged = top / "train" / "dogs" / "2.png"
    whole = damaged.read_bytes()
    for content in (b"", b"text", whole[:60]):
        damaged.write_bytes(content)
        pets = load(f"imagefolder:{top}")
        assert pets.train_x[[5]].shape == (1, 3, 224, 224)
        with pytest.raises(DataError, match=r"2\.png is no picture that can be read: "):
            pets.train_x[[6]]
    damaged.unlink()
    with pytest.raises(DataError, match=r"2\.png is no picture that can be read: FileNotFoundError"):
        pets.train_x[[6]]


def test_a_layout_that_is_wrong_is_told(tmp_path: Path) -> None:
    top = folder(tmp_path / "pets")

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            load(f"imagefolder:{top}")

    (top / "train" / "cats" / "list.txt").write_text("1.JPEG\n")
    refused(r"list\.txt is no picture by its name")
    (top / "train" / "cats" / "list.txt").unlink()
    picture(top / "val" / "birds" / "1.png", (0, 0, 0))
    refused("val has a class 'birds', which .*train has not")
    (top / "val" / "birds" / "1.png").unlink()
    os.rmdir(top / "val" / "birds")
    os.rename(top / "val", top / "tests")
    refused("val cannot be read: .*; there must be train, and val or test")
    os.rename(top / "train", top / "training")
    refused(r"there is no folder .*pets with a folder train: looked for .*--data-dir DIR")
    (top / "train").mkdir()
    refused("train has 0 folders")
    for text in ("imagefolder:", "imagefolder(3)", "imagefolder('a', size=0)", "imagefolder('a', size=1.5)"):
        with pytest.raises(SettingError, match="imagefolder"):
            load(text)

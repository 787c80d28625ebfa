"""Data sets of pictures in folders, one for each class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from qsparse.data.base import Source
from qsparse.data.dataset import Dataset, Labels
from qsparse.data.download import search_path
from qsparse.data.images import standardised
from qsparse.data.photos import ENDINGS, PictureFiles
from qsparse.errors import DataError, SettingError
from qsparse.files import named_path
from qsparse.registry import register

#: Of the training pictures of ImageNet, for red, green and blue.
_MEAN: Final = (0.485, 0.456, 0.406)
_STD: Final = (0.229, 0.224, 0.225)
#: The folder of the test set, in the order in which they are tried.
_TESTS: Final = ("val", "test")


@register("imagefolder")
@dataclass(frozen=True)
class ImageFolder(Source):
    """Pictures of any size, as ImageNet is laid out: imagefolder:PATH has folders train and val (or test).

    Each has a folder for each class; classes are numbered in the order of their names. Pictures are decoded
    when they are taken, and standardised with mean and standard deviation of ImageNet.

    Args:
        path: of the folder, from the working folder or from those that data lies in.
        size: pictures are scaled and cut to so many pixels, both ways.
    """

    path: str
    size: int = 224

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise SettingError(
                f"imagefolder({self.path!r}): give the path of a folder, as in imagefolder:data/imagenet"
            )
        if type(self.size) is not int or not 1 <= self.size <= 4096:
            raise SettingError(f"imagefolder: size is {self.size!r}, not a whole number from 1 to 4096")

    def spelling(self) -> str:
        """As it is written."""
        plain = f"imagefolder:{self.path}"
        return plain if self.size == 224 else f"imagefolder({self.path!r}, size={self.size})"

    def load(self, data_dir: Path | None, *, progress: bool = False) -> Dataset:
        """From disk: the names of the files; a picture is read when it is taken."""
        top = _found(self.path, data_dir)
        train = top / "train"
        test = next((top / name for name in _TESTS if (top / name).is_dir()), top / _TESTS[0])
        classes = _classes(train)
        if strange := [name for name in _classes(test) if name not in classes]:
            raise DataError(
                f"{test} has a class {strange[0]!r}, which {train} has not: classes must be those of train"
            )
        table = np.stack([standardised(255, *each) for each in zip(_MEAN, _STD, strict=True)])

        def part(folder: Path) -> tuple[PictureFiles, Labels]:
            names, labels = _pictures(folder, classes)
            return PictureFiles(folder, names, table, self.size), labels

        shape = (3, self.size, self.size)
        return Dataset(f"imagefolder:{top.name}", *part(train), *part(test), len(classes), shape)


def _found(text: str, data_dir: Path | None) -> Path:
    """The folder that a path means."""
    given = named_path(text)
    candidates = list(dict.fromkeys(top / given for top in (Path.cwd(), *search_path(data_dir))))
    found = next((path for path in candidates if (path / "train").is_dir()), None)
    if found is None:
        raise DataError(
            f"there is no folder {text} with a folder train: looked for {', '.join(map(str, candidates))}. "
            "Give its path, or the folder that it lies in: --data-dir DIR or QSPARSE_DATA"
        )
    return found


def _classes(folder: Path) -> list[str]:
    """The names of the classes, in order."""
    try:
        found = sorted(each.name for each in os.scandir(folder) if each.is_dir() and each.name[0] != ".")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}; there must be train, and val or test"
        ) from error
    if len(found) < 2:
        raise DataError(
            f"{folder} has {len(found)} folders of classes: there must be one for each class, 2 or more"
        )
    return found


def _pictures(folder: Path, classes: list[str]) -> tuple[list[str], Labels]:
    """The files below the folder, class by class, and their labels."""
    names: list[str] = []
    counts = []
    for each in classes:
        before = len(names)
        for place, below, files in os.walk(folder / each):
            below.sort()
            shown = sorted(name for name in files if name[0] != ".")
            if strange := [name for name in shown if not name.lower().endswith(ENDINGS)]:
                raise DataError(
                    f"{Path(place, strange[0])} is no picture by its name, which ends with none of "
                    f"{', '.join(ENDINGS)}: move it elsewhere"
                )
            names += [os.path.relpath(os.path.join(place, name), folder) for name in shown]
        counts.append(len(names) - before)
    if not names:
        raise DataError(f"{folder} holds no pictures")
    return names, np.repeat(np.arange(len(classes)), counts)

"""Data sets in the LIBSVM format: those with a name of their own, and files of yours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from qsparse.data import readers
from qsparse.data.base import Indices, Source
from qsparse.data.cache import Arrays, decoded
from qsparse.data.dataset import Dataset, Labels
from qsparse.data.download import locate, search_path, with_suffix
from qsparse.data.images import Examples
from qsparse.data.libsvm import read_libsvm
from qsparse.data.shards import split
from qsparse.data.sparse import SparseRows, stays_sparse
from qsparse.errors import DataError, SettingError
from qsparse.files import named_path
from qsparse.registry import register

#: Files of at least so many bytes are read once on a machine; smaller ones are read in no time.
_LONG: Final = 2**22


@register("libsvm")
@dataclass(frozen=True)
class Libsvm(Source):
    """A text file in the LIBSVM format, written libsvm:PATH.

    PATH.t beside it is the test set; a fifth is split off if there is none.

    Args:
        path: of the file, from the working folder or from those that data lies in.
    """

    path: str

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise SettingError(f"libsvm({self.path!r}): give the path of a file, as in libsvm:data/a9a")

    def spelling(self) -> str:
        """As it is written."""
        return f"libsvm:{self.path}"

    def load(self, data_dir: Path | None, *, progress: bool = False) -> Dataset:
        """From disk."""
        file = _found(self.path, data_dir)
        stem = file.stem if file.suffix in readers.SUFFIXES[1:] else file.name
        beside = with_suffix(file.with_name(f"{stem}.t"))
        return _dataset(f"libsvm:{stem}", [file] if beside is None else [file, beside])


class _Named(Source):
    """A published set in one file, or in one to train on and one to test on.

    Attributes:
        tested: how many rows at the end of a single file are the test set; None: a fifth, dealt by chance.
    """

    tested: ClassVar[int | None] = None

    def load(self, data_dir: Path | None, *, progress: bool = False) -> Dataset:
        """From disk."""
        name = self.registered_name
        return _dataset(name, locate(name, data_dir, progress=progress), self.tested)


@register("susy")
@dataclass(frozen=True)
class Susy(_Named):
    """SUSY of LIBSVM: 5,000,000 simulated collisions, 18 features; the last 500,000 are the test set."""

    tested: ClassVar[int | None] = 500_000


@register("ijcnn1")
@dataclass(frozen=True)
class Ijcnn1(_Named):
    """IJCNN1 of LIBSVM: 49,990 + 91,701 moments of an engine, 22 features."""


@register("covtype")
@dataclass(frozen=True)
class Covtype(_Named):
    """COVTYPE of LIBSVM, two classes: 581,012 places in forests, 54 features, scaled ones first."""


@register("rcv1")
@dataclass(frozen=True)
class Rcv1(_Named):
    """RCV1 of LIBSVM, two classes: 20,242 + 677,399 news, 47,236 features, of which 0.16 % are not 0."""


@register("real-sim")
@dataclass(frozen=True)
class RealSim(_Named):
    """real-sim of LIBSVM: 72,309 articles, 20,958 features, of which 0.25 % are not 0."""


@register("news20")
@dataclass(frozen=True)
class News20(_Named):
    """news20 of LIBSVM, two classes: 19,996 articles, 1,355,191 features, of which 0.03 % are not 0."""


def _found(text: str, data_dir: Path | None) -> Path:
    """The file that a path means."""
    given = named_path(text)
    # Joining an absolute path to a folder gives the absolute path, so one list serves both.
    tops = [Path.cwd()] + [top / below for top in search_path(data_dir) for below in ("", "libsvm")]
    candidates = list(dict.fromkeys(top / given for top in tops))
    file = next((found for path in candidates if (found := with_suffix(path))), None)
    if file is None:
        raise DataError(
            f"there is no LIBSVM file {text}: looked for {', '.join(map(str, candidates))}, plain or with "
            f"{', '.join(readers.SUFFIXES[1:])}. Give its path, or its folder: --data-dir DIR or QSPARSE_DATA"
        )
    return file


def _dataset(name: str, files: Sequence[Path], tested: int | None = None) -> Dataset:
    """The data set in a file to train on and, if there is one, a file to test on."""
    read = _read(files)
    labels, mapped = np.unique(np.concatenate([y for _, y in read]), return_inverse=True)
    if len(labels) < 2:
        raise DataError(f"{files[0]} has the label {labels[0]:g} only: there is nothing to learn")
    sparse = stays_sparse([x for x, _ in read])

    def taken(x: SparseRows, which: Indices) -> Examples:
        return x.rows(which) if sparse else x[which]

    y: Labels = mapped.astype(np.int64)
    x, n = read[0][0], len(read[0][0])
    classes, shape = len(labels), x.shape[1:]
    if len(read) == 2:
        parts: list[Examples] = [each if sparse else each[:] for each, _ in read]
        return Dataset(name, parts[0], y[:n], parts[1], y[n:], classes, shape)
    if tested is None:
        train, test = split(n)
    elif n > tested:
        train, test = np.arange(n - tested), np.arange(n - tested, n)
    else:
        raise DataError(
            f"{files[0]} has {n:,} rows, and the last {tested:,} of {name} are its test set: it is incomplete"
        )
    return Dataset(name, taken(x, train), y[train], taken(x, test), y[test], classes, shape)


def _read(files: Sequence[Path]) -> list[tuple[SparseRows, npt.NDArray[np.float64]]]:
    """Rows and labels of each file, out of the cache where reading takes long."""
    if sum(file.stat().st_size for file in files) < _LONG:
        return read_libsvm(files)
    arrays = decoded("libsvm", files, lambda: _packed(files))
    width = int(arrays["width"].view(np.int64)[0])
    return [
        (
            SparseRows(
                arrays[f"{number} starts"].view(np.int64),
                arrays[f"{number} columns"].view(np.int32),
                arrays[f"{number} values"].view(np.float32),
                width,
            ),
            arrays[f"{number} labels"].view(np.float64),
        )
        for number in range(len(files))
    ]


def _packed(files: Sequence[Path]) -> Arrays:
    """What `_read` takes apart, as bytes."""
    read = read_libsvm(files)
    arrays: Arrays = {"width": np.array([read[0][0].shape[1]], np.int64).view(np.uint8)}
    for number, (x, y) in enumerate(read):
        kept: dict[str, npt.NDArray[Any]] = {
            "starts": x.starts,
            "columns": x.columns,
            "values": x.values,
            "labels": y,
        }
        arrays |= {f"{number} {name}": each.view(np.uint8) for name, each in kept.items()}
    return arrays

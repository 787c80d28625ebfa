"""Where files of data sets are looked for, and how they get there.

In order: the folder the caller names, the folder that ``QSPARSE_DATA`` names, the user's cache. What
is in none of them is downloaded into the cache, checked before it gets its name. The cache is where the
operating system has caches of programs, or the folder that ``QSPARSE_CACHE`` names, which several users
may share: whoever reads the folder reads what is in it. A user without a home folder has no cache; then only
what would be downloaded is missing.

Files are found by their names in any letters, small or capital, plain or packed, and with whatever stands
between the words of a name, as archives and programs write them: ``train-images.idx3-ubyte`` too.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qsparse.data.readers import SUFFIXES
from qsparse.errors import DataError, SettingError
from qsparse.files import named_path

#: Seconds without a byte after which a download has failed.
TIMEOUT = 20.0

#: Seconds.
_DAY: Final = 86400.0


@dataclass(frozen=True)
class Source:
    """The files of one data set.

    Args:
        base: the address that the files are below, with a slash at the end; of what cannot be downloaded, the
            page to get it from, in words.
        files: what to download: name and checksum, ``md5:...`` or ``sha256:...``.
        folders: where files may lie below each place, in the order they are tried; the first is
            where a download goes below the cache.
        layouts: which files together are the whole set, without .gz, .bz2 or .xz.
        archive: the download is one tar file that holds the first layout.
    """

    base: str
    files: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]
    layouts: tuple[tuple[str, ...], ...]
    archive: bool = False


_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


_LIBSVM = "the page LIBSVM Data: Classification (Binary Class)"


def _idx_files(algorithm: str, *digests: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{name}.gz", f"{algorithm}:{digest}") for name, digest in zip(_IDX, digests, strict=True))


#: The official places, by the name of the data set.
SOURCES: dict[str, Source] = {
    "mnist": Source(
        base="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=_idx_files(
            "sha256",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        folders=("mnist", "MNIST/raw", "raw", ""),
        layouts=(_IDX,),
    ),
    "fashion-mnist": Source(
        base="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=_idx_files(
            "md5",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        folders=("fashion-mnist", "FashionMNIST/raw", "raw", ""),
        layouts=(_IDX,),
    ),
    "cifar10": Source(
        base="https://www.cs.toronto.edu/~kriz/",
        files=(("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),),
        folders=("cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py", ""),
        layouts=(tuple(f"{name}.bin" for name in _BATCHES), _BATCHES),
        archive=True,
    ),
    "cifar100": Source(
        base="https://www.cs.toronto.edu/~kriz/",
        files=(("cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8"),),
        folders=("cifar-100", "cifar-100-binary", "cifar-100-python", ""),
        layouts=(("train.bin", "test.bin"), ("train", "test")),
        archive=True,
    ),
    **{
        name: Source(_LIBSVM, (), (name, "libsvm", ""), layouts)
        for name, layouts in {
            "susy": (("SUSY",),),
            "ijcnn1": (("ijcnn1", "ijcnn1.t"),),
            "covtype": (("covtype.libsvm.binary.scale",), ("covtype.libsvm.binary",)),
            "rcv1": (("rcv1_train.binary", "rcv1_test.binary"),),
            "real-sim": (("real-sim",),),
            "news20": (("news20.binary",),),
        }.items()
    },
}


def cache() -> Path:
    """The folder of downloads and of unpacked data; it may be emptied when no run is on.

    Raises:
        DataError: this user has no home folder, and ``QSPARSE_CACHE`` names none.
    """
    try:
        if named := os.environ.get("QSPARSE_CACHE"):
            return named_path(named)
        import platformdirs  # of the extra train; data sets are listed without it

        return Path(platformdirs.user_cache_dir("qsparse"))
    except (RuntimeError, SettingError) as error:
        raise DataError(
            f"there is no folder for downloads and unpacked data ({error}): let QSPARSE_CACHE name one"
        ) from None


def search_path(data_dir: Path | None = None) -> list[Path]:
    """The folders that data is looked for in, in order; those that do not exist are listed too.

    Raises:
        DataError: `data_dir` is given and is no folder.
    """
    listed = []
    if data_dir is not None:
        if not os.path.isdir(data_dir):
            raise DataError(f"the data folder {data_dir} does not exist or is no folder")
        listed.append(data_dir)
    if (named := _named()) is not None:
        listed.append(named)
    with contextlib.suppress(DataError):  # said where something is to be downloaded
        listed.append(cache())
    return listed


def _named() -> Path | None:
    """The folder that ``QSPARSE_DATA`` names."""
    text = os.environ.get("QSPARSE_DATA")
    return named_path(text) if text else None


def with_suffix(path: Path) -> Path | None:
    """The file of this name, or of this name with .gz, .bz2 or .xz, if there is one."""
    for suffix in SUFFIXES:
        if os.path.isfile(file := Path(f"{path}{suffix}")):
            return file
    return None


def locate(name: str, data_dir: Path | None = None, *, progress: bool = False) -> tuple[Path, ...]:
    """Find the files of a data set, or download them.

    Returns:
        the files, in the order of the layout they follow.

    Raises:
        DataError: they are nowhere and cannot be had, or what came does not match its checksum.
    """
    source = SOURCES[name]
    folders = _folders(source, search_path(data_dir))
    if found := _find(source, folders):
        return found
    named = _named()
    if named is not None and not os.path.isdir(named):
        # A typing error must not end in a download of what is already there.
        raise DataError(
            f"{_nowhere(name, source, folders)}. QSPARSE_DATA names {named}, which does not exist or is no "
            "folder: correct it, or unset it to download the data"
        )
    if not source.files:
        raise DataError(
            f"{_nowhere(name, source, folders)}. Get it from {source.base}, put {_expected(source)} into a "
            "folder, and name that folder with --data-dir DIR or QSPARSE_DATA"
        )
    for top in filter(None, (data_dir, named)):
        _refuse_alike(name, source, top)
    target = cache() / source.folders[0]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with alone(cache() / "download.lock"):
            # Another rank of this node may have fetched them while this one waited.
            if not (found := _find(source, [target])):
                tidy(target)
                _download(source, target, progress)
                found = _find(source, [target])
    except OSError as error:
        raise DataError(
            f"{_nowhere(name, source, folders)}, and the download to {target} failed: {error}. "
            f"Put {_expected(source)} into a folder and name that folder with --data-dir DIR or QSPARSE_DATA"
        ) from error
    if not found:
        raise DataError(f"what was downloaded to {target} for {name} is not complete")
    return found


def _folders(source: Source, tops: list[Path]) -> list[Path]:
    return [_spelled(top, folder) for top in tops for folder in source.folders]


def _spelled(top: Path, below: str) -> Path:
    """A folder below another one as it is on the disk, where letters differ from those of its usual name."""
    folder = top
    for part in Path(below).parts:
        alike = [] if os.path.exists(folder / part) else _entries(folder)
        folder = min((path for path in alike if path.name.lower() == part.lower()), default=folder / part)
    return folder


def _find(source: Source, folders: list[Path]) -> tuple[Path, ...]:
    for folder in folders:
        files = _files(folder)
        for layout in source.layouts:
            if all(_key(stem) in files for stem in layout):
                return tuple(files[_key(stem)] for stem in layout)
    return ()


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by the keys of their names; of two with one key, the plainer one."""
    found: dict[str, Path] = {}
    for path in sorted(_entries(folder), key=_plainness):
        if os.path.isfile(path):
            found.setdefault(_key(path.name), path)
    return found


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it is not there, or cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _plainness(path: Path) -> tuple[int, int, str]:
    """Before packed files, plain ones; before names that somebody has changed, those of the publisher."""
    suffix = path.suffix.lower()
    packed = SUFFIXES.index(suffix) if suffix in SUFFIXES else 0
    return packed, path.name.count("."), path.name.swapcase()


def _key(name: str) -> str:
    """The words of a file's name, without what says how it is packed."""
    lower = name.lower()
    for suffix in SUFFIXES[1:]:
        lower = lower.removesuffix(suffix)
    return "-".join(filter(None, re.split(r"[-._ ]+", lower)))


def _refuse_alike(name: str, source: Source, top: Path) -> None:
    """Refuse a folder that somebody named for its data, if it seems to hold the set under other names."""
    # Short ones, such as train, tell nothing of what a file holds.
    keys = {key for layout in source.layouts for stem in layout if len(key := _key(stem)) > 9}
    alike = []
    for folder in dict.fromkeys(_folders(source, [top])):
        for path in _entries(folder):
            key, is_folder = _key(path.name), os.path.isdir(path)
            if key in keys and not is_folder:
                continue
            close = bool(difflib.get_close_matches(key, keys, 1, 0.8))
            part = any(key.startswith(whole) or (len(key) > 9 and whole.startswith(key)) for whole in keys)
            if close or part or (not is_folder and _titled(key) == name):
                alike.append(str(path))
    if alike:
        some = ", ".join(sorted(alike)[:6]) + (", …" if len(alike) > 6 else "")
        raise DataError(
            f"{top} was named for the data and has no whole {name}: there is {some}, and expected is "
            f"{_expected(source)}. Rename or unpack what is there; or leave that folder out, to download the "
            "data"
        )


def _titled(key: str) -> str:
    """The data set that a file's name tells of, if any: ``mnist-train-csv``, ``cifar-10-python-tar``."""
    told = [
        (len(title), name)
        for name, source in SOURCES.items()
        for title in (source.folders[0], source.folders[0].replace("-", ""))
        if f"-{title}-" in f"-{key}-"
    ]
    return max(told, default=(0, ""))[1]


def _expected(source: Source) -> str:
    return f"{', '.join(source.layouts[0])} (plain, {', '.join(SUFFIXES[1:])})"


def _nowhere(name: str, source: Source, folders: list[Path]) -> str:
    looked = []
    for folder in folders:
        lacking, files = "", _files(folder)
        for layout in source.layouts:
            missing = [stem for stem in layout if _key(stem) not in files]
            if len(missing) < len(layout):
                lacking = f" (which lacks {', '.join(missing)})"
        looked.append(f"{folder}{lacking}")
    return f"data set {name} was looked for in {', '.join(looked)} and not found"


def _download(source: Source, target: Path, progress: bool) -> None:
    for file, checksum in source.files:
        # Only checked files have their name, so one that is there need not be fetched again.
        if (target / file).is_file():
            continue
        with _temporary(target) as part:
            url = source.base + file
            try:
                _fetch(url, checksum, part, progress)
            except (OSError, http.client.HTTPException) as error:
                # URLError hides the operating system's words in its reason.
                if isinstance(error, urllib.error.HTTPError):
                    error.close()  # it is an answer too, with a connection
                why = error.reason if type(error) is urllib.error.URLError else error
                raise OSError(f"{url}: {why}") from error
            if source.archive:
                _unpack(part, source.layouts[0], target)
            else:
                publish(part, target / file)


def _fetch(url: str, checksum: str, part: Path, progress: bool) -> None:
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "qsparse"})
    with contextlib.ExitStack() as stack:
        answer = stack.enter_context(urllib.request.urlopen(request, timeout=TIMEOUT))
        out = stack.enter_context(part.open("wb"))
        length = answer.headers.get("Content-Length", "")
        bar = None
        if progress:
            from tqdm import tqdm

            total = int(length) if length.isdigit() else None
            bar = stack.enter_context(
                tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=url.rpartition("/")[2])
            )
        received = 0
        while block := answer.read(1 << 18):
            out.write(block)
            digest.update(block)
            received += len(block)
            if bar is not None:
                bar.update(len(block))
    if length.isdigit() and received < int(length):
        raise OSError(f"the connection ended after {received} of {length} bytes")
    if digest.hexdigest() != expected:
        raise DataError(
            f"{url} gave a file with {algorithm} {digest.hexdigest()} instead of {expected}: it was thrown "
            "away. Try again, or get the file elsewhere and name its folder: --data-dir DIR or QSPARSE_DATA"
        )


def _unpack(archive: Path, wanted: tuple[str, ...], target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            # Only the last part of the path and only names that are expected: nothing in the archive
            # decides where a file goes.
            file = member.name.rpartition("/")[2]
            content = tar.extractfile(member) if file in wanted else None
            if content is not None:
                with _temporary(target) as part:
                    with content, part.open("wb") as out:
                        shutil.copyfileobj(content, out)
                    publish(part, target / file)


def publish(part: Path, file: Path) -> None:
    """Give a file that is whole its name, and let all read it: temporary ones are their owner's alone."""
    part.chmod(0o644)
    part.replace(file)


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove the hidden parts of files that a job left there which was killed more than a day ago."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if part.stat().st_mtime < time.time() - _DAY:
                part.unlink()


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Let one rank of a node at a time download or unpack; the others wait for it."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: every rank then makes its own copy
        yield
        return
    with contextlib.ExitStack() as stack:
        # Temporary names keep a second copy harmless where file systems have no locks, or where the lock is
        # another user's: of such a one reading it is enough, if that is allowed.
        with contextlib.suppress(OSError):
            try:
                file = stack.enter_context(lock.open("a"))
            except PermissionError:
                file = stack.enter_context(lock.open())
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

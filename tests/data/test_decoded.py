"""Pictures as bytes, and the files in the cache that processes map them from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_files import cifar_files

from qsparse.data import Batches, Dataset, Pictures, download, load
from qsparse.data.cache import Arrays, decoded
from qsparse.errors import DataError
from qsparse.seeds import Seed

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("QSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QSPARSE_DATA", raising=False)
    return tmp_path / "cache"


# --- pictures ------------------------------------------------------------------------------------


def some_pictures(n: int = 7, channels: int = 3) -> tuple[Pictures, np.ndarray]:
    """Pictures, and the array that they stand for."""
    raw = RNG.integers(0, 256, (n, channels, 4, 5), dtype=np.uint8)
    table = RNG.normal(size=(channels, 256)).astype(np.float32)
    whole = np.empty(raw.shape, np.float32)
    for at in np.ndindex(raw.shape):
        whole[at] = table[at[1], raw[at]]
    return Pictures(raw, table), whole


def test_pictures_are_an_array_of_floats() -> None:
    pictures, whole = some_pictures()
    assert (pictures.shape, pictures.ndim, pictures.size, len(pictures)) == ((7, 3, 4, 5), 4, 420, 7)
    assert pictures.dtype == np.float32
    indices = np.array([5, 0, 5, 6])
    out = np.full((4, 3, 4, 5), np.nan, np.float32)
    assert pictures.take(indices, out) is out
    for got, wanted in (
        (out, whole[indices]),
        (pictures[indices], whole[indices]),
        (pictures[1:6:2], whole[1:6:2]),
        (pictures[:], whole),
        (np.asarray(pictures), whole),
        (np.asarray(pictures, np.float64), whole.astype(np.float64)),
        *((pictures.every(stride), whole.reshape(-1)[::stride]) for stride in (1, 3, 7, 419, 1000)),
    ):
        assert got.dtype == wanted.dtype
        assert got.tobytes() == wanted.tobytes()
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(pictures, copy=False)


def test_pictures_that_are_none() -> None:
    raw, table = np.zeros((2, 3, 4, 4), np.uint8), np.zeros((3, 256), np.float32)
    for bad in (raw.astype(np.float32), raw[0], raw[:, :, ::2]):
        with pytest.raises(DataError, match="uint8"):
            Pictures(bad, table)
    for bad in (table.astype(np.float64), table[:2], table[:, :255]):
        with pytest.raises(DataError, match=r"give float32 and \(3, 256\)"):
            Pictures(raw, bad)
    with pytest.raises(DataError, match="a slice or by an array"):
        Pictures(raw, table)[0]


def test_a_description_is_that_of_the_floats() -> None:
    """So ranks that read different data are found out as before."""
    raw = RNG.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    table = RNG.normal(size=(3, 256)).astype(np.float32)
    y = RNG.integers(0, 10, 40)
    pictures = Pictures(raw, table)
    compact = Dataset("some", pictures, y, pictures, y, 10, (3, 32, 32)).describe()
    assert compact == Dataset("some", pictures[:], y, pictures[:], y, 10, (3, 32, 32)).describe()
    brighter = Pictures(raw, table + np.float32(0.5))
    assert compact != Dataset("some", pictures, y, brighter, y, 10, (3, 32, 32)).describe()


# --- CIFAR-10 ------------------------------------------------------------------------------------


def test_floats_of_cifar_are_rounded_once(tmp_path: Path) -> None:
    """(byte/255 − mean)/std in float64, rounded once; so from memory and from the mapped file."""
    records = cifar_files(tmp_path / "data")
    mean = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    std = np.array([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    wanted = ((records[:, :, 1:].reshape(-1, 3, 32, 32) / 255 - mean) / std).astype(np.float32)
    for _ in range(2):
        cifar = load("cifar10", tmp_path / "data")
        chosen = Batches(np.arange(100), 16, Seed(1, use="batch")).batch(3)
        assert cifar.train_x[chosen].tobytes() == wanted[chosen].tobytes()
        assert cifar.test_x[:].tobytes() == wanted[100:].tobytes()
        assert cifar.train_y.tolist() == records[:5, :, 0].reshape(-1).tolist()
        assert (cifar.train_y.dtype, cifar.shape) == (np.int64, (3, 32, 32))


def test_real_cifar_is_mapped(data_dir: Path, cache: Path) -> None:
    first = load("cifar10", data_dir)
    (file,) = (cache / "decoded").glob("cifar10-*.bin")
    written = file.stat().st_mtime_ns
    second = load("cifar10", data_dir)
    assert file.stat().st_mtime_ns == written
    assert str(file) in Path("/proc/self/maps").read_text()
    assert first.describe() == second.describe()
    assert 60_000 * 3073 < file.stat().st_size < 60_000 * 3073 + 4096


# --- the files in the cache ----------------------------------------------------------------------


class Source:
    """Files, and a way to decode them that counts how often it was asked."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        self.files = [folder / "a", folder / "b"]
        self.made = 0
        for i, file in enumerate(self.files):
            file.write_bytes(np.random.default_rng(seed + i).bytes(100 + i))

    def decode(self) -> Arrays:
        self.made += 1
        a, b = (np.frombuffer(file.read_bytes(), np.uint8).copy() for file in self.files)
        return {"x": a[:100].reshape(2, 5, 10), "none": a[:0], "y": b}

    def load(self) -> Arrays:
        return decoded("some", self.files, self.decode)

    def check(self) -> None:
        """What comes is what the files say now."""
        made = self.made
        wanted = self.decode()
        self.made = made
        found = self.load()
        assert list(found) == list(wanted)
        for name, array in found.items():
            assert array.dtype == np.uint8
            assert np.array_equal(array, wanted[name])
            assert not array.flags.writeable

    @property
    def kept(self) -> Path:
        """The only file that is kept."""
        (file,) = (download.cache() / "decoded").glob("*.bin")
        return file


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


def test_data_is_decoded_once(source: Source) -> None:
    for _ in range(3):
        source.check()
    assert source.made == 1
    assert sorted(path.name for path in source.kept.parent.iterdir()) == ["lock", source.kept.name]


def flip(at: int) -> Callable[[bytes], bytes]:
    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    return flipped


@pytest.mark.parametrize(
    "damage",
    [
        flip(3),
        flip(-1),
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data.replace(b'"crc32"', b'"CRC32"'),
        lambda data: data.replace(b"[2, 5, 10]", b"[2, 5, 99]"),
        lambda data: data.replace(b"[2, 5, 10]", b'[2, 5, ""]'),
        lambda data: data.partition(b"{")[0] + b"7\n" + data[-200:],
    ],
)
def test_a_damaged_file_is_made_anew(source: Source, damage: Callable[[bytes], bytes]) -> None:
    source.check()
    whole = source.kept.read_bytes()
    assert damage(whole) != whole
    source.kept.write_bytes(damage(whole))
    source.check()
    assert source.made == 2
    assert source.kept.read_bytes() == whole
    source.check()
    assert source.made == 2


def test_a_file_of_other_sources_is_not_taken(source: Source, tmp_path: Path) -> None:
    source.check()
    mine = source.kept
    whole = mine.read_bytes()
    mine.unlink()
    other = Source(tmp_path / "other", seed=9)
    other.check()
    other.kept.rename(mine)
    source.check()
    assert source.made == 2
    assert mine.read_bytes() == whole


def test_changed_sources_are_read_again(source: Source) -> None:
    source.check()
    source.files[0].write_bytes(bytes(100))
    source.check()
    changed = bytearray(source.files[1].read_bytes())
    changed[50] ^= 1
    status = source.files[1].stat()
    source.files[1].write_bytes(changed)
    os.utime(source.files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    source.check()
    assert source.made == 3


def test_copies_of_a_data_set_share_a_file(source: Source, tmp_path: Path) -> None:
    """A job that unpacks its data into a folder of its own leaves nothing in the cache each time."""
    source.check()
    for job in range(3):
        copy = Source(tmp_path / f"job-{job}")
        os.utime(copy.files[0], ns=(job, job))
        copy.check()
        assert copy.made == 0
    assert source.made == 1
    assert source.kept.exists()


def test_parts_that_killed_jobs_left_are_removed(source: Source, cache: Path) -> None:
    folder = cache / "decoded"
    folder.mkdir(parents=True)
    for name, days in ((".old.part", 1.1), (".new.part", 0.9), ("old.part", 9), (".old.bar", 9)):
        (folder / name).touch()
        then = time.time() - days * 86400
        os.utime(folder / name, (then, then))
    source.load()
    left = {path.name for path in folder.iterdir()} - {"lock"}
    assert left == {".new.part", "old.part", ".old.bar", source.kept.name}


def test_who_reads_a_missing_file_says_so(source: Source) -> None:
    source.files[0].unlink()
    with pytest.raises(FileNotFoundError, match="source/a"):
        source.load()
    assert source.made == 1


def test_a_cache_that_cannot_be_is_no_condition(source: Source, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    source.check()
    source.check()
    assert source.made == 2


ONE_OF_MANY = """
import sys, time
from pathlib import Path
from qsparse.data.cache import decoded
import numpy as np, resource

file, log = map(Path, sys.argv[1:3])
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))

def decode():
    with log.open("a") as out:
        out.write("made ")
    time.sleep(0.5)
    return {"x": np.frombuffer(file.read_bytes(), np.uint8)}

found = decoded("some", [file], decode)["x"]
assert not found.flags.writeable
print(found.tobytes() == file.read_bytes(), "some-" in Path("/proc/self/maps").read_text())
"""


def in_processes(count: int, *args: object) -> list[str]:
    line = [sys.executable, "-W", "error", "-c", ONE_OF_MANY, *map(str, args)]
    started = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    assert all(process.returncode == 0 for process in started)
    return said


def test_one_process_decodes_while_others_wait(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 400)
    assert in_processes(3, tmp_path / "file", tmp_path / "log") == ["True True"] * 3
    assert (tmp_path / "log").read_text() == "made "


def test_a_full_disk_ends_no_run(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 400)
    assert in_processes(1, tmp_path / "file", tmp_path / "log", 50_000) == ["True False"]
    assert (tmp_path / "log").read_text() == "made "
    assert [path.name for path in (cache / "decoded").iterdir()] == ["lock"], "no half of a file stays"


def test_the_header_names_the_sources(source: Source) -> None:
    source.load()
    head = json.loads(source.kept.read_bytes().splitlines()[1])
    assert [[name, size] for name, size, _ in head["sources"]] == [["a", 100], ["b", 101]]
    assert [len(bytes.fromhex(digest)) for _, _, digest in head["sources"]] == [16, 16]

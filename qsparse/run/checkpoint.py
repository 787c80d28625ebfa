"""Checkpoints: what all ranks remember, on disk, so that a killed run can go on as if it had not ended.

A checkpoint is a folder with one file for each rank and a manifest, which rank 0 writes last; the folder
gets its name only then. So a folder with such a name was written whole, and checksums tell whether it still
is. ``docs/checkpoints.md`` has the layout.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qsparse import _version
from qsparse.errors import CheckpointError, QsparseError, SettingError
from qsparse.exchange.collectives import everybodys
from qsparse.files import named_path
from qsparse.run.statefile import read, sync, write
from qsparse.types import State
from qsparse.wire.base import Wire
from qsparse.wrappers import plain_settings

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
#: The name of the setting that holds the version of qsparse.
_VERSION: Final = "qsparse"
_WHOLE: Final = re.compile(r"(\d{6,})-step-(\d+)")
#: The end of the name of a setting that is stored as it was given, before the run had a length.
GIVEN: Final = " as given"
#: The name of a checkpoint that is being written or removed.
_UNDER_WAY: Final = re.compile(rf"\.{_WHOLE.pattern}\.(part|gone)")


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's checkpoints are, how often one is made, and from which the run goes on.

    Args:
        folder: the folder for checkpoints; all ranks see it.
        every: steps from one checkpoint to the next, which is made at the first synchronization after so
            many; None makes no checkpoints.
        keep: how many checkpoints stay.
        resume: ``none``, ``auto`` (the newest whole one of the folder, or none), or a path: a checkpoint,
            a folder of checkpoints, or the ``--out`` of a run.
    """

    folder: Path
    every: int | None = None
    keep: int = 3
    resume: str = "none"

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"checkpoints: {name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Found:
    """A whole checkpoint.

    Attributes:
        folder: the folder of the checkpoint.
        manifest: the contents of its manifest.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The step after which the checkpoint was made."""
        return int(self.manifest["step"])

    @property
    def ranks(self) -> int:
        """The number of ranks that made the checkpoint."""
        return int(self.manifest["ranks"])

    @property
    def version(self) -> str:
        """The version of qsparse that made the checkpoint."""
        return str(self.manifest["settings"].get("qsparse", _version.__version__))

    def state(self, rank: int) -> State:
        """The state of a rank; arrays are read when they are used.

        Raises:
            CheckpointError: the file is gone, or cannot be read.
        """
        try:
            return read(self.folder / file_of(rank))
        except FileNotFoundError:
            raise CheckpointError(
                f"the checkpoint {self.folder} was there a moment ago and is gone: another job removes older "
                "checkpoints there (--keep); copy the one to go on from elsewhere, and resume from the copy"
            ) from None
        except OSError as error:
            raise CheckpointError(f"the checkpoint {self.folder} cannot be read: {error.strerror}") from None

    @contextlib.contextmanager
    def understood(self) -> Iterator[None]:
        """Explain errors in the block if another version of qsparse has written the checkpoint.

        Raises:
            CheckpointError: in place of an error that an unexpected state causes.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if self.version == _version.__version__ or isinstance(error, QsparseError):
                raise
            raise CheckpointError(
                f"the checkpoint {self.folder} was made by qsparse {self.version}, and qsparse "
                f"{_version.__version__} does not find in it what it needs ({type(error).__name__}: "
                f"{error}): go on with the version that it was made by"
            ) from error

    def compare(self, settings: Mapping[str, Any], free: tuple[str, ...] = ()) -> None:
        """Refuse to go on with settings that would have made another run; those in ``free`` may differ.

        The version of qsparse may differ, too, and then also settings that only one of the two versions has.

        Raises:
            CheckpointError: with both spellings.
        """
        theirs, ours = self.manifest["settings"], json.loads(json.dumps(settings))
        wrong = _differences(theirs, ours, free)
        axes = {name.removesuffix(GIVEN) for name in theirs if name.endswith(GIVEN)} - set(free)
        if any(
            theirs[axis] != ours.get(axis) and theirs[axis + GIVEN] == ours.get(axis + GIVEN) for axis in axes
        ):
            wrong.append("schedules without a length of their own go by the length of the run")
        if wrong:
            raise CheckpointError(
                f"the checkpoint {self.folder} is of another run: {'; '.join(wrong)}; go on with the "
                "settings that it was made with, or start afresh with resume none"
            )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], free: Iterable[str]) -> list[str]:
    theirs = plain_settings(theirs, ours)
    names = theirs.keys() | ours.keys()
    if theirs.get(_VERSION) != ours.get(_VERSION):
        names = theirs.keys() & ours.keys()
    return [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted(names - {_VERSION, *free})
        if theirs.get(name) != ours.get(name)
    ]


def _strangeness(folder: Path, settings: Mapping[str, Any], free: Iterable[str]) -> str:
    """How a checkpoint differs from those of a run with these settings; empty where it does not differ."""
    try:
        theirs, ours = _manifest(folder)["settings"], json.loads(json.dumps(settings))
    except CheckpointError as error:
        return f"{MANIFEST} {error}"
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror}"
    # An axis that depends on the length of the run is compared as it was given.
    given = {name.removesuffix(GIVEN) for name in theirs.keys() & ours.keys() if name.endswith(GIVEN)}
    return "; ".join(_differences(theirs, ours, {*free, *given}))


def file_of(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:04d}.safetensors"


def save(
    wire: Wire,
    folder: Path,
    step: int,
    make: Callable[[], State],
    settings: Mapping[str, Any],
    keep: int = 3,
    free: tuple[str, ...] = (),
    claim: Callable[[], None] | None = None,
) -> Path:
    """Write a checkpoint of all ranks, and then remove those older than the newest ``keep``; collective.

    Checkpoints of another run, which had other settings, are neither counted nor removed; rank 0 warns of
    them.

    Args:
        wire: the wire between the ranks.
        folder: the folder for checkpoints; made if missing.
        step: the step after which all ranks stand.
        make: returns what this rank remembers.
        settings: the settings of the run; a run that goes on from the checkpoint must have the same.
        keep: how many checkpoints of this run stay.
        free: settings that may differ between checkpoints of one run.
        claim: called on rank 0 before anything is written or removed; raises CheckpointError where the folder
            belongs to another job.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: on all ranks, if one could not write its share. All still stand at one step, and
            the earlier checkpoints are unchanged.
    """

    def write_own(part: Path) -> dict[str, Any]:
        path = part / file_of(wire.rank)
        write(path, make())
        return {"bytes": path.stat().st_size, "blake2b": _digest(path)}

    def finish(part: Path, entries: list[Any]) -> None:
        files = {file_of(rank): entry for rank, entry in enumerate(entries)}
        manifest = {
            "format": FORMAT, "step": step, "ranks": wire.size, "settings": settings, "files": files,
        }  # fmt: skip
        _finish(part, manifest, keep, free)

    return _together(wire, folder, step, write_own, finish, claim)


def _together(
    wire: Wire,
    folder: Path,
    step: int,
    write: Callable[[Path], Any],
    finish: Callable[[Path, list[Any]], Any],
    claim: Callable[[], None] | None = None,
) -> Path:
    """Let rank 0 make a folder, all ranks write in it, and rank 0 finish with what they return."""
    part = folder

    def told(make: Callable[[], Any]) -> list[Any]:
        failure: CheckpointError | None = None

        def guarded() -> Any:
            nonlocal failure
            try:
                with _explained(folder, step):
                    return [make(), None]
            except CheckpointError as error:
                failure = error
                return [None, str(error)]

        answers = everybodys(wire, guarded, step)
        if failure is not None:
            raise failure
        for rank, (_, reason) in enumerate(answers):
            if reason is not None:
                raise CheckpointError(f"rank {rank}: {reason}")
        return [answer for answer, _ in answers]

    def write_own() -> Any:
        if not part.is_dir():
            raise CheckpointError(
                f"rank {wire.rank} does not see {part}, which rank 0 has just made: checkpoints need a "
                "folder that the machines of all ranks share"
            )
        return write(part)

    def begin() -> str:
        if claim is not None:
            claim()
        return _begin(folder, step)

    try:
        part = folder / told(lambda: begin() if wire.rank == 0 else None)[0]
        entries = told(write_own)
        told(lambda: finish(part, entries) if wire.rank == 0 else None)
    except BaseException:
        # All ranks have answered, so none writes there any more.
        if wire.rank == 0 and part != folder:
            shutil.rmtree(part, ignore_errors=True)
        raise
    return _whole_name(part)


def try_out(wire: Wire, folder: Path) -> None:
    """Check that all ranks can write checkpoints to a folder, before the run begins; collective.

    Raises:
        CheckpointError: on all ranks, if one of them cannot.
    """

    def finish(part: Path, _: list[Any]) -> None:
        sync(part)
        _remove(part, part.with_suffix(".gone"))

    _together(wire, folder, 0, lambda part: write(part / file_of(wire.rank), {}), finish)


def find(wire: Wire, where: Checkpoints, settings: Mapping[str, Any] | None = None) -> Found | None:
    """Find the checkpoint to go on from, which is whole for all ranks; collective.

    A warning names a newer one that is damaged, and a checkpoint of another version of qsparse.

    Args:
        wire: the wire between the ranks.
        where: where to look.
        settings: if given, and if some checkpoints there were made with them, only these count.

    Raises:
        CheckpointError: a path names a checkpoint that does not exist, or none of the existing ones is whole:
            a new start would remove them, one by one.
    """
    if where.resume == "none":
        return None
    passed = []
    found = None
    # The names that rank 0 sees, so that all ranks check the same checkpoints.
    seen = everybodys(
        wire, lambda: [str(path) for path in _candidates(where, settings)] if wire.rank == 0 else None
    )
    for path in map(Path, seen[0]):
        checks = everybodys(wire, functools.partial(_check, path, wire))
        flaw = next((each["flaw"] for each in checks if each["flaw"]), None)
        if flaw is None:
            # The manifest that rank 0 has read, because the file may be gone by now.
            found = Found(path, checks[0]["manifest"])
            break
        passed.append(f"{path} {flaw}")
    if passed and found is None:
        looked = where.folder if where.resume == "auto" else where.resume
        raise CheckpointError(
            f"no checkpoint of {looked} is whole: {'; '.join(passed)}; make one readable, or move them away "
            "and start afresh"
        )
    if passed and wire.rank == 0:
        warnings.warn(
            f"damaged checkpoint: {'; '.join(passed)}; going on from {found and found.folder}",
            RuntimeWarning,
            stacklevel=2,
        )
    if found is not None and found.version != _version.__version__ and wire.rank == 0:
        warnings.warn(
            f"the checkpoint {found.folder} was made by qsparse {found.version}, and qsparse "
            f"{_version.__version__} goes on from it: another version may round otherwise, and then the "
            "result is not bit for bit that of one version",
            RuntimeWarning,
            stacklevel=2,
        )
    return found


def _begin(folder: Path, step: int) -> str:
    """Make the folder in which a checkpoint is written, under a name that does not count yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if _UNDER_WAY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    # A folder that cannot be removed, because a dead machine has it open, keeps its name.
    taken = [path.name.lstrip(".") for path in folder.iterdir()]
    number = 1 + max((int(found[1]) for name in taken if (found := _WHOLE.match(name))), default=0)
    part = folder / f".{number:06d}-step-{step}.part"
    part.mkdir()
    return part.name


def _finish(part: Path, manifest: dict[str, Any], keep: int, free: tuple[str, ...]) -> None:
    """Write the manifest, give the folder its name, and remove old checkpoints."""
    text = json.dumps(manifest | {"blake2b": _digest_of(manifest)}, indent=1)
    with (part / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync(part)
    part.rename(_whole_name(part))
    sync(part.parent)
    strange = {path: _strangeness(path, manifest["settings"], free) for path in _named(part.parent)}
    for old in [path for path, why in strange.items() if not why][keep:]:
        with contextlib.suppress(OSError):
            _remove(old, old.with_name(f".{old.name}.gone"))
    others = [(path, why) for path, why in strange.items() if why]
    if others:
        # The words do not change with every checkpoint, so that the warning is shown once.
        warnings.warn(
            f"{part.parent} has checkpoints of another run, which are left alone: {others[0][0].name} "
            f"({others[0][1]}); give each run a folder of its own",
            RuntimeWarning,
            stacklevel=2,
        )


def _whole_name(part: Path) -> Path:
    """The name of the folder when it is complete."""
    return part.with_name(part.name.removeprefix(".").removesuffix(".part"))


def _remove(folder: Path, gone: Path) -> None:
    """Rename a checkpoint and remove it, so that a half removed one does not look like a damaged one."""
    folder.rename(gone)
    shutil.rmtree(gone)


def _candidates(where: Checkpoints, settings: Mapping[str, Any] | None) -> list[Path]:
    """The checkpoints that a run may go on from, the newest first."""
    if where.resume == "auto":
        every = _named(where.folder)
        own = [path for path in every if settings is not None and not _strangeness(path, settings, ())]
        return own or every
    path = named_path(where.resume)
    if (path / MANIFEST).exists() or (path.is_dir() and _WHOLE.fullmatch(path.name)):
        return [path]
    for folder in (path, path / where.folder.name):
        if named := _named(folder):
            return named
    raise CheckpointError(
        f"there is no checkpoint in {path}: name a checkpoint, the folder of them, or the --out of a run"
    )


def _named(folder: Path) -> list[Path]:
    """The folders with the name of a checkpoint, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _WHOLE.fullmatch(p.name)), key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _check(folder: Path, wire: Wire) -> dict[str, Any]:
    """The manifest, and the flaw of the files that this rank needs, None where they are whole."""
    try:
        manifest = _manifest(folder)
        flaw = _flaw(folder, manifest, wire)
    except CheckpointError as error:
        return {"manifest": None, "flaw": str(error)}
    except OSError as error:
        return {"manifest": None, "flaw": f"cannot be read: {error.strerror}: {error.filename}"}
    return {"manifest": manifest if wire.rank == 0 else None, "flaw": flaw}


def _flaw(folder: Path, manifest: Mapping[str, Any], wire: Wire) -> str | None:
    """The flaw of the files that this rank needs: its own, or all if the number of ranks has changed."""
    count = manifest["ranks"]
    for rank in [wire.rank] if count == wire.size else range(count):
        name = file_of(rank)
        path, entry = folder / name, manifest["files"][name]
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"is torn: {name} has {size} bytes, not {entry['bytes']}"
        if _digest(path) != entry["blake2b"]:
            return f"is damaged: {name} does not match its checksum"
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("blake2b") != _digest_of(manifest):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"is damaged: {MANIFEST} does not match its checksum") from None
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"has format {manifest['format']}, and this version reads {FORMAT}")
    found: dict[str, Any] = manifest
    return found


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=32).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


@contextlib.contextmanager
def _explained(folder: Path, step: int) -> Iterator[None]:
    """Explain an error of the system in the block."""
    try:
        yield
    except OSError as error:
        whole = _named_or_none(folder)
        left = f"the newest, {whole[0].name}, is as it was" if whole else "none was there before"
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} to {folder}: {error.strerror}; checkpoints "
            f"before it have lost nothing ({left}): make room there, or name another folder, and resume"
        ) from None


def _named_or_none(folder: Path) -> list[Path]:
    try:
        return _named(folder)
    except OSError:
        return []

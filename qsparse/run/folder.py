"""A folder of results belongs to one job at a time, from before its first write until it ends.

Rank 0 holds a lock of the kernel on a file in it, so a folder is free again as soon as its job is gone,
however it ended. Network file systems pass such locks on to other machines. Where there are no locks, the
file says which process has the folder: one of this machine that is alive, or one of another machine that has
touched the file lately.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Final

from qsparse.errors import SettingError

#: The name of the file in a folder that is in use.
LOCK: Final = ".lock"
#: Seconds in which a job that was killed may still be ending.
_PATIENCE: Final = 3.0
#: Without locks: seconds between two touches of the file, and seconds after which the job counts as dead.
_BEAT, _SILENCE = 10.0, 60.0
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
#: Variables in which schedulers say which job this is.
_JOBS: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "JOB_ID")


class Hold:
    """A folder that is held, until `release`.

    Args:
        folder: made if missing, and removed again by `release` if it is still empty.
        remedy: what to do where the folder is in use.
        name: the name of the file, for folders in which several jobs may be under way.
        takes_over: whether to take the folder even if this process itself holds it, as where a loop is begun
            again in a notebook.

    Raises:
        SettingError: another job has the folder; the error names its machine, its process and its start.
        OSError: the folder or the file cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        remedy: str = "name another --out",
        name: str = LOCK,
        *,
        takes_over: bool = False,
    ) -> None:
        self.folder = folder
        self._path: Final = folder / name
        if takes_over:
            for other in [each for each in _held if each._path.absolute() == self._path.absolute()]:
                other.release()
        self._made = [each for each in (folder, *folder.parents) if not each.exists()]
        self._stop = threading.Event()
        self._handle: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle, locked = self._take(remedy)
            self._write()
        except BaseException:
            self.release()
            raise
        self._owner = os.getpid()
        _held.add(self)
        if not locked:
            threading.Thread(target=self._beat, daemon=True, name="lock").start()

    def release(self) -> None:
        """Release the folder, so that others can have it."""
        self._stop.set()
        handle, self._handle = self._handle, None
        _held.discard(self)
        if handle is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()  # while locked: a job that has opened it sees that it is gone
            with contextlib.suppress(OSError):
                os.close(handle)
        for made in self._made:
            with contextlib.suppress(OSError):  # it is not empty
                made.rmdir()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, remedy: str) -> tuple[int, bool]:
        """The file, and whether it is locked; if it is not, no other job seems to have it."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                locked, taken = _lock(handle)
                if not locked and not taken:
                    taken = _is_fresh(handle)
                # The job that had the lock before may have removed the locked file.
                if not taken and _is_named(handle, self._path):
                    return handle, locked
                if taken and time.monotonic() > deadline:
                    raise SettingError(f"{self.folder} is in use by {_owner_of(handle)}: {remedy}")
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
            if taken:
                time.sleep(0.05)

    def _write(self) -> None:
        assert self._handle is not None
        job = next((os.environ[name] for name in _JOBS if os.environ.get(name)), None)
        text = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "since": time.time()}
        )
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            with contextlib.suppress(OSError, TypeError):
                os.utime(self._handle)  # type: ignore[arg-type]


_held: Final[set[Hold]] = set()


def _let_go() -> None:
    """Close the files in a forked child, which would keep them locked after its parent is gone."""
    for hold in _held:
        if hold._handle is not None:
            os.close(hold._handle)
            hold._handle = None
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _lock(handle: int) -> tuple[bool, bool]:
    """Whether it is locked now, and whether another process has it; neither where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False, True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False, False
    return True, False


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 1000, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_fresh(handle: int) -> bool:
    """Whether, without locks, the contents of the file indicate a job that is alive."""
    found = _read(handle)
    pid, host = found.get("pid"), found.get("host")
    if not isinstance(pid, int) or (pid == os.getpid() and host == socket.gethostname()):
        return False
    if host != socket.gethostname():
        return time.time() - os.fstat(handle).st_mtime < _SILENCE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _owner_of(handle: int) -> str:
    found = _read(handle)
    if not found:
        return "another job"
    process = f"process {found.get('pid')} on host {found.get('host')}"
    who = f"job {found['job']} ({process})" if found.get("job") else process
    since = found.get("since")
    if not isinstance(since, float):
        return who
    return f"{who} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}"

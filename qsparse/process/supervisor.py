"""The parent of a rank: it stays while the rank works, and says how the rank has ended.

A rank that is killed can say nothing, and launchers name a process id or nothing at all. A rank that leaves
by ``os._exit(0)`` in the middle counts as a success for them, and they kill the other ranks before these can
speak. So a rank has a parent of its own: a process that was forked before anything large was loaded, only
waits, and ends as the rank did. `split` makes one for this process, and
``python -m qsparse.process.supervisor COMMAND…`` for any command.

The rank writes marks into a pipe: when others depend on it (it has opened a wire), and when its end is
expected (it has closed its wires, has said farewell, or has said what is wrong).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from typing import Final, NoReturn

from qsparse.process.launchers import die_with_launcher, rank_of

_BEGUN: Final = b"b"
_ENDED: Final = b"e"

#: Signals that are passed to the rank.
_HANDED_ON: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
#: Seconds between two checks whether the rank has ended, whatever signals have come.
_LOOK: Final = 1.0
#: The environment variable of a command with the pipe for marks and the process that may write to it.
_VARIABLE: Final = "QSPARSE_SUPERVISED"

_pipe: int | None = None
_owner = 0


def begun() -> None:
    """Mark that other ranks depend on this process from now on."""
    if supervised():
        _mark(_BEGUN)


def ended() -> None:
    """Mark that the end of this process is expected from now on; may be called from a signal handler."""
    if supervised():
        _mark(_ENDED)


def split() -> None:
    """Fork: the child goes on as this process would have, and the parent stays to say how it ends.

    Call it before there are threads, and before MPI is started. It does nothing in a process that has a
    supervisor, and on systems other than Linux.
    """
    if supervised() or not sys.platform.startswith("linux"):
        return
    read = _fork()
    if read is not None:
        _stay(*read)


def supervised() -> bool:
    """Whether this process has a supervisor."""
    if _pipe is not None and os.getpid() == _owner:
        return True
    pipe, _, owner = os.environ.get(_VARIABLE, "").partition(":")
    if not (pipe.isdecimal() and owner == str(os.getpid())):
        return False
    _own(int(pipe))
    os.set_inheritable(int(pipe), False)
    return True


def _mark(what: bytes) -> None:
    assert _pipe is not None
    with contextlib.suppress(OSError):
        os.write(_pipe, what)


def _own(pipe: int) -> None:
    global _pipe, _owner
    _pipe, _owner = pipe, os.getpid()
    os.set_blocking(pipe, False)  # a rank never waits for its supervisor


def _fork() -> tuple[int, int] | None:
    """In the parent, the child's id and the pipe with its marks; None in the child."""
    read, write = os.pipe()
    # Signals are blocked before the fork, so that none is lost; the parent takes them one by one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_HANDED_ON, signal.SIGCHLD})
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    os.close(read)
    die_with_launcher()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _own(write)
    return None


def _stay(child: int, read: int) -> NoReturn:
    """Wait for the rank, say how it has ended, and end likewise."""
    die_with_launcher()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    launcher = os.getppid()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        # With a limit of time: if a signal were lost, the job would wait for this process.
        told = signal.sigtimedwait({*_HANDED_ON, signal.SIGCHLD}, _LOOK)
        # Signals of launchers, and of terminals (0), reach all processes of a rank anyway.
        if told is not None and told.si_signo != signal.SIGCHLD and told.si_pid not in (launcher, 0):
            os.kill(child, told.si_signo)
    os.set_blocking(read, False)
    last = b""
    with contextlib.suppress(BlockingIOError):  # a process that the rank has started may hold the pipe
        while marks := os.read(read, 4096):
            last = marks[-1:]
    how = verdict(status, last)
    if how:
        with contextlib.suppress(OSError):
            os.write(2, f"[rank {rank_of(os.environ)}] {how}\n".encode())
    if os.WIFSIGNALED(status):
        _end_by(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status) or (1 if how else 0))


def verdict(status: int, last: bytes) -> str:
    """What is said of a rank that has ended; an empty text where the end was expected.

    Args:
        status: as `os.waitpid` returns it.
        last: the last mark of the rank.

    >>> verdict(15, b"b")
    'was ended by SIGTERM: the job cannot go on without it'
    >>> verdict(0, b"b").partition(",")[0]
    'left with status 0 before the run had ended'
    >>> verdict(0, b"e"), verdict(2 << 8, b"")
    ('', '')
    """
    if last == _ENDED:
        return ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        why = ", which the system also sends where memory is short (see dmesg)" if name == "SIGKILL" else ""
        return f"was ended by {name}{why}: the job cannot go on without it"
    if last == _BEGUN:
        return (
            f"left with status {os.WEXITSTATUS(status)} before the run had ended, without a word "
            "(os._exit?): the job cannot go on without it"
        )
    return ""


def _end_by(number: int) -> NoReturn:
    """End as the rank did, so that the launcher sees the same."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def main(command: list[str]) -> NoReturn:
    """Run a command under a supervisor."""
    if not command:
        sys.stderr.write("usage: python -m qsparse.process.supervisor COMMAND...\n")
        os._exit(2)
    if sys.platform.startswith("linux"):
        read = _fork()
        if read is not None:
            _stay(*read)
        assert _pipe is not None
        os.set_inheritable(_pipe, True)
        os.environ[_VARIABLE] = f"{_pipe}:{os.getpid()}"
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])

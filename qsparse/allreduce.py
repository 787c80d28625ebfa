"""A compressed allreduce for anybody's mpi4py code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from qsparse import _version, promises
from qsparse.compressors.base import Compressor
from qsparse.errors import SettingError
from qsparse.exchange import AllGather
from qsparse.exchange.collectives import agree
from qsparse.kernels import threads as kernel_threads
from qsparse.ledger import Ledger
from qsparse.link import Link, Receiver, Sender
from qsparse.memory import Draft, ErrorFeedback, Memory
from qsparse.payload import Payload
from qsparse.registry import build
from qsparse.rounds.warming import warm_link
from qsparse.seeds import Seed
from qsparse.types import State
from qsparse.wire.base import Wire


class CompressedAllreduce:
    """Mean or sum of one array over the ranks of a communicator, through compressed messages.

    Every rank gets the same bits. One object serves one array: its memory keeps what was not said
    and says it in later calls.

    Args:
        comm: an mpi4py communicator (it is duplicated, once for all objects on it), or a `Wire`.
        compressor: a compressor or its text, e.g. ``"topk(ratio=0.01) >> sign"``.
        memory: a memory or its text.
        op: ``"mean"`` or ``"sum"``; the same on all ranks.
        seed: of the random parts; the same on all ranks.
        threads: how many of this process work on a long array, for all that it compresses; as before
            unless given. Results do not depend on it.

    Raises:
        SettingError: an op that is neither, or a part that cannot be made; RankError on the other ranks.
        DisagreementError: the ranks were given different ones, or have different versions of qsparse.

    >>> from mpi4py import MPI
    >>> allreduce = CompressedAllreduce(MPI.COMM_SELF, "topk(k=1)", "errorfeedback")
    >>> x = np.array([1.0, -2.0, 0.5], np.float32)
    >>> allreduce(x), allreduce(np.zeros(3, np.float32))  # the second call says what the first kept
    (array([ 0., -2.,  0.], dtype=float32), array([1., 0., 0.], dtype=float32))
    """

    def __init__(
        self,
        comm: Any,
        compressor: Compressor | str = "topk(ratio=0.01) >> sign",
        memory: Memory | str = ErrorFeedback(),
        *,
        op: str = "mean",
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        own: Any = None
        if not isinstance(comm, Wire):
            from qsparse.wire.mpi import MpiWire

            comm = own = MpiWire(comm)
        self.wire: Wire = comm

        def prepare() -> tuple[Link, Mapping[str, Any]]:
            if op not in ("mean", "sum"):
                raise SettingError(f"op must be 'mean' or 'sum', not {op!r}")
            if threads is not None:
                kernel_threads.use(threads)
            link = Link(
                build(compressor, "compressor") if isinstance(compressor, str) else compressor,
                build(memory, "memory") if isinstance(memory, str) else memory,
            )
            return link, {"qsparse": _version.__version__, "link": link.spelling(), "op": op, "seed": seed}

        self.op = op
        try:
            self.link = agree(self.wire, prepare, "CompressedAllreduce()")
        except BaseException:
            if own is not None:
                own.leave()
            raise
        self.ledger: Ledger = self.wire.ledger
        self.calls = 0
        self._seed = Seed(seed, rank=self.wire.rank, use="up")
        self._ends: tuple[Sender, Receiver] | None = None
        #: Of the array that is served, from the first call on.
        self._shape: tuple[int, ...] = ()
        self._agreed = False

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Reduce x over all ranks; collective.

        Args:
            x: a plain NumPy array (or a `numpy.memmap`), float32 or float64 in the byte order of the machine,
                contiguous, of any shape; the same shape in every call and on all ranks.
            out: where the result goes, like x, and may overlap it; x itself unless given.

        Raises:
            SettingError: an array that does not fit; RankError on the other ranks.
            NotFinite: NaN or infinity in x; RankError on the other ranks.
            DisagreementError: the ranks have different arrays, compressors, memories, ops or seeds, or
                went on from different calls.
        """
        out = x if out is None else out
        if self._ends is None or not self._agreed:
            self._ends = agree(
                self.wire, lambda: self._open(x, out), "the first call of a CompressedAllreduce"
            )
            self._shape, self._agreed = x.shape, True
        sender, receiver = self._ends
        drafts: list[Draft] = []
        self.calls += 1

        def speak() -> Payload:
            self._check(x, out)
            with self.ledger.timed("encode", x.size):
                drafts.append(sender.draft(x.reshape(-1), self._seed.at(step=self.calls)))
            return drafts[0].payload

        with self.ledger.timed("exchange"), self.wire.at(f"call {self.calls} of CompressedAllreduce"):
            payloads = AllGather().say(self.wire, speak, self.calls)
        with self.ledger.timed("decode", sum(map(len, payloads))):
            # Only now has everybody spoken: a call that failed anywhere leaves the memory as it was.
            sender.commit(drafts[0])
            self.ledger.count_message(drafts[0].payload)
            flat = out.reshape(-1)
            # Formed where it is wanted, as another pass over memory would take as long as the decoding; but
            # not where x lies, which is still there after an error.
            total = receiver.merge(payloads, None if np.may_share_memory(x, out) else flat)
            if total is not flat:
                np.copyto(flat, total)
        return out

    def state_dict(self) -> State:
        """What must be saved so that nothing unsaid is lost: arrays, numbers and texts of this rank."""
        state = self._settings() | {"calls": self.calls}
        if self._ends is None:
            return state
        state |= self._size_and_type(self._ends[1].like) | {"shape": str(self._shape)}
        for prefix, memory in _memories(self._ends):
            state |= {prefix + name: copy.deepcopy(value) for name, value in memory.items()}
        return state

    def load_state_dict(self, state: State, like: np.ndarray) -> None:
        """Go on from a saved state; on every rank.

        Args:
            state: what `state_dict` returned on this rank, of an object made like this one.
            like: an array of the shape and type that is reduced.

        Raises:
            SettingError: the state is of another array or object; this one is as it was.
        """
        like, calls = np.asarray(like), _plain(state.get("calls"))
        here = self._settings()
        # Without a call there was no array yet, and nothing is remembered.
        if calls != 0:
            here |= self._size_and_type(like)
        if "shape" in state:  # earlier versions did not say it
            here["shape"] = str(like.shape)
        wrong = [
            f"{name} is {_plain(state[name])!r} there and {value!r} here"
            if name in state
            else f"no {name} there"
            for name, value in here.items()
            if name not in state or _plain(state[name]) != value
        ]
        if not isinstance(calls, int) or calls < 0:
            wrong.append(f"calls is {calls!r} there")
        _refuse(wrong)
        # Filled before it is taken, so that a state that does not fit leaves everything as it was.
        ends = None if calls == 0 else self._filled(self._links(like), state)
        self._ends, self._shape, self.calls = ends, like.shape, calls
        # The other ranks may have loaded the state of another call.
        self._agreed = False

    def close(self) -> None:
        """Free the communicator; collective."""
        self.wire.close()

    def _open(self, x: np.ndarray, out: np.ndarray) -> tuple[tuple[Sender, Receiver], Mapping[str, Any]]:
        self._check(x, out)
        self.link.compressor.check(x.size)
        if self._ends is None:
            warm_link(self.link, np.zeros(x.size, x.dtype), self.wire.rank)
            promises.warn([("", self.link.compressor, self.link.memory)], x.size, self.wire.rank)
        array = self._size_and_type(x) | {"shape": x.shape}
        return self._ends or self._links(x), self._settings() | array | {"calls": self.calls}

    def _settings(self) -> dict[str, Any]:
        """What is equal on all ranks, and where a state was saved and where it is loaded."""
        return {
            "link": self.link.spelling(),
            "op": self.op,
            "seed": self._seed.run,
            "ranks": self.wire.size,
        }

    def _size_and_type(self, x: np.ndarray) -> dict[str, Any]:
        return {"elements": x.size, "type": str(x.dtype)}

    def _links(self, x: np.ndarray) -> tuple[Sender, Receiver]:
        start = np.zeros(x.size, x.dtype)
        senders = self.wire.size if self.op == "mean" else 1
        return Sender(self.link, start), Receiver(self.link, start, senders)

    def _filled(self, ends: tuple[Sender, Receiver], state: State) -> tuple[Sender, Receiver]:
        """New ends with the saved memory in them."""
        ours = {prefix + name for prefix, memory in _memories(ends) for name in memory}
        theirs = {name for name in state if name.startswith(("sender.", "receiver."))}
        wrong = [f"no {name} there" for name in sorted(ours - theirs)]
        wrong += [f"no {name} here" for name in sorted(theirs - ours)]
        _refuse(wrong)
        for prefix, memory in _memories(ends):
            for name, value in memory.items():
                saved = state[prefix + name]
                if not isinstance(value, np.ndarray):
                    memory[name] = copy.deepcopy(_plain(saved))
                elif _form(saved) == _form(value):
                    np.copyto(value, saved)
                else:
                    wrong.append(f"{prefix}{name} is {_form(saved)} there and {_form(value)} here")
        _refuse(wrong)
        return ends

    def _check(self, x: np.ndarray, out: np.ndarray) -> None:
        for name, array in (("x", x), ("out", out)):
            _refuse_array(name, array)
        if out.shape != x.shape or out.dtype != x.dtype:
            raise SettingError(f"out is {out.dtype}{out.shape} and x {x.dtype}{x.shape}: they must be alike")
        if not out.flags.writeable:
            where = "x is read-only, give out=" if out is x else "out is read-only"
            raise SettingError(f"the result has nowhere to go: {where}")
        if self._ends is not None:
            dtype = self._ends[1].like.dtype
            if (x.shape, x.dtype) != (self._shape, dtype):
                raise SettingError(
                    f"this allreduce serves arrays of {dtype}{self._shape}, and was called with "
                    f"{x.dtype}{x.shape}: make one object for each array"
                )


def _refuse_array(name: str, array: Any) -> None:
    """Refuse what is no plain array of floats: other kinds of arrays mean more than their memory says."""
    if isinstance(array, np.ma.MaskedArray):
        raise SettingError(
            f"{name} is a masked array, and what lies under its mask would be sent: pass {name}.filled(0), "
            f"or {name}.data if it has a meaning"
        )
    kind = type(array)
    # A memmap is an array whose memory is a file; other subclasses change what an array does.
    if isinstance(array, np.ndarray) and kind not in (np.ndarray, np.memmap):
        raise SettingError(
            f"{name} must be a plain NumPy array, not of type {kind.__module__}.{kind.__qualname__}: pass "
            f"numpy.asarray({name}), which is the same memory"
        )
    wanted = f"{name} must be a float32 or float64 NumPy array, not"
    if not isinstance(array, np.ndarray):
        of_torch = kind.__module__.partition(".")[0] == "torch"
        remedy = f"{name}.numpy()" if of_torch else f"numpy.asarray({name}, numpy.float32)"
        raise SettingError(f"{wanted} of type {kind.__module__}.{kind.__qualname__}: pass {remedy}")
    if array.dtype not in (np.float32, np.float64):
        swapped = array.dtype.newbyteorder() in (np.float32, np.float64)
        order = ", whose bytes are in another order than the machine's" if swapped else ""
        raise SettingError(f"{wanted} one of {array.dtype}{order}: pass its values as float32 (astype)")
    if not array.flags.c_contiguous:
        raise SettingError(f"{name} must be contiguous: pass numpy.ascontiguousarray({name})")
    if not array.flags.aligned:
        raise SettingError(
            f"{name} does not begin at a multiple of {array.itemsize} bytes of memory: pass {name}.copy()"
        )


def _memories(ends: tuple[Sender, Receiver]) -> list[tuple[str, State]]:
    sender, receiver = ends
    return [("sender.", sender.state), ("receiver.", receiver.state)]


def _plain(value: Any) -> Any:
    """A number or text as it was before `numpy.savez` made an array of it."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _form(value: Any) -> str:
    return f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else repr(value)


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise SettingError(
            f"the saved state does not fit: {'; '.join(wrong)}: load it into an allreduce made like the one "
            "that was saved, with like= an array like the one it served"
        )

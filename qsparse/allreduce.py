"""A compressed allreduce for anybody's mpi4py code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qsparse.agreement import agree
from qsparse.compressors.base import Compressor
from qsparse.errors import SettingError
from qsparse.exchange import AllGather
from qsparse.ledger import Ledger
from qsparse.link import Link, Receiver, Sender
from qsparse.memory import Draft, ErrorFeedback, Memory
from qsparse.payload import Payload
from qsparse.registry import build
from qsparse.seeds import Seed
from qsparse.types import State
from qsparse.wire.base import Wire


class CompressedAllreduce:
    """Mean or sum of one array over the ranks of a communicator, through compressed messages.

    Every rank gets the same bits. One object serves one array: its memory keeps what was not said
    and says it in later calls.

    Args:
        comm: an mpi4py communicator (it is duplicated), or a `Wire`.
        compressor: a compressor or its text, e.g. ``"topk(ratio=0.01) >> sign"``.
        memory: a memory or its text.
        seed: of the random parts; the same on all ranks.

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
        seed: int = 0,
    ) -> None:
        self.link = Link(
            build(compressor, "compressor") if isinstance(compressor, str) else compressor,
            build(memory, "memory") if isinstance(memory, str) else memory,
        )
        if isinstance(comm, Wire):
            self.wire = comm
        else:
            from qsparse.wire.mpi import MpiWire

            self.wire = MpiWire(comm)
        self.ledger: Ledger = self.wire.ledger
        self.calls = 0
        self._seed = Seed(seed, rank=self.wire.rank, use="up")
        self._ends: tuple[Sender, Receiver] | None = None

    def __call__(self, x: np.ndarray, out: np.ndarray | None = None, *, op: str = "mean") -> np.ndarray:
        """Reduce x over all ranks; collective.

        Args:
            x: float32 or float64, contiguous, of any shape; the same shape in every call.
            out: where the result goes, like x; x itself unless given.
            op: ``"mean"`` or ``"sum"``.

        Raises:
            SettingError: an array that does not fit; RankError on the other ranks.
            NotFinite: NaN or infinity in x; RankError on the other ranks.
            DisagreementError: the ranks have different arrays, compressors, memories or seeds.
        """
        out = x if out is None else out
        if self._ends is None:
            self._ends = agree(self.wire, lambda: self._open(x, out, op))
        sender, receiver = self._ends
        drafts: list[Draft] = []
        self.calls += 1

        def speak() -> Payload:
            self._check(x, out, op)
            with self.ledger.timed("encode"):
                drafts.append(sender.draft(x.reshape(-1), self._seed.at(step=self.calls)))
            return drafts[0].payload

        with self.ledger.timed("exchange"):
            payloads = AllGather().say(self.wire, speak, self.calls)
        with self.ledger.timed("decode"):
            # Only now has everybody spoken: a call that failed anywhere leaves the memory as it was.
            sender.commit(drafts[0])
            self.ledger.spoke(drafts[0].payload)
            total = receiver.merge(payloads)
            np.divide(total, self.wire.size if op == "mean" else 1, out=out.reshape(-1))
        return out

    def state_dict(self) -> State:
        """What must be saved so that nothing unsaid is lost: arrays and numbers of this rank."""
        if self._ends is None:
            return {"calls": self.calls}
        sender, receiver = self._ends
        state = {f"sender.{name}": value.copy() for name, value in sender.state.items()}
        state |= {f"receiver.{name}": value.copy() for name, value in receiver.state.items()}
        return state | {"calls": self.calls, "n": sender._target.size}

    def load_state_dict(self, state: State, like: np.ndarray) -> None:
        """Go on from a saved state; ``like`` is an array of the shape and type that is reduced."""
        self.calls = state["calls"]
        if "n" not in state:
            return
        if state["n"] != like.size:
            raise SettingError(f"the saved memory has {state['n']} elements and the array {like.size}")
        sender, receiver = self._ends = self._links(like)
        for end, prefix in ((sender, "sender."), (receiver, "receiver.")):
            for name, array in end.state.items():
                np.copyto(array, state[prefix + name])

    def close(self) -> None:
        """Free the communicator; collective."""
        self.wire.close()

    def _open(
        self, x: np.ndarray, out: np.ndarray, op: str
    ) -> tuple[tuple[Sender, Receiver], Mapping[str, Any]]:
        self._check(x, out, op)
        self.link.compressor.check(x.size)
        return self._links(x), {
            "link": self.link.spelling(),
            "elements": x.size,
            "type": str(x.dtype),
            "seed": self._seed.run,
        }

    def _links(self, x: np.ndarray) -> tuple[Sender, Receiver]:
        start = np.zeros(x.size, x.dtype)
        # The receiving end keeps sums, so that a sum has not been divided and multiplied again.
        return Sender(self.link, start), Receiver(self.link, start)

    def _check(self, x: np.ndarray, out: np.ndarray, op: str) -> None:
        if op not in ("mean", "sum"):
            raise SettingError(f"op must be 'mean' or 'sum', not {op!r}")
        for name, array in (("x", x), ("out", out)):
            if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
                what = getattr(array, "dtype", type(array).__name__)
                raise SettingError(f"{name} must be a float32 or float64 NumPy array, not {what}")
            if not array.flags.c_contiguous:
                raise SettingError(f"{name} must be contiguous: pass numpy.ascontiguousarray({name})")
        if out.shape != x.shape or out.dtype != x.dtype:
            raise SettingError(f"out is {out.dtype}{out.shape} and x {x.dtype}{x.shape}: they must be alike")
        if not out.flags.writeable:
            raise SettingError("the result has nowhere to go: x is read-only, give out=")
        if self._ends is not None:
            size, dtype = self._ends[0]._target.size, self._ends[0]._target.dtype
            if size != x.size or dtype != x.dtype:
                raise SettingError(
                    f"this allreduce serves arrays of {size} {dtype} elements, not {x.size} {x.dtype}: "
                    "make one object for each array"
                )

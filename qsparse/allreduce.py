"""A compressed allreduce for anybody's mpi4py code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from qsparse import _version, promises
from qsparse.algorithm import Algorithm
from qsparse.compressors.base import Compressor
from qsparse.errors import CompositionError, SettingError
from qsparse.exchange import AllGather, Exchange
from qsparse.exchange.collectives import agree
from qsparse.kernels import threads as kernel_threads
from qsparse.ledger import Ledger
from qsparse.link import Link
from qsparse.memory import ErrorFeedback, Innovation, Memory, Stateless
from qsparse.planning import Links, exchange_for, links_for
from qsparse.registry import build, spell
from qsparse.rounds.reduction import Reduction
from qsparse.rounds.warming import warm_answers, warm_link
from qsparse.rules import check
from qsparse.seeds import Seed
from qsparse.types import State, Vector
from qsparse.wire.base import Wire

#: The exchange is chosen at the first call.
AUTO: Final = "auto"
#: How a result is said without a compressor.
_EXACT: Final = "exact"


class _Made(NamedTuple):
    """What an object was made with.

    Attributes:
        link: how arrays are said.
        down: how results are said; None: exactly.
        links: for which an exchange is chosen.
        exchange: None where it is chosen.
    """

    link: Link
    down: Link | None
    links: Links
    exchange: Exchange | None


class CompressedAllreduce:
    """Mean or sum of one array over the ranks of a communicator, through compressed messages.

    Every rank gets the same bits. One object serves one array: its memory keeps what was not said
    and says it in later calls. Unless ``down`` is given the result is exact, and the same bits over every
    exchange but ``nodes``, where a machine says the mean of its ranks.

    Args:
        comm: an mpi4py communicator (it is duplicated, once for all objects on it), or a `Wire`.
        compressor: a compressor or its text, e.g. ``"topk(ratio=0.01) >> sign"``.
        memory: a memory or its text.
        down: the compressor of the result, or its text, over every exchange; it is told exactly unless given.
        down_memory: of the result, a memory or its text; error feedback unless given.
        exchange: the pattern of messages, or its text. ``auto``: ``allgather``, or what is predicted to save
            a fifth of a call and 5 ms, with this array, compressor, number of ranks and links
            (`qsparse.planning.exchange_for`); chosen at the first call.
        link_rate, link_latency: of the links for which it is chosen, e.g. ``"100mbit"`` and ``"50us"``; those
            that the wire knows, or 1 Gbit/s and 50 µs, unless given.
        op: ``"mean"`` or ``"sum"``; the same on all ranks.
        seed: of the random parts; the same on all ranks.
        threads: how many of this process work on a long array, for all that it compresses; as before
            unless given. Results do not depend on it.

    Raises:
        SettingError: an op that is neither, or a part that cannot be made; RankError on the other ranks.
        CompositionError: an exchange that does not go with the compressors.
        DisagreementError: the ranks were given different ones, or have different versions of qsparse.

    >>> from mpi4py import MPI
    >>> allreduce = CompressedAllreduce(MPI.COMM_SELF, "topk(k=1)", "errorfeedback")
    >>> x = np.array([1.0, -2.0, 0.5], np.float32)
    >>> allreduce(x), allreduce(np.zeros(3, np.float32))  # the second call says what the first kept
    (array([ 0., -2.,  0.], dtype=float32), array([1., 0., 0.], dtype=float32))

    Three ranks of which each merges a third of the array, and tells the mean by its signs:

    >>> from qsparse.wire.threads import run_threads
    >>> def mean(wire: Wire) -> np.ndarray:
    ...     allreduce = CompressedAllreduce(wire, "float32", "stateless", down="sign", exchange="sharded")
    ...     return allreduce(np.array([1, 2, 3, -3, 0, 6], np.float32) + wire.rank)
    >>> run_threads(3, mean)[0]
    array([ 2.5,  2.5,  3. , -3. ,  4. ,  4. ], dtype=float32)
    """

    def __init__(
        self,
        comm: Any,
        compressor: Compressor | str = "topk(ratio=0.01) >> sign",
        memory: Memory | str = ErrorFeedback(),
        *,
        down: Compressor | str | None = None,
        down_memory: Memory | str | None = None,
        exchange: Exchange | str = AUTO,
        link_rate: str | None = None,
        link_latency: str | float | None = None,
        op: str = "mean",
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        own: Any = None
        if not isinstance(comm, Wire):
            from qsparse.wire.mpi import MpiWire

            comm = own = MpiWire(comm)
        self.wire: Wire = comm

        def prepare() -> tuple[_Made, Mapping[str, Any]]:
            if op not in ("mean", "sum"):
                raise SettingError(f"op must be 'mean' or 'sum', not {op!r}")
            if threads is not None:
                kernel_threads.use(threads)
            made = _Made(
                Link(_part(compressor, "compressor"), _part(memory, "memory")),
                _down(down, down_memory),
                links_for(link_rate, link_latency, self.wire.links),
                None if exchange == AUTO else _part(exchange, "exchange"),
            )
            if made.exchange is not None:
                made = made._replace(exchange=self._fitting(made.exchange, made))
            return made, {
                "qsparse": _version.__version__,
                "link": made.link.spelling(),
                "down": _EXACT if made.down is None else made.down.spelling(),
                "exchange": AUTO if made.exchange is None else spell(made.exchange),
                "op": op,
                "seed": seed,
            }

        self.op = op
        try:
            self._made = agree(self.wire, prepare, "CompressedAllreduce()")
        except BaseException:
            if own is not None:
                own.leave()
            raise
        self.link = self._made.link
        #: The pattern of messages; None until the first call has chosen it.
        self.exchange = self._made.exchange
        self.ledger: Ledger = self.wire.ledger
        self.calls = 0
        self._seed = Seed(seed)
        self._ends: Reduction | None = None
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
            NotFinite: NaN or infinity in x, or a result that has to travel and that float32 cannot hold;
                RankError on the other ranks.
            DisagreementError: the ranks have different arrays, compressors, memories, ops or seeds, or
                went on from different calls.
        """
        out = x if out is None else out
        if self._ends is None or not self._agreed:
            self._ends = agree(
                self.wire, lambda: self._open(x, out), "the first call of a CompressedAllreduce"
            )
            self.exchange, self._shape, self._agreed = self._ends.exchange, x.shape, True
        self.calls += 1

        def bring() -> tuple[Vector, Vector]:
            self._check(x, out)
            return x.reshape(-1), out.reshape(-1)

        with self.wire.at(f"call {self.calls} of CompressedAllreduce"):
            self._ends.meet(bring, self.calls)
        return out

    def state_dict(self) -> State:
        """What must be saved so that nothing unsaid is lost: arrays, numbers and texts of this rank."""
        state = self._settings(self.exchange) | {"calls": self.calls}
        if self._ends is None:
            return state
        state |= self._size_and_type(self._ends.like.dtype, self._ends.size) | {"shape": str(self._shape)}
        for prefix, memory in self._ends.memories():
            state |= {prefix + name: copy.deepcopy(value) for name, value in memory.items()}
        return state

    def load_state_dict(self, state: State, like: np.ndarray) -> None:
        """Go on from a saved state; on every rank. An exchange that was chosen then is kept.

        Args:
            state: what `state_dict` returned on this rank, of an object made like this one.
            like: an array of the shape and type that is reduced.

        Raises:
            SettingError: the state is of another array or object; this one is as it was.
        """
        # Earlier versions knew no other answers and no other exchange.
        state = {"down": _EXACT, "exchange": spell(AllGather()), **state}
        like, calls = np.asarray(like), _plain(state.get("calls"))
        there = str(_plain(state["exchange"]))
        exchange = self._made.exchange
        if exchange is None and there != AUTO:
            exchange = self._fitting(_part(there, "exchange"), self._made)
        here = self._settings(exchange)
        # Without a call there was no array yet, and nothing is remembered.
        if calls != 0:
            here |= self._size_and_type(like.dtype, like.size)
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
        elif calls and exchange is None:
            wrong.append(f"exchange is {there!r} there after {calls} calls")
        _refuse(wrong)
        # Filled before it is taken, so that a state that does not fit leaves everything as it was.
        if calls == 0:
            self._ends, self.exchange = None, self._made.exchange
        else:
            assert exchange is not None
            self._ends = _filled(self._reduction(exchange, np.zeros(like.size, like.dtype)), state)
            self.exchange = exchange
        self._shape, self.calls = like.shape, calls
        # The other ranks may have loaded the state of another call.
        self._agreed = False

    def close(self) -> None:
        """Free the communicator; collective."""
        self.wire.close()

    def _open(self, x: np.ndarray, out: np.ndarray) -> tuple[Reduction, Mapping[str, Any]]:
        self._check(x, out)
        self.link.compressor.check(x.size)
        start, rank = np.zeros(x.size, x.dtype), self.wire.rank
        chooses = self.exchange is None
        # Messages are made to see how long they are: with kernels that one rank has compiled by now.
        warm_link(self.link, start, rank, (lambda: self._choice(start)) if chooses else lambda: None)
        exchange = self._choice(start) if self.exchange is None else self.exchange
        ends = self._ends
        if ends is None:
            ends = self._reduction(exchange, start)
            named = [("up" if self._made.down else "", self.link.compressor, self.link.memory)]
            if (down := self._made.down) is not None:
                named.append(("down", down.compressor, down.memory))
            promises.warn(named, x.size, rank)
        if ends.answers:
            warm_answers(self.link, self._made.down, start, ends.stretches, rank)
        array = self._size_and_type(x.dtype, x.size) | {"shape": x.shape}
        return ends, self._settings(exchange) | array | {"calls": self.calls}

    def _choice(self, like: Vector) -> Exchange:
        """The exchange that is fastest for arrays like this one."""
        made = self._made
        if made.down is None and like.dtype != np.float32:
            return AllGather()  # others would hand on what all have said, and in more hops
        return exchange_for(_row(made), like.size, self.wire.size, links=made.links, own=AllGather())

    def _fitting(self, exchange: Exchange, made: _Made) -> Exchange:
        """The exchange on these ranks, which goes with the links.

        Raises:
            CompositionError, SettingError: it does not.
        """
        found, size = exchange.on(self.wire), self.wire.size
        check(_row(made), found, size)
        if len(found.workers(size)) < size:
            raise CompositionError(f"{spell(found)}: every rank brings an array, so every rank must work")
        return found

    def _settings(self, exchange: Exchange | None) -> dict[str, Any]:
        """What is equal on all ranks, and where a state was saved and where it is loaded."""
        return {
            "link": self.link.spelling(),
            "down": _EXACT if self._made.down is None else self._made.down.spelling(),
            "exchange": AUTO if exchange is None else spell(exchange),
            "op": self.op,
            "seed": self._seed.run,
            "ranks": self.wire.size,
        }

    def _size_and_type(self, dtype: Any, size: int) -> dict[str, Any]:
        return {"elements": size, "type": str(dtype)}

    def _reduction(self, exchange: Exchange, start: Vector) -> Reduction:
        made = self._made
        return Reduction(made.link, made.down, exchange, self.wire, start, self._seed, self.op == "sum")

    def _check(self, x: np.ndarray, out: np.ndarray) -> None:
        for name, array in (("x", x), ("out", out)):
            _refuse_array(name, array)
        if out.shape != x.shape or out.dtype != x.dtype:
            raise SettingError(f"out is {out.dtype}{out.shape} and x {x.dtype}{x.shape}: they must be alike")
        if not out.flags.writeable:
            where = "x is read-only, give out=" if out is x else "out is read-only"
            raise SettingError(f"the result has nowhere to go: {where}")
        if self._ends is not None:
            dtype = self._ends.like.dtype
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


def _filled(ends: Reduction, state: State) -> Reduction:
    """The ends with the saved memory in them."""
    ours = {prefix + name for prefix, memory in ends.memories() for name in memory}
    theirs = {name for name in state if name.startswith(("sender.", "receiver.", "answer.", "home."))}
    wrong = [f"no {name} there" for name in sorted(ours - theirs)]
    wrong += [f"no {name} here" for name in sorted(theirs - ours)]
    _refuse(wrong)
    for prefix, memory in ends.memories():
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


def _part(part: Any, kind: str) -> Any:
    """A part, or that of its text."""
    made = build(part, kind) if isinstance(part, str) else part
    if getattr(made, "kind", None) != kind:
        raise SettingError(f"CompressedAllreduce needs a {kind} or its text, not {part!r}")
    return made


def _down(compressor: Compressor | str | None, memory: Memory | str | None) -> Link | None:
    """How results are said, if not exactly."""
    if compressor is None and memory is not None:
        raise SettingError("down_memory has no effect: give down, the compressor that it goes with")
    if compressor is None:
        return None
    return Link(_part(compressor, "compressor"), _part(memory or ErrorFeedback(), "memory"))


def _row(made: _Made) -> Algorithm:
    """The algorithm whose messages are as long, for which it matters whether a memory adds something."""
    adds = not made.link.memory.claims.adds_nothing
    up = Link(made.link.compressor, Innovation() if adds else Stateless())
    down = None if made.down is None else Link(made.down.compressor, Innovation())
    return Algorithm(up=up, down=down).closed()


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

"""Figures about messages: how much they say, what they leave unsaid, and to which layers they belong.

A rank looks at a message while it is sent, and only at synchronizations that are evaluated. This reads what a
draft holds and changes nothing, so a run is the same, bit for bit, with or without it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qsparse.compressors.body import Reader
from qsparse.compressors.decoding import Piece, accumulate_into, read_body
from qsparse.ledger import Ledger
from qsparse.link import Sender
from qsparse.memory import Draft
from qsparse.payload import Payload
from qsparse.rounds.node import Node
from qsparse.types import Layout, Vector

Counts = npt.NDArray[np.float64]


def layer_bytes(payload: Payload, layout: Layout, said: Vector | None = None) -> tuple[list[float], float]:
    """The wire bytes of a message that belong to each layer, and those that belong to none.

    The bytes of a body for one stretch of the vector are divided among its layers, in proportion to the
    number of entries that are sent of each. Where the stretch is a layer (``blockwise(…, layers=true)``, a
    policy) this is exact. Otherwise it ignores that a position costs more where few entries are sent than
    where many are. The frame's header and the tables of stretches belong to no layer. The sum is
    ``len(payload)``.

    Args:
        payload: the message, with a body.
        layout: the model's layers.
        said: zeros, (n,), to which the vector of the message is added.

    Returns:
        The bytes of each layer in order, and the others.
    """
    edges = np.array([0, *(layer.stop for layer in layout)])
    reader = Reader(payload.body)
    dtype = np.dtype(np.float32) if said is None else said.dtype
    found = np.zeros(len(layout))
    speaking, covered = np.zeros(len(layout)), np.zeros(len(layout))
    read = size = 0

    def settle() -> None:
        """Divide the bytes of the body that was read; where no entry is sent, by the entries it covers."""
        weights = speaking if speaking.any() else covered
        if size:
            np.add(found, size * weights / weights.sum(), out=found)

    for piece in read_body(reader, payload.codec, payload.n, 0, dtype):
        at = len(payload.body) - len(reader.rest) - reader.tables
        if at > read:  # the first piece of another body
            settle()
            read, size = at, at - read
            speaking[:] = covered[:] = 0
        inside = _overlap(edges, piece)
        covered += inside
        speaking += inside if piece.indices is None else _speaking(edges, piece)
        if said is not None:
            target = said[piece.start : piece.stop]
            if piece.indices is None:
                target += piece.values
            else:
                target[piece.indices] += piece.values
    settle()
    return found.tolist(), len(payload) - float(found.sum())


def _overlap(edges: npt.NDArray[np.intp], piece: Piece) -> Counts:
    """The number of entries of each layer that lie in a piece."""
    return np.diff(np.clip(edges, piece.start, piece.stop)).astype(np.float64)


def _speaking(edges: npt.NDArray[np.intp], piece: Piece) -> Counts:
    """The number of entries of each layer that are sent in a piece; its indices ascend."""
    assert piece.indices is not None
    return np.diff(np.searchsorted(piece.indices, edges - piece.start)).astype(np.float64)


class Probe:
    """Looks at one rank's messages when it is told to, and keeps the last figures.

    Args:
        ledger: the rank's ledger; the seconds of looking are kept out of its activities.
        layout: the model's layers.
        closely: whether to look at each layer, or only at what all layers together leave unsaid.
    """

    def __init__(self, ledger: Ledger, layout: Layout, closely: bool) -> None:
        self.ledger, self.layout, self.closely = ledger, layout, closely and bool(layout)
        self._unsaid: dict[str, float] = {}
        self._awaited: set[str] = set()
        self._contraction: dict[str, Any] | None = None
        self._model: dict[str, float | None] | None = None
        self._bytes, self._frames, self._messages = np.zeros(len(layout)), 0.0, 0

    def state(self) -> dict[str, Any]:
        """The figures so far, as plain data for a checkpoint."""
        return {
            "unsaid": dict(self._unsaid),
            "contraction": self._contraction,
            "model": self._model,
            "bytes": self._bytes.copy(),
            "frames": self._frames,
            "messages": self._messages,
            "awaited": sorted(self._awaited),
        }

    def restore(self, saved: dict[str, Any], node: Node) -> None:
        """Take up the figures of a checkpoint."""
        self._look(node, saved["awaited"])
        self._unsaid, self._contraction = dict(saved["unsaid"]), saved["contraction"]
        self._model = saved.get("model")  # of a checkpoint that has it
        self._bytes[:] = saved["bytes"]
        self._frames, self._messages = saved["frames"], saved["messages"]

    def look(self, node: Node) -> None:
        """Look at the next message that this rank sends each way, however many it skips before that."""
        self._look(node, ("up", "down"))

    def _look(self, node: Node, ways: Sequence[str]) -> None:
        senders = {
            "up": node.worker.sender,
            "down": None if node.coordinator is None else node.coordinator.sender,
        }
        alone = not node.algorithm.meeting.claims.waits
        for way in ways:
            sender = senders[way]
            if way == "down" and sender is not None and alone and sender.memory.claims.per_receiver:
                continue  # each worker that does not wait is told by a sender of its own, made from this one
            if sender is not None:
                sender.watch = functools.partial(self._see, way, sender)
                self._awaited.add(way)

    def _see(self, way: str, sender: Sender, draft: Draft) -> None:
        sender.watch = None
        self._awaited.discard(way)
        with self.ledger.apart():
            remembers = draft.total.y is not None
            if self.closely and way == "up":
                said = np.zeros_like(draft.total.x)
                layers, frame = layer_bytes(draft.payload, self.layout, said)
                self._bytes += layers
                self._frames += frame
                self._messages += 1
                target, rest = _target_and_rest(draft, said)
                self._contraction = _contraction(target, rest, self.layout)
            elif remembers:
                rest = _rest(draft)
            if way == "down" and not _is_exact(sender):
                rest = rest if remembers else _difference(draft)
                self._model = {"norm": math.sqrt(_square(rest)), "allowed": _allowed(sender, draft)}
            self._unsaid[way] = math.sqrt(_square(rest)) if remembers else 0.0

    def report(self) -> dict[str, Any]:
        """The figures, as plain data for `combine`."""
        found: dict[str, Any] = {"unsaid": self._unsaid}
        if self._model is not None:
            found["model_error"] = self._model
        if self._messages:
            names = [layer.name for layer in self.layout]
            mean = self._bytes / self._messages
            found["contraction"] = self._contraction
            found["layer_bytes"] = {
                "messages": self._messages,
                "frame": self._frames / self._messages,
                "layers": dict(zip(names, mean.tolist(), strict=True)),
            }
        return found


def combine(reports: Sequence[dict[str, Any]], divided: bool = False) -> dict[str, Any]:
    """The figures of the ranks, in rank order, as fields of a line of the history; missing ones are left out.

    ``error_memory``: ‖u − C(u)‖ of the last message that was looked at, where u = v + m is the sum of the
    report v and the memory m. With error feedback it is the norm of the memory, and it is 0 where nothing is
    remembered. Up it is the mean over the workers. Down it is that of all stretches together, where ranks
    coordinate a stretch each (``divided``).

    ``contraction``: γ = 1 − ‖u − C(u)‖²/‖u‖² of the first worker's last message, for ``all`` its entries and
    by ``layers``; null where u is zero. Basu et al., 2019, demand such a γ of C in expectation.

    ``model_error``: the ``norm`` ‖x − Q(x)‖ of the last answer that was looked at, x being the coordinator's
    model and Q(x) what the workers make of the answer, and what its condition ``allowed``, if it has one: the
    root of μ‖x − x̃‖² with memory snapshot (Yu et al., 2019, eqs. 2 and 4: they bound the square's mean).

    ``layer_bytes``: for the first worker's ``messages`` that were looked at, the mean of the wire bytes of a
    message by ``layers``, and of its ``frame``, whose bytes belong to no layer; see `layer_bytes`.
    """
    ups = [report["unsaid"]["up"] for report in reports if "up" in report["unsaid"]]
    downs = [report["unsaid"]["down"] for report in reports if "down" in report["unsaid"]]
    found: dict[str, Any] = {}
    if ups or downs:
        mean = sum(ups) / len(ups) if ups else None
        down = math.hypot(*downs) if divided else next(iter(downs), None)
        found["error_memory"] = {"up": mean, "down": down}
    told = [report["model_error"] for report in reports if "model_error" in report]
    if told:
        # Stretches of the model, where ranks coordinate one each, are the whole together.
        whole = [each["norm"] for each in (told if divided else told[:1])]
        found["model_error"] = {**told[0], "norm": math.hypot(*whole)}
    for name in ("contraction", "layer_bytes"):
        seen = [report[name] for report in reports if name in report]
        if seen:
            found[name] = seen[0]
    return found


def _rest(draft: Draft) -> Vector:
    """The vector that a message with a memory leaves unsaid, computed with kernels that every run needs."""
    total = draft.total
    assert total.out is not None
    if total.rest:
        return total.out
    return np.subtract(total.out, accumulate_into(draft.payload, np.zeros_like(total.out)))


def _difference(draft: Draft) -> Vector:
    """As `_rest`, of a message that stands for itself."""
    return np.subtract(draft.total.x, accumulate_into(draft.payload, np.zeros_like(draft.total.x)))


def _is_exact(sender: Sender) -> bool:
    """Whether what is heard is what was said."""
    memory = sender.memory.claims
    return memory.exact or (sender.compressor.claims.lossless and not memory.remembers)


def _allowed(sender: Sender, draft: Draft) -> float | None:
    """How large the error of a message may be, as a norm; None where nothing limits it."""
    if not sender.memory.claims.needs_precision:
        return None
    return math.sqrt(sender.memory.tolerance(sender.state, draft.total.x))


def _target_and_rest(draft: Draft, said: Vector) -> tuple[Vector, Vector]:
    """The vectors u and u − C(u), given C(u); where a sum has only its rest left, u is computed from both."""
    total = draft.total
    if total.y is not None and total.out is not None:
        if total.rest:
            return np.add(total.out, said), total.out
        return total.out, np.subtract(total.out, said)
    return total.x, np.subtract(total.x, said)


def _contraction(target: Vector, rest: Vector, layout: Layout) -> dict[str, Any]:
    def gamma(wrong: float, whole: float) -> float | None:
        return 1 - wrong / whole if whole > 0 else None

    squares = [tuple(_square(each[layer.start : layer.stop]) for each in (rest, target)) for layer in layout]
    return {
        "all": gamma(*(sum(column) for column in zip(*squares, strict=True))),
        "layers": {layer.name: gamma(*pair) for layer, pair in zip(layout, squares, strict=True)},
    }


def _square(x: Vector) -> float:
    """The squared norm ‖x‖², summed in float64."""
    return float(np.square(x, dtype=np.float64).sum())

"""What is computed on a GPU has the bits of the CPU: frames, what is kept of them, and models.

Every test runs on three devices: the CPU, where the code for GPUs is forced; a device that is none
(`away`), where a copy that was forgotten is an error; and a GPU, where there is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from away import AWAY, Away, Pretended  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from qsparse.algorithm import Algorithm  # noqa: E402
from qsparse.compressors import BySize, Compressor, Quantizer, TopK  # noqa: E402
from qsparse.compressors.composed import (  # noqa: E402
    FLOAT32,
    Kept,
    QuantizerClaims,
    Section,
    Selector,
    SelectorClaims,
)
from qsparse.compressors.sums import Sum  # noqa: E402
from qsparse.errors import NotFinite, SettingError  # noqa: E402
from qsparse.exchange import AllGather, Nodes, ParameterServer  # noqa: E402
from qsparse.link import Link, Sender  # noqa: E402
from qsparse.local import SGD  # noqa: E402
from qsparse.meeting import Sync  # noqa: E402
from qsparse.memory import ErrorFeedback, Innovation, Stateless  # noqa: E402
from qsparse.registry import build  # noqa: E402
from qsparse.rounds.node import Node, Pace  # noqa: E402
from qsparse.seeds import Seed  # noqa: E402
from qsparse.torch import attach, tensors  # noqa: E402
from qsparse.torch.device import largest  # noqa: E402
from qsparse.torch.flat import FlatModel  # noqa: E402
from qsparse.torch.tensors import chooses_there, move, node_about  # noqa: E402
from qsparse.triggers import Drift, Every  # noqa: E402
from qsparse.types import Layer  # noqa: E402
from qsparse.wire.base import Wire  # noqa: E402
from qsparse.wire.threads import ThreadWire, run_threads  # noqa: E402

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
DEVICES = ["cpu", "away", pytest.param("cuda", marks=GPU)]
SIZES = [1, 7, 4095, 4096, 4097, 100_003]


@pytest.fixture(params=DEVICES)
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The device that tensors are moved to; the CPU too counts as one then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(tensors, "elsewhere", lambda tensor: True)
    if request.param == "away":
        with Pretended():
            yield AWAY
    else:
        yield torch.device(request.param)
    torch.set_num_threads(threads)


def vector(n: int, kind: str, draw: int = 0, dtype: Any = np.float32) -> np.ndarray:
    rng = np.random.default_rng((n, draw))
    x = np.asarray(rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n), dtype)
    if kind == "ties":
        x = np.round(np.clip(x, -2, 2))
    elif kind == "zeros":
        x = np.where(rng.random(n) < 0.5, np.zeros_like(x), -np.zeros_like(x))
    elif kind == "few":
        x[rng.random(n) < 0.999] = 0
    elif kind == "denormals":
        x = np.asarray(x * np.finfo(dtype).smallest_subnormal * 100, dtype)
        assert n < 100 or 0 < np.abs(x[x != 0]).min() < np.finfo(dtype).tiny
    elif kind == "huge":
        x = np.asarray(np.clip(x, -0.09, 0.09) * np.float32(1e35), dtype)
    return x


KINDS = ["normal", "ties", "zeros", "few", "denormals", "huge"]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Bit for bit, the signs of zeros too."""
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


# --- top-k ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES[1:])
def test_top_k_is_that_of_the_host(there: Any, n: int, kind: str) -> None:
    for dtype in (np.float32, np.float64):
        x = vector(n, kind, dtype=dtype)
        for k in {1, n // 100 + 1, n // 3, n - 1}:
            wanted = TopK(k=k).select(x, Seed(0))
            indices, values = largest(torch.from_numpy(x).to(there).view(1, n), k)
            assert np.array_equal(indices[0].cpu().numpy(), wanted.indices)
            assert same(values[0].cpu().numpy(), wanted.values)


def test_rows_are_looked_at_one_by_one(there: Any) -> None:
    rows = np.stack([vector(300, kind) for kind in KINDS])
    indices, values = largest(torch.from_numpy(rows).to(there), 40)
    for row, found, kept in zip(rows, indices.cpu().numpy(), values.cpu().numpy(), strict=True):
        wanted = TopK(k=40).select(row, Seed(0))
        assert np.array_equal(found, wanted.indices)
        assert same(kept, wanted.values)


# --- senders -------------------------------------------------------------------------------------

#: Links whose reports stay on the device.
SPARSE = [
    "topk(ratio=0.01)",
    "topk(ratio=0.01) >> float32",
    "topk(ratio=0.05) >> sign",
    "topk(ratio=0.3) >> sign(norm=2)",
    "topk(ratio=0.02) >> qsgd(levels=7)",
    "topk(ratio=0.02) >> uniform(bits=3)",
    "topk(ratio=0.1) >> uniform(bits=3, coder='ans')",
    "topk(ratio=0.1) >> float16",
    "blockwise(topk(ratio=0.1) >> sign, size=1000)",
    "blockwise(topk(k=3) >> qsgd, layers=true)",
    "blockwise(blockwise(topk(k=2), size=7) , size=50)",
    "bysize(sign, topk(ratio=0.05) >> sign, limit=500)",
    "a*: topk(ratio=0.05) >> uniform; b: blockwise(sign, size=64); *: float32",
]
#: Links whose reports are copied.
DENSE = [
    "float32",
    "sign",
    "blockwise(sign, size=4096)",
    "qsgd",
    "randk(ratio=0.1)",
    "topk(ratio=1.0) >> sign",
]


def pretended(there: Any) -> AbstractContextManager[object]:
    """Each thread pretends the device by itself."""
    return Pretended() if there is AWAY else nullcontext()


def layout(n: int) -> tuple[Layer, ...]:
    cuts = sorted({0, n // 50, n // 50 + n // 7, n - n // 9, n})
    names = ["bias", "b", "a1", "a2"]
    return tuple(Layer(names[i], start, stop) for i, (start, stop) in enumerate(itertools.pairwise(cuts)))


def senders(link: Link, n: int, there: Any, dtype: Any = np.float32) -> tuple[Sender, Sender]:
    host, twin = (Sender(link, np.zeros(n, dtype), layout(n)) for _ in range(2))
    move(twin, torch.device(there))
    return host, twin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", SPARSE)
def test_frames_and_what_is_kept_have_the_same_bytes(there: Any, text: str, kind: str) -> None:
    memories = [ErrorFeedback(), ErrorFeedback(decay=0.9, reset=(2,)), Stateless()]
    long = kind in ("normal", "ties")
    for n in [1, 7, 120] if "size=7" in text else SIZES if long else SIZES[:-1]:
        for memory in memories if n < 4096 else memories[:1]:
            dtype = np.float64 if n == 4097 else np.float32
            host, sender = senders(Link(build(text, "compressor"), memory), n, there, dtype)
            for t in range(1, 5):
                v = vector(n, kind, t, dtype)
                seed = Seed(5, rank=1, step=t, use="up")
                wanted, draft = host.draft(v, seed), sender.draft(torch.from_numpy(v).to(there), seed)
                assert bytes(draft.payload.frame) == bytes(wanted.payload.frame)
                if t == 3:
                    continue  # skipped: the memory does not move
                host.commit(wanted)
                sender.commit(draft)
                if memory != Stateless():
                    assert same(sender.state["residual"].cpu().numpy(), host.state["residual"])


class Nothing(Selector):
    """Keeps nothing."""

    def select(self, x: np.ndarray, seed: Seed) -> Kept:
        return Kept(np.empty(0, np.intp), x[:0])

    def claims_for(self, n: int) -> SelectorClaims:
        return SelectorClaims(unbiased=False, gamma=None, omega=None, kept=0, index_bits=0)


def test_only_what_speaks_is_copied() -> None:
    n, k = 10_000, 100
    link = Link(build(f"a*: topk(k={k // 2}) >> sign; *: float32", "compressor"), ErrorFeedback())
    _, sender = senders(link, n, "cpu")
    small = sum(layer.size for layer in layout(n) if not layer.name.startswith("a"))
    with Pretended() as pretended:
        sender.state = {"residual": torch.zeros(n).to(AWAY), "since": 0}
        v = torch.from_numpy(vector(n, "normal")).to(AWAY)
        pretended.sent = 0
        sender.commit(sender.draft(v, Seed(0, step=1)))
        # Each index has eight bytes and each value four, and four each of those that are said whole.
        assert pretended.fetched == 12 * k + 4 * small
        assert pretended.sent == 12 * k + 4 * small
        assert isinstance(sender.state["residual"], Away)


@pytest.mark.parametrize(
    ("text", "fetched", "sent"),
    [
        # Indices and values, whatever the number of blocks.
        ("blockwise(topk(k=3), size=10)", 2, 2),
        ("blockwise(topk(k=3) >> qsgd, size=2500)", 2, 2),
        # For each of the two layers with top-k, and the two others as a whole, one after the other.
        ("a*: topk(k=50); *: blockwise(float16, size=4)", 2 * 2 + 2, None),
    ],
)
def test_equal_blocks_are_looked_at_and_copied_together(text: str, fetched: int, sent: int | None) -> None:
    n = 10_000
    host, sender = senders(Link(build(text, "compressor"), ErrorFeedback()), n, "cpu")
    with Pretended() as pretended:
        sender.state = {"residual": torch.zeros(n).to(AWAY), "since": 0}
        for t in (1, 2):
            v, seed = vector(n, "normal", t), Seed(0, step=t)
            report = torch.from_numpy(v).to(AWAY)
            wanted = host.draft(v, seed)
            pretended.copies = 0
            draft = sender.draft(report, seed)
            assert pretended.copies == fetched
            sender.commit(draft)
            assert sent is None or pretended.copies == fetched + sent
            assert bytes(draft.payload.frame) == bytes(wanted.payload.frame)
            host.commit(wanted)
            assert same(sender.state["residual"].cpu().numpy(), host.state["residual"])


@dataclass(frozen=True)
class Looking(Quantizer):
    """A part of somebody's own, which looks at all that a sum of the host has."""

    code: ClassVar[int] = 233

    def encode(self, values: np.ndarray, seed: Seed) -> Section:
        return FLOAT32.encode(values, seed)

    def encode_sum(self, total: Sum, seed: Seed) -> Section:
        total = total._replace(x=np.ascontiguousarray(total.x))
        if total.y is None or total.out is None:
            return self.encode(total.x.astype(np.float32), seed)
        np.add(total.x, total.scale * total.y, out=total.out)
        return self.encode(total.out.astype(np.float32), seed)

    decode = staticmethod(FLOAT32.decode)

    def claims_for(self, k: int) -> QuantizerClaims:
        return FLOAT32.claims_for(k)


@dataclass(frozen=True)
class Greatest(TopK):
    """Keeps the largest, as it claims, and finds them in a way of its own."""

    def select(self, x: np.ndarray, seed: Seed) -> Kept:
        indices = np.sort(np.argsort(-np.abs(x), kind="stable")[: self.count(x.size)])
        return Kept(indices, x[indices])


@pytest.mark.parametrize(
    "part",
    [
        BySize(Looking(), TopK(k=3), limit=500),
        Greatest(k=5) >> Looking(),
        BySize(Greatest(k=5), TopK(k=3), 500),
    ],
)
def test_parts_of_your_own_are_given_a_copy(there: Any, part: Compressor) -> None:
    for kind in ("normal", "ties"):
        host, sender = senders(Link(part, ErrorFeedback()), 4097, there)
        assert chooses_there(sender, Algorithm(SGD(), Every(1), Link(part, ErrorFeedback())), 4097)
        for t in (1, 2, 3):
            v, seed = vector(4097, kind, t), Seed(0, step=t)
            wanted, draft = host.draft(v, seed), sender.draft(torch.from_numpy(v).to(there), seed)
            assert bytes(draft.payload.frame) == bytes(wanted.payload.frame)
            assert same(draft.target, wanted.target)
            host.commit(wanted)
            sender.commit(draft)
            assert same(sender.state["residual"].cpu().numpy(), host.state["residual"])


@pytest.mark.parametrize("kept", [0, 50])
def test_what_is_heard_is_copied_once(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """A message that touches nothing is heard as well."""
    start = vector(5000, "normal")
    down = Link(TopK(k=max(kept, 1)) if kept else Nothing(), Innovation())
    monkeypatch.setattr(tensors, "elsewhere", lambda tensor: isinstance(tensor, Away))
    (wire,) = ThreadWire.group(1)
    with Pretended() as pretended:
        algorithm = Algorithm(SGD(), down=down)
        tensor = torch.from_numpy(start.copy()).to(AWAY)
        node = node_about(tensor, algorithm, ParameterServer(), wire, Seed(0), ())
        tensor -= 1
        pretended.fetched = pretended.sent = 0
        node.synchronize(1)
        assert pretended.fetched == 4 * 5000
        assert pretended.sent == 4 * 5000
        assert np.count_nonzero(tensor.cpu().numpy() != start) == kept


def test_who_is_served() -> None:
    def serves(text: str, memory: Any = ErrorFeedback(), trigger: Any = Every(1)) -> bool:
        link = Link(build(text, "compressor"), memory)
        return chooses_there(
            Sender(link, np.zeros(5000, np.float32), layout(5000)), Algorithm(SGD(), trigger, link), 5000
        )

    assert all(serves(text) for text in SPARSE)
    assert not any(serves(text) for text in DENSE)
    assert serves("topk(k=1)", Stateless())
    assert not serves("topk(k=1)", Innovation())
    assert not serves("topk(k=1)", trigger=Every(1) & Drift(0.1))
    assert not serves("topk(k=5000)")

    class Mine(TopK):
        """Does something else, and does not claim to keep the largest."""

        def claims_for(self, n: int) -> SelectorClaims:
            return replace(super().claims_for(n), largest=False)

    assert not chooses_there(Sender(Link(Mine(k=1)), np.zeros(9)), Algorithm(SGD()), 9)


#: What is reported at one place, or everywhere, and what was kept there.
BAD: list[tuple[float, float, bool]] = [
    (np.nan, 0, False),
    (np.inf, 0, False),
    (-np.inf, 1, False),
    (3e38, 3e38, False),
    (np.nan, np.nan, True),
    (3.4e38, 0, True),
]


@pytest.mark.parametrize(("value", "kept", "everywhere"), BAD)
@pytest.mark.parametrize("text", SPARSE)
def test_what_cannot_be_sent_has_the_sentence_of_the_host(
    there: Any, text: str, value: float, kept: float, everywhere: bool
) -> None:
    """A sentence of the quantizer too, whose scale is beyond float32."""
    n, seed, refused = 1000, Seed(5, rank=1, step=2, use="up"), 0
    for place in (3, 600, 999):
        for memory in (ErrorFeedback(), Stateless()):
            host, sender = senders(Link(build(text, "compressor"), memory), n, there)
            v = vector(n, "normal")
            entries = slice(None) if everywhere else slice(place, place + 1)
            v[entries] = value
            if memory == ErrorFeedback():
                host.state["residual"][entries] = kept
                residual = torch.from_numpy(host.state["residual"].copy())
                sender.state["residual"] = residual.to(there)
            told = []
            for one, report in ((host, v), (sender, torch.from_numpy(v).to(there))):
                try:
                    told.append(bytes(one.draft(report, seed).payload.frame))
                except NotFinite as error:
                    told.append((str(error), error.index))
                    refused += "at rank 1, step 2, in " in str(error)
            assert told[0] == told[1]
    assert refused or (value == 3.4e38 and "qsgd" not in text)


def test_a_draft_is_committed_once(there: Any) -> None:
    _, sender = senders(Link(TopK(k=2), ErrorFeedback()), 9, there)
    v = torch.from_numpy(vector(9, "normal")).to(there)
    before = v.cpu().numpy().copy()
    first, second = sender.draft(v, Seed(0)), sender.draft(v, Seed(0))
    assert bytes(first.payload.frame) == bytes(second.payload.frame)
    with pytest.raises(SettingError, match="another one has been made since"):
        sender.commit(first)
    sender.commit(second)
    with pytest.raises(SettingError, match="committed before"):
        sender.commit(second)
    assert same(v.cpu().numpy(), before)


def test_what_is_kept_does_not_depend_on_who_looks(there: Any) -> None:
    """What is not said is formed once, however often a watch asks for it before the memory moves."""
    kept = []
    for looks in range(3):
        _, sender = senders(Link(TopK(k=2), ErrorFeedback()), 9, there)

        def watch(draft: Any, looks: int = looks) -> None:
            for _ in range(looks):
                assert (draft.rest == 0).sum() == 2

        sender.watch = watch
        for step in range(3):
            v = torch.from_numpy(vector(9, "normal", step)).to(there)
            sender.commit(sender.draft(v, Seed(0)))
        kept.append(sender.state["residual"].cpu().numpy().tobytes())
    assert len(set(kept)) == 1


# --- meetings ------------------------------------------------------------------------------------

MEETINGS: dict[str, Algorithm | str] = {
    "top-k": "qsparse-local-sgd(H=2, compressor=topk(ratio=0.02) >> sign)",
    "dense": "local-sgd(H=2)",
    "blocks": "dist-ef-blocksgd",
    "few down": Algorithm(
        SGD(),
        up=Link(build("topk(ratio=0.02) >> qsgd", "compressor"), ErrorFeedback()),
        down=Link(build("blockwise(topk(ratio=0.03), size=1000)", "compressor"), Innovation()),
    ),
    "many down": Algorithm(SGD(), down=Link(build("topk(ratio=0.5) >> sign", "compressor"), Innovation())),
    "skips": Algorithm(SGD(), Every(2) & Drift(14000.0), up=Link(TopK(ratio=0.1), ErrorFeedback())),
}


def recorded(wire: Wire, frames: list[bytes]) -> None:
    """Keep each frame that is handed to the wire."""
    sent = wire.ledger.count_bytes

    def keep(payload: Any) -> None:
        frames.append(bytes(payload.frame))
        sent(payload)

    wire.ledger.count_bytes = keep  # type: ignore[method-assign]


class Plain:
    """What a node about a tensor does, in NumPy."""

    def __init__(self, node: Node, x: np.ndarray) -> None:
        self.node, self.x, self.anchor = node, x, x.copy()

    def step(self, by: np.ndarray) -> None:
        self.x += by

    def synchronize(self, t: int) -> bytes:
        model = self.node.meet(self.anchor - self.x, t)
        assert model is not None
        if self.node.worker.sent:
            self.x[:] = model
        else:
            self.x += model - self.anchor
        self.anchor[:] = model
        return self.x.tobytes()


class There:
    """A tensor of a device."""

    def __init__(self, node: Node, x: torch.Tensor) -> None:
        self.node, self.x = node, x

    def step(self, by: np.ndarray) -> None:
        self.x += torch.from_numpy(by).to(self.x.device)

    def synchronize(self, t: int) -> bytes:
        self.node.synchronize(t)
        return self.x.cpu().numpy().tobytes()


@pytest.mark.parametrize(
    "exchange",
    [ParameterServer(), AllGather(), Nodes(AllGather(), ranks=2), Nodes(AllGather(), 2, recompress=True)],
)
@pytest.mark.parametrize("name", [*MEETINGS, "few down, forgotten"])
def test_meetings_have_the_same_bits(there: Any, name: str, exchange: Any) -> None:
    """Of a tensor that goes its own way between meetings; its first entries are −0."""
    chosen = MEETINGS.get(name, Algorithm(SGD(), down=Link(TopK(k=50))))
    algorithm: Algorithm = build(chosen, "algorithm") if isinstance(chosen, str) else chosen
    n = 5003

    def plain(wire: Wire, start: np.ndarray) -> Plain:
        node = Node(algorithm, exchange, wire, start, Seed(3), layout(n), wire.ledger, Pace())
        return Plain(node, start.copy())

    def on_device(wire: Wire, start: np.ndarray) -> There:
        x = torch.from_numpy(start.copy()).to(there)
        return There(node_about(x, algorithm, exchange, wire, Seed(3), layout(n), Pace()), x)

    def body(wire: Wire, make: Callable[[Wire, np.ndarray], Plain | There]) -> tuple[list[bytes], int]:
        said: list[bytes] = []
        recorded(wire, said)
        start = vector(n, "normal")
        start[:20] = -0.0
        one = make(wire, start)
        for t in range(1, 9):
            step = vector(n, "ties" if t % 3 else "denormals", 10 * t + wire.rank)
            step[:10] = -0.0
            one.step(step)
            if one.node.due(t):
                said.append(one.synchronize(t))
        return said, wire.ledger.skips

    def ours(wire: Wire) -> Any:
        with pretended(there):
            return body(wire, on_device)

    found = run_threads(2, ours, timeout=60)
    assert found == run_threads(2, lambda wire: body(wire, plain), timeout=60)
    assert (found[0][1] != found[1][1]) == (name == "skips"), "one skips where the other speaks"
    if there.type == "cpu":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensors, "elsewhere", lambda tensor: False)
            assert found == run_threads(2, ours, timeout=60)


@pytest.mark.parametrize("name", ["few down", "many down"])
def test_answers_that_come_later_have_the_same_bits(there: Any, name: str) -> None:
    """And the thread of a round touches nothing on the device, which is pretended in this thread only."""
    row = MEETINGS[name]
    assert isinstance(row, Algorithm)
    row, n = replace(row, trigger=Every(3), meeting=Sync(2)), 5003

    def body(wire: Wire, place: Any) -> list[bytes]:
        start = vector(n, "normal")
        if place is None:
            x: Any = start.copy()
            node = Node(row, AllGather(), wire, start, Seed(3), layout(n), wire.ledger, Pace())
            node.worker.begin(x)
        else:
            x = torch.from_numpy(start.copy()).to(place)
            node = node_about(x, row, AllGather(), wire, Seed(3), layout(n), Pace())
        seen = []
        for t in range(1, 12):
            by = vector(n, "normal", 10 * t + wire.rank)
            x += by if place is None else torch.from_numpy(by).to(place)
            node.stepped(t, t == 11, False, 2)
            seen.append((x if place is None else x.cpu().numpy()).tobytes())
        return seen

    def ours(wire: Wire) -> Any:
        with pretended(there):
            return body(wire, there)

    found = run_threads(2, ours, timeout=60)
    assert found == run_threads(2, lambda wire: body(wire, None), timeout=60)
    assert found[0][-1] == found[1][-1]
    assert found[0][-2] != found[1][-2]


def net(seed: int, dtype: Any = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(60, 50), nn.BatchNorm1d(50), nn.Tanh(), nn.Linear(50, 30))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(np.asarray(rng.normal(size=tuple(p.shape)) * 0.5, np.float32)))
    return model.to(dtype)


def train(wire: Wire, algorithm: Any, place: Any, slope: Callable[..., None], dtype: Any) -> Any:
    """Models, and the frames of nine steps; the learning rate is a power of two, which no hardware rounds."""
    frames: list[bytes] = []
    recorded(wire, frames)
    model = net(wire.rank, dtype).to(place)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    with attach(model, optimizer, algorithm, wire):
        for t in range(9):
            optimizer.zero_grad()
            slope(model, np.random.default_rng((wire.rank, t)), dtype)
            optimizer.step()
    state = [*model.parameters(), *model.buffers()]
    return [tensor.detach().cpu().numpy().tobytes() for tensor in state], frames


def real(model: nn.Module, rng: np.random.Generator, dtype: Any) -> None:
    examples = torch.from_numpy(rng.normal(size=(8, 60))).to(dtype)
    functional.cross_entropy(model(examples), torch.from_numpy(rng.integers(0, 30, 8))).backward()


def noise(model: nn.Module, rng: np.random.Generator, dtype: Any) -> None:
    """Gradients, and statistics, that are the same on all devices, as those of matrix products are not."""
    with torch.no_grad():
        for p in model.parameters():
            p.grad = torch.from_numpy(rng.normal(size=tuple(p.shape))).to(p)
        for b in model.buffers():
            if b.dtype == dtype:
                b.copy_(torch.from_numpy(rng.random(tuple(b.shape))).to(dtype))


@pytest.mark.parametrize("there", ["cpu", pytest.param("cuda", marks=GPU)], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MEETINGS)
def test_attached_loops_have_the_same_bits(there: Any, name: str, dtype: Any) -> None:
    slope = real if there.type == "cpu" else noise
    ours = run_threads(2, lambda wire: train(wire, MEETINGS[name], there, slope, dtype), timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "elsewhere", lambda tensor: False)
        wanted = run_threads(2, lambda wire: train(wire, MEETINGS[name], "cpu", slope, dtype), timeout=60)
    assert ours == wanted
    assert ours[0][0] == ours[1][0]


# --- models on a GPU -----------------------------------------------------------------------------


def test_a_model_lies_on_one_device() -> None:
    model = net(0)
    model.register_buffer("scale", torch.zeros(3, device="meta"))
    with pytest.raises(SettingError, match=r"'scale' is on meta and '0\.weight' on cpu: put the whole model"):
        FlatModel(model)


@GPU
def test_a_model_is_flattened_where_it_lies() -> None:
    model = net(1).cuda()
    flat = FlatModel(model)
    assert flat.values.is_cuda
    assert all(p.is_cuda and p.grad is not None and p.grad.is_cuda for p in model.parameters())
    assert torch.equal(flat.values.cpu(), torch.cat([p.detach().reshape(-1) for p in net(1).parameters()]))
    real_batch = torch.ones(4, 60, device="cuda")
    model(real_batch).sum().backward()
    assert flat.slopes.any()
    flat.values.zero_()
    assert not model.eval()(real_batch).any(), "writing the tensor is writing the model"
    other = net(1).cuda()
    other[3].cpu()
    with pytest.raises(SettingError, match="put the whole model on one device"):
        FlatModel(other)


@GPU
def test_ranks_of_both_kinds_meet() -> None:
    """One on a GPU and one on the CPU: what they say does not tell."""
    places = ["cuda", "cpu"]
    text = MEETINGS["top-k"]
    mixed = run_threads(
        2, lambda wire: train(wire, text, places[wire.rank], noise, torch.float32), timeout=60
    )
    assert mixed == run_threads(2, lambda wire: train(wire, text, "cpu", noise, torch.float32), timeout=60)


@GPU
def test_autocast_to_bfloat16() -> None:
    def body(wire: Wire) -> float:
        model = net(1).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        rng = np.random.default_rng(wire.rank)
        x = torch.from_numpy(np.asarray(rng.normal(size=(64, 60)), np.float32)).cuda()
        y = x[:, :30].argmax(1)
        with attach(model, optimizer, "qsparse-local-sgd(H=2)", wire):
            for _ in range(60):
                optimizer.zero_grad()
                with torch.autocast("cuda", torch.bfloat16):
                    loss = functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
        return float(loss)

    assert max(run_threads(2, body, timeout=120)) < 1.0

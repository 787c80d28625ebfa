"""Examples of parts of every kind, and the laws that all kinds share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from qsparse.algorithm import Algorithm
from qsparse.errors import SettingError, UnknownPart
from qsparse.registry import build, call, find, kinds, parameters, spell
from qsparse.testing.algorithm import Row
from qsparse.testing.base import Broken, hold, law
from qsparse.types import Vector

#: Spellings by kind, beside those of compressors; every registered name occurs in one.
EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "memory": (
        "stateless",
        "errorfeedback",
        "errorfeedback(decay=0.5)",
        "errorfeedback(reset=[1, 3])",
        "innovation",
        "snapshot",
        "snapshot(mu=0.1, accelerated=true)",
        "changes",
    ),
    "trigger": (
        "every",
        "every(H=7)",
        "every(H=[2, 5, 3])",
        "every(H=steps(start=1.0, after=[3, 6], factor=2.0))",
        "randomgap(H=[3, 6])",
        "randomgap(H=cosine(peak=4.0))",
        "randomgap(H=1)",
        "randomgap(H=5)",
        "lazy",
        "lazy(D=3, xi=0.1, patience=2)",
        "lazy(errors=1.5, floor=0.2, rolling=true)",
        "lazy(spread=false)",
        "drift(delta=0.5)",
        "every(H=3) & drift(delta=steps(start=0.5, after=[2]))",
        "every(H=4) | (lazy & drift(delta=0.1))",
    ),
    "participation": (
        "everyone",
        "ask",
        "ask(D=3, xi=0.5, patience=4, smoothness=[1.0, 2.0])",
        "sample(fraction=0.5)",
        "sample(fraction=1.0)",
    ),
    "local": (
        "sgd(lr=0.1)",
        "sgd(lr=0.1, momentum=0.9)",
        "sgd(lr=cosine(peak=0.2, warmup=2), momentum=0.9, nesterov=true, weight_decay=0.001)",
        "adamw(lr=0.01)",
        "adamw(lr=steps(start=0.01, after=[2, 4]), weight_decay=0)",
        "gradient",
        "gradient(momentum=0.9)",
        "gradient(momentum=0.9, nesterov=true)",
        "gradient(whole=true)",
        "sgd(lr=0.1, momentum=0.9, nesterov=true, weight_decay=0.1, decoupled=true)",
        "sgd(lr=0.1, weight_decay=0.1, decay_on=[[1, 2], [4, 7]])",
        "adamw(lr=0.01, decay_on=[[0, 2], [5, 6]])",
        "lasg",
        "lasg(rule=1, refresh=3)",
        "svrg",
    ),
    "schedule": (
        "cosine(peak=0.1)",
        "cosine(peak=0.1, warmup=5, floor=0.001)",
        "cosine(peak=0.1, steps=100, warmup=20)",
        "perworker(rate=0.02, workers=3)",
        "perworker(rate=cosine(peak=0.02), workers=3)",
        "inverse(start=0.1, a=20)",
        "steps(start=0.1, after=[])",
        "steps(start=0.1, after=[10, 500], factor=0.5)",
        "steps(start=0.1, after=[10, 500], warmup=20)",
    ),
    "server": (
        "descend",
        "descend(lr=0.1)",
        "descend(lr=cosine(peak=0.1, warmup=2))",
        "majority(lr=0.001)",
        "majority(lr=steps(start=0.1, after=[2]))",
        "hold",
        "proxsvrg(lr=0.1)",
        "proxsvrg(lr=0.1, l1=0.01, l2=0.1)",
        "accelerated(lr=0.1)",
        "accelerated(lr=cosine(peak=0.1), l1=0.01, l2=0.1)",
    ),
    "exchange": (
        "server",
        "server(root=1)",
        "server(works=false)",
        "server(root=2, works=false)",
        "tree",
        "tree(root=1)",
        "allgather",
        "sharded",
        "nodes(outer=server, ranks=2)",
        "nodes(outer=tree, ranks=[2, 1])",
        "nodes(outer=allgather, ranks=2)",
        "nodes(outer=sharded, ranks=3)",
        "nodes(outer=server, ranks=2, recompress=true)",
        "nodes(outer=server(root=1), ranks=1)",
    ),
    "meeting": (
        "synchronous",
        "synchronous(delay=2)",
        "asynchronous",
        "asynchronous(ahead=0)",
        "asynchronous(ahead=2)",
    ),
    "algorithm": (
        "sgd",
        "sgd(lr=cosine(peak=0.1, warmup=2), momentum=0.9, nesterov=true, weight_decay=0.001)",
        "local-sgd",
        "local-sgd(H=2, momentum=0.9)",
        "topk-sgd",
        "topk-sgd(k=3, lr=cosine(peak=0.1))",
        "ef-signsgd",
        "signtopk-sgd",
        "signtopk-sgd(ratio=0.1, norm=2)",
        "qsgd",
        "qsgd(levels=1)",
        "terngrad",
        "signum-majority",
        "signum-majority(lr=steps(start=0.01, after=[3]), momentum=0)",
        "qsparse-local-sgd",
        "qsparse-local-sgd(H=3, random_gaps=true, compressor=topk(k=4) >> qsgd(levels=4))",
        "qsparse-local-sgd(H=2, compressor=uniform(bits=4), memory=innovation)",
        "qsparse-local-sgd-2way",
        "qsparse-local-sgd-2way(H=3, compressor=topk(k=4) >> qsgd(levels=4), down=uniform(bits=3))",
        "qsparse-local-sgd-async",
        "qsparse-local-sgd-async(H=3, compressor=randk(k=4), ahead=2)",
        "qsparse-local-sgd-async(H=[1, 2, 4])",
        "qsparse-local-sgd(lr=steps(start=0.1, after=[2]), reset_memory=true)",
        "asylpg(inner=2)",
        "asylpg(bits=4, mu=0.1, inner=3, l1=0.001, l2=0.01, ahead=1)",
        "sparse-asylpg(inner=2)",
        "acc-asylpg(inner=2)",
        "asyfpg(inner=2)",
        "acc-asyfpg(inner=2)",
        "qsvrg(inner=2)",
        "gd",
        "qgd",
        "qgd(bits=2)",
        "lag-wk",
        "laq",
        "laq(bits=3, D=4, xi=0.1, patience=3)",
        "laq(published=true, whole=false)",
        "lag-ps",
        "lag-ps(D=2, smoothness=0.5)",
        "slaq",
        "slaq(floor=0.2)",
        "slaq(published=true)",
        "lasg-wk1",
        "lasg-wk1(D=3)",
        "lasg-wk2",
        "dist-ef-sgd",
        "dist-ef-sgd(compressor=qsgd(levels=4))",
        "dist-ef-sgdm",
        "dist-ef-sgdm(weight_decay=0.1)",
        "dist-ef-blocksgd(size=8)",
        "dist-ef-blocksgdm",
        "dist-ef-blocksgdm(bucket=13)",
    ),
    "model": (
        "softmax",
        "logistic",
        "mlp",
        "mlp(200, 100)",
        "cnn",
        "cnn(4, 8, 16)",
        "resnet20",
        "resnet32",
        "resnet10",
        "resnet18",
        "resnet50",
    ),
    "data": (
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "libsvm(path='data/a9a (1).txt')",
        "imagefolder(path='data/imagenet', size=64)",
        "susy",
        "ijcnn1",
        "covtype",
        "rcv1",
        "real-sim",
        "news20",
    ),
    "sharding": ("contiguous", "random", "dirichlet(alpha=0.5)", "dirichlet(100)"),
    "wire": (
        "threads",
        "mpi",
        "simulated",
        "simulated(rate='100mbit', latency=0.01, compute=0.5, encode=0.1, decode=0.2)",
        "simulated(rate=1000000.0, compute='measured')",
    ),
}
#: No part has a setting of this name.
_ABSENT: Final = "no_such_setting"


def kind_of(part: Any) -> str:
    """The kind of a part, a class of parts, an algorithm or a preset function; none for anything else.

    >>> from qsparse.memory import Innovation
    >>> kind_of(Innovation()), kind_of(3)
    ('memory', '')
    """
    if isinstance(part, Algorithm | Row):
        return "algorithm"
    kind = getattr(part, "kind", None)
    if kind in kinds():
        return str(kind)
    preset = getattr(part, "registered_name", None)
    return "algorithm" if preset is not None and callable(part) else ""


def example(text: str, kind: str) -> Any:
    """A new part of one of the `EXAMPLES`."""
    part = build(text, kind)
    return Row(part, _registered(text.partition("(")[0], kind), text) if kind == "algorithm" else part


def row_of(item: Any) -> Row:
    """An algorithm as its laws take it: of a preset function, called with its defaults, or of itself."""
    if isinstance(item, Row):
        return item
    if isinstance(item, Algorithm):
        return Row(item)
    made = item()
    hold(isinstance(made, Algorithm), f"{item.__name__}() makes a {type(made).__name__}, not an Algorithm")
    return Row(made, item, item.registered_name)


@law("text", *EXAMPLES, once=True)
def _text(part: Any, name: str, x: Vector) -> bool:
    """build(spell(part)) == part; the text of a preset makes one algorithm."""
    if isinstance(part, Row):
        if not part.text:
            return False
        again, wanted, text = build(part.text, "algorithm"), part.algorithm, part.text
    else:
        # What is joined of parts spells itself.
        named = hasattr(part, "registered_name") or hasattr(part, "spelling")
        hold(named, 'it has no registered_name: write @register("name") above its class')
        text = spell(part)
        again, wanted = build(text, part.kind), part
    hold(again == wanted, f"build({text!r}) gives {again!r}, not {wanted!r}")
    hold(hash(again) == hash(wanted), f"build({text!r}) is equal, but has another hash")
    return True


@law("settings", *kinds(), once=True)
def _settings(part: Any, name: str, x: Vector) -> bool:
    """Settings are a frozen dataclass that can be hashed and printed."""
    part = part.algorithm if isinstance(part, Row) else part
    hold(dataclasses.is_dataclass(part), f"{type(part).__name__} is no dataclass")
    frozen = type(part).__dataclass_params__.frozen
    hold(frozen, f"{type(part).__name__} is not frozen: write @dataclass(frozen=True)")
    hold(hash(part) == hash(dataclasses.replace(part)), "a copy of it has another hash")
    hold(part == dataclasses.replace(part), "a copy of it is not equal")
    text = repr(part)
    hold(bool(text) and "\n" not in text, f"it is printed as {text!r}")
    return True


@law("unknown setting", *kinds(), once=True)
def _unknown_setting(part: Any, name: str, x: Vector) -> bool:
    """A setting that a part does not have is refused with those that it has."""
    made = part.preset if isinstance(part, Row) else type(part)
    kind = kind_of(part)
    known_as = getattr(made, "registered_name", None)
    if known_as is None or _registered(known_as, kind) is not made:
        return False
    known = parameters(known_as, kind)
    try:
        call(known_as, kind, {_ABSENT: 1})
    except SettingError as error:
        missing = [setting for setting in known if setting not in str(error)]
        hold(not missing, f"the refusal does not name {missing}: {error}")
        hold(_ABSENT in str(error), f"the refusal does not name what is refused: {error}")
    else:
        raise Broken(f"{known_as} accepts a setting {_ABSENT!r}")
    return True


def _registered(name: str, kind: str) -> Callable[..., Any] | None:
    try:
        return find(name, kind)
    except UnknownPart:
        return None

"""What papers call a method, from the options of ``qsparse train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qsparse.algorithm import Algorithm, Async
from qsparse.compressors import QSGD, Blockwise, Compressor, Float32, RandK, Sign, Ternary, TopK
from qsparse.compressors.composed import Composed
from qsparse.errors import QsparseError
from qsparse.link import Link
from qsparse.memory import ErrorFeedback
from qsparse.registry import build, spell

#: Presets that are one method each.
_PAPERS: Final = {
    "signum-majority": "Signum, majority vote",
    "dist-ef-sgd": "dist-EF-SGD",
    "dist-ef-sgdm": "dist-EF-SGDM",
    "dist-ef-blocksgd": "dist-EF-BlockSGD",
    "dist-ef-blocksgdm": "dist-EF-BlockSGDM",
    "gd": "GD",
    "qgd": "QGD",
    "lag-wk": "LAG-WK",
    "lag-ps": "LAG-PS",
    "laq": "LAQ",
    "slaq": "SLAQ",
    "lasg-wk1": "LASG-WK1",
    "lasg-wk2": "LASG-WK2",
    "qsvrg": "QSVRG",
    "asylpg": "AsyLPG",
    "acc-asylpg": "Acc-AsyLPG",
    "sparse-asylpg": "Sparse-AsyLPG",
    "asyfpg": "AsyFPG",
    "acc-asyfpg": "Acc-AsyFPG",
}
#: Presets that differ in compressor, memory and H only, by which they are named.
_FAMILY: Final = (
    "sgd", "local-sgd", "topk-sgd", "signtopk-sgd", "ef-signsgd", "qsgd", "terngrad",
    "qsparse-local-sgd", "qsparse-local-sgd-async",
)  # fmt: skip
#: Options by which runs of one method may differ.
_OF_A_RUN: Final = frozenset(("seed", "data_dir", "threads", "wire", "imports", "name", "repeat"))


def method(options: Mapping[str, Any]) -> str:
    """The name of a run's method: the one it was given, or what the papers call it.

    SGD_4L is SGD with 4 local steps between meetings, SignTopK_8L the signs of the largest entries of 8
    (Basu et al., 2019); per layer or per block is not said.

    >>> method({"algorithm": "qsparse-local-sgd", "compressor": "topk(k=9)", "sync_every": 4})
    'TopK_4L'
    """
    given = options.get("name")
    if given:
        return str(given)
    text = str(options.get("algorithm", "qsparse-local-sgd"))
    preset = text.partition("(")[0].strip()
    compressor = options.get("compressor")
    if preset in _PAPERS:
        return _PAPERS[preset] + (f" with {compressor}" if compressor else "")
    try:
        algorithm = _built(options, preset, text)
    except QsparseError:  # a part of somebody's own, which is not imported here
        return " with ".join(filter(None, [text, compressor]))
    if preset not in _FAMILY:
        return " with ".join(filter(None, [preset, compressor]))
    H = getattr(algorithm.trigger, "H", 1)
    steps = f"_{spell(H) if not isinstance(H, int) else H}L" if H != 1 else ""
    return _said(algorithm.up) + steps + (" async" if isinstance(algorithm.meeting, Async) else "")


def _built(options: Mapping[str, Any], preset: str, text: str) -> Algorithm:
    """The algorithm as far as its name goes: trigger, up link and meeting."""
    settings = text.partition("(")[2].strip().removesuffix(")")
    every = options.get("sync_every")
    gap = None if every is None else f"H={every}"
    algorithm: Algorithm = build(f"{preset}({', '.join(filter(None, [settings, gap]))})", "algorithm")
    up = algorithm.up
    if options.get("compressor"):
        up = replace(up, compressor=build(options["compressor"], "compressor"))
    if options.get("memory"):
        up = replace(up, memory=build(options["memory"], "memory"))
    algorithm = replace(algorithm, up=up)
    for axis in ("trigger", "meeting"):
        if options.get(axis):
            algorithm = replace(algorithm, **{axis: build(options[axis], axis)})
    return algorithm


def _said(link: Link) -> str:
    """The usual name of a compressor and its memory."""
    compressor: Compressor = link.compressor
    while isinstance(compressor, Blockwise):
        compressor = compressor.inner
    remembers = isinstance(link.memory, ErrorFeedback)
    if isinstance(compressor, Float32):
        return "SGD"
    alone: dict[type, tuple[str, str]] = {
        Sign: ("EF-signSGD", "signSGD"),
        QSGD: ("EF-QSGD", "QSGD"),
        Ternary: ("EF-TernGrad", "TernGrad"),
    }
    for kind, names in alone.items():
        if isinstance(compressor, kind):
            return names[not remembers]
    selectors: dict[type, str] = {TopK: "TopK", RandK: "RandK"}
    quantizers: dict[type, str] = {Sign: "Sign", QSGD: "Q", Ternary: "Tern"}
    quantizer, selector = "", compressor
    if isinstance(compressor, Composed):
        quantizer, selector = quantizers.get(type(compressor.quantizer), ""), compressor.selector
    if type(selector) not in selectors or (isinstance(compressor, Composed) and not quantizer):
        return spell(compressor)
    return quantizer + selectors[type(selector)] + ("" if remembers else ", no memory")


def same_method(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What must be equal in runs that are drawn as one method with several seeds."""
    kept = {key: str(value) for key, value in options.items() if key not in _OF_A_RUN}
    return (("method", method(options)), *sorted(kept.items()))


def told_apart(methods: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
    """The labels of different methods: their names, and where these are alike the options that differ."""
    labels = []
    for mine in map(dict, methods):
        others = [other for other in map(dict, methods) if other["method"] == mine["method"]]
        differ = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
        labels.append(", ".join([mine["method"], *(f"{key}={mine[key]}" for key in differ)]))
    return labels

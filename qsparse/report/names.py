"""The name of a method in the papers, found from the options of ``qsparse train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qsparse.algorithm import Algorithm
from qsparse.compressors import Blockwise, Compressor
from qsparse.compressors.composed import Composed
from qsparse.errors import QsparseError
from qsparse.link import Link
from qsparse.registry import AXES, build, call, preset_and_settings, spell
from qsparse.run.config import OPTIONS

#: Presets with one method each, and its name.
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
#: Presets that differ in compressor, memory and H only; the name is made of these.
_FAMILY: Final = (
    "sgd", "local-sgd", "topk-sgd", "signtopk-sgd", "ef-signsgd", "qsgd", "terngrad",
    "qsparse-local-sgd", "qsparse-local-sgd-async", "qsparse-local-sgd-2way",
)  # fmt: skip
#: The axes as names tell of them: those of the up link first, those of the down link last.
_ORDER: Final = sorted(
    AXES, key=lambda axis: (axis not in ("compressor", "memory")) + axis.startswith("down")
)
#: Options by which runs of one method may differ.
_OF_A_RUN: Final = frozenset(name for name, option in OPTIONS.items() if option.repeats)


def method(options: Mapping[str, Any]) -> str:
    """The name of a run's method: the one it was given, or the name in the papers.

    SGD_4L is SGD with 4 local steps between synchronizations, SignTopK_8L sends the signs of the largest
    entries after 8 (Basu et al., 2019). The name does not say whether this is per layer or per block. A
    part that replaces the method's own part is appended, where the name does not already say it; the same
    part with other settings does not make another method.

    >>> method({"algorithm": "qsparse-local-sgd", "compressor": "topk(k=9)", "sync_every": 4})
    'TopK_4L'
    >>> method({"algorithm": "laq", "trigger": "every", "down": "sign"})
    'LAQ with every and sign down'
    """
    given = options.get("name")
    if given:
        return str(given)
    text = str(options.get("algorithm", "qsparse-local-sgd"))
    preset = text.partition("(")[0].strip()
    replaced = {axis: str(options[axis]) for axis in _ORDER if options.get(axis)}
    try:
        algorithm = _preset(options, text)
        parts = {axis: build(spelled, AXES[axis]) for axis, spelled in replaced.items()}
    except QsparseError:  # a part of somebody's own, which is not imported here
        return _with(_PAPERS.get(preset, text), replaced)
    # Another compressor makes another method, even of the same kind; so does another down link.
    for axis in parts.keys() - {"compressor", "down"}:
        if type(parts[axis]) is type(algorithm.part(axis)):
            del replaced[axis]
    if preset not in _FAMILY:
        return _with(_PAPERS.get(preset, preset), replaced)
    return _of_family(algorithm, parts, replaced)


def _of_family(algorithm: Algorithm, parts: Mapping[str, Any], replaced: dict[str, str]) -> str:
    """The name made of compressor, memory, local steps and meeting, then the other replaced parts."""
    up = {axis: part for axis, part in parts.items() if axis in ("compressor", "memory")}
    link = replace(algorithm.up, **up)
    trigger = parts.get("trigger", algorithm.trigger)
    told = {"compressor", "meeting"}
    if _name(trigger) == "every":
        told.add("trigger")
    name, tells_memory = _said(link)
    if tells_memory:
        told.add("memory")
    elif _name(link.memory) not in ("stateless", "errorfeedback"):
        replaced.setdefault("memory", spell(link.memory))
    rest = {axis: replaced[axis] for axis in _ORDER if axis in replaced and axis not in told}
    H = 1 if "trigger" in rest else getattr(trigger, "H", 1)
    steps = f"_{spell(H) if not isinstance(H, int) else H}L" if H != 1 else ""
    meets = "" if parts.get("meeting", algorithm.meeting).claims.waits else " async"
    both = " two-way" if algorithm.down is not None and "down" not in parts else ""
    return _with(name + steps + both + meets, rest)


def _with(name: str, replaced: Mapping[str, str]) -> str:
    """A name, followed by the parts that it does not mention."""
    parts = [part + (" down" if axis.startswith("down") else "") for axis, part in replaced.items()]
    return " with ".join(filter(None, [name, " and ".join(parts)]))


def _preset(options: Mapping[str, Any], text: str) -> Algorithm:
    """The algorithm as it is published, before parts are replaced."""
    name, settings = preset_and_settings(text)
    every = options.get("sync_every")
    gap = {} if every is None else {"H": OPTIONS["sync_every"].taken(every)}
    algorithm: Algorithm = call(name, "algorithm", settings | gap)
    return algorithm


#: What papers call compressors by themselves, with and without error feedback.
_ALONE: Final = {
    "sign": ("EF-signSGD", "signSGD"),
    "qsgd": ("EF-QSGD", "QSGD"),
    "ternary": ("EF-TernGrad", "TernGrad"),
}
#: What they call selectors, and quantizers in front of these.
_SELECTORS: Final = {"topk": "TopK", "randk": "RandK"}
_QUANTIZERS: Final = {"sign": "Sign", "qsgd": "Q", "ternary": "Tern"}


def _name(part: object) -> str:
    """The name that a part was registered by; none of what is joined of parts."""
    return str(getattr(part, "registered_name", ""))


def _said(link: Link) -> tuple[str, bool]:
    """The usual name of a compressor and its memory, and whether it says which memory."""
    compressor: Compressor = link.compressor
    while isinstance(compressor, Blockwise):
        compressor = compressor.inner
    remembers, forgets = (_name(link.memory) == name for name in ("errorfeedback", "stateless"))
    if _name(compressor) == "float32":
        return "SGD", forgets
    if _name(compressor) in _ALONE:
        return _ALONE[_name(compressor)][not remembers], remembers or forgets
    selector, quantizer = compressor, ""
    if isinstance(compressor, Composed):
        selector, quantizer = compressor.selector, _QUANTIZERS.get(_name(compressor.quantizer), "")
        if not quantizer:
            return spell(compressor), False
    if _name(selector) not in _SELECTORS:
        return spell(compressor), False
    name = quantizer + _SELECTORS[_name(selector)]
    return name + (", no memory" if forgets else ""), remembers or forgets


def same_method(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The options that must be equal in runs that are drawn as one method with several seeds."""
    kept = {key: str(value) for key, value in options.items() if key not in _OF_A_RUN}
    return (("method", method(options)), *sorted(kept.items()))


def told_apart(methods: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
    """The labels of different methods: their names, and where these are equal the options that differ."""
    labels = []
    for mine in map(dict, methods):
        others = [other for other in map(dict, methods) if other["method"] == mine["method"]]
        differ = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
        labels.append(", ".join([mine["method"], *(f"{key}={mine[key]}" for key in differ)]))
    return labels

"""Parts by name, and parts as text.

A part is a frozen dataclass registered under a name; its text is its name with the settings that
differ from their defaults, and ``build(spell(part)) == part``. Text uses Python's expression
grammar: ``topk(ratio=0.01) >> sign``; a policy per layer adds patterns,
``"conv*: topk(k=10) >> sign; *: float32"``, and for a data set with a file of one's own a path without
quotes, ``libsvm:data/a9a``. Text is parsed, never evaluated.

Packages add parts through the entry-point group ``qsparse.parts``: each entry names a module whose
import registers them.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import re
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

from qsparse.errors import CompositionError, SettingError, UnknownPart

T = TypeVar("T")

#: Modules whose import registers the built-in parts, by kind.
_HOMES = {
    "compressor": "qsparse.compressors",
    "memory": "qsparse.memory",
    "trigger": "qsparse.triggers",
    "participation": "qsparse.participation",
    "local": "qsparse.local",
    "schedule": "qsparse.schedules",
    "server": "qsparse.server",
    "exchange": "qsparse.exchange",
    "meeting": "qsparse.algorithm",
    "algorithm": "qsparse.presets",
    "model": "qsparse.torch.models",
    "data": "qsparse.data",
    "sharding": "qsparse.data",
    "wire": "qsparse.wire",
}
#: The axes of an algorithm, with the kind of the part on each.
AXES = {
    "local": "local",
    "trigger": "trigger",
    "participation": "participation",
    "compressor": "compressor",
    "memory": "memory",
    "server": "server",
    "down": "compressor",
    "down_memory": "memory",
    "meeting": "meeting",
}
#: Kinds of which no other kind of part is made; parts of the other kinds may be settings of any.
_ALONE = frozenset(("algorithm", "model", "data", "sharding", "wire"))
#: Parts of another kind in earlier releases: what texts of these call them, and their kind now.
_RENAMED = {("trigger", "ask"): "participation"}
_parts: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in _HOMES}
_plugins_loaded = False
#: Why entries of the group could not be loaded, by "name = module".
_failed: dict[str, str] = {}
#: A name, and what it is given as it stands.
_PLAIN = re.compile(r"\s*([A-Za-z][\w-]*)\s*:(.+)", re.DOTALL)
#: How deep parts may lie within each other in a text: everything that walks them calls itself.
_DEEPEST = 50
#: Python 3.11 counts the depth of the trees it makes once for all threads, and raises SystemError where the
#: counts of two mix. Reentrant, because a collection of garbage may run anything between two nodes.
_parsing = threading.RLock()


def kinds() -> tuple[str, ...]:
    """The kinds of parts: those of the design space in its order, then what is trained on what, and where."""
    return tuple(_HOMES)


def register(name: str, kind: str | None = None) -> Callable[[T], T]:
    """Class decorator: make a part known by name; its kind is the class's ``kind`` unless given.

    A function that makes an algorithm also takes settings of the algorithm's parts, as its text does.
    """

    def add(part: Any) -> Any:
        home = _parts[kind or part.kind]
        if home.get(name, part).__qualname__ != part.__qualname__:
            raise CompositionError(f"two parts are named {name!r}: {home[name]!r} and {part!r}")
        home[name] = part
        part.registered_name = name
        return _preset(name, part) if kind == "algorithm" else part

    return add


def _preset(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """A preset as its text has it: its learning rate by place, all else by name, its parts' settings too."""

    @functools.wraps(make)
    def preset(*positional: Any, **settings: Any) -> Any:
        return call(name, "algorithm", settings, positional)

    return preset


def names(kind: str) -> list[str]:
    """The names of all parts of a kind, plug-ins included."""
    _load(kind)
    return sorted(_parts[kind])


def find(name: str, kind: str) -> Callable[..., Any]:
    """The class (or preset function) of a name; UnknownPart with the nearest names otherwise."""
    _load(kind)
    if (kind, name) in _RENAMED:
        return find(name, _RENAMED[kind, name])
    try:
        return _parts[kind][name]
    except KeyError:
        raise _unknown(name, kind, sorted(_parts[kind])) from None


def build(text: str, kind: str) -> Any:
    """Make a part from its text.

    >>> build("topk(k=3) >> sign", "compressor")
    Composed(selector=TopK(k=3, ratio=None), quantizer=Sign(norm=1))
    """
    if kind == "data" and (plain := _PLAIN.fullmatch(text)):
        return call(plain[1], kind, {}, (plain[2],))
    text = text.strip()
    if kind == "compressor" and ":" in text:
        return _build_policy(text)
    return _make(_parsed(text, kind), kind, text)


def settings_in(text: str, kind: str) -> list[str]:
    """The settings that a text which `build` takes gives to its outermost part, by name or by place.

    >>> settings_in("local-sgd(0.1, H=4)", "algorithm")
    ['lr', 'H']
    """
    tree = _parsed(text.strip(), kind)
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)):
        return []
    first = parameters(_name(tree.func.id, kind, text), kind)[: len(tree.args)]
    return first + [word.arg for word in tree.keywords if word.arg is not None]


def preset_and_settings(text: str) -> tuple[str, dict[str, Any]]:
    """The name of a preset and the settings in its brackets, from which `call` makes the algorithm.

    >>> preset_and_settings("local-sgd(0.1, H=4)")
    ('local-sgd', {'lr': 0.1, 'H': 4})
    """
    text = text.strip()
    tree = _parsed(text, "algorithm")
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
        raise SettingError(f"cannot read {_brief(text)} as an algorithm: write name(setting=value, …)")
    positional, settings = _given(call, "algorithm", text)
    name = _name(call.func.id, "algorithm", text)
    return name, _named(name, positional, settings)


def spell(part: Any) -> str:
    """The text of a part, from which `build` makes an equal one."""
    own = getattr(part, "spelling", None)
    if own is not None:
        return str(own())
    settings = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if value != field.default:
            settings.append(f"{field.name}={as_text(value)}")
    name: str = part.registered_name
    return f"{name}({', '.join(settings)})" if settings else name


def call(name: str, kind: str, settings: dict[str, Any], positional: Sequence[Any] = ()) -> Any:
    """Call a registered part with settings; unknown settings are refused with the known ones.

    What the function of an algorithm does not take itself is a setting of the algorithm's parts, which get it
    by `Algorithm.with_`. By place it takes its learning rate alone.
    """
    part = find(name, kind)
    if kind == "algorithm":
        settings, positional = _named(name, positional, settings), ()
    own = _own_parameters(part)
    mine = {key: value for key, value in settings.items() if key in own}
    rest = {key: value for key, value in settings.items() if key not in own}
    if rest and kind != "algorithm":
        raise unknown_setting(f"{_said(kind)} {name}", next(iter(rest)), own)
    try:
        made = part(*positional, **mine)
    except TypeError:
        given = ", ".join([*map(as_text, positional), *(f"{k}={as_text(v)}" for k, v in mine.items())])
        raise SettingError(
            f"{_said(kind)} {name} cannot be made of ({given}): one has the wrong type, is missing or too "
            f"many; it has {', '.join(own) or 'none'}"
        ) from None
    if not rest:
        return made
    known = _with_parts(own, made)
    for key in rest:
        if key not in known:
            raise unknown_setting(f"{_said(kind)} {name}", key, known)
    return made.with_(**rest)


def unknown_setting(owner: str, name: str, known: Sequence[str]) -> SettingError:
    """The refusal of a setting that something does not have, with those that it has."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return SettingError(f"{owner} has no setting {name!r}: {hint}it has {', '.join(known) or 'none'}")


def parameters(name: str, kind: str) -> list[str]:
    """The settings that a part takes; of an algorithm, its own and those of its parts."""
    part = find(name, kind)
    own = _own_parameters(part)
    return _with_parts(own, part()) if kind == "algorithm" else own


def _own_parameters(part: Any) -> list[str]:
    if dataclasses.is_dataclass(part):
        return [field.name for field in dataclasses.fields(part) if field.init]
    code = part.__code__
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def _with_parts(own: Sequence[str], algorithm: Any) -> list[str]:
    """The settings of a preset, the learning rate first."""
    known = dict.fromkeys([*own, *algorithm.settings()])
    return sorted(known, key=lambda name: name != "lr")


def _named(name: str, positional: Sequence[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a preset by their names; as text, parts are those of their axis."""
    if len(positional) > 1:
        raise SettingError(
            f"algorithm {name} takes its learning rate by place, and all else by name: write "
            f"{name}({as_text(positional[0])}, SETTING={as_text(positional[1])})"
        )
    if positional and "lr" in settings:
        raise SettingError(f"algorithm {name} is given its learning rate twice: keep one")
    first = {"lr": positional[0]} if positional else {}
    return first | {
        key: build(value, AXES[key]) if key in AXES and isinstance(value, str) else value
        for key, value in settings.items()
    }


def as_text(value: Any) -> str:
    """The text of a value as a setting has it: a number, a word, a list or a part."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(as_text(item) for item in value) + "]"
    return spell(value)


def _build_policy(text: str) -> Any:
    rules = []
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        pattern, colon, inner = rule.partition(":")
        if not colon or not pattern.strip():
            raise SettingError(f"cannot read {_brief(rule)} in a policy: write PATTERN: COMPRESSOR; …")
        if ":" in inner:
            raise CompositionError(
                f"cannot read {_brief(rule)} in a policy: a policy stands alone; write PATTERN: COMPRESSOR; …"
            )
        rules.append((pattern.strip(), build(inner, "compressor")))
    return find("policy", "compressor")(tuple(rules))


def _parsed(text: str, kind: str) -> ast.expr:
    """The tree of a text."""
    # Some names have dashes, which Python's grammar reads as minus.
    name, bracket, rest = text.partition("(")
    try:
        with _parsing:
            tree = ast.parse(name.replace("-", "_") + bracket + rest, mode="eval").body
    except (SyntaxError, ValueError) as error:
        # ValueError: characters that no text has, such as zero bytes.
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise SettingError(
            f"cannot read {_brief(text)} as {_a(kind)}: {reason}; write name(setting=value, …), "
            "compressors joined by >>"
        ) from None
    except (RecursionError, MemoryError):
        raise _too_deep(text, kind) from None
    if _depth(tree) > _DEEPEST:
        raise _too_deep(text, kind)
    return tree


def _depth(tree: ast.expr) -> int:
    """How deep parts, joints and lists of a text lie within each other."""
    depth = 0
    level: list[ast.AST] = [tree]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _too_deep(text: str, kind: str) -> SettingError:
    return SettingError(
        f"cannot read {_brief(text)} as {_a(kind)}: parts lie more than {_DEEPEST} deep within each other; "
        "write fewer"
    )


def _brief(text: str) -> str:
    """A text for a message, shortened where it is very long."""
    return repr(text if len(text) <= 200 else f"{text[:150]} … {text[-40:]}")


def _make(tree: ast.expr, kind: str, text: str) -> Any:
    if isinstance(tree, ast.BinOp):
        left, right = _make(tree.left, kind, text), _make(tree.right, kind, text)
        try:
            if isinstance(tree.op, ast.RShift):
                return left >> right
            if isinstance(tree.op, ast.BitAnd):
                return left & right
            if isinstance(tree.op, ast.BitOr):
                return left | right
        except TypeError:
            raise CompositionError(
                f"{spell(left)} and {spell(right)} cannot be joined that way in {text!r}: "
                "a selector goes before >>, a quantizer behind it"
            ) from None
        raise SettingError(f"cannot read {text!r}: parts are joined by >>, & or |")
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
        positional, settings = _given(tree, kind, text)
        return call(_name(tree.func.id, kind, text), kind, settings, positional)
    if isinstance(tree, ast.Name):
        return call(_name(tree.id, kind, text), kind, {})
    raise SettingError(f"cannot read {text!r} as {_a(kind)}: write name(setting=value, …)")


def _given(tree: ast.Call, kind: str, text: str) -> tuple[list[Any], dict[str, Any]]:
    """What stands in a part's brackets: values by place, and by name."""
    positional = [_value(argument, kind, text) for argument in tree.args]
    settings: dict[str, Any] = {}
    for word in tree.keywords:
        if word.arg is None:
            raise SettingError(f"cannot read ** in {text!r}: name each setting")
        if word.arg in settings:
            raise SettingError(f"{text!r} gives setting {word.arg} twice: keep one")
        settings[word.arg] = _value(word.value, kind, text)
    return positional, settings


def _name(identifier: str, kind: str, text: str) -> str:
    """The name that an identifier stands for: as it is registered, or as the text has it."""
    known = names(kind)
    alike = [name for name in known if name.replace("-", "_") == identifier]
    if identifier in known:
        return identifier
    if alike:
        return alike[0]
    return identifier if identifier in re.findall(r"\w+", text) else identifier.replace("_", "-")


def _value(tree: ast.expr, kind: str, text: str) -> Any:
    """A setting: a constant, a list, or another part (of this kind, or of any other)."""
    if isinstance(tree, ast.List | ast.Tuple):
        return tuple(_value(item, kind, text) for item in tree.elts)
    if isinstance(tree, ast.Name) and tree.id in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[tree.id]
    if isinstance(tree, ast.Name | ast.Call | ast.BinOp):
        return _make(tree, _kind_of(tree, kind), text)
    try:
        value = ast.literal_eval(tree)
    except (ValueError, TypeError):
        raise SettingError(
            f"cannot read a setting in {text!r}: expected a number, a word or a part"
        ) from None
    return value


def _kind_of(tree: ast.expr, kind: str) -> str:
    while isinstance(tree, ast.BinOp):
        tree = tree.left
    if isinstance(tree, ast.Call):
        tree = tree.func
    name = tree.id if isinstance(tree, ast.Name) else ""
    # No part is made of algorithms, and some have the name of a part.
    for candidate in (kind, *_HOMES):
        alone = candidate in _ALONE and (candidate != kind or kind == "algorithm")
        if not alone and name in names(candidate):
            return candidate
    if kind != "algorithm":
        find(name, kind)
    settings = [candidate for candidate in _HOMES if candidate not in _ALONE]
    raise _unknown(name, "part", sorted({each for candidate in settings for each in names(candidate)}))


def _said(kind: str) -> str:
    """A kind as messages have it."""
    return "data set" if kind == "data" else kind


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {_said(kind)}"


def _unknown(name: str, kind: str, known: list[str]) -> UnknownPart:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    lost = "".join(
        f"; the entry point {entry!r} of qsparse.parts could not be loaded ({reason})"
        for entry, reason in _failed.items()
    )
    return UnknownPart(f"no {_said(kind)} is named {name!r}: {hint}known: {', '.join(known)}{lost}")


def _load(kind: str) -> None:
    global _plugins_loaded
    if kind not in _HOMES:
        raise UnknownPart(f"no kind of part is named {kind!r}: known: {', '.join(_HOMES)}")
    importlib.import_module(_HOMES[kind])
    if not _plugins_loaded:
        _plugins_loaded = True
        for entry in entry_points(group="qsparse.parts"):
            try:
                entry.load()
            except Exception as error:
                # One package that is broken must not hide the parts of others; who misses its parts is told.
                _failed[f"{entry.name} = {entry.value}"] = f"{type(error).__name__}: {error}"

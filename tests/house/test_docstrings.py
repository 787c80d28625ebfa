"""Docstrings of the package: everything public has one, and what it says of settings is the signature."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsparse.kernels import simd_plain

PACKAGE = Path(__file__).resolve().parents[2] / "qsparse"
#: Its functions are those of another file, which tells what they do.
TWIN = PACKAGE / "kernels" / "simd_llvm.py"

Documented = ast.FunctionDef | ast.ClassDef


def documented(tree: ast.AST, inherits: bool = False) -> Iterator[tuple[Documented, bool]]:
    """Public functions, classes and methods, and whether a base class may document them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Documented):
            if node.name.startswith("_"):
                continue
            yield node, inherits
        if isinstance(node, ast.ClassDef):
            yield from documented(node, bool(node.bases))
        elif not isinstance(node, ast.FunctionDef):
            yield from documented(node, inherits)


def signature(node: Documented) -> list[str]:
    """The names of parameters; of a class, of what makes one: ``__init__``, or the fields."""
    if isinstance(node, ast.FunctionDef):
        args = node.args
        names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
        names += [f"*{args.vararg.arg}"] if args.vararg else []
        names += [arg.arg for arg in args.kwonlyargs]
        names += [f"**{args.kwarg.arg}"] if args.kwarg else []
        return [name for name in names if name not in ("self", "cls")]
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return signature(each)
    return [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and "ClassVar" not in ast.unparse(each.annotation)
    ]


def described(text: str) -> list[str] | None:
    """The names under ``Args:``, in their order; None without that section."""
    found = re.search(r"^Args:\n((?: .*\n|\n)+)", text + "\n", re.MULTILINE)
    if found is None:
        return None
    heads = re.findall(r"^    (\S.*?):", found[1], re.MULTILINE)
    return [name.strip() for head in heads for name in head.split(",")]


def faults(path: Path) -> Iterator[str]:
    """What is wrong with the docstrings of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not ast.get_docstring(tree):
        yield "the module has no docstring"
    for node, inherits in documented(tree):
        text = ast.get_docstring(node)
        if text is None:
            if not inherits and path != TWIN:
                yield f"{node.name} has no docstring"
            continue
        first = text.split("\n\n")[0]
        if not first.endswith((".", "…", ":")):
            yield f"{node.name}: the first sentence does not end"
        names = described(text)
        if names is not None and names != signature(node):
            yield f"{node.name}: {names} are described, and the signature is {signature(node)}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_docstrings(path: Path) -> None:
    assert list(faults(path)) == []


def test_the_twin_is_documented() -> None:
    tree = ast.parse(TWIN.read_text(encoding="utf-8"))
    names = {node.name for node, _ in documented(tree) if isinstance(node, ast.FunctionDef)}
    for name in names & set(vars(simd_plain)):
        assert getattr(simd_plain, name).__doc__, name


def test_faults_are_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "def bare(x):\n    pass\n\n\n"
        'def open_ended(x):\n    """Does what it can"""\n\n\n'
        'def told(x, y):\n    """Add.\n\n    Args:\n        y, x: both.\n    """\n\n\n'
        'class Part:\n    """A part.\n\n    Args:\n        k: how many.\n    """\n\n'
        "    k: int\n    n: int = 3\n\n\n"
        'def right(x, *more, **all):\n    """Add.\n\n    Args:\n        x: one.\n        *more: others.\n'
        '        **all: by name.\n    """\n'
    )
    assert list(faults(path)) == [
        "the module has no docstring",
        "bare has no docstring",
        "open_ended: the first sentence does not end",
        "told: ['y', 'x'] are described, and the signature is ['x', 'y']",
        "Part: ['k'] are described, and the signature is ['k', 'n']",
    ]

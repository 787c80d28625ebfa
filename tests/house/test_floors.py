"""Which module may import which: the floors of docs/architecture.md."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2] / "qsparse"

FLOORS = (
    ("errors", "types", "seeds", "wrappers", "_version", "_moved"),
    ("files", "kernels", "modules", "process", "registry", "units"),
    ("data", "payload", "schedules"),
    ("compressors", "ledger", "local", "server"),
    ("memory", "tuning", "wire"),
    ("exchange", "promises", "triggers"),
    ("link", "meeting", "participation"),
    ("algorithm",),
    ("presets", "rules"),
    ("rounds",),
    ("planning",),
    ("allreduce", "run", "testing"),
    ("report", "torch"),
    ("train",),
    ("bench", "reproduce", "sweep"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

#: What must not know what, although the floors would let it: the ideas of the house.
NEVER = (
    ("exchange", "compressors"),  # patterns move frames and never look inside
    ("wire", "compressors"),
    ("memory", "exchange"),
    ("algorithm", "exchange"),  # a description knows no transport
    ("algorithm", "wire"),
    ("triggers", "compressors"),  # a trigger is told figures and vectors, and decodes nothing
    ("data", "torch"),
)

#: Rooms of parts that know nothing of each other, and what these share: the protocol above all. The names of
#: the files of one part begin alike.
SEPARATE = {"wire": ("base", "hub", "waiting"), "exchange": ("base", "notes")}

#: Foreign libraries that enter by one door, and the door.
DOORS = {"numba": "kernels/", "mpi4py": "wire/mpi_world.py", "torch": "torch/"}

MODULES = sorted(path.relative_to(HOUSE).as_posix() for path in HOUSE.rglob("*.py"))


def room_of(module):
    """The room of a file inside qsparse."""
    return module.split("/")[0].removesuffix(".py")


@functools.cache
def imports(module):
    """(imported name, is it inside a function) of a file; what only type checkers read is left out."""
    return tuple(_imports(module))


def _imports(module):
    tree = ast.parse((HOUSE / module).read_text())
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hidden.update(map(id, ast.walk(node)))
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside.update(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for name in node.names:
                yield f"{node.module}.{name.name}", id(node) in inside


def test_every_room_has_a_floor():
    rooms = {room_of(module) for module in MODULES} - {"__init__"}
    assert rooms <= set(FLOOR), f"give {sorted(rooms - set(FLOOR))} a floor"


# The front door shows every room.
@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_a_module_imports_lower_floors_only(module):
    room = room_of(module)
    for name, _ in imports(module):
        if not name.startswith("qsparse."):
            continue
        _, other, *rest = name.split(".")
        if other == "__version__":
            continue
        assert (room, other) not in NEVER, f"{module} imports {name}"
        if other == room:
            part = module.split("/")[-1].removesuffix(".py").split("_")[0]
            allowed = (
                room not in SEPARATE
                or module.endswith(("__init__.py", "collectives.py"))  # these stand on all parts of the room
                or rest[0] in SEPARATE[room]
                or rest[0].split("_")[0] == part
            )
            assert allowed, f"{module} imports {name}: parts of {room} share {SEPARATE[room]} only"
        else:
            assert FLOOR[other] < FLOOR[room], f"{module} (floor {FLOOR[room]}) imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_foreign_libraries_enter_by_one_door(module):
    for name, inside in imports(module):
        library = name.split(".")[0]
        if library in DOORS:
            assert module.startswith(DOORS[library]), f"{module} imports {name}"
            assert inside or library != "mpi4py", f"{module} imports mpi4py outside a function"


def module_of(name):
    """The file that an imported name comes from."""
    words = name.split(".")[1:]
    for path in ("/".join(words), "/".join(words[:-1])):
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in MODULES:
                return file
    return "__init__.py"


def test_no_file_imports_itself_through_others():
    steps = {
        module: {module_of(name) for name, _ in imports(module) if name.startswith("qsparse.")}
        for module in MODULES
    }
    steps["__init__.py"] = set()  # shows everything, and everything passes it
    for module in MODULES:
        seen, ahead = set(), steps[module] - {module}
        while ahead:
            assert module not in ahead, f"{module} imports itself through {sorted(seen)}"
            seen |= ahead
            ahead = {step for at in ahead for step in steps[at]} - seen


def loaded_after(statement):
    """Which of the heavy libraries an import loads, and how many kernels it compiles."""
    script = (
        f"{statement}\nimport sys\n"
        "print(*[name for name in ('numba', 'torch', 'mpi4py') if name in sys.modules])\n"
        "if 'numba' in sys.modules:\n"
        "    import gc\n"
        "    from numba.core.registry import CPUDispatcher\n"
        "    own = [k for k in gc.get_objects() if isinstance(k, CPUDispatcher)]\n"
        "    own = [k for k in own if k.py_func.__module__.startswith('qsparse')]\n"
        "    print(len(own) > 10, sum(len(k.overloads) for k in own))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=HOUSE.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_qsparse_loads_nothing_heavy():
    assert loaded_after("import qsparse") == [""]


def test_importing_the_compressors_compiles_nothing():
    assert loaded_after("import qsparse.compressors") == ["numba", "True 0"]

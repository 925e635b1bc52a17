"""The import law: downwards only, no cycles, and each foreign library in its one home.

Modules are read, not imported; ``.pyx`` files by their import lines. Imports inside functions and under
``if TYPE_CHECKING`` count like any other, for layers and for cycles: two modules that need each other's names are one
idea in two files, however late they look. For the headers of the kernels see tests/kernels/test_headers.py.
"""

import ast
import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "ollama_zmq"

LAYERS = (  # a folder or file may import what stands below it, and itself
    {"server", "cli", "client"},
    {"bus"},
    {"cluster"},
    {"engine"},
    {"convert"},
    {"models", "text", "store"},
    {"devices", "kernels"},
    {"formats", "ops", "wire"},
    {"errors", "config", "log", "units", "packing", "durations", "version", "printable", "host", "variables"},
)
ALLOWED = {  # the exceptions
    ("cli", "client"),  # commands talk to a server through the client
    ("cli", "server"),  # `serve` starts one
    ("devices", "kernels"),  # the registry opens a device
    ("kernels", "devices"),  # which keeps the protocol
}
HOMES = {  # foreign library -> where it may be imported
    "zmq": {"bus"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "cupy": {"kernels.cuda"},
}
BASE_MAY_IMPORT_BASE = LAYERS[-1]


@dataclass(frozen=True)
class Import:
    """One import statement. ``source`` and ``target`` are full module names."""

    source: str
    target: str


def python_imports(module, text, is_package=False):
    """The imports in Python source *text*."""
    return list(_imports(ast.parse(text), module, is_package))


def _imports(tree, module, is_package):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            yield from (Import(module, f"{base}.{name.name}") for name in node.names)


CYTHON_FROM = re.compile(r"^\s*from\s+([\w.]+)\s+c?import\s+(.+)$", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^\s*c?import\s+([\w.]+)", re.MULTILINE)


def cython_imports(module, text):
    """The ``import`` and ``cimport`` lines of Cython source *text*."""
    found = [Import(module, target) for target in CYTHON_IMPORT.findall(text)]
    for base, names in CYTHON_FROM.findall(text):
        imported = re.findall(r"\w+", re.sub(r"\bas\s+\w+|#.*", "", names)) or [""]
        found += [Import(module, f"{base}.{name}".rstrip(".")) for name in imported]
    return found


def all_imports():
    """The imports of every module of the package, and the names of all modules."""
    found, modules = [], set()
    for folder, prefix in ((ROOT / "ollama_zmq", PACKAGE), (ROOT / "kernels", f"{PACKAGE}.kernels")):
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.pyx")]):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join([prefix, *parts]).removesuffix(".__init__")
            modules.add(module)
            text = path.read_text()
            is_package = path.name == "__init__.py"
            found += cython_imports(module, text) if path.suffix == ".pyx" else python_imports(module, text, is_package)
    return found, modules


def part_of(module):
    """``ollama_zmq.engine.pages`` -> ``engine``; None for the package itself and for foreign modules."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 and not parts[1].startswith("__") else None


def layer_of(part):
    return next((i for i, layer in enumerate(LAYERS) if part in layer), None)


def complaints(imports):
    """What the law says against *imports*, one line each."""
    found = []
    for statement in imports:
        source, target = part_of(statement.source), part_of(statement.target)
        library = statement.target.split(".")[0]
        homes = HOMES.get(library, ())
        inside = statement.source.removeprefix(f"{PACKAGE}.")
        if library in HOMES and not any(inside == home or inside.startswith(f"{home}.") for home in homes):
            found.append(f"{statement.source} imports {library}, whose home is {', '.join(homes)}")
        if source is None or target is None or source == target or (source, target) in ALLOWED:
            continue
        above, below = layer_of(source), layer_of(target)
        if above is None or below is None:
            found.append(f"{statement.source} imports {statement.target}: a part without a layer")
        elif not (above < below or (above == below and source in BASE_MAY_IMPORT_BASE)):
            found.append(f"{statement.source} imports {statement.target}: not downwards")
    return sorted(set(found))


def graph_of(imports, modules):
    """Module -> the modules that it imports."""
    graph = {module: set() for module in modules}
    for statement in imports:
        target = statement.target if statement.target in modules else statement.target.rpartition(".")[0]
        if target in modules and target != statement.source and statement.source in modules:
            graph[statement.source].add(target)
    return graph


def cycle_in(graph):
    """Nodes of *graph* (node -> nodes that it needs) that need each other, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_imports_run_downwards_and_libraries_stay_at_home():
    imports, modules = all_imports()
    assert len(modules) > 50
    assert complaints(imports) == []


def test_every_part_has_a_layer():
    _, modules = all_imports()
    assert {part_of(module) for module in modules if part_of(module)} <= set().union(*LAYERS)


def test_no_modules_import_each_other():
    assert cycle_in(graph_of(*all_imports())) is None


WRONG = [
    ("ollama_zmq.engine.pages", "import zmq", "imports zmq, whose home is bus"),
    ("ollama_zmq.cli.serve", "from starlette.applications import Starlette", "imports starlette"),
    ("ollama_zmq.cli.serve", "def serve():\n    import uvicorn", "imports uvicorn"),
    ("ollama_zmq.kernels.cpu.device", "import cupy", "imports cupy, whose home is kernels.cuda"),
    ("ollama_zmq.ops.program", "from ollama_zmq.formats import gguf", "not downwards"),
    ("ollama_zmq.errors", "from ollama_zmq.ops.spec import Op", "not downwards"),
    ("ollama_zmq.cluster.coordinator", "def f():\n    from ollama_zmq.bus import sockets", "not downwards"),
    ("ollama_zmq.models.llama", "import ollama_zmq.text.tokenizer", "not downwards"),
    ("ollama_zmq.engine.engine", "from ..cluster import state", "not downwards"),
    ("ollama_zmq.server.app", "from ollama_zmq.cli import serve", "not downwards"),
    ("ollama_zmq.engine.engine", "from ollama_zmq import cluster", "not downwards"),
    ("ollama_zmq.engine.engine", "from ollama_zmq.utils import things", "without a layer"),
    ("ollama_zmq.units", "if TYPE_CHECKING:\n    from ollama_zmq.bus import sockets", "not downwards"),
    ("ollama_zmq.engine.engine", "try:\n    import zmq\nexcept ImportError:\n    zmq = None", "imports zmq"),
]


@pytest.mark.parametrize(("module", "text", "named"), WRONG)
def test_a_wrong_import_is_refused(module, text, named):
    (complaint,) = complaints(python_imports(module, text))
    assert complaint.startswith(module)
    assert named in complaint


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ollama_zmq.bus.sockets", "import zmq\nfrom ollama_zmq.errors import OpError"),
        ("ollama_zmq.cli.serve", "def serve():\n    from ollama_zmq.server.run import run"),
        ("ollama_zmq.engine.engine", "from ollama_zmq.devices.base import Step\nfrom .pages import Pages"),
    ],
)
def test_a_right_import_is_not(module, text):
    assert complaints(python_imports(module, text)) == []


@pytest.mark.parametrize("line", ["import zmq", "cimport zmq", "from zmq cimport Socket", "from zmq.utils import z85"])
def test_cython_lines_are_read(line):
    (complaint,) = complaints(cython_imports("ollama_zmq.kernels.cpu.program", f"# cython\n{line}  # why\n"))
    assert "imports zmq" in complaint


def test_cython_imports_of_ours_are_read():
    found = cython_imports("ollama_zmq.kernels.cpu.program", "from ollama_zmq.engine.pages import Pages, Page as P\n")
    assert [statement.target for statement in found] == [
        "ollama_zmq.engine.pages.Pages",
        "ollama_zmq.engine.pages.Page",
    ]
    assert len(complaints(found)) == 2


@pytest.mark.parametrize("back", ["import {}", "def f():\n    import {}", "if TYPE_CHECKING:\n    from {} import f"])
def test_a_cycle_is_found_however_late_it_is_closed(back):
    one, two = "ollama_zmq.engine.one", "ollama_zmq.engine.two"
    forth = python_imports(one, f"from {two} import f")
    assert cycle_in(graph_of(forth, {one, two})) is None
    assert cycle_in(graph_of(forth + python_imports(two, back.format(one)), {one, two})) is not None

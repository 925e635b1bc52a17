"""The stubs of the compiled modules say what the modules have: names, and arguments in their order."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "kernels" / "cpu"
MODULES = sorted(path.stem for path in FOLDER.glob("*.pyx"))


def stub_of(module):
    return ast.parse((FOLDER / f"{module}.pyi").read_text()).body


def arguments_of(function):
    given = function.args
    return [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def functions_of(module):
    """(where it is found, name, arguments) of every function and method that a stub names, but constructors."""
    compiled = import_module(f"ollama_zmq.kernels.cpu.{module}")
    for node in stub_of(module):
        if isinstance(node, ast.FunctionDef):
            yield compiled, node.name, arguments_of(node)
        elif isinstance(node, ast.ClassDef) and hasattr(compiled, node.name):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name != "__init__" and not method.decorator_list:
                    yield getattr(compiled, node.name), method.name, arguments_of(method)


def test_every_compiled_module_has_a_stub():
    assert MODULES == sorted(path.stem for path in FOLDER.glob("*.pyi")) != []


@pytest.mark.parametrize("module", MODULES)
def test_a_stub_names_what_the_module_has(module):
    for owner, name, arguments in functions_of(module):
        assert list(inspect.signature(getattr(owner, name)).parameters) == arguments, f"{module}.{name}"


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_has_is_in_its_stub(module):
    compiled = import_module(f"ollama_zmq.kernels.cpu.{module}")
    own = {
        name
        for name, value in vars(compiled).items()
        if not name.startswith("_") and getattr(value, "__module__", compiled.__name__) == compiled.__name__
        if not inspect.ismodule(value)
    }
    named = {node.name for node in stub_of(module) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    named |= {node.target.id for node in stub_of(module) if isinstance(node, ast.AnnAssign)}
    imported = {"RECODING_NAMES"} if module == "lookup" else set()
    assert own - imported <= named

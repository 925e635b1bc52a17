"""One name, one thing: a class name belongs to one class, and what the field has a word for is called by it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TERMS = {  # a word that tells a searcher nothing -> the field's, as docs/glossary.md has it
    "tell": "drain_outputs",
    "told": "emitted",
    "untold": "pending_tokens",
    "said": "proposal",
    "hear": "acknowledge",
    "heard": "acknowledged",
    "fly": "dispatch",
    "door": "authenticator",
    "shelf": "allocator",
    "survey": "snapshot",
    "twins": "identical",
    "bystanders": "unneeded",
    "greet": "start_handshake",
    "doubt": "prior",
    "stretch": "slowdown",
    "broke": "connection_lost, work_failed",
}


def names():
    """(what, file) of every class, function and constant of the package."""
    for folder in ("ollama_zmq", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield node.name, path.relative_to(ROOT)
                elif isinstance(node, ast.Assign):
                    yield from ((t.id, path.relative_to(ROOT)) for t in node.targets if isinstance(t, ast.Name))


def classes():
    """Every class name, once for each class that has it, those of Cython among them."""
    for folder in ("ollama_zmq", "kernels"):
        for path in sorted([*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.pyx")]):
            yield from re.findall(r"^\s*(?:cdef )?class (\w+)", path.read_text(), re.MULTILINE)


def words(name):
    """The words of a name in either spelling."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def test_a_class_name_belongs_to_one_class():
    assert [name for name, n in Counter(classes()).items() if n > 1] == []


def test_what_the_field_has_a_word_for_is_called_by_it():
    wrong = [(name, str(path), TERMS[word]) for name, path in names() for word in words(name) if word in TERMS]
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "found"),
    [("drainOutputs", ["drain", "outputs"]), ("_HTTPServer", ["http", "server"]), ("MAX_S", ["max", "s"])],
)
def test_names_are_read_word_by_word(name, found):
    assert words(name) == found

"""The names of events, with their facts, are those that the program logs."""

import ast
import re
from pathlib import Path

from ollama_zmq import log

ROOT = Path(__file__).parent.parent
LOGS = re.compile(r"log\.(debug|info|warning|error|exception)")


def logged():
    """Event name -> the facts that go with it somewhere; None where they come in a mapping."""
    for folder in ("ollama_zmq", "kernels"):
        for path in sorted(ROOT.joinpath(folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and LOGS.fullmatch(ast.unparse(node.func)):
                    yield node.args[0].value, {keyword.arg for keyword in node.keywords}


def listed():
    """Event name -> facts, of the table in the module."""
    table = log.__doc__.split("\n\n")[1]
    entries = re.findall(r"^    (\w+\.\w+)((?:.|\n {20,})*)", table, re.MULTILINE)
    return {name: set(re.sub(r"\(.*?\)", "", facts).split()) for name, facts in entries}


def test_every_event_is_listed_and_every_listed_one_is_logged():
    assert {name for name, _ in logged()} == listed().keys()


def test_every_fact_of_an_event_is_listed():
    table = listed()
    for name, facts in logged():
        assert facts - {None, "exc_info"} <= table[name], name

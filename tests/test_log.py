"""The names of events, with their facts, are those that the program logs."""

import ast
import io
import logging
import re
from pathlib import Path

import pytest
import structlog

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


def test_what_came_from_elsewhere_does_not_act_on_the_terminal(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    try:
        log.configure()
        try:
            raise ValueError("\x1b[2J")
        except ValueError:
            structlog.get_logger().exception("peer.refused", address="\x1b]0;owned\x07", reason="a\udce9")
    finally:
        structlog.reset_defaults()
    text = written.getvalue()
    assert r"\x1b]0;owned\x07" in text
    assert r"ValueError: \x1b[2J" in text
    assert "a\ufffd" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)


@pytest.mark.parametrize(
    ("text", "debug"),
    [
        ("", False),
        ("0", False),
        ("f", False),
        ("False", False),
        (' "0" ', False),
        ("1", True),
        ("true", True),
        ("2", True),
    ],
)
def test_ollama_debug_is_read_as_every_other_switch(monkeypatch, text, debug):
    monkeypatch.setenv("OLLAMA_DEBUG", text)
    try:
        log.configure()
        assert structlog.get_logger().bind().is_enabled_for(logging.DEBUG) is debug
    finally:
        structlog.reset_defaults()

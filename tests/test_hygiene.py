"""Laws about the tests themselves: events decide, not times, and nothing is downloaded unasked."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SLEEPERS = {  # file -> why it may sleep
    "relay.py": "delays bytes as a cable does: that is what it is for",
    "end_to_end/cluster.py": "asks other processes until something is so; they tell nobody when it is",
}
CLOCKS = {"monotonic", "perf_counter", "time", "process_time"}
MEASURED = {  # tests that a clock decides: only that something took at least so long
    "test_relay.py": "a delay is not shorter than was asked for",
}


def test_tests_do_not_sleep():
    sleeping = {name for name, tree in sources() for node in ast.walk(tree) if is_sleep(node)}
    assert sleeping == set(SLEEPERS)


def test_no_test_fails_because_something_took_long():
    """``assert clock() < deadline`` gives up waiting; a time that was measured is compared nowhere else."""
    timed = {name for name, tree in sources() for node in ast.walk(tree) if is_timed(node)}
    assert timed == set(MEASURED)


def test_what_takes_a_published_file_is_marked(request):
    """The mark is set by the fixtures that a test asks for, so ``-m "not network"`` leaves them out."""
    fetching = {node.name for _, tree in sources() for node in ast.walk(tree) if is_fetching_fixture(node)}
    assert fetching
    items = [item for item in request.session.items if fetching & set(getattr(item, "fixturenames", ()))]
    assert all(item.get_closest_marker("network") for item in items)


def test_a_test_without_the_mark_reaches_no_other_machine():
    with socket.socket() as asker, pytest.raises(RuntimeError, match=r"192\.0\.2\.1: this test is not marked"):
        asker.connect(("192.0.2.1", 80))


def sources():
    """(path below tests/, syntax tree) of every file."""
    for path in sorted(TESTS.rglob("*.py")):
        yield str(path.relative_to(TESTS)), ast.parse(path.read_text())


def called(node):
    """The name of what *node* calls, without its module."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_fetching_fixture(node):
    """Whether *node* is a fixture that returns a file which may have to be fetched."""
    if not isinstance(node, ast.FunctionDef) or not any("fixture" in ast.unparse(one) for one in node.decorator_list):
        return False
    return any(called(inner) == "fetched" for inner in ast.walk(node))


def is_sleep(node):
    """Whether *node* sleeps; ``sleep(0)`` lets others run and takes no time."""
    return called(node) == "sleep" and ast.unparse(node.args[0]) != "0"


def is_timed(node):
    """Whether *node* asserts something of a difference of two times."""
    if not isinstance(node, ast.Assert):
        return False
    return any(
        isinstance(part, ast.BinOp)
        and isinstance(part.op, ast.Sub)
        and any(called(inner) in CLOCKS for inner in ast.walk(part))
        for part in ast.walk(node.test)
    )


@pytest.mark.parametrize(
    ("line", "is_so"),
    [("sleep(1)", True), ("time.sleep(0.1)", True), ("await asyncio.sleep(x)", True), ("asyncio.sleep(0)", False)],
)
def test_sleeping_is_seen(line, is_so):
    assert any(is_sleep(node) for node in ast.walk(ast.parse(line))) == is_so


@pytest.mark.parametrize(
    ("line", "is_so"),
    [("assert time.monotonic() - begun < 1", True), ("assert monotonic() < deadline", False), ("assert a - b", False)],
)
def test_timing_is_seen(line, is_so):
    assert any(is_timed(node) for node in ast.walk(ast.parse(line))) == is_so

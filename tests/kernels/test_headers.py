"""The headers of the kernels: folders by idea, and includes that run one way."""

from __future__ import annotations

import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.kernels.compiled import FLAGS, KERNELS

INCLUDE = KERNELS / "include"
QUOTED = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
HEADERS = {str(path.relative_to(INCLUDE)): path.read_text() for path in INCLUDE.rglob("*.h")}
INCLUDES = {name: QUOTED.findall(text) for name, text in HEADERS.items()}


def test_headers_include_each_other_without_a_circle() -> None:
    TopologicalSorter(INCLUDES).prepare()  # raises CycleError, which names the circle


def test_includes_name_the_folder_of_a_header_that_is_there() -> None:
    sources = {path.name: QUOTED.findall(path.read_text()) for path in KERNELS.glob("*.c")}
    missing = {name: set(named) - set(HEADERS) for name, named in (INCLUDES | sources).items()}
    assert {name: names for name, names in missing.items() if names} == {}


def test_each_header_has_a_guard_of_its_own() -> None:
    """The vocabularies of lanes share one on purpose: an instruction set has one of them."""
    guards = [re.findall(r"^#ifndef (OLLAMA_\w+_H)$", text, re.MULTILINE) for text in HEADERS.values()]
    named = [guard for found in guards for guard in found if guard != "OLLAMA_LANES_H"]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("source", sorted(KERNELS.glob("isa_*.c")), ids=lambda path: path.stem)
def test_checks_of_indices_are_code_that_compiles(source: Path) -> None:
    """A release leaves them out, so only a debug build would see a fault. Files for another machine are empty."""
    command = ["gcc", "-fsyntax-only", "-DOLLAMA_CHECK_INDICES", *FLAGS, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")

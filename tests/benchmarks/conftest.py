"""Benchmarks are scripts: they are imported as they import each other, and run as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a benchmark from another folder and return what it printed."""

    def start(script: str, *arguments: str, python_path: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(FOLDER / script), *arguments]
        env = {**os.environ, **({"PYTHONPATH": str(python_path)} if python_path else {})}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=100)

    return start


@pytest.fixture
def records(run: Run, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run a benchmark, which must succeed, and return the records of its JSON file."""

    def start(script: str, *arguments: str) -> list[dict[str, Any]]:
        done = run(script, *arguments, "--json", "out.json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads((tmp_path / "out.json").read_text())
        return found

    return start

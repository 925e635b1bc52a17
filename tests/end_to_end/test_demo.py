"""``ollama demo`` answers, and leaves nothing running however it ends."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil
import pytest

from ollama_zmq.cli.children import Child, Children
from tests.end_to_end.cluster import until


@pytest.fixture
def kept(children: Children, wide_gguf: Path) -> tuple[Child, list[psutil.Process]]:
    """A demo that has answered and stays, and the processes it has started."""
    child = children.start("demo", "--keep", "--model", str(wide_gguf), "hello")
    child.wait_until(lambda: "until Ctrl-C" in child.output, timeout_s=60)
    started = psutil.Process(child.pid).children(recursive=True)
    assert len(started) == 3
    return child, started


def test_the_demo_answers_over_two_workers_and_ends(children: Children, wide_gguf: Path) -> None:
    child = children.start("demo", "--model", str(wide_gguf), "hello")
    assert child.process.wait(60) == 0, child.output
    first, second = re.findall(r"layers (\d+)-(\d+)", child.output)
    assert (first[0], second[1]) == ("0", "7")
    assert int(second[0]) == int(first[1]) + 1
    assert ">>> hello\n" in child.output
    assert re.search(r"answer: 256 tokens, [\d.]+ tokens/s", child.output)
    assert "PER LAYER" in child.output


def test_as_many_workers_as_asked_for(children: Children, wide_gguf: Path) -> None:
    child = children.start("demo", "--workers", "3", "--model", str(wide_gguf), "hello")
    assert child.process.wait(60) == 0, child.output
    assert len(re.findall(r"layers \d+-\d+", child.output)) == 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_nothing_stays_behind(kept: tuple[Child, list[psutil.Process]], number: signal.Signals, code: int) -> None:
    child, started = kept
    child.process.send_signal(number)
    assert child.process.wait(60) == code
    until(lambda: not any(process.is_running() for process in started))
    assert "Traceback" not in child.output


def test_ctrl_c_in_the_middle_leaves_nothing_behind(children: Children, wide_gguf: Path) -> None:
    child = children.start("demo", "--model", str(wide_gguf), "hello")
    child.wait_until(lambda: ">>> hello" in child.output, timeout_s=60)
    started = psutil.Process(child.pid).children(recursive=True)
    child.process.send_signal(signal.SIGINT)
    assert child.process.wait(60) == 130
    until(lambda: not any(process.is_running() for process in started))
    assert "Traceback" not in child.output


def test_without_network_one_line_says_what_to_do(children: Children, tmp_path: Path) -> None:
    env = {"OLLAMA_MODELS": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
    child = children.start("demo", env=env)
    assert child.process.wait(60) == 1
    assert child.output.startswith("Error: cannot download the demo model: ")
    assert child.output.strip().endswith("give a local file with --model PATH.gguf")
    assert child.output.count("\n") == 1
    assert list(tmp_path.rglob("*sha256*")) == []


def test_a_file_that_is_no_model_is_named(children: Children, tmp_path: Path) -> None:
    path = tmp_path / "letter.gguf"
    path.write_text("Dear model")
    child = children.start("demo", "--model", str(path))
    assert child.process.wait(60) == 1
    assert child.output == "Error: supplied file was not in GGUF format: letter.gguf\n"

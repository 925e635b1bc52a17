"""Every example runs, and prints what it is there to show."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from ollama_zmq.cli.children import Children, free_port
from ollama_zmq.formats.modelfile import decode_modelfile, parse_modelfile
from tests.end_to_end.cluster import DEADLINE_S, Cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN = {
    "chat.py": r"(?s)>>> Name one planet\.\n.*\S.*\n>>> Why did you choose that one\?\n.*\S",
    "where_it_runs.py": r"127\.0\.0\.1:\d+ +layers 0-\d .*compute \d+ us",
    "before_you_load.py": r"\* .*decode +\d+\.\d tokens/s",
    "many_at_once.py": r"silk .*\n\d+ tokens in .*tokens/s together",
}


def run(children: Children, command: list[str], **environment: str) -> str:
    """What *command* prints; it must end well."""
    ours = Path(sys.executable).parent
    child = children.run(command, command[1], {"PATH": f"{ours}:{os.environ['PATH']}", **environment})
    assert child.process.wait(DEADLINE_S) == 0, child.output
    return child.output


@pytest.mark.parametrize("name", SHOWN)
def test_the_example_shows_what_it_says(children: Children, quiet_cluster: Cluster, name: str) -> None:
    host = quiet_cluster.url.removeprefix("http://")
    assert re.search(SHOWN[name], run(children, [sys.executable, str(EXAMPLES / name), "tiny"], OLLAMA_HOST=host))


def test_two_workers_answer_and_nothing_is_left_running(children: Children, models: Path) -> None:
    ports = [str(free_port()) for _ in range(3)]
    settings = {"WORKER_PORTS": " ".join(ports[:2]), "SERVER_PORT": ports[2], "OLLAMA_MODELS": str(models)}
    shown = run(children, ["bash", str(EXAMPLES / "two_workers.sh"), "tiny"], **settings)
    assert re.search(rf"127\.0\.0\.1:{ports[0]} +\d", shown)
    assert re.search(rf"127\.0\.0\.1:{ports[1]} +\d", shown)


def test_the_modelfile_is_one() -> None:
    text = decode_modelfile(EXAMPLES.joinpath("Modelfile").read_bytes())
    assert parse_modelfile(text).sources == ("smollm2:135m",)


def test_no_example_is_left_out() -> None:
    listed = set(re.findall(r"\[`(.+?)`\]", EXAMPLES.joinpath("README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.name != "README.md"}
    assert listed == {*SHOWN, "two_workers.sh", "Modelfile"}

"""The README tells of messages that the program has."""

import ast
import re
from pathlib import Path

import pytest

from ollama_zmq.models.registry import known

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| (`.+?`) \|", re.MULTILINE)
PLACEHOLDER = re.compile(r"…|HOST:PORT")


def messages():
    """The texts in the first column of the table of messages."""
    table = ROOT.joinpath("README.md").read_text().split("## When something goes wrong")[1].split("\n## ")[0]
    return [text for cell in ROW.findall(table) for text in re.findall("`(.+?)`", cell)]


def literals():
    """Every string in the program, those of f-strings without what is put in."""
    for path in ROOT.joinpath("ollama_zmq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "…".join(part.value for part in node.values if isinstance(part, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


LITERALS = list(literals())


@pytest.mark.parametrize("message", messages())
def test_a_message_that_the_readme_explains_is_one_that_the_program_says(message):
    for fragment in PLACEHOLDER.split(message):
        wanted = fragment.strip(" '")
        assert any(wanted in literal for literal in LITERALS), wanted


def test_the_table_of_messages_is_read():
    assert len(messages()) > 22


def test_the_readme_names_every_architecture_and_no_other():
    limits = " ".join(ROOT.joinpath("README.md").read_text().split("## Limits of this version")[1].split())
    listed = re.sub(r"\([^)]*\)", "", limits.split("makers' own code: ")[1].split(". Of models")[0])
    assert {name.strip() for name in listed.split(",")} == set(known())

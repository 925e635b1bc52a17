"""The documents: links lead somewhere, lines fit a screen, and the changelog has a place for what is new."""

import re
from pathlib import Path

import pytest

from ollama_zmq.version import VERSION

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".tox", ".venv", "build", "node_modules", ".git"} & set(path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """The lines of *path* outside of code, tables and links too long to break."""
    is_code = False
    for line in path.read_text(encoding="utf-8").splitlines():
        is_code ^= line.lstrip().startswith("```")
        if not is_code and not line.startswith("|"):
            yield line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file(page):
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_fits_120_columns(page):
    assert [line for line in prose(page) if len(line) > 120] == []


def test_the_changelog_has_a_place_for_what_is_new_and_knows_the_version():
    headings = re.findall(r"^## (\S+)", ROOT.joinpath("CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == VERSION

"""Whoever searches for a term of the field finds it: each stands in the file that the glossary names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| ([^|`]+?) \| [^|]+ \| `([^`|]+)` \|$", re.MULTILINE)
TERMS = ROW.findall(ROOT.joinpath("docs/glossary.md").read_text())


def words(text):
    """*text* in lower case, its words one blank apart, without signs and line ends."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def file_of(place):
    """The file that the glossary calls *place*: below ollama_zmq/, kernels/, or a header by its name."""
    if place.startswith("kernels:"):
        (header,) = ROOT.joinpath("kernels/cpu/include").rglob(place.removeprefix("kernels:"))
        return header
    return ROOT / place if place.startswith("kernels/") else ROOT / "ollama_zmq" / place


@pytest.mark.parametrize(("term", "place"), TERMS, ids=[term for term, _ in TERMS])
def test_the_term_stands_where_the_glossary_says(term, place):
    assert words(term) in words(file_of(place).read_text())


def test_the_glossary_is_read_whole():
    rows = [line for line in ROOT.joinpath("docs/glossary.md").read_text().splitlines() if line.startswith("| ")]
    assert len(TERMS) == len(rows) - rows.count("| term | what it is here | where |")
    assert len({term for term, _ in TERMS}) == len(TERMS)

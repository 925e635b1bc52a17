"""Nothing that comes from elsewhere acts on a terminal, and nothing readable is lost."""

import unicodedata

import pytest

from ollama_zmq.printable import printable_line, printable_text, whole_characters


@pytest.mark.parametrize("clean", [printable_line, printable_text])
def test_no_control_character_is_left(clean):
    every = "".join(map(chr, range(0x110000)))
    left = {character for character in clean(every) if unicodedata.category(character) in ("Cc", "Cs")}
    assert left == ({"\n", "\t"} if clean is printable_text else set())


def test_what_was_sent_can_be_read():
    assert printable_line("\x1b[2J\x07\x9b\u202e\ud83d") == r"\x1b[2J\x07\x9b\u202e" + "\ufffd"
    assert printable_line("a\r\nb\tc") == "a  b c"
    assert printable_line("a\u2028b\u2029c") == r"a\u2028b\u2029c"  # a line is one line
    assert printable_text("a\r\nb\tc\x1b\udce9") == "a\nb\tc\\x1b\ufffd"


@pytest.mark.parametrize(
    "text", ["naïve 日本 👩\u200d👧", "\u062e\u0627\u0646\u0647\u200c\u0647\u0627\u00a0\u200b\ufeff", "שלום\u200f!"]
)
def test_every_language_stays_as_it_was_written(text):
    assert printable_line(text) == printable_text(text) == whole_characters(text) == text


def test_a_line_is_cut_to_its_limit():
    assert printable_line("x" * 500, 500) == "x" * 500
    assert printable_line("x" * 501, 500) == "x" * 499 + "…"


def test_half_characters_become_the_replacement_character():
    assert whole_characters("a\udce9b\ud83d") == "a\ufffdb\ufffd"
    assert whole_characters("\udce9\udce9\ud83d\ude00") == "\ufffd\ufffd😀"
    assert printable_line("\ud83d\ude00") == printable_text("\ud83d\ude00") == "😀"

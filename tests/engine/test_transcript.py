from __future__ import annotations

import pytest

from ollama_zmq.engine.requests import TextChunk
from ollama_zmq.engine.transcript import Transcript
from tests.engine.fakes import END, FakeTokenizer


def transcript(*stops):
    return Transcript(FakeTokenizer(), "r", stops)


def said(text, *token_ids):
    return [TextChunk("r", text, token_ids)]


def test_a_character_goes_out_when_it_is_whole_with_all_its_tokens():
    spoken = transcript()
    first, second, third = "€".encode()
    assert spoken.push(97, None) == said("a", 97)
    assert spoken.push(first, None) == []
    assert spoken.push(second, None) == []
    assert spoken.push(third, None) == said("€", first, second, third)


def test_a_character_that_is_cut_off_is_left_out():
    spoken = transcript()
    spoken.push(0xE2, None)
    assert spoken.finish() == said("", 0xE2)


def test_a_possible_stop_string_is_kept_back_until_it_is_none():
    spoken = transcript("\n\nUser:")
    assert spoken.push(97, None) == said("a", 97)
    assert spoken.push(258, None) == []
    assert spoken.push(259, None) == []
    assert spoken.push(98, None) == said("\n\nUserb", 258, 259, 98)
    assert not spoken.stopped


def test_a_token_whose_text_is_kept_back_waits_for_it():
    spoken = transcript("bc")
    assert spoken.push(98, None) == []
    assert spoken.push(98, None) == said("b", 98)
    assert spoken.push(99, None) == []
    assert (spoken.stopped, spoken.token_ids) == (True, [98])


def test_a_stop_string_across_tokens_is_never_shown_nor_are_its_tokens():
    spoken = transcript("\n\nUser:")
    for token_id in (97, 258, 259, 260):
        spoken.push(token_id, None)
    assert spoken.stopped
    assert spoken.finish() == []
    assert spoken.token_ids == [97]


def test_a_token_that_only_ends_in_a_stop_string_is_shown_in_part():
    spoken = transcript("e")
    assert spoken.push(261, None) == said(" th", 261)
    assert spoken.stopped


def test_the_name_of_a_control_token_stops_and_is_never_shown():
    spoken = transcript("<end>")
    assert spoken.push(97, None) == said("a", 97)
    assert spoken.push(END, None) == []
    assert (spoken.stopped, spoken.finish(), spoken.token_ids) == (True, [], [97])


def test_a_control_token_that_stops_nothing_is_not_shown():
    spoken = transcript("<end>!")
    assert spoken.push(97, None) == said("a", 97)
    assert spoken.push(END, None) == []
    assert spoken.push(98, None) == said("b", END, 98)
    assert not spoken.stopped


def test_what_was_kept_back_goes_out_at_the_end():
    spoken = transcript("stopped")
    assert spoken.push(257, None) == []
    assert spoken.finish() == said("stop", 257)


@pytest.mark.parametrize("stops", [(), ("zzz",)])
def test_a_token_without_text_goes_out_at_the_latest_at_the_end(stops):
    spoken = transcript(*stops)
    assert spoken.push(END, None) == []
    assert spoken.finish() == said("", END)

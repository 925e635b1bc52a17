"""Streaming never shows half a character, and in the end shows what decoding at once shows, but for one cut off."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.text.detokenizer import Detokenizer
from ollama_zmq.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.vocabularies import byte_pairs, sentence_pieces

BYTE_PAIRS = load_tokenizer(byte_pairs())
SENTENCE_PIECES = load_tokenizer(sentence_pieces())
tokenizers = st.sampled_from([BYTE_PAIRS, SENTENCE_PIECES])


def streamed(tokenizer: Tokenizer, token_ids: list[int], *, show_control: bool = False) -> list[str]:
    stream = Detokenizer(tokenizer, continues=False, show_control=show_control)
    return [*map(stream.push, token_ids)]


@given(tokenizer=tokenizers, data=st.data(), show_control=st.booleans())
def test_any_tokens_give_the_text_of_all_at_once(tokenizer: Tokenizer, data: st.DataObject, show_control: bool) -> None:
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    whole = tokenizer.decode(token_ids, show_control=show_control)
    shown = "".join(streamed(tokenizer, token_ids, show_control=show_control))
    assert whole.startswith(shown)
    assert whole.removeprefix(shown) in ("", "\ufffd")


@given(tokenizer=tokenizers, text=st.text())
def test_a_text_is_shown_without_replacement_characters(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "").replace("▁", "")
    parts = streamed(tokenizer, tokenizer.encode(text, add_special=False, parse_special=False))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_an_emoji_appears_with_its_last_byte() -> None:
    bytes_of_emoji = SENTENCE_PIECES.encode("😀", add_special=False, parse_special=False)[1:]
    assert streamed(SENTENCE_PIECES, bytes_of_emoji) == ["", "", "", "😀"]


def test_a_cut_off_character_is_left_out_and_not_part_of_the_next_text() -> None:
    bytes_of_emoji = SENTENCE_PIECES.encode("😀", add_special=False, parse_special=False)[1:]
    stream = Detokenizer(SENTENCE_PIECES)
    assert [*map(stream.push, bytes_of_emoji[:2])] == ["", ""]
    stream.finish()
    assert [*map(stream.push, bytes_of_emoji)] == ["", "", "", "😀"]


def test_bytes_that_no_character_has_are_replaced_as_soon_as_that_is_clear() -> None:
    first, second, *_ = SENTENCE_PIECES.encode("😀", add_special=False, parse_special=False)[1:]
    assert streamed(SENTENCE_PIECES, [first, second, first]) == ["", "", "\ufffd"]


def test_the_space_in_front_stays_when_the_text_continues_a_prompt() -> None:
    token_id = SENTENCE_PIECES.token_id("▁a")
    assert Detokenizer(SENTENCE_PIECES).push(token_id) == " a"
    assert Detokenizer(SENTENCE_PIECES, continues=False).push(token_id) == "a"

"""What is shown to the model and what is left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import RequestError
from ollama_zmq.text.jinja_templates import JinjaTemplate
from ollama_zmq.text.prompts import CUT_TOKENS, conversation, encode_ends, literal, newest_that_fit, render_generate
from ollama_zmq.text.tokenizer import load_tokenizer
from tests.text.vocabularies import byte_pairs

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "own"}
EXAMPLE = {"role": "user", "content": "example"}
SHOW = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"

chats = st.lists(
    st.builds(dict, role=st.sampled_from(["system", "user", "assistant"]), content=st.text("ab", max_size=9)),
    min_size=1,
)


def test_the_systems_words_come_first_unless_the_request_has_its_own() -> None:
    default = {"role": "system", "content": "default"}
    assert conversation([USER], system="default", examples=[EXAMPLE]) == [default, EXAMPLE, USER]
    assert conversation([SYSTEM, USER], system="default", examples=[EXAMPLE]) == [EXAMPLE, SYSTEM, USER]
    assert conversation([USER]) == [USER]


def test_generate_is_a_conversation_of_one_message() -> None:
    assert render_generate(JinjaTemplate(SHOW), prompt="hi", system="be brief") == "s:be brief;u:hi;"
    assert render_generate(JinjaTemplate(SHOW), prompt="hi", examples=[EXAMPLE]) == "u:example;u:hi;"


def test_a_suffix_needs_a_template_that_has_a_place_for_it() -> None:
    with pytest.raises(RequestError, match="insert"):
        render_generate(JinjaTemplate(SHOW), prompt="a", suffix="b")


@given(messages=chats, context=st.integers(0, 60))
def test_only_the_oldest_messages_that_must_go_are_dropped(messages: list[dict[str, str]], context: int) -> None:
    def count(kept):
        return sum(len(message["content"]) + 1 for message in kept)

    def without(n_dropped):
        return [m for m in messages[:n_dropped] if m["role"] == "system"] + messages[n_dropped:]

    fitting = [n for n in range(len(messages)) if count(without(n)) <= context]
    assert newest_that_fit(messages, count, context) == without(min(fitting, default=len(messages) - 1))


@pytest.mark.parametrize("n", [1, 10, 100])
def test_the_ends_of_a_long_text_are_encoded_as_those_of_the_whole(n):
    tokenizer = load_tokenizer(byte_pairs())
    encoded_lengths = []

    def encode(text):
        encoded_lengths.append(len(text))
        return tokenizer.encode(text, add_special=False, parse_special=True)

    text = "".join(f"hi a{i} <|im_end|>" for i in range(20_000))
    whole = encode(text)
    assert encode_ends(encode, text, len(whole)) == (whole, True)
    encoded_lengths.clear()
    found, is_whole = encode_ends(encode, text, n)
    assert not is_whole
    assert (found[:n], found[-n:]) == (whole[:n], whole[-n:])
    assert len(found) > 2 * n
    assert sum(encoded_lengths) < len(text) / 10


@pytest.mark.parametrize("n_markers", range(8))
@pytest.mark.parametrize("n", [1, 30, 100])
def test_no_cut_shows_in_what_matters(n, n_markers):
    """Whatever the length of tokens: the more markers, the fewer tokens in as many letters."""
    tokenizer = load_tokenizer(byte_pairs())

    def encode(text):
        return tokenizer.encode(text, add_special=False, parse_special=True)

    text = ("<|im_end|>" * n_markers + "a") * (20_000 // (10 * n_markers + 1))
    found, whole = encode_ends(encode, text, n)[0], encode(text)
    assert (found[:n], found[-n:]) == (whole[:n], whole[-n:])


@pytest.mark.parametrize("length", [8, 20, 128, 700])
def test_what_is_encoded_of_a_text_depends_on_what_matters_not_on_the_text(length):
    encoded_lengths = []

    def encode(text):
        encoded_lengths.append(len(text))
        return [1] * (len(text) // length)

    for n_characters in (10**7, 10**8):
        encoded_lengths.clear()
        found, is_whole = encode_ends(encode, "a" * n_characters, 50)
        assert (len(found) > 100, is_whole) == (True, False)
        assert sum(encoded_lengths) < 10 * length * (50 + CUT_TOKENS)


def test_a_text_of_few_long_tokens_is_encoded_whole():
    assert encode_ends(lambda text: [1] * (len(text) // 10_000), "a" * 1_000_000, 50) == ([1] * 100, True)


def test_every_text_of_a_message_but_its_role_is_made_literal():
    message = {"role": "user", "content": "a", "images": None, "tool_calls": [{"function": {"name": "b", "n": 1}}]}
    assert literal(message, str.upper) == {
        "role": "user",
        "content": "A",
        "images": None,
        "tool_calls": [{"function": {"name": "B", "n": 1}}],
    }
